"""Finding the brain mask."""

from __future__ import annotations

import numpy as np
import pytest

from anomaly.core.errors import ConfigError, ScanRefusedError
from anomaly.core.overlap import dice
from anomaly.core.volume import Modality
from anomaly.preprocessing.brain_mask import BrainMaskSettings, find_brain, foreground, is_extracted
from tests.preprocessing.phantoms import brain, head, placement


def test_an_extracted_brain_is_its_own_mask() -> None:
    volume, mask = brain(placement())
    found, extracted = find_brain(volume, BrainMaskSettings())
    assert extracted
    assert dice(found, mask) > 0.99


def test_dark_ventricles_are_part_of_the_mask() -> None:
    volume, mask = brain()
    hollow = volume.voxels.copy()
    hollow[25:30, 25:30, 25:30] = 0
    assert foreground(volume.with_voxels(hollow))[25:30, 25:30, 25:30].all()
    assert mask[25:30, 25:30, 25:30].all()


def test_a_constant_background_need_not_be_zero() -> None:
    volume, mask = brain()
    lifted = volume.with_voxels(np.where(mask, volume.voxels, -50))
    assert is_extracted(lifted)
    assert dice(foreground(lifted), mask) > 0.98


@pytest.mark.parametrize("modality", [Modality.T1W, Modality.CT])
def test_a_head_is_not_taken_for_an_extracted_brain(modality: Modality) -> None:
    volume, _ = head(placement(), modality)
    assert not is_extracted(volume.with_voxels(np.where(volume.voxels < -900, -1000, volume.voxels)))


def test_a_constant_scan_is_refused() -> None:
    volume, _ = brain()
    with pytest.raises(ScanRefusedError, match="one value in every voxel"):
        find_brain(volume.with_voxels(np.full_like(volume.voxels, 7)), BrainMaskSettings())


def test_a_brain_of_impossible_size_is_refused_with_its_size() -> None:
    volume, _ = brain()
    with pytest.raises(ScanRefusedError, match="ml of brain") as refused:
        find_brain(volume, BrainMaskSettings(max_brain_ml=1000))
    assert refused.value.code == "brain_volume"


def test_the_command_method_without_a_command_is_an_error() -> None:
    with pytest.raises(ConfigError, match="command is empty"):
        find_brain(head()[0], BrainMaskSettings(method="command"))
