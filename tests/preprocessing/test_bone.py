"""The rim of bone and of calcifications is replaced by brain; blood next to bone stays."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from anomaly.core.volume import Geometry, MaskArray, Modality, Volume
from anomaly.preprocessing.bone import BoneSettings, replace_bone

SETTINGS = BoneSettings(margin_mm=2.0)
SHAPE = (60, 60, 16)
SPACING_MM = (1.0, 1.0, 5.0)


def skull_and_brain(inside_hu: np.ndarray | float = 35.0) -> tuple[Volume, MaskArray]:
    """Return a ball of brain in a skull, blurred as by a scanner, and the mask of the brain."""
    affine = np.diag([*SPACING_MM, 1.0])
    centred = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(SHAPE, SPACING_MM, strict=True)]
    radius = np.sqrt(sum(axis**2 for axis in np.meshgrid(*centred, indexing="ij")))
    sharp = np.select([radius < 24, radius < 32], [inside_hu, 1000.0], -1000.0)
    blurred = ndimage.gaussian_filter(sharp, [0.8 / s for s in SPACING_MM])
    return Volume(blurred.astype(np.float32), Geometry(SHAPE, affine), "sub-01_ct", Modality.CT), radius < 24


def test_the_rim_of_the_skull_gets_the_density_of_the_brain() -> None:
    volume, brain = skull_and_brain()
    assert volume.voxels[brain].max() > 100
    replaced = replace_bone(volume, brain, SETTINGS)
    assert np.abs(replaced.voxels[brain] - 35).max() < 6
    far = ndimage.distance_transform_edt(volume.voxels <= 100, sampling=SPACING_MM) > 2.0
    np.testing.assert_array_equal(replaced.voxels[brain & far], volume.voxels[brain & far])


def test_bone_does_not_reach_the_brain_when_the_scan_is_resampled() -> None:
    volume, brain = skull_and_brain()
    around = ndimage.binary_dilation(brain, iterations=2)
    assert np.abs(replace_bone(volume, brain, SETTINGS).voxels[around] - 35).max() < 6


def test_blood_between_brain_and_skull_stays_and_reaches_the_bone() -> None:
    lens = np.zeros(SHAPE, dtype=bool)
    lens[40:, 22:38, 5:11] = True
    volume, brain = skull_and_brain(np.where(lens, 65.0, 35.0))
    replaced = replace_bone(volume, brain, SETTINGS).voxels
    core = ndimage.binary_erosion(lens, iterations=2) & brain
    assert np.median(replaced[core]) == pytest.approx(65, abs=3)
    assert replaced[53, 30, 8] == pytest.approx(65, abs=5)  # the outermost voxel of the brain


def test_a_calcification_and_its_rim_are_replaced() -> None:
    volume, brain = skull_and_brain()
    calcified = volume.voxels.copy()
    calcified[29:32, 29:32, 8] += 200
    calcified[28:33, 28:33, 8] += 25
    replaced = replace_bone(volume.with_voxels(calcified), brain, SETTINGS)
    assert replaced.voxels[24:37, 24:37, 6:10].max() < 40


def test_the_densest_fresh_blood_is_not_taken_for_bone() -> None:
    bleed = np.zeros(SHAPE, dtype=bool)
    bleed[26:34, 26:34, 6:10] = True
    volume, brain = skull_and_brain(np.where(bleed, 88.0, 35.0))
    replaced = replace_bone(volume, brain, SETTINGS).voxels
    np.testing.assert_array_equal(replaced[bleed], volume.voxels[bleed])


@pytest.mark.parametrize("modality", [Modality.T1W, Modality.FLAIR])
def test_mr_is_not_changed(modality: Modality) -> None:
    volume, brain = skull_and_brain()
    mr = Volume(volume.voxels, volume.geometry, "sub-01", modality)
    assert replace_bone(mr, brain, SETTINGS) is mr


def test_nothing_is_replaced_by_default() -> None:
    volume, brain = skull_and_brain()
    assert replace_bone(volume, brain, BoneSettings()) is volume


def test_an_extracted_brain_without_bone_keeps_its_voxels() -> None:
    volume, brain = skull_and_brain()
    extracted = volume.with_voxels(np.where(brain, 35.0, 0.0))
    replaced = replace_bone(extracted, brain, SETTINGS)
    np.testing.assert_array_equal(replaced.voxels[brain], extracted.voxels[brain])
