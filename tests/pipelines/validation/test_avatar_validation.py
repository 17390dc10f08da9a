from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from anomaly.core.errors import ConfigError
from pipelines.validation.labelled_dataset import NOT_VISIBLE, LabelledImages
from pipelines.validation.model_under_test import ModelUnderTest
from pipelines.validation.reference_classifier import ClassifierSettings, trained_classifier
from pipelines.validation.run import CHECKS, load_settings, validate
from pipelines.validation.settings import NaiveBayesEntry, ValidationSettings
from tests.pipelines.validation.small_avatars import small_dataset

SHIPPED = ("avatars", "avatars-small")


def task(**models: Any) -> dict[str, Any]:
    return {"name": "avatars", "dataset": "avatars", "description": "Looks.", "models": models}


NAIVE = {
    "naive_bayes": {"of": "features"},
    "checks": ["unobserved_combinations"],
    "thresholds": {"unobserved_combinations.unobserved_fraction": {"min": 1}},
}


def test_naive_bayes_is_a_model_under_test() -> None:
    model = {
        "model": {"family": "pca"},
        "checks": ["out_of_distribution"],
        "thresholds": {"out_of_distribution.auroc": {"min": 0.9}},
    }
    settings = ValidationSettings.parse(task(naive=NAIVE, components=model), "here")
    assert isinstance(settings.models["naive"], NaiveBayesEntry)
    assert settings.models["naive"].family == "naive Bayes of features"
    assert settings.models["components"].family == "pca"


def test_a_wrong_key_of_naive_bayes_is_named() -> None:
    with pytest.raises(ConfigError, match=r"naive_bayes\.smoothing"):
        ValidationSettings.parse(task(naive={**NAIVE, "naive_bayes": {"of": "pixels", "smoothing": 1}}), "here")


def test_naive_bayes_is_not_trained(tmp_path: Path) -> None:
    dataset = small_dataset()
    settings = ValidationSettings.parse(task(naive=NAIVE), "here")
    entry = settings.models["naive"]
    under_test = ModelUnderTest(dataset, entry, settings, tmp_path)
    with pytest.raises(ConfigError, match="no model family"):
        _ = under_test.family_entry
    assert under_test.detector.family == entry.family


def test_the_classifier_ignores_labels_that_images_do_not_show(tmp_path: Path) -> None:
    """Half of the pictures do not show the first label; it is learnt from the others, and counted on them."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (400, 2))
    pixels = rng.random((400, 8, 8)) * 0.2
    pixels[:, :4] += 0.6 * labels[:, :1, None]
    pixels[:, 4:] += 0.6 * labels[:, 1:, None]
    labels[::2, 0] = NOT_VISIBLE
    images = LabelledImages(pixels.astype(np.float32), labels)
    settings = ClassifierSettings(steps=60, batch_size=32, channels=4, normalise=True)
    found = trained_classifier(images, (2, 2), settings, tmp_path).accuracy(images)
    assert found.tolist() == pytest.approx([1, 1], abs=0.02)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_task_can_be_read_and_covers_what_was_asked_for(name: str) -> None:
    settings = load_settings(Path("configs/validation") / f"{name}.yaml")
    families = {entry.family for entry in settings.models.values()}
    assert {
        "ae",
        "vae",
        "cvae",
        "f_anogan",
        "diffusion",
        "naive Bayes of features",
        "naive Bayes of pixels",
    } <= families
    checks = {check for entry in settings.models.values() for check in entry.checks}
    assert (
        {
            "avatar_samples",
            "avatar_conditional",
            "latent_arithmetic",
            "out_of_distribution",
            "unobserved_combinations",
            "generation",
        }
        <= checks
        <= set(CHECKS)
    )
    assert settings.classifier.min_accuracy >= 0.98


@pytest.mark.slow
def test_a_task_reports_unobserved_combinations(tmp_path: Path) -> None:
    few = {"train": 300, "test": 150, "classifier_train": 600, "reference": 60, "held_out": 30, "calibration": 60,
           "out_of_distribution": 30}  # fmt: skip
    values = task(
        naive=NAIVE,
        pixels={
            "naive_bayes": {"of": "pixels", "alpha": 0.01},
            "checks": ["avatar_samples", "out_of_distribution"],
            "thresholds": {"avatar_samples.valid": {"max": 0.05}},
        },
        components={
            "model": {"family": "pca", "components": 20},
            "checks": ["out_of_distribution"],
            "thresholds": {"out_of_distribution.auroc": {"min": 0.9}},
        },
    )
    values |= {"avatars": few, "checks": {"samples": 100, "neighbour_images": 100}}
    values["classifier"] = {"steps": 20, "batch_size": 32, "channels": 8, "normalise": True, "min_accuracy": 0.0}
    config = tmp_path / "task.yaml"
    config.write_text(yaml.safe_dump(values), encoding="utf-8")
    outcome = validate(config, tmp_path / "out", jobs=1)
    assert outcome.passed, outcome.failures
    found = json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))
    (rows,) = found["models"]["naive"]["tables"].values()
    assert len(rows) == 10
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Combinations that none of the fifty observed avatars has" in page
    assert all(row["clothing_type"] in page for row in rows)
    again = validate(config, tmp_path / "out", jobs=1)
    assert [result.measures for result in again.results] == [result.measures for result in outcome.results]
