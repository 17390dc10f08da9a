"""Check of generative models on avatars: do samples follow the distribution (rule 1), and are they new (rule 2)?

Only valid samples are counted (:mod:`pipelines.validation.checks.avatars.validity`). Rule 1 compares the
frequencies of each attribute's values with the distribution, by a chi-square test of all valid samples, by one of
as many as were observed, and by the total variation:

    total variation = ½ Σ_v |frequency of v − θ_v|          unlike χ² it does not grow with the number of samples

Rule 2 is the share of samples that equal none of the fifty observed avatars, and none of the training images,
compared with samples from the distribution itself; also the share of distinct samples, and the mean
number of attributes in which two of them differ.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from anomaly.core.volume import FloatArray
from anomaly.evaluation.categorical import column_counts
from pipelines.validation.checks.avatars.validity import (
    MAX_MSE,
    MIN_CONFIDENCE,
    Validity,
    assess_validity,
    avatars_of,
)
from pipelines.validation.datasets.avatars import distribution
from pipelines.validation.datasets.avatars.distribution import N_OBSERVED, VALUES, Attributes, combinations_of
from pipelines.validation.labelled_dataset import Labels
from pipelines.validation.model_under_test import CheckResult, ModelUnderTest
from pipelines.validation.report.image_grids import image_grid

MIN_VALID_SAMPLES = N_OBSERVED  # fewer say nothing about the distribution
N_SHOWN, GRID_COLUMNS = 30, 15  # samples in the report


def check_samples(model: ModelUnderTest) -> CheckResult:
    """Measure the avatars that a model samples; see the module's docstring.

    Raises
    ------
    ConfigError
        If the family samples no images, or the dataset is not avatars.
    """
    dataset, pixels = model.dataset, model.samples("avatar_samples")
    found = assess_validity(dataset, pixels)
    codes, seed = found.codes[found.valid], model.settings.seed
    measures = {
        "valid": float(found.valid.mean()),
        "confident_fraction": float((found.confidence >= MIN_CONFIDENCE).mean()),
        "similar_fraction": float((found.mse <= MAX_MSE).mean()),
        "mse_to_drawing": float(found.mse.mean()),
    }
    notes = [f"{len(codes)} of {len(pixels)} samples are valid avatars; the other measures are of these."]
    tables = {}
    if len(codes) >= MIN_VALID_SAMPLES:
        measures |= distribution_measures(codes, seed)
        measures |= novelty_measures(codes, avatars_of(dataset).observed, dataset.train.labels, seed)
        tables["Frequency of each value"] = _frequency_table(codes)
    else:
        notes.append(f"Fewer than {MIN_VALID_SAMPLES} samples cannot be compared with the distribution.")
    return CheckResult(measures, _grids(model, pixels, found), tables, tuple(notes))


def distribution_measures(codes: Labels, seed: int) -> dict[str, float]:
    """Return how far the frequencies of attributes, codes ``(N, 5)``, are from the distribution: rule 1."""
    everything, fifty = (
        distribution.compare(combinations_of(some), (), seed).margins for some in (codes, codes[:N_OBSERVED])
    )
    counts = column_counts(codes, [len(values) for values in VALUES])
    total_variation = {
        name: 0.5 * float(np.abs(count / count.sum() - theta).sum())
        for name, count, theta in zip(Attributes._fields, counts, distribution.theta(), strict=True)
    }
    return {
        "chi_square_p": everything.p_value,
        "chi_square_p_of_50": fifty.p_value,
        "total_variation": max(total_variation.values()),
        **{f"total_variation_{name}": value for name, value in total_variation.items()},
        "impossible_values": everything.impossible / len(codes),
    }


def novelty_measures(codes: Labels, observed: list[Attributes], train: Labels, seed: int) -> dict[str, float]:
    """Return how samples, codes ``(N, 5)``, differ from observed avatars, training images, each other: rule 2."""
    combinations, known = combinations_of(codes), combinations_of(np.unique(train, axis=0))
    to_observed = distribution.compare(combinations, observed, seed)
    to_train = distribution.compare(combinations, known, seed)
    return {
        "novel": to_observed.novel,
        "novel_expected": to_observed.expected_novel,
        "unseen": to_train.novel,
        "unseen_expected": to_train.expected_novel,
        "unseen_ratio": to_train.novel / to_train.expected_novel,
        "distinct": to_train.distinct,
        "distinct_ratio": to_train.distinct / to_train.expected_distinct,
        "attribute_difference": to_train.differing,
        "attribute_difference_ratio": to_train.differing / to_train.expected_differing,
    }


def _frequency_table(codes: Labels) -> list[dict[str, Any]]:
    counts = column_counts(codes, [len(values) for values in VALUES])
    return [
        {"attribute": name, "value": value, "distribution": float(p), "samples": float(k / count.sum())}
        for name, values, count, theta in zip(Attributes._fields, VALUES, counts, distribution.theta(), strict=True)
        for value, k, p in zip(values, count, theta, strict=True)
    ]


def _grids(model: ModelUnderTest, pixels: FloatArray, found: Validity) -> dict[str, bytes]:
    """Return grids of valid and of invalid samples, each above the drawing of what the classifier reads."""
    grids = {}
    for title, chosen in (("Valid samples", found.valid), ("Samples that are no avatar", ~found.valid)):
        some = np.flatnonzero(chosen)[:N_SHOWN]
        if len(some):
            rows = [part[at] for at in np.split(some, range(GRID_COLUMNS, len(some), GRID_COLUMNS))
                    for part in (pixels, found.drawing)]  # fmt: skip
            images = model.dataset.to_display(np.concatenate(rows))
            grids[f"{title}, above the drawing of their attributes"] = image_grid(
                images, min(GRID_COLUMNS, len(some))
            )
    return grids
