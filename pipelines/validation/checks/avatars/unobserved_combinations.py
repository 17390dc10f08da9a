"""Check of naive Bayes of features: it samples combinations of attributes that were never observed."""

from __future__ import annotations

import numpy as np

from pipelines.validation.baselines.naive_bayes_models import FeatureModel
from pipelines.validation.checks.avatars.validity import avatars_of, unsupported
from pipelines.validation.datasets.avatars import distribution
from pipelines.validation.datasets.avatars.distribution import visible
from pipelines.validation.model_under_test import CheckResult, ModelUnderTest
from pipelines.validation.report.image_grids import image_grid

N_COMBINATIONS = 10


def check_unobserved_combinations(model: ModelUnderTest) -> CheckResult:
    """Sample ten different combinations that none of the fifty observed avatars has.

    Raises
    ------
    ConfigError
        If the model is not naive Bayes of features, or the dataset is not avatars.
    """
    detector, avatars = model.detector, avatars_of(model.dataset)
    if not isinstance(detector, FeatureModel):
        raise unsupported(model, "unobserved_combinations", "has no distribution of attributes")
    found = detector.attributes.unobserved(N_COMBINATIONS, avatars.observed, model.settings.seed)
    combinations, observed = [one for one, _ in found], {visible(one) for one in avatars.observed}
    rows = [{**one._asdict(), "probability": p} for one, p in found]
    images = model.dataset.to_display(avatars.image_bank.mosaics(distribution.codes(combinations)))
    return CheckResult(
        {
            "unobserved_fraction": float(np.mean([visible(one) not in observed for one in combinations])),
            "distinct_fraction": len({visible(one) for one in combinations}) / len(combinations),
            "lowest_probability": min(p for _, p in found),
        },
        {"Unobserved combinations": image_grid(images, N_COMBINATIONS)},
        tables={"Combinations that none of the fifty observed avatars has": rows},
    )
