"""Check of conditional models on avatars: is the condition followed, and does one changed attribute change alone?

The model samples images of attributes drawn from the distribution. Then one attribute of each condition is changed
to another value, also drawn from the distribution, and the image is sampled again from the same latent code: this
attribute must change as the condition says, and the others must stay.

    off-target change = √(mean (x' − x)² where the two drawings agree / mean (x' − x)² where they differ)
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from anomaly.core.volume import FloatArray
from pipelines.validation.checks.avatars.validity import (
    assess_validity,
    avatars_of,
    equal_attributes,
    unsupported,
)
from pipelines.validation.datasets.avatars import distribution
from pipelines.validation.datasets.avatars.dataset import ATTRIBUTE_VALUES, Avatars
from pipelines.validation.datasets.avatars.image_bank import HAIR_COLOR, hide_invisible
from pipelines.validation.labelled_dataset import NOT_VISIBLE, Labels
from pipelines.validation.model_under_test import CheckResult, ModelUnderTest
from pipelines.validation.report.image_grids import image_grid
from pipelines.validation.sampling import is_conditional, sample_conditions

MAX_CONDITIONS = 500
RNG_STREAM = 4  # number of the random stream of the latent codes
MIN_PIXEL_DIFFERENCE = 0.02  # difference of two drawings that counts, pixels 0 to 1
N_SHOWN = 6


class Change(NamedTuple):
    """Conditions before and after one attribute changed, ``(N, 5)`` each, and the images ``(N, H, W)`` sampled."""

    before: Labels
    after: Labels
    first: FloatArray
    second: FloatArray


def check_conditional_samples(model: ModelUnderTest) -> CheckResult:
    """Measure whether conditions are followed; see the module's docstring.

    Raises
    ------
    ConfigError
        If the model is not conditional, or the dataset is not avatars.
    """
    detector, dataset = model.detector, model.dataset
    if not is_conditional(detector):
        raise unsupported(model, "avatar_conditional", "is not conditional")
    avatars = avatars_of(dataset)
    conditions = conditions_with_hair(avatars, min(MAX_CONDITIONS, model.settings.samples))
    samples = sample_conditions(detector, conditions, model.rng(RNG_STREAM), model.progress)
    found = assess_validity(dataset, samples)
    visible = conditions != NOT_VISIBLE
    correct = (found.codes == conditions) & visible
    by_attribute = correct.sum(axis=0) / visible.sum(axis=0)
    measures = {
        "condition_accuracy": float(by_attribute.mean()),
        "condition_accuracy_lowest": float(by_attribute.min()),
        "condition_accuracy_all": float((correct | ~visible).all(axis=1).mean()),
        "valid": float(found.valid.mean()),
    }
    rng, columns = np.random.default_rng(model.settings.seed), [samples[:N_SHOWN]]
    changes = []
    for attribute, name in enumerate(ATTRIBUTE_VALUES):
        after = with_one_changed(conditions, attribute, rng)
        second = sample_conditions(detector, after, model.rng(RNG_STREAM), model.progress)  # the same latent codes
        labels = dataset.classify(second).labels
        followed = labels[:, attribute] == after[:, attribute]
        unchanged = np.delete(equal_attributes(labels, found.codes), attribute, axis=1).all(axis=1)
        measures[f"single_change_{name}"] = float((followed & unchanged).mean())
        measures[f"others_unchanged_{name}"] = float(unchanged.mean())
        changes.append(Change(conditions, after, samples, second))
        columns.append(second[:N_SHOWN])
    measures["single_change_lowest"] = min(measures[f"single_change_{name}"] for name in ATTRIBUTE_VALUES)
    measures["off_target_change"] = float(np.mean([off_target_change(avatars, change) for change in changes]))
    rows = np.stack(columns, axis=1).reshape(-1, *samples.shape[1:])
    names = ", ".join(name.replace("_", " ") for name in ATTRIBUTE_VALUES)
    title = f"Rows: a sample, then with {names} changed"
    return CheckResult(measures, {title: image_grid(dataset.to_display(rows), len(columns))})


def conditions_with_hair(avatars: Avatars, n: int) -> Labels:
    """Return the codes ``(n, 5)`` of avatars with hair, drawn from the distribution."""
    codes: Labels = avatars.codes("conditions", 2 * n)
    with_hair: Labels = codes[codes[:, HAIR_COLOR] != NOT_VISIBLE]
    return with_hair[:n]


def with_one_changed(codes: Labels, attribute: int, rng: np.random.Generator) -> Labels:
    """Return codes with another value of one attribute, drawn from the distribution without the present value."""
    after = codes.copy()
    theta = distribution.theta()[attribute]
    for row in after:
        others = np.where(np.arange(len(theta)) == row[attribute], 0.0, theta)
        row[attribute] = rng.choice(len(theta), p=others / others.sum())
    return hide_invisible(after)


def off_target_change(avatars: Avatars, change: Change) -> float:
    """Return the change where the drawings agree, relative to the change where they differ."""
    bank = avatars.image_bank
    differs = np.abs(bank.mosaics(change.before) - bank.mosaics(change.after)) > MIN_PIXEL_DIFFERENCE
    squared = (change.second - change.first) ** 2
    return float(np.sqrt(squared[~differs].mean() / max(squared[differs].mean(), 1e-12)))
