"""Correction of the bias field."""

from __future__ import annotations

import numpy as np
import pytest

from anomaly.core.volume import Modality
from anomaly.preprocessing.bias_field import BiasFieldSettings, correct_bias, estimate_field
from anomaly.preprocessing.template import template_on
from tests.preprocessing.phantoms import SPACING, brain


def tilted() -> tuple:
    """Return a brain whose brightness drifts from left to right, its mask, and where white matter is."""
    template = template_on(SPACING, multiple=1)
    volume, mask = brain(grid=template.geometry)
    drift = np.linspace(0.7, 1.3, volume.geometry.shape[0], dtype=np.float32)[:, None, None]
    return volume.with_voxels(volume.voxels * drift), mask, template.white > 0.9


def spread(voxels: np.ndarray, where: np.ndarray) -> float:
    return float(voxels[where].std() / voxels[where].mean())


@pytest.mark.slow
def test_correction_reduces_the_spread_of_white_matter() -> None:
    volume, mask, white = tilted()
    corrected = correct_bias(volume, mask, BiasFieldSettings(iterations=(20, 10)))
    assert spread(corrected.voxels, white) < 0.6 * spread(volume.voxels, white)


@pytest.mark.slow
def test_the_field_is_positive_and_centred_on_one() -> None:
    volume, mask, _ = tilted()
    field = estimate_field(volume, mask, BiasFieldSettings(iterations=(10,)))
    assert field.min() > 0
    assert np.exp(np.log(field[mask]).mean()) == pytest.approx(1, abs=0.02)


def test_correction_can_be_switched_off() -> None:
    volume, mask, _ = tilted()
    assert correct_bias(volume, mask, BiasFieldSettings(enabled=False)) is volume


def test_ct_is_not_changed() -> None:
    volume, mask = brain(modality=Modality.CT)
    assert correct_bias(volume, mask, BiasFieldSettings()) is volume


@pytest.mark.slow
def test_the_same_scan_gives_the_same_field() -> None:
    volume, mask, _ = tilted()
    settings = BiasFieldSettings(iterations=(10,))
    assert np.array_equal(estimate_field(volume, mask, settings), estimate_field(volume, mask, settings))
