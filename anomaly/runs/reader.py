"""Read a run folder: its settings, the results of its scans, and the volumes of one scan."""

from __future__ import annotations

import csv
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from anomaly.core.errors import DamagedFileError, InputError
from anomaly.core.files import read_json, sha256_of_json
from anomaly.core.results import ScanScore, ScanStatus
from anomaly.core.scan_result import TemplateVolumes
from anomaly.core.tsv import plain_text
from anomaly.core.volume import Geometry
from anomaly.runs.layout import (
    NEIGHBOUR_PREFIX,
    NOT_SCORED_TSV,
    SCAN_SCORE,
    run_info_path,
    volumes_path,
)

# The keys of run.json on which a page depends. A resumed run has another date and command and the same pages.
PAGE_KEYS = (
    "version", "model", "calibration", "notices", "reference_scores", "display", "score_name", "retrieval",
    "software",
)  # fmt: skip
REQUIRED_KEYS = ("created_at", "model", "display", "score_name")
SCORE_AGAIN = "run the same `anomaly score` again: it makes what is missing"


@dataclass(frozen=True)
class Display:
    """The scales that all figures of a run share, so that two scans can be compared by eye.

    Parameters
    ----------
    evidence_max
        Evidence (healthy standard deviations) drawn in the last colour.
    voxel_threshold
        Evidence from which a voxel is marked; None without a calibration.
    intensity_max, intensity_min
        Preprocessed intensity drawn white and black.
    hu_max, hu_min
        The same in Hounsfield units, for CT; None for MR.
    """

    evidence_max: float
    voxel_threshold: float | None
    intensity_max: float
    intensity_min: float = 0.0
    hu_max: float | None = None
    hu_min: float | None = None


@dataclass(frozen=True)
class RunInfo:
    """The settings of one run, as ``run.json`` holds them."""

    folder: Path
    created_at: str
    model: dict[str, Any]
    calibration: dict[str, Any] | None
    display: Display
    score_name: str
    reference_scores: dict[str, list[float]] = field(default_factory=dict)
    retrieval: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    version: str = ""
    software: dict[str, Any] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    command: str = ""
    fingerprint: str = ""

    @property
    def in_healthy_sd(self) -> bool:
        """Whether the evidence is in healthy standard deviations, or in the model's own units."""
        return bool(self.settings.get("standardise") != "none")

    @property
    def reference(self) -> list[float]:
        """The declared score of each healthy reference scan; empty without a calibration."""
        return self.reference_scores.get(self.score_name, []) if self.calibration else []

    @property
    def threshold(self) -> float | None:
        """The threshold of the declared score; None without a calibration."""
        return None if self.calibration is None else _number(self.calibration.get("threshold"))

    @property
    def alpha(self) -> float | None:
        """The target false-positive rate; None without a calibration."""
        return None if self.calibration is None else _number(self.calibration.get("alpha"))


def read_run_json(folder: Path) -> dict[str, Any]:
    """Return ``run.json`` as it is.

    Raises
    ------
    InputError
        The folder holds no run.
    DamagedFileError
        The file is damaged.
    """
    path = run_info_path(folder)
    if not path.is_file():
        raise InputError(f"no run at {folder}: expected {path.name} there; make one with `anomaly score`")
    values: dict[str, Any] = read_json(path, SCORE_AGAIN)
    return values


def read_run_info(folder: Path) -> RunInfo:
    """Return the settings of a run.

    Raises
    ------
    InputError
        The folder holds no run, or its ``run.json`` lacks what a page needs.
    """
    values = read_run_json(folder)
    missing = [key for key in REQUIRED_KEYS if key not in values]
    if missing:
        path = run_info_path(folder)
        raise InputError(f"{path} lacks {', '.join(missing)}; score the scans again with `anomaly score`")
    known = {f.name for f in fields(RunInfo)} - {"folder", "display", "fingerprint", "calibration"}
    given: dict[str, Any] = {key: value for key, value in values.items() if key in known and value is not None}
    return RunInfo(
        folder=folder,
        display=_display(values["display"]),
        calibration=values.get("calibration"),
        fingerprint=sha256_of_json({key: values.get(key) for key in PAGE_KEYS}),
        **given,
    )


def read_scores(folder: Path) -> list[ScanScore]:
    """Return the result of every scan: each ``score.json``, and the rows of ``refused_failed.tsv`` without one.

    A scan whose ``score.json`` is damaged has failed.
    """
    found = {score.scan_id: score for score in map(_read_or_failed, sorted(folder.glob(f"*/{SCAN_SCORE}")))}
    table = folder / NOT_SCORED_TSV
    if table.is_file():
        with table.open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream, delimiter="\t"):
                score = _from_row(row)
                found.setdefault(score.scan_id, score)
    return list(found.values())


def read_score(path: Path) -> ScanScore:
    """Return the result of one scan from its ``score.json``.

    Raises
    ------
    DamagedFileError
        The file is damaged.
    """
    values = read_json(path, SCORE_AGAIN)
    try:
        return ScanScore.from_json(values)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(f"{path} is damaged: {error!r}; {SCORE_AGAIN}") from error


def _read_or_failed(path: Path) -> ScanScore:
    try:
        return read_score(path)
    except DamagedFileError:
        reason = f"found a damaged {path.name}; expected the result of the scan"
        return ScanScore(
            path.parent.name, ScanStatus.FAILED, reason_code="damaged_result", reason=reason, remedy=SCORE_AGAIN
        )


def read_volumes(folder: Path, scan_id: str) -> TemplateVolumes:
    """Return the volumes of a scan on the template grid.

    Raises
    ------
    DamagedFileError
        The file is missing or damaged.
    """
    with _arrays(folder, scan_id) as arrays:
        scan, reconstruction, evidence = (
            np.nan_to_num(arrays[name].astype(np.float32)) for name in ("input", "reconstruction", "evidence")
        )
        mask = arrays["mask"].astype(bool)
        return TemplateVolumes(scan, reconstruction, evidence * mask, mask, Geometry(scan.shape, arrays["affine"]))


def read_neighbours(folder: Path, scan_id: str) -> dict[str, npt.NDArray[np.uint8]]:
    """Return the middle slices of the most similar healthy scans, plane → ``(k, across, up)``.

    Empty for a model without an index of its training scans.

    Raises
    ------
    DamagedFileError
        The file is missing or damaged.
    """
    with _arrays(folder, scan_id) as arrays:
        names = [name for name in arrays.files if name.startswith(NEIGHBOUR_PREFIX)]
        return {name.removeprefix(NEIGHBOUR_PREFIX): arrays[name] for name in names}


@contextmanager
def _arrays(folder: Path, scan_id: str) -> Iterator[Any]:
    """Yield the arrays of the template volumes by name; they are read, and checked, on access."""
    path = volumes_path(folder, scan_id)
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:  # closed even if damaged
            yield arrays
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise DamagedFileError(f"{path} is missing or damaged ({type(error).__name__}); {SCORE_AGAIN}") from error


def _display(values: dict[str, Any]) -> Display:
    known = {f.name for f in fields(Display)}
    return Display(**{key: _number(value) for key, value in values.items() if key in known})  # type: ignore[arg-type]


def _from_row(row: dict[str, str]) -> ScanScore:
    text = ("subject", "session", "modality", "source", "content_hash", "reason_code", "reason", "remedy")
    values: dict[str, Any] = {name: plain_text(row.get(name) or "") for name in text}
    status = ScanStatus(row.get("status") or ScanStatus.FAILED)
    return ScanScore(
        scan_id=plain_text(row.get("scan_id") or "") or values["source"] or "(unnamed)", status=status, **values
    )


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
