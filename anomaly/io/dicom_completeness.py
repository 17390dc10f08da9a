"""Whether all images of a scan are there, by what the headers of its series say.

Counts in headers mean different things to different scanners, so that a difference is a reason to refuse only if
nothing else explains it. A sign that is weaker marks the scan.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from anomaly.core.errors import ScanRefusedError
from anomaly.io.dicom_header import Header

SAME_POSITION_MM = 0.01
_LATTICE_TOLERANCE = 0.05  # of a slice step
_MAX_FAULTS_NAMED = 3


def missing_images(scan: Sequence[Header], series: Sequence[Header]) -> ScanRefusedError | None:
    """Return the refusal of a scan that lacks images for certain.

    Parameters
    ----------
    scan
        The single-frame images of one volume.
    series
        All files with the SeriesInstanceUID of the scan.
    """
    found = next(_certain_signs(scan, series), "") if _is_original(scan) else ""
    return missing_slices_refusal(found) if found else None


def signs_of_missing_images(scan: Sequence[Header], series: Sequence[Header]) -> str:
    """Return signs that a scan lacks images, which do not prove it; empty if there are none."""
    signs = [] if _is_original(scan) else list(_certain_signs(scan, series))
    return "; ".join([*signs, *_weak_signs(scan, series)])


def missing_slices_refusal(found: str) -> ScanRefusedError:
    """Return the refusal of a scan without all its slices."""
    return ScanRefusedError("missing_slices", found, "a complete series", "export the series again")


def damage_refusal(damaged: Sequence[Header], n_files: int, numbers: Sequence[int]) -> ScanRefusedError:
    """Return the refusal of a series with damaged files.

    Parameters
    ----------
    damaged
        The headers of the damaged files.
    n_files
        Number of all files of the series.
    numbers
        The place of each damaged file among all files in the order of their names, from 1. The names themselves may
        contain patient names.
    """
    faults = [f"file {n} in the order of names: {h.fault}" for n, h in zip(numbers, damaged, strict=True)]
    more = "; …" if len(faults) > _MAX_FAULTS_NAMED else ""
    found = f"{len(faults)} of {n_files} files damaged ({'; '.join(faults[:_MAX_FAULTS_NAMED])}{more})"
    return ScanRefusedError("unreadable", found, "a series of which every file is readable",
                            "copy or export the series again",
                            any(h.is_fault_transient for h in damaged))  # fmt: skip


def have_repeated_positions(headers: Sequence[Header]) -> bool:
    """Return whether two images have the same position."""
    positions = _positions(headers)
    if len(positions) < 2:
        return False
    tree = cKDTree(positions)
    return int(tree.count_neighbors(tree, SAME_POSITION_MM)) > len(positions)


def count_positions(headers: Sequence[Header]) -> int:
    """Return the number of different positions of parallel images."""
    distances = _slice_distances(headers)
    return int((np.diff(distances) > SAME_POSITION_MM).sum()) + 1 if len(distances) else 0


def lies_in_stack(header: Header, stack: Sequence[Header]) -> bool:
    """Return whether an image lies where a stack of slices lacks one: inside it, or next to one of its ends."""
    if not header.has_plane or len(stack) < 3 or not all(h.has_plane for h in stack):
        return False
    positions = np.array(sorted(_positions(stack).tolist(), key=lambda p: float(np.dot(p, _normal(stack[0])))))
    step = np.median(np.diff(positions, axis=0), axis=0)
    length = float(np.linalg.norm(step))
    if length < SAME_POSITION_MM:
        return False
    offsets = np.array(header.position) - positions
    along = offsets @ step / length**2
    sideways = np.linalg.norm(offsets[0] - along[0] * step) / length
    on_lattice = bool(abs(along[0] - round(along[0])) < _LATTICE_TOLERANCE and sideways < _LATTICE_TOLERANCE)
    is_free = bool((np.abs(along) > 0.5).all())
    return on_lattice and is_free and bool(np.abs(along).min() < 1.5)


def _is_original(scan: Sequence[Header]) -> bool:
    """Return whether the counts in the headers are those of these images; copies in derived images are not."""
    return "ORIGINAL" in scan[0].image_type


def _certain_signs(scan: Sequence[Header], series: Sequence[Header]) -> Iterator[str]:
    n_slices, n_images = count_positions(series), sum(h.n_frames for h in series)
    slices, in_series = _agreed(scan, lambda h: h.counts.slices), _agreed(scan, lambda h: h.counts.series)
    in_acquisition = _agreed(scan, lambda h: h.counts.acquisition)
    if slices is not None and 0 < n_slices < slices:
        yield f"{n_slices} slices where the header counts {slices}: {slices - n_slices} missing"
    if in_series is not None and len(series) < in_series:
        n_missing = in_series - len(series)
        yield f"{len(series)} files where the header counts {in_series} in the series: {n_missing} missing"
    if in_acquisition is not None and in_acquisition / 2 < n_images < in_acquisition:
        n_missing = in_acquisition - n_images
        yield f"{n_images} images where the header counts {in_acquisition} in the acquisition: {n_missing} missing"
    time_points = _agreed(scan, lambda h: h.counts.time_points) or 1
    if 0 < n_slices < n_images < time_points * n_slices:
        n_missing = time_points * n_slices - n_images
        yield f"{n_images} images for {time_points} time points of {n_slices} slices: {n_missing} missing"
    yield from _signs_in_step(scan)


def _signs_in_step(scan: Sequence[Header]) -> Iterator[str]:
    claimed = _agreed(scan, lambda h: h.slice_step)
    gaps = np.diff(_slice_distances(scan))
    if claimed is None or len(gaps) < 2:
        return
    multiple = float(np.median(gaps)) / claimed
    if round(multiple) >= 2 and abs(multiple - round(multiple)) < _LATTICE_TOLERANCE:
        n_missing = (round(multiple) - 1) * len(gaps)
        yield f"slices {np.median(gaps):.2f} mm apart where the header says {claimed:.2f} mm: {n_missing} missing"


def _weak_signs(scan: Sequence[Header], series: Sequence[Header]) -> Iterator[str]:
    in_acquisition = _agreed(scan, lambda h: h.counts.acquisition)
    if in_acquisition is not None and len(series) < in_acquisition / 2 and in_acquisition % len(series):
        yield f"{len(series)} images where the header counts {in_acquisition} in the acquisition"
    yield from _signs_in_numbers(series)


def _signs_in_numbers(series: Sequence[Header]) -> Iterator[str]:
    """Yield a gap in the instance numbers that is short against the series; long ones are those of split series."""
    numbers = sorted({h.instance for h in series if h.instance > 0})
    if len(numbers) < 3:
        return
    step = math.gcd(*(int(d) for d in np.diff(numbers)))
    n_inside = (numbers[-1] - numbers[0]) // step + 1 - len(numbers)
    n_before = (numbers[0] - 1) // step
    if 0 < n_inside < len(numbers) / 2:
        yield f"{n_inside} of the instance numbers from {numbers[0]} to {numbers[-1]} missing"
    if 0 < n_before < len(numbers) / 2:
        yield f"instance numbers from {numbers[0]} instead of 1"


def _agreed(scan: Sequence[Header], value: Callable[[Header], float | None]) -> float | None:
    """Return the value that most headers have."""
    return Counter(value(h) for h in scan).most_common(1)[0][0]


def _positions(headers: Sequence[Header]) -> npt.NDArray[np.float64]:
    return np.array([h.position for h in headers if h.has_plane], dtype=np.float64).reshape(-1, 3)


def _normal(header: Header) -> npt.NDArray[np.float64]:
    return np.asarray(np.cross(header.orientation[:3], header.orientation[3:]), dtype=np.float64)


def _slice_distances(headers: Sequence[Header]) -> npt.NDArray[np.float64]:
    """Return the distances of slices along their normal, in order, millimetres."""
    planes = [h for h in headers if h.has_plane]
    return np.sort(_positions(planes) @ _normal(planes[0])) if planes else np.zeros(0)
