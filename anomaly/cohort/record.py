"""The record of one scan: whether it was accepted, why not, and where its volume is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from anomaly.core.aliases import SCAN_RECORD, rename_keys
from anomaly.core.covariates import covariates
from anomaly.core.files import read_json, write_json
from anomaly.core.results import ScanStatus
from anomaly.core.volume import FloatArray, Geometry

RECORDS_FOLDER = "records"


@dataclass(frozen=True)
class ScanRecord:
    """The record of one scan: one row of the manifest, and one file in ``records/``.

    Parameters
    ----------
    source
        Path relative to the cohort folder (``path#series`` for DICOM and zips).
    volume, mask
        Preprocessed volume and foreground mask, relative to the cohort folder; ``""`` unless accepted.
    lesion_mask
        Lesion mask in the scan's own space, relative to the cohort folder; for evaluation only.
    duplicate_of
        The ``scan_id`` of the accepted scan with the same content.
    warnings
        Findings of the quality checks that do not refuse the scan.
    shape, affine
        The scan's own grid: 3 ints; 16 floats, row-major, voxel index → RAS+ mm.
    template_from_scan
        16 floats, row-major: scan RAS+ mm → template RAS+ mm.
    numbers
        Image quality metrics, registration quality, and seconds per step.
    input_hash
        SHA-256 of names, sizes and modification times of the source files, and of all settings of the preparation.
        A record is reused as long as this is the same. Not part of the manifest.
    volume_hash
        SHA-256 of the files ``volume`` and ``mask``, to notice that they are damaged; ``""`` in records of earlier
        versions. Not part of the manifest.
    """

    scan_id: str
    status: ScanStatus
    subject: str = ""
    session: str = ""
    modality: str = ""
    group: str = ""
    split: str = ""
    age: float | None = None
    sex: str = ""
    source: str = ""
    content_hash: str = ""
    reason_code: str = ""
    reason: str = ""
    remedy: str = ""
    volume: str = ""
    mask: str = ""
    lesion_mask: str = ""
    duplicate_of: str = ""
    warnings: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()
    affine: tuple[float, ...] = ()
    template_from_scan: tuple[float, ...] = ()
    numbers: Mapping[str, float] = field(default_factory=dict)
    input_hash: str = ""
    volume_hash: str = field(default="", compare=False)

    @property
    def geometry(self) -> Geometry:
        """The scan's own grid."""
        i, j, k = self.shape
        return Geometry((i, j, k), np.array(self.affine).reshape(4, 4))

    @property
    def covariates(self) -> FloatArray:
        """Age and sex ``(2,)``, NaN where unknown; see :func:`anomaly.core.covariates.covariates`."""
        return covariates(self.age, self.sex)

    @property
    def template_from_scan_matrix(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """``(4, 4)``: scan RAS+ mm → template RAS+ mm."""
        return np.array(self.template_from_scan, dtype=np.float64).reshape(4, 4)

    def with_status(self, status: ScanStatus, code: str, reason: str, remedy: str) -> ScanRecord:
        """Return the record of the same scan with another status, a reason, and no volume."""
        return replace(
            self, status=status, reason_code=code, reason=reason, remedy=remedy, volume="", mask="", volume_hash="",
            template_from_scan=(),
        )  # fmt: skip

    def row(self) -> dict[str, Any]:
        """Return the values of a manifest row; ``warnings`` and ``numbers`` are JSON text."""
        values = asdict(self)
        values["status"] = self.status.value
        values["warnings"] = json.dumps(list(self.warnings), ensure_ascii=False)
        values["numbers"] = json.dumps(dict(self.numbers), sort_keys=True)
        del values["input_hash"], values["volume_hash"]
        return values

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """Build a record from a manifest row."""
        values = dict(row)
        values["warnings"] = json.loads(values["warnings"])
        values["numbers"] = json.loads(values["numbers"])
        return cls._from_values(values)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a record from a file in ``records/``; files of earlier versions are read, too."""
        return cls._from_values(rename_keys(read_json(path), SCAN_RECORD))

    def save(self, folder: Path) -> None:
        """Write ``records/<scan_id>.json`` of a cohort folder, atomically."""
        write_json(record_path(folder, self.scan_id), asdict(self))

    @classmethod
    def _from_values(cls, values: dict[str, Any]) -> Self:
        known = {f.name for f in fields(cls)}
        arguments = {key: value for key, value in values.items() if key in known}
        age = arguments.get("age")
        arguments["age"] = None if age is None or np.isnan(age) else float(age)
        arguments["status"] = ScanStatus(arguments["status"])
        arguments["warnings"] = tuple(arguments.get("warnings", ()))
        arguments["shape"] = tuple(int(n) for n in arguments.get("shape", ()))
        for name in ("affine", "template_from_scan"):
            arguments[name] = tuple(float(v) for v in arguments.get(name, ()))
        return cls(**arguments)


def record_path(folder: Path, scan_id: str) -> Path:
    """Return the path of a scan's record in a cohort folder."""
    return folder / RECORDS_FOLDER / f"{scan_id}.json"
