"""The files that are written for every scored scan.

To add a format, write a function that takes the folder of the scan and its result and returns the path it wrote, in
a module of this package, and name it in :data:`WRITERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from anomaly.core.scan_result import ScanResult
from anomaly.export.nifti import write_nifti

Writer = Callable[[Path, ScanResult], Path]

ANOMALY_MAP = "anomaly_map"
FLAGGED_MASK = "flagged_mask"


def write_anomaly_map(folder: Path, result: ScanResult) -> Path:
    """Write the evidence in the scan's own grid as compressed NIfTI, 16 bits, and return the path."""
    path = folder / f"{result.scan_id}_desc-anomaly_map.nii.gz"
    write_nifti(path, result.evidence, result.geometry, "int16")
    return path


def write_flagged_mask(folder: Path, result: ScanResult) -> Path:
    """Write the flagged voxels in the scan's own grid as compressed NIfTI, and return the path."""
    path = folder / f"{result.scan_id}_desc-flagged_mask.nii.gz"
    write_nifti(path, result.flagged_mask, result.geometry, "uint8")
    return path


WRITERS: dict[str, Writer] = {
    ANOMALY_MAP: write_anomaly_map,
    FLAGGED_MASK: write_flagged_mask,
}
"""Name of an output → the function that writes it."""


def write_outputs(folder: Path, result: ScanResult, names: Iterable[str] | None = None) -> dict[str, Path]:
    """Write the outputs of a scan and return their paths by name.

    Parameters
    ----------
    folder
        The folder of the scan; it is made if it is not there.
    names
        Which of :data:`WRITERS`; by default all.
    """
    return {name: WRITERS[name](folder, result) for name in (WRITERS if names is None else names)}
