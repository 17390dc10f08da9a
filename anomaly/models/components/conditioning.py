"""Conditioning on the covariates of a subject, such as age and sex. A building block, not a family.

The condition c is the concatenation of one part per covariate v:

    a number             c = (a, [v is known]),    a = (v − m) / s
    one of two values    c = (±1, [v is known])    −1 for 0, 1 for 1
    one of n > 2         c = ([v = 0], [v = 1], … [v = n − 1])

with m and s the mean and SD of v over the training subjects. An unknown covariate gives 0 throughout. A number is
limited to a few SD from the mean of the training subjects, and a value that is none of the n counts as unknown.

Where the covariates of all training subjects are known, a model learns to deal with unknown ones by condition
dropout: covariates are replaced by unknown at random (:func:`condition_dropout`).
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

MAX_SD = 3.0  # limit of |a|, standard deviations


class Conditioning(nn.Module):
    """Compute the condition c ``(B, size)`` from covariates ``(B, D)``, NaN where unknown.

    Parameters
    ----------
    covariates
        The definition of each of the D covariates.

    Attributes
    ----------
    size
        Length of c.
    mean, sd
        m and s ``(D,)``, in the unit of the covariate; ½ for two values, which maps 0 and 1 to ±1.
    seen_in_training
        ``(size,)`` bool: which numbers of c occurred in training. The others are set to 0, because no weight was
        trained for them: covariates that were never known, values that no training subject had, and a two-valued
        covariate for which all training subjects had the same value.
    """

    mean: Tensor
    sd: Tensor
    seen_in_training: Tensor

    def __init__(self, covariates: Sequence[Covariate] = AGE_AND_SEX) -> None:
        super().__init__()
        self.covariates = tuple(covariates)
        widths = [_width(covariate) for covariate in self.covariates]
        two_valued = torch.tensor([covariate.values == 2 for covariate in self.covariates])
        self.size = sum(widths)
        self.register_buffer("mean", torch.where(two_valued, 0.5, 0.0))
        self.register_buffer("sd", torch.where(two_valued, 0.5, 1.0))
        self.register_buffer("seen_in_training", torch.ones(self.size, dtype=torch.bool))

    def fit(self, train: VolumeSource) -> None:
        """Learn m and s of numbers, and which numbers of c occur in training.

        Raises
        ------
        TrainingError
            If the volumes have other covariates or an invalid value, or if no covariate of any subject is known.
        """
        known = self._known_of(train)
        seen_in_training: list[bool] = []
        for n, covariate in enumerate(self.covariates):
            found = known[~np.isnan(known[:, n]), n]
            if covariate.values > 2:
                seen_in_training += [bool((found == value).any()) for value in range(covariate.values)]
                continue
            seen_in_training += [np.unique(found).size >= covariate.values and len(found) > 0] * _width(covariate)
            if covariate.values == 0 and len(found):
                self.mean[n] = float(found.mean())
                self.sd[n] = float(found.std()) if np.ptp(found) else 1.0
        self.seen_in_training.copy_(torch.tensor(seen_in_training))

    def forward(self, covariates: Tensor) -> Tensor:
        """Return c ``(B, size)`` of covariates ``(B, D)``.

        Raises
        ------
        InputError
            If their number is not D.
        """
        if covariates.shape[1] != len(self.covariates):
            raise InputError(
                f"found {covariates.shape[1]} covariate(s) of a subject; expected {len(self.covariates)}: "
                f"{format_covariates(self.covariates)}; give the covariates that the model was trained with"
            )
        parts = [self._encode(n, values) for n, values in enumerate(covariates.float().unbind(1))]
        return torch.cat(parts, dim=1) * self.seen_in_training

    def unknown(self, n: int) -> Tensor:
        """Return covariates ``(n, D)`` of unknown subjects."""
        return torch.full((n, len(self.covariates)), torch.nan, device=self.mean.device)

    def _encode(self, n: int, values: Tensor) -> Tensor:
        """Return the part of c of the n-th covariate ``(B,)``."""
        n_values = self.covariates[n].values
        if n_values > 2:
            return (values[:, None] == torch.arange(n_values, device=values.device)).float()
        known = (values == 0) | (values == 1) if n_values else ~values.isnan()
        standardised = ((values.nan_to_num() - self.mean[n]) / self.sd[n]).clamp(-MAX_SD, MAX_SD)
        return torch.stack([standardised * known, known.float()], dim=1)

    def _known_of(self, train: VolumeSource) -> FloatArray:
        """Return the covariates ``(N, D)`` of the training subjects, after checking them."""
        self._refuse_other_covariates(train)
        known = np.stack([train.covariates(index) for index in range(len(train))])
        if np.isnan(known).all():
            names = " nor ".join(covariate.name for covariate in self.covariates)
            raise TrainingError(
                f"found {'neither' if len(self.covariates) > 1 else 'no'} {names} of any of the {len(train)} "
                "training scans; a conditional model needs covariates: add columns age (years) and sex (M or F) "
                "to participants.tsv next to the scans, or to the manifest, and ingest again; or train an "
                "unconditional model"
            )
        for n, covariate in enumerate(self.covariates):
            _refuse_other_values(covariate, known[:, n])
        return known

    def _refuse_other_covariates(self, train: VolumeSource) -> None:
        """Refuse volumes with other covariates, by their definition or, without one, by their number."""
        if isinstance(train, DefinesCovariates) and train.covariate_definitions != self.covariates:
            found = format_covariates(train.covariate_definitions)
        else:
            lengths = {len(train.covariates(index)) for index in range(len(train))}
            if lengths == {len(self.covariates)}:
                return
            found = " or ".join(map(str, sorted(lengths))) + " number(s) of each subject"
        raise TrainingError(
            f"the model is conditioned on {format_covariates(self.covariates)}, but the volumes have {found}; set "
            "model.covariates to those of the volumes, in the same order"
        )


def condition_dropout(covariates: Tensor, probability: float, rng: torch.Generator) -> Tensor:
    """Return covariates ``(B, D)`` each replaced by NaN with a given probability."""
    uniform = torch.rand(covariates.shape, generator=rng, device=covariates.device)
    return covariates.masked_fill(uniform < probability, torch.nan)


def _width(covariate: Covariate) -> int:
    """Return the number of elements of c for a covariate."""
    return max(covariate.values, 2)


def _refuse_other_values(covariate: Covariate, values: FloatArray) -> None:
    """Refuse values ``(N,)`` of training subjects that the covariate cannot have."""
    valid = np.isnan(values) | np.isin(values, np.arange(covariate.values))
    if covariate.values and not valid.all():
        scan = int(np.argmin(valid))
        raise TrainingError(
            f"the model is conditioned on {covariate}, but training scan {scan + 1} of {len(values)} has "
            f"{values[scan]:g}; correct it, or set the values of {covariate.name} in model.covariates"
        )
