"""Phantom brains and heads made from the template, transformed by a known affine."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from anomaly.core.volume import AffineArray, Geometry, MaskArray, Modality, Volume
from anomaly.preprocessing.grid import resample
from anomaly.preprocessing.template import template_on

SPACING = 4.0
SCALP_MM = (8.0, 14.0)  # from, to, outside the brain's surface


def placement(
    pitch_deg: float = 8.0, size: float = 0.9, shift: tuple[float, float, float] = (6, -9, 5)
) -> AffineArray:
    """Return scan RAS+ mm → template RAS+ mm of a subject with a smaller, pitched and shifted head."""
    angle, matrix = np.radians(pitch_deg), np.eye(4)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    matrix[:3, :3] = turn / size
    matrix[:3, 3] = shift
    return matrix


def scan_grid(spacing: float = SPACING, extent: float = 212.0) -> Geometry:
    n = round(extent / spacing)
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = np.array([0.0, -15.0, 0.0]) - spacing * (n - 1) / 2
    return Geometry((n, n, n), affine)


def brain(
    template_from_scan: AffineArray | None = None, modality: Modality = Modality.T1W, grid: Geometry | None = None
) -> tuple[Volume, MaskArray]:
    """Return a brain without head (100 at its brightest, 0 outside) and its mask."""
    grid, template = grid or scan_grid(), template_on(SPACING, multiple=1)
    transform = np.eye(4) if template_from_scan is None else template_from_scan
    mask = resample(template.depth_mm(), template.geometry, grid, transform, outside=-99.0) > 0
    image = 20 * mask + 80 * resample(template.contrast(modality), template.geometry, grid, transform)
    return Volume(np.where(mask, image, 0).astype(np.float32), grid, "sub-01", modality), mask


def head(placed: AffineArray | None = None, modality: Modality = Modality.T1W) -> tuple[Volume, MaskArray]:
    """Return a head (brain, dark skull, bright scalp, noisy air) and its brain mask; CT in Hounsfield units."""
    volume, mask = brain(placed, modality)
    depth = _depth(mask)
    scalp = (depth < -SCALP_MM[0]) & (depth > -SCALP_MM[1])
    skull = ~mask & (depth >= -SCALP_MM[0])
    noise = np.random.default_rng(0).uniform(0, 3, mask.shape)
    if modality.is_ct:
        voxels = np.select([mask, skull, scalp], [0.4 * volume.voxels, 1000.0, 40.0], -1000.0) + noise
    else:
        voxels = np.select([mask, skull, scalp], [volume.voxels, 5.0, 120.0], 0.0) + noise
    return volume.with_voxels(voxels), mask


def _depth(mask: MaskArray) -> np.ndarray:
    inside = ndimage.distance_transform_edt(mask, sampling=SPACING)
    return np.asarray(inside - ndimage.distance_transform_edt(~mask, sampling=SPACING))
