"""Find and list the connected regions of flagged voxels."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from anomaly.core.results import Region
from anomaly.core.volume import AffineArray, FloatArray, Geometry, MaskArray

SIX_NEIGHBOURS = ndimage.generate_binary_structure(3, 1)
MAX_REGIONS = 50


def flagged_mask(evidence: FloatArray, threshold: float, geometry: Geometry, min_region_ml: float) -> MaskArray:
    """Return the voxels above ``threshold`` that belong to a region of at least ``min_region_ml`` millilitres."""
    above = evidence > threshold
    labels, n = ndimage.label(above, SIX_NEIGHBOURS)
    sizes_ml = np.bincount(labels.ravel(), minlength=n + 1) * geometry.voxel_ml
    large_enough = sizes_ml >= min_region_ml
    large_enough[0] = False  # the background
    return np.asarray(large_enough[labels])


def find_regions(
    mask: MaskArray,
    evidence: FloatArray,
    signed: FloatArray,
    geometry: Geometry,
    template_from_scan: AffineArray,
    structure: FloatArray | None = None,
    max_regions: int = MAX_REGIONS,
) -> tuple[Region, ...]:
    """List the connected regions of ``mask``, highest peak first.

    Parameters
    ----------
    mask, evidence, signed
        ``(I, J, K)`` in the scan's own grid; ``signed`` is negative where the scan is darker than expected.
    template_from_scan
        ``(4, 4)`` scan RAS+ mm → MNI152 RAS+ mm.
    structure
        ``(I, J, K)`` the part of ``evidence`` that is of shape and structure; None = none.
    max_regions
        Only this many regions are listed.
    """
    labels, n = ndimage.label(mask, SIX_NEIGHBOURS)
    if n == 0:
        return ()
    peaks = np.atleast_1d(ndimage.maximum(evidence, labels, np.arange(1, n + 1)))
    boxes = ndimage.find_objects(labels)
    found = []
    for rank, i in enumerate(np.argsort(-peaks, kind="stable")[:max_regions], start=1):
        box, inside = boxes[i], labels[boxes[i]] == i + 1
        inside_evidence = np.where(inside, evidence[box], -np.inf)
        peak = tuple(
            int(p) + s.start
            for p, s in zip(np.unravel_index(inside_evidence.argmax(), inside.shape), box, strict=True)
        )
        found.append(
            Region(
                label=rank,
                volume_ml=float(inside.sum()) * geometry.voxel_ml,
                peak=float(peaks[i]),
                mean=float(evidence[box][inside].mean()),
                mni_mm=_position_in_template(peak, geometry, template_from_scan),
                voxel=(peak[0], peak[1], peak[2]),
                polarity=_polarity(box, inside, evidence, signed, structure),
            )
        )
    return tuple(found)


def _polarity(
    box: tuple[slice, ...],
    inside: MaskArray,
    evidence: FloatArray,
    signed: FloatArray,
    structure: FloatArray | None,
) -> str:
    """Return what most of the evidence of a region is of: darker, brighter, or shape and structure."""
    if structure is not None and structure[box][inside].sum() > evidence[box][inside].sum() / 2:
        return "structure"
    return "dark" if float(signed[box][inside].mean()) < 0 else "bright"


def _position_in_template(
    voxel: tuple[int, ...], geometry: Geometry, template_from_scan: AffineArray
) -> tuple[float, float, float]:
    x, y, z, _ = template_from_scan @ np.append(geometry.to_world(voxel), 1.0)
    return round(float(x), 1), round(float(y), 1), round(float(z), 1)
