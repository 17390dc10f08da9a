"""Tissue maps of the MNI152 template on a 2 mm grid, from which every subject is made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, cast

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

STEP_MM = 2.0
ORIGIN_MM = (-104.0, -140.0, -96.0)
SHAPE = (105, 129, 105)
"""The template ends at -72 mm; the grid extends further down for the neck."""
BRAIN_MAPS = ("brain", "white", "grey", "csf", "detail")
ANTI_ALIAS_MM = 1.1
"""Standard deviation of the low-pass filter before the 1 mm maps are sampled at 3 to 4 mm."""

_TEMPLATE = "mni_icbm152_{tissue}_tal_nlin_sym_09a_converted.nii.gz"


@dataclass(frozen=True)
class Anatomy:
    """Named maps on one grid in template space.

    Parameters
    ----------
    maps
        Name to array, shape (I, J, K), RAS+ order: volume fractions in 0 to 1, and ``detail`` (signed, fraction of
        the signal of white matter).
    """

    maps: Mapping[str, Array]

    def only(self, names: Iterable[str]) -> Anatomy:
        """Keep some of the maps."""
        return Anatomy({name: self.maps[name] for name in names})

    def at(self, points: Array, name: str) -> Array:
        """Interpolate one map linearly; zero outside the grid.

        Parameters
        ----------
        points
            Template coordinates, shape (..., 3), RAS+ millimetres.
        name
            A key of ``maps``.

        Returns
        -------
        Array
            Values, shape (...).
        """
        index = (points - np.array(ORIGIN_MM)) / STEP_MM
        coordinates = np.moveaxis(index, -1, 0)
        return cast("Array", ndimage.map_coordinates(self.maps[name], coordinates, order=1, mode="constant"))


def grid_points() -> Array:
    """Template coordinates of the voxels of the grid, shape (I, J, K, 3), RAS+ millimetres."""
    axes = [start + STEP_MM * np.arange(count) for start, count in zip(ORIGIN_MM, SHAPE, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)


def load_brain() -> Anatomy:
    """Load the brain maps: ``brain``, ``white``, ``grey``, ``csf`` as fractions, and ``detail``.

    ``detail`` is the T1 template minus its three tissues: pallidum, thalamus, brainstem, thick cortex.
    """
    t1, grey, white = (_read_template(tissue) for tissue in ("t1", "gm", "wm"))
    brain = _on_grid((t1 > 0).astype(np.float64))
    t1, grey, white = (_on_grid(volume) for volume in (t1, grey, white))
    csf = np.clip(brain - grey - white, 0.0, 1.0)
    maps = {"brain": brain, "white": white, "grey": grey, "csf": csf}
    return Anatomy({**maps, "detail": _detail(t1, maps)})


def smooth(fraction: Array | BoolArray, sigma_mm: float = ANTI_ALIAS_MM) -> Array:
    """Smooth a map on the 2 mm grid; the edge values continue outwards."""
    return np.asarray(ndimage.gaussian_filter(fraction.astype(np.float64), sigma_mm / STEP_MM, mode="nearest"))


def _read_template(tissue: str) -> Array:
    """Read one template volume, shape (197, 233, 189), RAS+ order, 1 mm, scaled to 0 to 1."""
    path = files("nilearn.datasets.data") / _TEMPLATE.format(tissue=tissue)
    image = cast("Any", nib.load(str(path)))
    if not np.allclose(image.affine[:3, :3], np.eye(3)):
        raise ValueError(f"{path}: expected a 1 mm RAS+ template, found the affine {image.affine.tolist()}")
    return np.asarray(image.dataobj, dtype=np.float64) / 255.0


def _on_grid(volume: Array) -> Array:
    """Low-pass filter a 1 mm template volume and resample it to the 2 mm grid, zero outside the template."""
    first_voxel_mm = np.array([-98.0, -134.0, -72.0])
    soft = ndimage.gaussian_filter(volume, ANTI_ALIAS_MM, mode=("constant", "constant", "nearest"))
    offset = np.array(ORIGIN_MM) - first_voxel_mm
    return np.asarray(ndimage.affine_transform(soft, STEP_MM * np.eye(3), offset, SHAPE, order=1, mode="constant"))


def _detail(t1: Array, maps: Mapping[str, Array]) -> Array:
    """T1 template minus its best three-tissue approximation, in units of the signal of white matter."""
    tissues = np.stack([maps[name] for name in ("white", "grey", "csf")], axis=-1)
    inside = maps["brain"] > 0.9
    signal, *_ = np.linalg.lstsq(tissues[inside], t1[inside], rcond=None)
    return np.asarray(np.where(inside, t1 - tissues @ signal, 0.0) / signal[0])
