"""Resample a result from the template grid to the grid of the scan as it was received."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from anomaly.core.results import Region
from anomaly.core.volume import AffineArray, FloatArray, Geometry, MaskArray
from anomaly.preprocessing.grid import to_scan_grid
from anomaly.scoring.regions import find_regions, flagged_mask
from anomaly.scoring.scorer import ScoredVolume


@dataclass(frozen=True, eq=False)
class NativeResult:
    """Evidence in the scan's own grid.

    Parameters
    ----------
    evidence
        float32 ``(I, J, K)`` of the scan, ≥ 0.
    flagged
        Voxels above the voxel threshold, in regions of at least the smallest size; all False without a threshold.
    regions
        The connected regions of ``flagged``, highest peak first.
    """

    evidence: FloatArray
    flagged: MaskArray
    regions: tuple[Region, ...]


def in_scan_space(
    scored: ScoredVolume,
    grid: Geometry,
    scan: Geometry,
    template_from_scan: AffineArray,
    voxel_threshold: float | None,
    min_region_ml: float,
) -> NativeResult:
    """Resample the evidence of a scored volume to the scan's own grid, and find the flagged regions there.

    Parameters
    ----------
    grid
        The template grid of ``scored``.
    scan
        The scan's own grid.
    template_from_scan
        ``(4, 4)`` scan RAS+ mm → template RAS+ mm.
    voxel_threshold
        Evidence above which a voxel is flagged, from the calibration; None without a calibration.
    min_region_ml
        Smaller regions are dropped.
    """
    evidence = to_scan_grid(scored.evidence, grid, scan, template_from_scan, order=1)
    if voxel_threshold is None:
        return NativeResult(evidence, np.zeros(scan.shape, dtype=bool), ())
    flagged = flagged_mask(evidence, voxel_threshold, scan, min_region_ml)
    if not flagged.any():
        return NativeResult(evidence, flagged, ())
    signed = to_scan_grid(scored.signed, grid, scan, template_from_scan, order=1)
    structure = None
    if scored.structure is not None:
        structure = to_scan_grid(scored.structure, grid, scan, template_from_scan, order=1)
    regions = find_regions(flagged, evidence, signed, scan, template_from_scan, structure)
    return NativeResult(evidence, flagged, regions)
