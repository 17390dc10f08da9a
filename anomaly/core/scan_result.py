"""The result of one scan in memory: its scores, and its maps as arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from anomaly.core.results import HealthyGroup, Neighbour, Region
from anomaly.core.volume import FloatArray, Geometry, MaskArray

GreyImages = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class TemplateVolumes:
    """The volumes of one scan on the template grid, all float32 ``(I, J, K)``.

    Parameters
    ----------
    scan
        The preprocessed scan, 0 outside the brain mask.
    reconstruction
        Its pseudo-healthy reconstruction.
    evidence
        In healthy standard deviations, at least 0, larger = more anomalous; 0 outside ``mask``.
    mask
        Where evidence was measured.
    geometry
        The template grid: axes along RAS+ millimetres.
    """

    scan: FloatArray
    reconstruction: FloatArray
    evidence: FloatArray
    mask: MaskArray
    geometry: Geometry

    @cached_property
    def peak_mm(self) -> tuple[float, float, float]:
        """Position of the highest evidence inside the mask, MNI152 RAS millimetres."""
        inside = np.where(self.mask, self.evidence, -1.0)
        x, y, z = self.geometry.to_world(np.unravel_index(int(inside.argmax()), inside.shape))
        return float(x), float(y), float(z)

    def marked(self, regions: tuple[Region, ...], threshold: float | None) -> MaskArray:
        """Return the voxels of the listed regions: connected components above the threshold that hold a peak."""
        if threshold is None or not regions:
            return np.zeros(self.evidence.shape, dtype=bool)
        labels, _ = ndimage.label((self.evidence >= threshold) & self.mask)
        marked_labels = {label for region in regions for label in self._labels_near(labels, region.mni_mm)}
        return np.asarray(np.isin(labels, sorted(marked_labels)), dtype=bool)

    def nearest_index(self, point_mm: tuple[float, float, float]) -> tuple[int, int, int]:
        """Return the voxel of the grid that is nearest to a point."""
        index = np.round(self.geometry.to_index(point_mm)).astype(int)
        i, j, k = np.clip(index, 0, np.array(self.geometry.shape) - 1)
        return int(i), int(j), int(k)

    def _labels_near(self, labels: Any, point_mm: tuple[float, float, float]) -> set[int]:
        # A peak comes from the scan's own grid: on the template it may lie one voxel off.
        i, j, k = self.nearest_index(point_mm)
        if labels[i, j, k]:
            return {int(labels[i, j, k])}
        around = labels[max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2, max(k - 1, 0) : k + 2]
        return {int(label) for label in np.unique(around) if label}


@dataclass(frozen=True, eq=False)
class ScanResult:
    """The result of one scan.

    Parameters
    ----------
    scan_id
        Name of the scan in tables and files.
    score_name
        The declared scan score, which is compared with the threshold.
    scores
        Every scan score by name, larger = more anomalous.
    evidence
        float32 ``(I, J, K)`` in the scan's own grid, at least 0, larger = more anomalous; in healthy standard
        deviations unless the model does not standardise.
    flagged_mask
        bool ``(I, J, K)``: voxels above the voxel threshold, in regions of at least the smallest size; all False
        without a calibration.
    geometry
        The scan's own grid.
    template
        The scan, its reconstruction and the evidence on the template grid.
    regions
        Connected regions of ``flagged_mask``, highest peak first.
    p_values, percentiles
        Conformal p-value of each score, and the percentage of healthy scans below it; empty without a calibration.
    flagged
        Whether the declared score is above the threshold; None without a calibration.
    neighbours, neighbour_slices
        The most similar healthy training scans, and their middle slices, plane → uint8 ``(k, across, up)``.
    warnings
        What a reader must know before trusting the score.
    notices
        What a reader must know of all scores of the model with this calibration.
    numbers
        Quality numbers of the scan and of its preparation, its ``similarity`` to the mean healthy scan and the
        ``acquisition_p`` of its scanner and protocol.
    compared_with
        The healthy subjects it was compared with; None for a model whose healthy reference does not depend on age
        and sex.
    model_id, calibration_id
        The exact model and calibration; ``""`` for no calibration.
    threshold, alpha
        Of the declared score, and its target false-positive rate; None without a calibration.
    """

    scan_id: str
    score_name: str
    scores: dict[str, float]
    evidence: FloatArray
    flagged_mask: MaskArray
    geometry: Geometry
    template: TemplateVolumes
    regions: tuple[Region, ...] = ()
    p_values: dict[str, float] = field(default_factory=dict)
    percentiles: dict[str, float] = field(default_factory=dict)
    flagged: bool | None = None
    neighbours: tuple[Neighbour, ...] = ()
    neighbour_slices: Mapping[str, GreyImages] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    numbers: dict[str, float] = field(default_factory=dict)
    compared_with: HealthyGroup | None = None
    model_id: str = ""
    calibration_id: str = ""
    threshold: float | None = None
    alpha: float | None = None

    @property
    def score(self) -> float:
        """The declared scan score."""
        return self.scores[self.score_name]

    @property
    def p_value(self) -> float | None:
        """Conformal p-value of the declared score; None without a calibration."""
        return self.p_values[self.score_name] if self.p_values else None

    @property
    def percentile(self) -> float | None:
        """Percentage of healthy scans with a lower declared score; None without a calibration."""
        return self.percentiles[self.score_name] if self.percentiles else None
