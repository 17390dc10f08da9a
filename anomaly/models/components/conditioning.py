"""What is known of a subject as numbers a conditional model can be told. A building block.

    c = (c_1, c_2, …), of each covariate v:
    a number             c = (a, [known]),    a = (v − m) / s
    one of two values    c = (±1, [known])    −1 for 0, 1 for 1
    one of n > 2         c = ([v = 0], [v = 1], … [v = n − 1])

with m and s the mean and SD of v among the training subjects. What is not known is 0 throughout; a number far
outside those of the training subjects counts as the farthest that was near them, and a value that is none of the n
as not known.

Where all training subjects are known, a model learns what to do about an unknown one from covariates that are
withheld from it by chance (:func:`condition_dropout`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from anomaly.core.covariates import AGE_AND_SEX, Covariate, format_covariates
from anomaly.core.errors import InputError, TrainingError
from anomaly.core.image_views import DefinesCovariates, VolumeSource
from anomaly.core.volume import FloatArray

FARTHEST = 3.0  # standard deviations


class Conditioning(nn.Module):
    """Makes c ``(B, size)`` of covariates ``(B, D)``, D of them, NaN where unknown.

    Parameters
    ----------
    covariates
        What each of the D numbers is.

    Attributes
    ----------
    size
        Length of c.
    mean, sd
        m and s ``(D,)``, in the covariate's own unit; ½ where there are two values, which makes ±1 of 0 and 1.
    taught
        ``(size,)`` bool: which numbers of c any training subject gave. What was never known in training, or a value
        that no training subject had, is not passed on: no weight has learnt what to make of it. Nor is which of two
        values it is where all training subjects had the same.
    """

    mean: Tensor
    sd: Tensor
    taught: Tensor

    def __init__(self, covariates: Sequence[Covariate] = AGE_AND_SEX) -> None:
        super().__init__()
        self.covariates = tuple(covariates)
        widths = [_width(covariate) for covariate in self.covariates]
        two_valued = torch.tensor([covariate.values == 2 for covariate in self.covariates])
        self.size = sum(widths)
        self.register_buffer("mean", torch.where(two_valued, 0.5, 0.0))
        self.register_buffer("sd", torch.where(two_valued, 0.5, 1.0))
        self.register_buffer("taught", torch.ones(self.size, dtype=torch.bool))

    def learn(self, train: VolumeSource) -> None:
        """Learn m and s of numbers, and what is taught.

        Raises
        ------
        TrainingError
            If the volumes come with other covariates, with a value that there is not, or nothing is known of any
            training subject.
        """
        known = self._known_of(train)
        taught: list[bool] = []
        for n, covariate in enumerate(self.covariates):
            found = known[~np.isnan(known[:, n]), n]
            if covariate.values > 2:
                taught += [bool((found == value).any()) for value in range(covariate.values)]
                continue
            taught += [np.unique(found).size >= covariate.values and len(found) > 0] * _width(covariate)
            if covariate.values == 0 and len(found):
                self.mean[n] = float(found.mean())
                self.sd[n] = float(found.std()) if np.ptp(found) else 1.0
        self.taught.copy_(torch.tensor(taught))

    def forward(self, covariates: Tensor) -> Tensor:
        """Return c ``(B, size)`` of covariates ``(B, D)``.

        Raises
        ------
        InputError
            If they are not as many as the model is told.
        """
        if covariates.shape[1] != len(self.covariates):
            raise InputError(
                f"found {covariates.shape[1]} covariate(s) of a subject; expected {len(self.covariates)}: "
                f"{format_covariates(self.covariates)}; ask the model about subjects like those it was trained on"
            )
        told = [self._told(n, values) for n, values in enumerate(covariates.float().unbind(1))]
        return torch.cat(told, dim=1) * self.taught

    def unknown(self, n: int) -> Tensor:
        """Return covariates ``(n, D)`` of subjects of whom nothing is known."""
        return torch.full((n, len(self.covariates)), torch.nan, device=self.mean.device)

    def _told(self, n: int, values: Tensor) -> Tensor:
        """Return the part of c that the n-th covariate ``(B,)`` gives."""
        number = self.covariates[n].values
        if number > 2:
            return (values[:, None] == torch.arange(number, device=values.device)).float()
        known = (values == 0) | (values == 1) if number else ~values.isnan()
        standard = ((values.nan_to_num() - self.mean[n]) / self.sd[n]).clamp(-FARTHEST, FARTHEST)
        return torch.stack([standard * known, known.float()], dim=1)

    def _known_of(self, train: VolumeSource) -> FloatArray:
        """Return the covariates ``(N, D)`` of the training subjects, or refuse them."""
        self._refuse_other_covariates(train)
        known = np.stack([train.covariates(index) for index in range(len(train))])
        if np.isnan(known).all():
            names = " nor ".join(covariate.name for covariate in self.covariates)
            raise TrainingError(
                f"found {'neither' if len(self.covariates) > 1 else 'no'} {names} of any of the {len(train)} "
                "training scans; a conditional model needs something to be told: name age (years) and sex (M or F) "
                "in those columns of participants.tsv beside the scans, or of the manifest, and ingest anew; or "
                "train a model that is not told them"
            )
        for n, covariate in enumerate(self.covariates):
            _refuse_other_values(covariate, known[:, n])
        return known

    def _refuse_other_covariates(self, train: VolumeSource) -> None:
        """Refuse volumes that come with other covariates, by what they say of them or by their number alone."""
        if isinstance(train, DefinesCovariates) and train.covariate_definitions != self.covariates:
            found = format_covariates(train.covariate_definitions)
        else:
            lengths = {len(train.covariates(index)) for index in range(len(train))}
            if lengths == {len(self.covariates)}:
                return
            found = " or ".join(map(str, sorted(lengths))) + " number(s) of each subject"
        raise TrainingError(
            f"the model is told {format_covariates(self.covariates)}, but the volumes come with {found}; set "
            "model.covariates to what they come with, in the same order"
        )


def condition_dropout(covariates: Tensor, share: float, rng: torch.Generator) -> Tensor:
    """Return covariates ``(B, D)`` of which each is made unknown with the chance ``share``."""
    chance = torch.rand(covariates.shape, generator=rng, device=covariates.device)
    return covariates.masked_fill(chance < share, torch.nan)


def _width(covariate: Covariate) -> int:
    """Return how many numbers of c a covariate gives."""
    return max(covariate.values, 2)


def _refuse_other_values(covariate: Covariate, values: FloatArray) -> None:
    """Refuse numbers ``(N,)`` of training subjects that are none of a covariate's values."""
    valid = np.isnan(values) | np.isin(values, np.arange(covariate.values))
    if covariate.values and not valid.all():
        scan = int(np.argmin(valid))
        raise TrainingError(
            f"the model is told {covariate}, but training scan {scan + 1} of {len(values)} comes with "
            f"{values[scan]:g}; correct it, or set the values of {covariate.name} in model.covariates"
        )
