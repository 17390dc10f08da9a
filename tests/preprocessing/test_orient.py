"""Reorientation to RAS order."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from anomaly.core.volume import Geometry, Volume
from anomaly.preprocessing.orient import to_ras

CODES = ["RAS", "LPS", "PSR", "ILA", "AIR"]


def oblique(code: str) -> Volume:
    axes = nib.orientations.axcodes2ornt(tuple(code))
    affine = nib.orientations.inv_ornt_aff(axes, (5, 6, 7)) if code != "RAS" else np.eye(4)
    tilt = nib.eulerangles.euler2mat(0.1, -0.2, 0.15)
    turned = np.eye(4)
    turned[:3, :3] = tilt @ np.linalg.inv(affine)[:3, :3] @ np.diag([1.0, 2.0, 3.0])
    voxels = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)
    return Volume(voxels, Geometry((5, 6, 7), turned), "sub-01")


@pytest.mark.parametrize("code", CODES)
def test_axes_run_to_the_right_the_front_and_the_top(code: str) -> None:
    assert nib.aff2axcodes(to_ras(oblique(code)).geometry.affine) == ("R", "A", "S")


@pytest.mark.parametrize("code", CODES)
def test_every_voxel_keeps_its_value_and_position(code: str) -> None:
    before, after = oblique(code), to_ras(oblique(code))
    places = before.geometry.to_world(np.argwhere(np.ones(before.geometry.shape)))
    there = np.rint(after.geometry.to_index(places)).astype(int)
    assert np.allclose(after.geometry.to_world(there), places)
    assert np.array_equal(after.voxels[tuple(there.T)], before.voxels.ravel())


def test_a_scan_in_ras_order_is_not_changed() -> None:
    volume = to_ras(oblique("LPS"))
    again = to_ras(volume)
    assert np.array_equal(again.voxels, volume.voxels)
    assert again.geometry.same_as(volume.geometry)
