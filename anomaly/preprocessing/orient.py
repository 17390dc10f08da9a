"""Reorient a scan to RAS order by permuting and flipping axes, without interpolation."""

from __future__ import annotations

import nibabel as nib
import numpy as np

from anomaly.core.volume import Geometry, Volume


def to_ras(volume: Volume) -> Volume:
    """Reorient a scan so that I runs closest to left→right, J to back→front and K to bottom→top.

    Only the order in memory and, with it, the affine change. Every voxel keeps its value and its position in
    millimetres, so an oblique scan stays oblique.
    """
    affine = volume.geometry.affine
    orientation = nib.orientations.io_orientation(affine)
    voxels = np.ascontiguousarray(nib.orientations.apply_orientation(volume.voxels, orientation))
    new_affine = affine @ nib.orientations.inv_ornt_aff(orientation, volume.geometry.shape)
    return volume.with_voxels(voxels, Geometry((voxels.shape[0], voxels.shape[1], voxels.shape[2]), new_affine))
