"""Scans that must be refused: one good T1 scan, damaged in one way per file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

from sample_data.recipe.dicom import write_series, write_text_report
from sample_data.recipe.nifti import gzipped, nifti_bytes, write_nifti
from sample_data.recipe.scanner import Scan
from sample_data.recipe.subjects import Person

SUBJECT = "sub-81"


def write_refused(folder: Path, person: Person, scan: Scan) -> dict[str, str]:
    """Write every faulty scan.

    Parameters
    ----------
    folder
        The folder to write to.
    person
        Synthetic age and sex, for the DICOM headers.
    scan
        The good scan to damage.

    Returns
    -------
    dict
        File or series folder, relative to ``folder``, to its fault.
    """
    for name, (_, write) in _NIFTI_FAULTS.items():
        write(folder / name, scan)
    write_series(folder / "missing_slice", SUBJECT, person, scan, "MR", leave_out=[scan.grid.shape[2] // 2])
    write_text_report(folder / "no_image" / "SR0001.dcm", SUBJECT, person)
    return {
        **{name: fault for name, (fault, _) in _NIFTI_FAULTS.items()},
        "missing_slice": "a DICOM series from which a slice in the middle is missing",
        "no_image": "a DICOM structured report: there is no image in it",
    }


def _write_truncated(path: Path, scan: Scan) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = gzipped(nifti_bytes(scan.voxels, scan.grid.affine))
    path.write_bytes(content[: len(content) * 6 // 10])


def _write_four_dimensional(path: Path, scan: Scan) -> None:
    write_nifti(path, np.stack([scan.voxels] * 3, axis=-1), scan.grid.affine)


def _write_constant(path: Path, scan: Scan) -> None:
    write_nifti(path, np.full_like(scan.voxels, 100), scan.grid.affine)


def _write_not_a_number(path: Path, scan: Scan) -> None:
    voxels = scan.voxels.astype(np.float32)
    i, j, k = (count // 2 for count in scan.grid.shape)
    voxels[i : i + 4, j : j + 4, k : k + 4] = np.nan
    write_nifti(path, voxels, scan.grid.affine)


def _write_tiny_field_of_view(path: Path, scan: Scan) -> None:
    first = scan.grid.shape[2] // 2
    affine = scan.grid.affine.copy()
    affine[:3, 3] += first * affine[:3, 2]
    write_nifti(path, scan.voxels[:, :, first : first + 5], affine)


def _write_zero_affine(path: Path, scan: Scan) -> None:
    header = nib.Nifti1Image(scan.voxels, scan.grid.affine).header
    header.set_qform(None, code=0)
    header.set_sform(np.diag([0.0, 0.0, 0.0, 1.0]), code=1)
    path.write_bytes(gzipped(bytes(nib.Nifti1Image(scan.voxels, None, header).to_bytes())))


def _write_absurd_spacing(path: Path, scan: Scan) -> None:
    write_nifti(path, scan.voxels, scan.grid.affine @ np.diag([100.0, 100.0, 100.0, 1.0]))


_NIFTI_FAULTS: dict[str, tuple[str, Callable[[Path, Scan], None]]] = {
    "truncated_T1w.nii.gz": ("the file ends after 60 % of its bytes", _write_truncated),
    "four_dimensional_T1w.nii.gz": ("three volumes in one file", _write_four_dimensional),
    "constant_T1w.nii.gz": ("every voxel has the same value", _write_constant),
    "not_a_number_T1w.nii.gz": ("a block of voxels in the brain is not a number", _write_not_a_number),
    "tiny_field_of_view_T1w.nii.gz": ("five slices, 20 mm of the brain", _write_tiny_field_of_view),
    "zero_affine_T1w.nii.gz": ("the header puts all voxels in one place", _write_zero_affine),
    "absurd_spacing_T1w.nii.gz": (
        "voxels of 400 mm: the wrong unit of length",
        _write_absurd_spacing,
    ),
}
"""File name to its fault, and the function that writes it."""
