"""Extract the brain from a CT head: soft tissue inside the skull.

Bone is the fixed point of CT: what lies inside the closed skull and has the density of brain, CSF or fresh blood is
kept, parts that hang on by a thread (eyes, neck muscles) are cut off by an opening.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from pydantic import Field
from scipy import ndimage

from anomaly.core.config import Settings
from anomaly.core.errors import ScanRefusedError
from anomaly.core.volume import MaskArray, Volume
from anomaly.preprocessing.grid import resample, resample_mask, world_grid

WORKING_MM = 2.0
SKULL_GAP_MM = 10.0  # sutures, thin temporal bone and partial volume leave holes up to this wide


class ExtractCtSettings(Settings):
    """How the brain is extracted from a CT head. Densities in Hounsfield units."""

    tissue_hu: tuple[float, float] = Field(
        default=(0.0, 100.0), description="lowest and highest density inside the skull"
    )
    bone_hu: float = Field(default=200.0, gt=100, description="denser than this is bone")
    neck_mm: float = Field(default=5.0, ge=2, le=15, description="bridges thinner than twice this are cut")
    smooth_mm: float = Field(default=6.0, ge=0, le=15, description="sulci and gaps up to this wide are closed")


def extract_ct(volume: Volume, settings: ExtractCtSettings) -> MaskArray:
    """Return the brain mask ``(I, J, K)`` of a CT head on the scan's grid.

    Raises
    ------
    ScanRefusedError
        With code ``no_skull`` when nothing lies inside bone.
    """
    grid = world_grid(volume.geometry, WORKING_MM)
    image = resample(volume.voxels, volume.geometry, grid, outside=-1000.0)
    inside = _inside_skull(image > settings.bone_hu)
    tissue = inside & (image >= settings.tissue_hu[0]) & (image <= settings.tissue_hu[1])
    if not tissue.any():
        raise ScanRefusedError("no_skull", "no soft tissue inside bone", "a CT head in Hounsfield units",
                               "check the rescale slope and intercept, and that the scan is a head")  # fmt: skip
    return resample_mask(_brain(tissue, inside, settings), grid, volume.geometry)


def _inside_skull(bone: MaskArray) -> MaskArray:
    """Return what bone surrounds in axial slices: the head has no lid below, so 3D filling would leak."""
    radius = int(np.ceil(SKULL_GAP_MM / WORKING_MM / 2))
    closed = _close(bone, radius)
    filled = np.stack([ndimage.binary_fill_holes(closed[:, :, k]) for k in range(closed.shape[2])], axis=2)
    return np.asarray(filled & ~bone)


def _brain(tissue: MaskArray, inside: MaskArray, settings: ExtractCtSettings) -> MaskArray:
    radius = max(1, round(settings.neck_mm / WORKING_MM))
    core = ndimage.binary_erosion(ndimage.median_filter(tissue.view(np.uint8), 3), _ball(radius))
    grown = ndimage.binary_dilation(_largest(core), _ball(radius + 1))
    closed = _close(grown & tissue, max(1, round(settings.smooth_mm / WORKING_MM)))
    return np.asarray(ndimage.binary_fill_holes(closed & inside))


def _close(mask: MaskArray, radius: int) -> MaskArray:
    padded = np.pad(mask, radius + 1)
    closed = ndimage.binary_closing(padded, _ball(radius))
    inner = slice(radius + 1, -(radius + 1))
    return np.asarray(closed[inner, inner, inner])


def _largest(mask: MaskArray) -> MaskArray:
    labels, count = ndimage.label(mask)
    return mask if count < 2 else np.asarray(labels == 1 + np.bincount(labels.ravel())[1:].argmax())


def _ball(radius: int) -> npt.NDArray[np.bool_]:
    axis = np.arange(-radius, radius + 1)
    i, j, k = np.meshgrid(axis, axis, axis, indexing="ij")
    return np.asarray(i**2 + j**2 + k**2 <= radius**2)
