"""Extract the brain from a CT head: soft tissue near the fitted MNI152 brain, without its surroundings.

With bone set to 0, a CT head resembles an MR head: bright brain, dark skull, bright scalp. The fit of the template
locates the brain roughly; CT densities give its exact boundary. A morphological opening cuts bridges to other soft
tissue (optic nerves, foramina).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from pydantic import Field
from scipy import ndimage

from anomaly.core.config import Settings
from anomaly.core.errors import ScanRefusedError
from anomaly.core.volume import MaskArray, Volume
from anomaly.preprocessing.components import largest_component
from anomaly.preprocessing.extract_mr import ExtractMrSettings, fit_head
from anomaly.preprocessing.grid import resample, resample_mask, world_grid
from anomaly.preprocessing.template import template_on

WORKING_SPACING_MM = 2.0
CERTAIN_DEPTH_MM = 6.0  # deeper in the fitted brain, everything but bone counts as brain


class ExtractCtSettings(Settings):
    """How the brain is extracted from a CT head. Densities in Hounsfield units."""

    tissue_hu: tuple[float, float] = Field(
        default=(0.0, 100.0), description="density of brain, CSF and fresh blood"
    )
    reach_mm: float = Field(
        default=8.0,
        ge=0,
        le=20,
        description="largest distance of brain from the fitted template brain, millimetres",
    )
    neck_mm: float = Field(
        default=4.0, ge=2, le=15, description="radius of the opening: bridges thinner than twice this are cut"
    )
    smooth_mm: float = Field(
        default=6.0, ge=0, le=15, description="radius of the closing that fills sulci and gaps, millimetres"
    )


def extract_ct(volume: Volume, settings: ExtractCtSettings, fit_settings: ExtractMrSettings) -> MaskArray:
    """Find the brain mask ``(I, J, K)`` of a CT head, on the scan's grid.

    Parameters
    ----------
    volume
        The head in Hounsfield units.
    settings
        Densities and sizes.
    fit_settings
        How the MNI152 brain is fitted, as for MR.

    Raises
    ------
    ScanRefusedError
        With code ``no_soft_tissue`` if no voxel has the density of brain.
    """
    low, high = settings.tissue_hu
    soft = (volume.voxels >= low) & (volume.voxels <= high)
    if not soft.any():
        raise ScanRefusedError(
            "no_soft_tissue",
            f"no voxel from {low:.0f} to {high:.0f} HU",
            "a CT head in Hounsfield units",
            "check the rescale slope and intercept",
        )
    scan_from_template = fit_head(volume.with_voxels(np.where(soft, volume.voxels - low, 0)), fit_settings)
    grid, template = world_grid(volume.geometry, WORKING_SPACING_MM), template_on(WORKING_SPACING_MM, multiple=1)
    depth = resample(template.depth_mm(), template.geometry, grid, np.linalg.inv(scan_from_template), outside=-99.0)
    image = resample(volume.voxels, volume.geometry, grid, outside=-1000.0)
    near = (depth > -settings.reach_mm) & (image <= high)
    tissue = near & ((image >= low) | (depth > CERTAIN_DEPTH_MM))
    return resample_mask(_brain(tissue, near, settings), grid, volume.geometry)


def _brain(tissue: MaskArray, near: MaskArray, settings: ExtractCtSettings) -> MaskArray:
    """Return the largest component of the tissue after opening, closed and filled."""
    radius = max(1, round(settings.neck_mm / WORKING_SPACING_MM))
    core = largest_component(ndimage.binary_erosion(tissue, _ball(radius)))
    grown = ndimage.binary_dilation(core, _ball(radius + 1)) & tissue
    closed = _close(grown, max(1, round(settings.smooth_mm / WORKING_SPACING_MM)))
    return np.asarray(ndimage.binary_fill_holes(closed & near))


def _close(mask: MaskArray, radius: int) -> MaskArray:
    padded = np.pad(mask, radius + 1)
    closed = ndimage.binary_closing(padded, _ball(radius))
    inner = slice(radius + 1, -(radius + 1))
    return np.asarray(closed[inner, inner, inner])


def _ball(radius: int) -> npt.NDArray[np.bool_]:
    axis = np.arange(-radius, radius + 1)
    i, j, k = np.meshgrid(axis, axis, axis, indexing="ij")
    return np.asarray(i**2 + j**2 + k**2 <= radius**2)
