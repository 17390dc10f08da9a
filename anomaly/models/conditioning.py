"""Age and sex as numbers a conditional model can be told, also where they are not known. A building block.

    c = (a, [age known], ±1 for male and female, [sex known]),    a = (age − m) / s

with m and s the mean and SD of the ages of the training subjects. What is not known is 0, beside a flag that says
so; an age far outside those of the training subjects counts as the farthest that was near them.

Where all training subjects are known, a model learns what to do about an unknown one from covariates that are
withheld from it by chance (:func:`withheld`).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from anomaly.core.errors import TrainingError
from anomaly.core.views import VolumeSource

FARTHEST = 3.0  # standard deviations of age
LEAST_SD = 1.0  # years, where all training subjects are of one age


class Conditioning(nn.Module):
    """Standardises covariates ``(B, 2)`` by the ages of the training subjects.

    Attributes
    ----------
    age_mean, age_sd
        m and s, years, scalars.
    taught
        ``(2,)`` bool: whether age, and whether sex, of any training subject was known. What was never known in
        training is not passed on: no weight has learnt what to make of it.
    """

    size = 4
    age_mean: Tensor
    age_sd: Tensor
    taught: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("age_mean", torch.tensor(0.0))
        self.register_buffer("age_sd", torch.tensor(1.0))
        self.register_buffer("taught", torch.ones(2, dtype=torch.bool))

    def learn(self, train: VolumeSource) -> None:
        """Learn m and s.

        Raises
        ------
        TrainingError
            If neither age nor sex of any training subject is known.
        """
        known = np.stack([train.covariates(index) for index in range(len(train))])
        if np.isnan(known).all():
            raise TrainingError(
                f"found neither age nor sex of any of the {len(train)} training scans; a conditional model needs "
                "them: name them in the columns age (years) and sex (M or F) of participants.tsv beside the scans, "
                "or of the manifest, and ingest anew; or train a model that is not told them"
            )
        self.taught.copy_(torch.from_numpy(~np.isnan(known).all(axis=0)))
        ages = known[~np.isnan(known[:, 0]), 0]
        if len(ages):
            self.age_mean.fill_(float(ages.mean()))
            self.age_sd.fill_(max(float(ages.std()), LEAST_SD))

    def forward(self, covariates: Tensor) -> Tensor:
        """Return c ``(B, 4)`` of age in years and sex (0 female, 1 male) ``(B, 2)``, NaN where unknown."""
        known = ~covariates.isnan() & self.taught
        age, sex = covariates.nan_to_num().float().unbind(1)
        standard = ((age - self.age_mean) / self.age_sd).clamp(-FARTHEST, FARTHEST)
        values = torch.stack([standard, 2 * sex - 1], dim=1) * known
        return torch.stack([values, known.float()], dim=2).flatten(1)


def unknown(n: int, device: torch.device | None = None) -> Tensor:
    """Return covariates ``(n, 2)`` of subjects of whom nothing is known."""
    return torch.full((n, 2), torch.nan, device=device)


def withheld(covariates: Tensor, share: float, rng: torch.Generator) -> Tensor:
    """Return covariates ``(B, 2)`` of which each is made unknown with the chance ``share``."""
    chance = torch.rand(covariates.shape, generator=rng, device=covariates.device)
    return covariates.masked_fill(chance < share, torch.nan)
