from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipelines.validation.labelled_dataset import NOT_VISIBLE, LabelledImages
from pipelines.validation.reference_classifier import ClassifierSettings, trained_classifier


def test_the_classifier_ignores_labels_that_images_do_not_show(tmp_path: Path) -> None:
    """Half of the images do not show the first label; it is learnt from, and measured on, the others."""
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


def test_a_trained_classifier_is_loaded_and_other_settings_train_another(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = LabelledImages(rng.random((64, 8, 8), dtype=np.float32), rng.integers(0, 2, (64, 1)))
    settings = ClassifierSettings(steps=3, batch_size=8, channels=2)
    first = trained_classifier(images, (2,), settings, tmp_path)
    (path,) = tmp_path.iterdir()
    written = path.stat().st_mtime_ns
    again = trained_classifier(images, (2,), settings.model_copy(update={"min_accuracy": 0.5}), tmp_path)
    assert path.stat().st_mtime_ns == written
    assert (again.features(images.pixels) == first.features(images.pixels)).all()
    trained_classifier(images, (2,), settings.model_copy(update={"steps": 4}), tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
