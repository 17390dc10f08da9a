from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.validation.datasets.load import load_dataset
from pipelines.validation.settings import ValidationSettings
from tests.pipelines.validation.small_avatars import NAIVE_BAYES, avatar_task

CLASSIFIER = {"steps": 2, "channels": 2, "batch_size": 8}


def test_digits_come_with_their_names_and_a_classifier_that_is_kept(tmp_path: Path) -> None:
    knn = {"estimator": {"kind": "knn"}, "checks": ["one_normal"], "thresholds": {"one_normal.auroc": {"min": 0}}}
    values = {"name": "tiny", "dataset": "digits", "description": "Tiny.", "classifier": CLASSIFIER,
              "models": {"knn": knn}}  # fmt: skip
    settings = ValidationSettings.parse(values, "here")
    found = load_dataset(settings, tmp_path)
    assert found.attributes == {"digit": tuple("0123456789")}
    assert found.train.pixels.shape[1:] == (8, 8)
    assert found.classifier_accuracy().keys() == {"digit"}
    (path,) = tmp_path.glob("classifier-*")
    written = path.stat().st_mtime_ns
    load_dataset(settings, tmp_path)
    assert path.stat().st_mtime_ns == written


@pytest.mark.slow
def test_avatars_are_as_many_as_asked_for(tmp_path: Path) -> None:
    few = {"train": 100, "test": 110, "classifier_train": 120, "calibration": 30, "held_out": 3}
    values = avatar_task(naive=NAIVE_BAYES) | {"avatars": few, "classifier": CLASSIFIER}
    found = load_dataset(ValidationSettings.parse(values, "here"), tmp_path)
    assert (len(found.train), len(found.test)) == (100, 110)
    assert found.train.pixels.shape[1:] == (64, 64)
    assert found.avatars is not None
    assert found.classifier_accuracy().keys() == found.attributes.keys()
    assert found.to_display(found.test.pixels[:2]).shape == (2, 32, 32, 3)
