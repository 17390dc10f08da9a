"""Normalise the intensities of scans of one modality. Background is exactly 0, the result is float32.

Methods, from most to least robust across scanners:

- ``tissues``: the modes of grey and of white matter, in regions of the aligned template, are mapped to fixed
  values, and zero to zero. The modes do not depend on lesions, fat or the scaling of the scanner, and the contrast
  between tissues becomes the same for all sequences.
- ``white_matter``: the mode of white matter only, by one factor; contrast stays as scanned.
- ``nyul``: piecewise-linear matching of percentiles to landmarks learnt from healthy scans (Nyúl et al., IEEE
  TMI 19 (2000) 143-150).
- ``percentile``, ``zscore``: statistics of the whole brain; a large lesion changes them.
- ``window``: CT, Hounsfield windows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator
from scipy import ndimage

from anomaly.core.config import Settings
from anomaly.core.errors import CohortError, ScanRefusedError
from anomaly.core.volume import FloatArray, MaskArray
from anomaly.preprocessing.template import Template

NYUL_PERCENTILES = (1.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 99.0)
MIN_TISSUE_SHARE = 0.9  # of a voxel of the template, for it to represent a tissue
MODE_BINS = 128
MODE_SMOOTHING_BINS = 2.0

Floats = npt.NDArray[np.float64]


class IntensitySettings(Settings):
    """How intensities are normalised."""

    method: Literal["white_matter", "tissues", "nyul", "percentile", "zscore", "window"] = Field(
        default="tissues", description="what the scale is based on; window is for CT"
    )
    white_value: float = Field(default=0.7, gt=0, description="white_matter, tissues: value of white matter")
    grey_value: float = Field(default=0.58, gt=0, description="tissues: value of grey matter")
    percentiles: tuple[float, float] = Field(
        default=(1.0, 99.0), description="percentile: these percentiles of the brain become 0 and 1"
    )
    landmarks: tuple[float, ...] = Field(
        default=(), description="nyul: values of the percentiles 1, 10, 20 … 90, 99, learnt from healthy scans"
    )
    windows: tuple[tuple[float, float], ...] = Field(
        default=((40.0, 80.0),), min_length=1, description="window: (centre, width) in HU; several are averaged"
    )
    clip: tuple[float, float] = Field(default=(0.0, 1.0), description="values are limited to this range")

    @property
    def range_hu(self) -> tuple[float, float] | None:
        """The densities that become the smallest and the largest value, HU; None for the methods of MR."""
        if self.method != "window":
            return None
        ends = [(centre - width / 2, centre + width / 2) for centre, width in self.windows]
        return min(low for low, _ in ends), max(high for _, high in ends)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.method == "nyul" and len(self.landmarks) != len(NYUL_PERCENTILES):
            raise ValueError(f"nyul needs {len(NYUL_PERCENTILES)} landmarks, found {len(self.landmarks)}; learn "
                             "them from healthy scans with learn_landmarks")  # fmt: skip
        if self.clip[0] >= self.clip[1] or self.percentiles[0] >= self.percentiles[1]:
            raise ValueError("the first of clip and of percentiles must be below the second")
        return self

    def hounsfield_scale(self) -> tuple[float, float]:
        """Return the intensity of 0 HU and the difference of intensity of one HU, inside the windows."""
        if self.method != "window":
            return 0.0, 1.0
        lowest = [(centre / width - 0.5, 1 / width) for centre, width in self.windows]
        return -float(np.mean([low for low, _ in lowest])), float(np.mean([slope for _, slope in lowest]))


def normalise(voxels: FloatArray, mask: MaskArray, template: Template, settings: IntensitySettings) -> FloatArray:
    """Normalise the intensities of a scan.

    Parameters
    ----------
    voxels
        ``(I, J, K)`` on the template grid.
    mask
        Foreground ``(I, J, K)``.
    template
        The template on the same grid, for the regions of white and grey matter.
    settings
        Method and values.

    Returns
    -------
    ndarray
        float32 ``(I, J, K)``, exactly 0 outside the mask.

    Raises
    ------
    ScanRefusedError
        With code ``no_contrast`` if the intensities of the tissues cannot be determined.
    """
    scaled = np.clip(_scaled(voxels, mask, template, settings), *settings.clip)
    return np.where(mask, scaled, 0).astype(np.float32)


def tissue_mode(voxels: FloatArray, where: MaskArray) -> float:
    """Return the mode of the intensities in a region ``(I, J, K)``: the peak of its smoothed histogram.

    Raises
    ------
    ScanRefusedError
        With code ``no_contrast`` if the region is empty or of constant intensity.
    """
    values = voxels[where].astype(np.float64)
    low, high = np.percentile(values, (1, 99)) if values.size else (0.0, 0.0)
    if high <= low:
        raise ScanRefusedError("no_contrast", "a flat or missing tissue", "white and grey matter with a spread of "
                               "intensities", "check that the brain is in the field of view")  # fmt: skip
    counts, edges = np.histogram(values, bins=MODE_BINS, range=(low, high))
    # A scan of few grey levels leaves bins empty; the smoothing is wider than the distance of its levels.
    width = max(MODE_SMOOTHING_BINS, 0.05 * MODE_BINS)
    peak = int(ndimage.gaussian_filter1d(counts.astype(np.float64), width, mode="constant").argmax())
    return float((edges[peak] + edges[peak + 1]) / 2)


def learn_landmarks(scans: Iterable[tuple[FloatArray, MaskArray]]) -> tuple[float, ...]:
    """Learn Nyúl landmarks: the mean percentiles of healthy scans whose 1st and 99th are scaled to 0 and 1.

    Parameters
    ----------
    scans
        Voxels and mask ``(I, J, K)`` of healthy scans, one at a time.

    Returns
    -------
    tuple
        11 increasing values from 0 to 1, for ``IntensitySettings.landmarks``.
    """
    rows = [_zero_to_one(np.percentile(voxels[mask], NYUL_PERCENTILES)) for voxels, mask in scans]
    if not rows:
        raise CohortError("no scans to learn landmarks from; expected at least one healthy scan")
    return tuple(float(value) for value in np.mean(rows, axis=0))


def _scaled(voxels: FloatArray, mask: MaskArray, template: Template, settings: IntensitySettings) -> FloatArray:
    if settings.method == "window":
        return _windowed(voxels, settings.windows)
    if settings.method == "white_matter":
        white = tissue_mode(voxels, mask & (template.white > MIN_TISSUE_SHARE))
        return np.asarray(voxels * (settings.white_value / _require_positive(white)))
    if settings.method == "tissues":
        return _map_two_tissues(voxels, mask, template, settings)
    inside = voxels[mask]
    if settings.method == "zscore":
        return np.asarray((voxels - inside.mean()) / _require_positive(float(inside.std())))
    if settings.method == "nyul":
        return _nyul(voxels, inside, settings.landmarks)
    low, high = np.percentile(inside, settings.percentiles)
    return np.asarray((voxels - low) / _require_positive(float(high - low)))


def _map_two_tissues(
    voxels: FloatArray, mask: MaskArray, template: Template, settings: IntensitySettings
) -> FloatArray:
    """Map 0 and the modes of two tissues to 0 and their values, linearly between; scale brighter voxels."""
    white = _require_positive(tissue_mode(voxels, mask & (template.white > MIN_TISSUE_SHARE)))
    grey = _require_positive(tissue_mode(voxels, mask & (template.grey > MIN_TISSUE_SHARE)))
    if (white - grey) * (settings.white_value - settings.grey_value) <= 0:
        raise ScanRefusedError(
            "no_contrast",
            f"white matter at {white:.3g} and grey matter at {grey:.3g}",
            "white matter the brighter"
            if settings.white_value > settings.grey_value
            else "grey matter the brighter",
            "check the scan's modality, or give intensity.white_value and grey_value for its contrast",
        )
    (low, low_value), (high, high_value) = sorted([(grey, settings.grey_value), (white, settings.white_value)])
    mapped = np.interp(voxels, (0, low, high), (0, low_value, high_value))
    return np.where(voxels > high, voxels * (high_value / high), mapped).astype(np.float32)


def _nyul(voxels: FloatArray, inside: FloatArray, landmarks: tuple[float, ...]) -> FloatArray:
    own = np.maximum.accumulate(np.percentile(inside, NYUL_PERCENTILES)) + 1e-9 * np.arange(len(NYUL_PERCENTILES))
    mapped = np.interp(voxels, own, landmarks)
    for end, inner in ((0, 1), (-1, -2)):  # extrapolate linearly beyond the outermost landmarks
        slope = (landmarks[end] - landmarks[inner]) / (own[end] - own[inner])
        beyond = voxels < own[0] if end == 0 else voxels > own[-1]
        mapped = np.where(beyond, landmarks[end] + slope * (voxels - own[end]), mapped)
    return np.asarray(mapped, dtype=np.float32)


def _windowed(voxels: FloatArray, windows: tuple[tuple[float, float], ...]) -> FloatArray:
    windowed = [np.clip((voxels - (centre - width / 2)) / width, 0, 1) for centre, width in windows]
    return np.asarray(np.mean(windowed, axis=0), dtype=np.float32)


def _zero_to_one(values: npt.NDArray[Any]) -> Floats:
    return np.asarray((values - values[0]) / _require_positive(float(values[-1] - values[0])))


def _require_positive(value: float) -> float:
    if not np.isfinite(value) or value <= 0:
        raise ScanRefusedError("no_contrast", f"a reference intensity of {value:.3g}", "a value above zero",
                               "check whether the scan is empty, inverted, or of another modality")  # fmt: skip
    return value
