"""The preprocessed volumes of a cohort, memory-mapped on access."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.spatialimages import SpatialImage

from anomaly.cohort.table import ScanRecord, accepted, read_records
from anomaly.core.covariates import AGE_AND_SEX
from anomaly.core.errors import CohortError
from anomaly.core.volume import FloatArray, Geometry, MaskArray


class CohortVolumes:
    """The volumes of selected scans on their common grid; a :class:`~anomaly.core.image_views.VolumeSource`.

    Nothing is held in memory: each item is a memory map of an uncompressed file, so that reading one slice reads
    only that slice from disk.

    Parameters
    ----------
    folder
        The cohort.
    records
        The scans, in this order; by default all accepted scans of the manifest.

    Attributes
    ----------
    covariate_definitions
        The definitions of the covariates: age and sex.
    """

    covariate_definitions = AGE_AND_SEX

    def __init__(self, folder: Path, records: Sequence[ScanRecord] | None = None) -> None:
        self.folder = folder
        self.records = tuple(accepted(read_records(folder) if records is None else records))
        if not self.records:
            raise CohortError(f"no accepted scan of {folder} was chosen; look at its manifest.tsv for the reasons")
        self.grid = read_grid(folder / self.records[0].volume)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[FloatArray, MaskArray]:
        """Return the voxels float32 ``(I, J, K)`` (0 outside the mask) and the foreground mask."""
        record = self.records[index]
        voxels = self._map(record.volume)
        mask = self._map(record.mask)
        return voxels, mask.view(np.bool_)  # stored as bytes 0 and 1

    def covariates(self, index: int) -> FloatArray:
        """Return age and sex ``(2,)`` of a scan's subject, NaN where the manifest does not give them."""
        return self.records[index].covariates

    def __iter__(self) -> Any:
        return (self[index] for index in range(len(self)))

    def select(self, records: Sequence[ScanRecord]) -> CohortVolumes:
        """Return the volumes of the given scans of the same cohort."""
        return CohortVolumes(self.folder, records)

    def _map(self, name: str) -> npt.NDArray[Any]:
        array = map_nifti(self.folder / name)
        if array.shape != self.grid.shape:
            raise CohortError(f"{name} has shape {array.shape}, the cohort's grid {self.grid.shape}; ingest again")
        return array


def map_nifti(path: Path) -> npt.NDArray[Any]:
    """Return the stored values of an uncompressed NIfTI file as a memory map.

    The map is copy-on-write: a change to it never changes the file, and torch can wrap it without a warning.
    """
    try:
        image: Any = nib.load(path, mmap="c")
        return np.asanyarray(image.dataobj.get_unscaled())
    except (OSError, ValueError, nib.filebasedimages.ImageFileError) as error:
        raise CohortError(f"{path} is missing or damaged ({type(error).__name__}); ingest again") from error


def read_grid(path: Path) -> Geometry:
    """Read the grid of a preprocessed volume."""
    try:
        image = cast("SpatialImage", nib.load(path))
    except (OSError, nib.filebasedimages.ImageFileError) as error:
        raise CohortError(f"{path} is missing or damaged ({type(error).__name__}); ingest again") from error
    i, j, k = image.shape
    return Geometry((i, j, k), np.asarray(image.affine, dtype=np.float64))
