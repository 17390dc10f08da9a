"""Bring scans of one modality to one brightness scale. Background is exactly 0, the result is float32.

Ways, from most to least robust across scanners:

- ``tissues``: the commonest intensities of grey and of white matter, found where the aligned template says they
  are, get fixed values, and zero stays zero. Anchors in tissue do not move with a lesion, with fat or with the
  scanner's scaling, and contrast, which differs between sequences, is made alike.
- ``white_matter``: white matter only, by one factor; contrast stays as scanned.
- ``nyul``: piecewise-linear matching of percentiles to landmarks learnt from healthy scans (Nyúl et al., IEEE
  TMI 19 (2000) 143-150).
- ``percentile``, ``zscore``: statistics of the whole brain; a large lesion moves them.
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
SURE_TISSUE = 0.9
MODE_BINS = 128
MODE_SMOOTHING_BINS = 2.0

Floats = npt.NDArray[np.float64]


class IntensitySettings(Settings):
    """How intensities are brought to one scale."""

    method: Literal["white_matter", "tissues", "nyul", "percentile", "zscore", "window"] = Field(
        default="tissues", description="what anchors the scale; window is for CT"
    )
    white_value: float = Field(default=0.7, gt=0, description="white_matter, tissues: value that white matter gets")
    grey_value: float = Field(default=0.58, gt=0, description="tissues: value that grey matter gets")
    percentiles: tuple[float, float] = Field(
        default=(1.0, 99.0), description="percentile: these percentiles of the brain become 0 and 1"
    )
    landmarks: tuple[float, ...] = Field(
        default=(), description="nyul: values the percentiles 1, 10, 20 … 90, 99 get, learnt from healthy scans"
    )
    windows: tuple[tuple[float, float], ...] = Field(
        default=((40.0, 80.0),), min_length=1, description="window: (centre, width) in HU; several are averaged"
    )
    clip: tuple[float, float] = Field(default=(0.0, 1.0), description="values are limited to this range")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.method == "nyul" and len(self.landmarks) != len(NYUL_PERCENTILES):
            raise ValueError(f"nyul needs {len(NYUL_PERCENTILES)} landmarks, found {len(self.landmarks)}; learn "
                             "them from healthy scans with learn_landmarks")  # fmt: skip
        if self.clip[0] >= self.clip[1] or self.percentiles[0] >= self.percentiles[1]:
            raise ValueError("the first of clip and of percentiles must be below the second")
        return self


def normalise(voxels: FloatArray, mask: MaskArray, template: Template, settings: IntensitySettings) -> FloatArray:
    """Return the scan on the common scale.

    Parameters
    ----------
    voxels
        ``(I, J, K)`` on the template grid.
    mask
        Foreground on the same grid.
    template
        The template on that grid: where white and grey matter are expected.
    settings
        How.

    Returns
    -------
    ndarray
        float32 ``(I, J, K)``, exactly 0 outside the mask.

    Raises
    ------
    ScanRefusedError
        With code ``no_contrast`` when the anchors cannot be found.
    """
    scaled = np.clip(_scaled(voxels, mask, template, settings), *settings.clip)
    return np.where(mask, scaled, 0).astype(np.float32)


def tissue_mode(voxels: FloatArray, where: MaskArray) -> float:
    """Return the commonest intensity of a region: the peak of its smoothed histogram.

    Raises
    ------
    ScanRefusedError
        With code ``no_contrast`` when the region is empty or flat.
    """
    values = voxels[where].astype(np.float64)
    low, high = np.percentile(values, (1, 99)) if values.size else (0.0, 0.0)
    if high <= low:
        raise ScanRefusedError("no_contrast", "a flat or missing tissue", "white and grey matter with a spread of "
                               "intensities", "look at the scan: is the brain in the field of view?")  # fmt: skip
    counts, edges = np.histogram(values, bins=MODE_BINS, range=(low, high))
    # Several samples per bin would alias on scans of few grey levels: the smoothing is wider than their steps.
    width = max(MODE_SMOOTHING_BINS, 0.05 * MODE_BINS)
    peak = int(ndimage.gaussian_filter1d(counts.astype(np.float64), width, mode="constant").argmax())
    return float((edges[peak] + edges[peak + 1]) / 2)


def learn_landmarks(scans: Iterable[tuple[FloatArray, MaskArray]]) -> tuple[float, ...]:
    """Return Nyúl landmarks: the mean of healthy scans' percentiles after their 1 and 99 % were put at 0 and 1.

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
        white = tissue_mode(voxels, mask & (template.white > SURE_TISSUE))
        return np.asarray(voxels * (settings.white_value / _positive(white)))
    if settings.method == "tissues":
        return _two_anchors(voxels, mask, template, settings)
    inside = voxels[mask]
    if settings.method == "zscore":
        return np.asarray((voxels - inside.mean()) / _positive(float(inside.std())))
    if settings.method == "nyul":
        return _nyul(voxels, inside, settings.landmarks)
    low, high = np.percentile(inside, settings.percentiles)
    return np.asarray((voxels - low) / _positive(float(high - low)))


def _two_anchors(
    voxels: FloatArray, mask: MaskArray, template: Template, settings: IntensitySettings
) -> FloatArray:
    """Map 0, the darker and the brighter tissue to 0 and their values; brighter voxels go on in proportion."""
    white = _positive(tissue_mode(voxels, mask & (template.white > SURE_TISSUE)))
    grey = _positive(tissue_mode(voxels, mask & (template.grey > SURE_TISSUE)))
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
    for end, inner in ((0, 1), (-1, -2)):  # beyond the landmarks: go on along the last line
        slope = (landmarks[end] - landmarks[inner]) / (own[end] - own[inner])
        beyond = voxels < own[0] if end == 0 else voxels > own[-1]
        mapped = np.where(beyond, landmarks[end] + slope * (voxels - own[end]), mapped)
    return np.asarray(mapped, dtype=np.float32)


def _windowed(voxels: FloatArray, windows: tuple[tuple[float, float], ...]) -> FloatArray:
    shown = [np.clip((voxels - (centre - width / 2)) / width, 0, 1) for centre, width in windows]
    return np.asarray(np.mean(shown, axis=0), dtype=np.float32)


def _zero_to_one(values: npt.NDArray[Any]) -> Floats:
    return np.asarray((values - values[0]) / _positive(float(values[-1] - values[0])))


def _positive(value: float) -> float:
    if not np.isfinite(value) or value <= 0:
        raise ScanRefusedError("no_contrast", f"an intensity anchor of {value:.3g}", "a value above zero",
                               "look at the scan: is it empty, inverted, or of another modality?")  # fmt: skip
    return value
