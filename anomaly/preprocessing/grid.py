"""Resample voxels between grids with a single interpolation, and crop volumes."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field
from scipy import ndimage

from anomaly.core.config import Settings
from anomaly.core.errors import InputError
from anomaly.core.volume import AffineArray, FloatArray, Geometry, MaskArray, Volume

Interpolation = Literal["linear", "cubic"]
Order = Literal[0, 1, 3]
"""0 nearest, 1 linear, 3 cubic."""

ORDERS: dict[Interpolation, Order] = {"linear": 1, "cubic": 3}

ANTIALIAS_SIGMA = 0.42
"""SD of the low-pass filter before downsampling, in units of sqrt(target² − source²) of the spacings (FWHM ≈ 1)."""


class GridSettings(Settings):
    """The template grid that every scan is resampled to."""

    spacing_mm: float = Field(
        default=2.0, gt=0.4, le=6.0, description="voxel size of the template grid, millimetres"
    )
    interpolation: Interpolation = Field(
        default="cubic",
        description="cubic preserves detail (values are clipped to the range of the scan); linear smooths slightly",
    )


def resample(
    voxels: npt.NDArray[Any],
    source: Geometry,
    target: Geometry,
    source_from_target: npt.ArrayLike | None = None,
    order: Order = 1,
    outside: float = 0.0,
    antialias: bool = True,
) -> FloatArray:
    """Resample voxels to another grid.

    Parameters
    ----------
    voxels
        ``(I, J, K)`` on ``source``.
    source, target
        Grid of the voxels, and grid of the result.
    source_from_target
        ``(4, 4)`` RAS+ mm in the target's space → RAS+ mm in the source's; the identity by default.
    order
        0 nearest, 1 linear, 3 cubic (clipped to the range of the input).
    outside
        Value outside the field of view of ``source``.
    antialias
        Whether to low-pass filter before downsampling (order 1 and 3).

    Returns
    -------
    ndarray
        float32, of the target's shape.
    """
    transform = np.eye(4) if source_from_target is None else np.asarray(source_from_target, dtype=np.float64)
    # Rounded, so that resampling to the same grid does not lose its edge to an index of -1e-16.
    matrix = np.round(np.linalg.inv(source.affine) @ transform @ target.affine, 9)
    values = np.asarray(voxels, dtype=np.float32)
    if antialias and order > 0:
        values = _low_pass(values, matrix)
    moved = ndimage.affine_transform(
        values,
        matrix[:3, :3],
        matrix[:3, 3],
        output_shape=target.shape,
        order=order,
        cval=outside,
        output=np.float32,
    )
    return np.asarray(np.clip(moved, *_value_range(values, outside), out=moved) if order > 1 else moved)


def resample_mask(
    mask: MaskArray,
    source: Geometry,
    target: Geometry,
    source_from_target: npt.ArrayLike | None = None,
    antialias: bool = True,
) -> MaskArray:
    """Resample a mask ``(I, J, K)`` to another grid: True where its linear interpolation is at least 0.5.

    The parameters are those of :func:`resample`.
    """
    return np.asarray(resample(mask, source, target, source_from_target, antialias=antialias) >= 0.5)


def to_target_grid(
    volume: Volume, target: Geometry, template_from_scan: AffineArray, order: Order = 3
) -> FloatArray:
    """Resample a scan to the template grid.

    Parameters
    ----------
    volume
        The scan, on its own grid.
    target
        The template grid.
    template_from_scan
        ``(4, 4)`` scan RAS+ mm → template RAS+ mm.
    order
        0 nearest, 1 linear, 3 cubic.

    Returns
    -------
    ndarray
        float32, of the target's shape.
    """
    return resample(volume.voxels, volume.geometry, target, _inverse(template_from_scan), order)


def to_scan_grid(
    map_voxels: npt.NDArray[Any],
    target_grid: Geometry,
    scan_geometry: Geometry,
    template_from_scan: AffineArray,
    order: Order = 1,
) -> FloatArray:
    """Resample a map from the template grid to the scan's own grid.

    Parameters
    ----------
    map_voxels
        ``(I, J, K)`` on ``target_grid``.
    target_grid, scan_geometry
        The template grid, and the scan's own grid as received.
    template_from_scan
        ``(4, 4)`` scan RAS+ mm → template RAS+ mm.
    order
        0 nearest (labels), 1 linear, 3 cubic.

    Returns
    -------
    ndarray
        float32, of the scan's shape, 0 outside the template grid.

    Raises
    ------
    InputError
        If the transform is not an invertible ``(4, 4)`` matrix.
    """
    _inverse(template_from_scan)
    return resample(map_voxels, target_grid, scan_geometry, template_from_scan, order)


def world_grid(geometry: Geometry, spacing_mm: float, margin_mm: float = 8.0) -> Geometry:
    """Return the isotropic grid along RAS+ axes that covers the field of view of a grid, plus a margin."""
    shape = np.array(geometry.shape)
    corners = geometry.to_world([[i, j, k] for i in (-0.5, shape[0] - 0.5) for j in (-0.5, shape[1] - 0.5)
                                 for k in (-0.5, shape[2] - 0.5)])  # fmt: skip
    low, high = corners.min(0) - margin_mm, corners.max(0) + margin_mm
    size = np.ceil((high - low) / spacing_mm).astype(int)
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    affine[:3, 3] = low + spacing_mm / 2
    return Geometry((int(size[0]), int(size[1]), int(size[2])), affine)


def box_around(mask: MaskArray, margin: int) -> tuple[slice, slice, slice]:
    """Return the index slices of the smallest box around a mask ``(I, J, K)``, plus a margin in voxels."""
    found = ndimage.find_objects(mask.astype(np.uint8))[0]
    i, j, k = (
        slice(max(0, s.start - margin), min(n, s.stop + margin)) for s, n in zip(found, mask.shape, strict=True)
    )
    return i, j, k


def crop(volume: Volume, box: tuple[slice, slice, slice]) -> Volume:
    """Crop a volume to a box; the positions of the voxels in millimetres do not change."""
    affine = volume.geometry.affine.copy()
    affine[:3, 3] = volume.geometry.to_world([s.start for s in box])
    voxels = volume.voxels[box]
    return volume.with_voxels(voxels, Geometry((voxels.shape[0], voxels.shape[1], voxels.shape[2]), affine))


def _low_pass(values: FloatArray, target_to_source: npt.NDArray[np.float64]) -> FloatArray:
    step = np.linalg.norm(target_to_source[:3, :3], axis=1)  # target voxels, measured in source voxels
    sigma = ANTIALIAS_SIGMA * np.sqrt(np.maximum(step**2 - 1, 0))
    sigma[step < 1.1] = 0
    return np.asarray(ndimage.gaussian_filter(values, sigma)) if sigma.any() else values


def _value_range(values: FloatArray, outside: float) -> tuple[float, float]:
    return min(float(values.min()), outside), max(float(values.max()), outside)


def _inverse(matrix: AffineArray) -> npt.NDArray[np.float64]:
    matrix = np.asarray(matrix, dtype=np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-6:
        raise InputError(
            f"template_from_scan is {matrix.tolist()}; expected an invertible (4, 4) matrix scan RAS+ mm → "
            "template RAS+ mm; register the scan again"
        )
    return np.asarray(np.linalg.inv(matrix))
