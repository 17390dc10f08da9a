from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.validation import cache_keys
from pipelines.validation.check_registry import cache_keys_of
from pipelines.validation.labelled_dataset import LabelledImages
from pipelines.validation.model_under_test import Dataset, ModelUnderTest
from tests.pipelines.validation.small_datasets import task

ENTRY: dict[str, Any] = {
    "model": {"family": "vae", "channels": [8, 16]},
    "checks": ["generation", "likelihood", "one_normal"],
    "thresholds": {"generation.frechet": {"max": 1}},
}


def keys_of(entry: dict[str, Any], pixels: float = 0.5, **settings: Any) -> dict[str, str]:
    images = LabelledImages(np.full((4, 8, 8), pixels, dtype=np.float32), np.zeros((4, 1), dtype=np.int64))
    dataset = Dataset(images, images, "here", {"digit": ("0",)}, None)  # type: ignore[arg-type]
    settings_of_task = task({"vae": entry}, **settings)
    return cache_keys_of(ModelUnderTest(dataset, settings_of_task.models["vae"], settings_of_task, Path("unused")))


def test_source_files_and_thresholds_are_part_of_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys_of(ENTRY)

    def read(*_: object) -> None:
        raise AssertionError("a source file was read")

    monkeypatch.setattr(Path, "read_bytes", read)
    monkeypatch.setattr(Path, "read_text", read)
    monkeypatch.setattr(Path, "open", read)
    assert keys_of(ENTRY | {"thresholds": {"generation.frechet": {"max": 2}}}) == before


def test_a_training_setting_or_another_image_changes_every_key() -> None:
    before = keys_of(ENTRY)
    for after in (keys_of(ENTRY | {"training": {"learning_rate": 0.123}}), keys_of(ENTRY, pixels=0.25)):
        assert all(after[check] != key for check, key in before.items())


@pytest.mark.parametrize(
    ("section", "values", "changed"),
    [
        ("checks", {"samples": 150}, {"generation"}),
        ("checks", {"likelihood_images": 7}, {"likelihood"}),
        ("one_class", {"digits": [3]}, {"one_normal"}),
        ("classifier", {"steps": 7}, {"generation"}),
        ("avatars", {"train": 150}, set()),
    ],
)
def test_a_setting_changes_only_the_keys_of_the_checks_that_use_it(
    section: str, values: dict[str, Any], changed: set[str]
) -> None:
    before, after = keys_of(ENTRY), keys_of(ENTRY, **{section: values})
    if section == "classifier":  # the task of these tests sets a small classifier
        before = keys_of(ENTRY, classifier={"steps": 8})
    assert {check for check in before if before[check] != after[check]} == changed


def test_a_raised_version_of_a_family_or_a_check_changes_its_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys_of(ENTRY)
    monkeypatch.setattr(cache_keys, "CHECK_VERSIONS", {"likelihood": 2})
    assert {check for check, key in keys_of(ENTRY).items() if key != before[check]} == {"likelihood"}
    monkeypatch.setattr(cache_keys, "FAMILY_VERSIONS", {"vae": 2})
    assert all(key != before[check] for check, key in keys_of(ENTRY).items())
