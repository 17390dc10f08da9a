"""Bring a scan's array into RAS order: axes reordered and flipped, never interpolated."""

from __future__ import annotations

import nibabel as nib
import numpy as np

from anomaly.core.volume import Geometry, Volume


def to_ras(volume: Volume) -> Volume:
    """Return the same scan with I nearest to left→right, J to back→front, K to bottom→top.

    Only the order in memory changes: every voxel keeps its value and its place in the world, so an oblique scan
    stays oblique. The new affine says where the voxels went.
    """
    affine = volume.geometry.affine
    orientation = nib.orientations.io_orientation(affine)
    voxels = np.ascontiguousarray(nib.orientations.apply_orientation(volume.voxels, orientation))
    turned = affine @ nib.orientations.inv_ornt_aff(orientation, volume.geometry.shape)
    return volume.with_voxels(voxels, Geometry((voxels.shape[0], voxels.shape[1], voxels.shape[2]), turned))
