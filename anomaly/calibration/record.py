"""Calibration records: who set which target false-positive rate (FPR), when, why, and on which healthy scans.

Each record is a file ``model/calibrations/<id>.json``. ``model/reference_scores.parquet`` holds the healthy scores
of all calibrations, with the column ``calibration_id``. Both are append-only: a new calibration adds a record.

A record is checked whenever it is read: the hash in its id, the hash of each field, and the id of the model. When
it is used, the reference scores and the numbers that follow from them are checked too. The hashes have no key: they
show that a record was changed after it was made, unless whoever changed it computed them again. ``audit.jsonl`` of
the model lists the hash of every record.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from anomaly.calibration.conformal import Floats, p_values, percentiles
from anomaly.calibration.operating_point import OperatingPoint, operating_point
from anomaly.core.aliases import CALIBRATION, current_calibration, rename_keys
from anomaly.core.config import Settings
from anomaly.core.errors import (
    AlphaTooSmallError,
    BundleError,
    CohortError,
    DamagedFileError,
    LeakageError,
    UncalibratedError,
    unknown_name,
)
from anomaly.core.files import atomic_path, read_json, sha256_of_json, write_json
from anomaly.core.locks import appending

IDENTITY_COLUMNS = ("scan_id", "subject_hash", "content_hash")
SCORE_PREFIX = "score_"
CONFIDENCE = 0.95

DAMAGED_RECORD = "restore it from a copy, or remove it and calibrate again"


class Scope(Settings):
    """What a calibration applies to: new scans must come from the same population and scanner."""

    modality: str
    cohort: str = Field(description="name of the healthy cohort, without a path")
    n_subjects: int = Field(ge=1)


class CalibrationRecord(Settings):
    """One calibration: a threshold with its provenance. A written record is never changed."""

    calibration_id: str
    created_at: datetime = Field(description="UTC")
    user_name: str
    reason: str = Field(min_length=1)
    scope: Scope
    model_id: str
    alpha: float = Field(gt=0, lt=1, description="target false-positive rate (FPR) on exchangeable healthy scans")
    n_healthy: int = Field(ge=1, description="held-out healthy scans of the calibration")
    score_name: str = Field(description="the declared score; a scan is flagged by this one alone")
    threshold: float = Field(description="flag if and only if score > threshold, that is p ≤ alpha")
    expected_rate: float = Field(description="expected FPR, floor((n + 1) alpha) / (n + 1)")
    interval_low: float = Field(description="95 % interval of the FPR of this calibration (Beta distribution)")
    interval_high: float
    voxel_alpha: float | None = Field(None, gt=0, lt=1, description="false-positive rate over healthy brain voxels")
    voxel_threshold: float | None = Field(None, description="evidence above which a voxel is marked")
    reference_sha256: str = Field(description="hash of the reference scores, to detect changes")
    notes: tuple[str, ...] = ()
    record_sha256: str | None = Field(None, description="hash of the fields above; its start is the end of the id")
    field_sha256: dict[str, str] = Field(
        default_factory=dict, description="hash of each of these fields, to name one that was changed"
    )


@dataclass(frozen=True)
class Purpose:
    """Why a calibration is made, and by whom.

    Parameters
    ----------
    user_name
        The account that calibrates.
    reason
        The reason for the calibration; required.
    scope
        What the calibration applies to.
    model_id
        Id of the calibrated model.
    """

    user_name: str
    reason: str
    scope: Scope
    model_id: str


@dataclass(frozen=True)
class VoxelOperatingPoint:
    """A false-positive rate over healthy brain voxels, and the evidence threshold for it."""

    alpha: float
    threshold: float


@dataclass(frozen=True, eq=False)
class Calibration:
    """A record with its healthy reference scores.

    Parameters
    ----------
    record
        The calibration record.
    reference
        One row per held-out healthy scan: ``scan_id``, ``subject_hash``, ``content_hash`` and
        ``score_<name>`` for every score.
    """

    record: CalibrationRecord
    reference: pd.DataFrame

    @property
    def score_names(self) -> list[str]:
        """The names of the scores with reference values."""
        return _score_names(self.reference)

    def reference_scores(self, name: str | None = None) -> Floats:
        """Return the values ``(n,)`` of a score in the healthy scans; by default of the declared score."""
        return _scores_of(self.reference, name or self.record.score_name)

    def p_values(self, scores: Mapping[str, float]) -> dict[str, float]:
        """Return the conformal p-value of each score of one scan."""
        return {name: float(p_values(score, self.reference_scores(name))) for name, score in scores.items()}

    def percentiles(self, scores: Mapping[str, float]) -> dict[str, float]:
        """Return the percentage of healthy scans with a lower value, for each score of one scan."""
        return {name: float(percentiles(score, self.reference_scores(name))) for name, score in scores.items()}

    def flag(self, score: float) -> bool:
        """Return whether the declared score of a scan is above the threshold."""
        if np.isnan(score):
            raise ValueError("a scan whose score is NaN cannot be flagged or cleared")
        return bool(score > self.record.threshold)

    def operating_point(self, alpha: float | None = None, name: str | None = None) -> OperatingPoint:
        """Return the operating point of a score at an alpha; by default those of the record."""
        return operating_point(self.reference_scores(name), alpha or self.record.alpha, CONFIDENCE)


def calibrate(
    reference: pd.DataFrame,
    *,
    alpha: float,
    score_name: str,
    purpose: Purpose,
    voxels: VoxelOperatingPoint | None = None,
    notes: tuple[str, ...] = (),
    now: datetime | None = None,
) -> Calibration:
    """Calibrate with held-out healthy scans; :func:`append` writes the result.

    Parameters
    ----------
    reference
        One row per healthy scan, columns as in :class:`Calibration`.
    alpha
        The target false-positive rate.
    score_name
        The declared score, without the ``score_`` prefix.
    now
        Time of the record; by default the current time.

    Raises
    ------
    AlphaTooSmallError
        ``alpha < 1 / (n + 1)``.
    CohortError
        Columns are missing, a scan occurs twice, or a score is not finite.
    """
    table = _checked(reference)
    point = operating_point(_scores_of(table, score_name), alpha, CONFIDENCE)
    values = {
        "calibration_id": "",
        "created_at": (now or datetime.now(UTC)).astimezone(UTC),
        "user_name": purpose.user_name,
        "reason": purpose.reason,
        "scope": purpose.scope,
        "model_id": purpose.model_id,
        "alpha": alpha,
        "n_healthy": point.n_healthy,
        "score_name": score_name,
        "threshold": point.threshold,
        "expected_rate": point.expected_rate,
        "interval_low": point.interval.low,
        "interval_high": point.interval.high,
        "voxel_alpha": voxels.alpha if voxels else None,
        "voxel_threshold": voxels.threshold if voxels else None,
        "reference_sha256": _hash_of_scores(table),
        "notes": (*notes, *_caveats(table)),
    }
    return Calibration(_with_hashes(CalibrationRecord.parse(values, "calibration")), table)


def append(model_dir: Path, calibration: Calibration) -> Path:
    """Add a calibration to a model and return the path of its record.

    The scores are written before the record, so that an interrupted call leaves no record without scores. Several
    processes may append at the same time.

    Raises
    ------
    BundleError
        A record with this id exists. It is not overwritten.
    DamagedFileError
        The scores of earlier calibrations cannot be read.
    OutputError
        The model folder cannot be written.
    """
    record = calibration.record
    path = record_path(model_dir, record.calibration_id)
    if path.exists():
        raise BundleError(f"{path} exists and calibration records are never overwritten; calibrate again")
    rows = calibration.reference.assign(calibration_id=record.calibration_id)
    with appending(reference_path(model_dir)):
        before = _all_rows(model_dir)
        if not before.empty:
            rows = pd.concat([before[before["calibration_id"] != record.calibration_id], rows], ignore_index=True)
        with atomic_path(reference_path(model_dir)) as temporary:
            rows.to_parquet(temporary, index=False)
    write_json(path, record.model_dump(mode="json"))
    return path


def record_path(model_dir: Path, calibration_id: str) -> Path:
    """Return the path of a record."""
    return _folder(model_dir) / f"{calibration_id}.json"


def reference_path(model_dir: Path) -> Path:
    """Return the path of the healthy scores of all calibrations."""
    return model_dir / "reference_scores.parquet"


def records(model_dir: Path) -> list[CalibrationRecord]:
    """Read all records of a model, oldest first.

    Raises
    ------
    BundleError
        A record was altered after it was made, or is of another model; the message names the fields.
    """
    found = [_read(model_dir, path) for path in sorted(_folder(model_dir).glob("[!.]*.json"))]
    return sorted(found, key=lambda record: (record.created_at, record.calibration_id))


def load(model_dir: Path, calibration_id: str) -> Calibration:
    """Read a calibration by its id.

    Raises
    ------
    UncalibratedError
        The model has no calibration with this id; the message lists the existing ones.
    BundleError
        A record was altered, or the reference scores do not match its hash or its numbers.
    """
    found = {record.calibration_id: record for record in records(model_dir)}
    if calibration_id not in found:
        raise UncalibratedError(_missing("calibration", calibration_id, list(found), model_dir))
    record, reference = found[calibration_id], _reference_of(model_dir, calibration_id)
    if reference.empty or _hash_of_scores(reference) != record.reference_sha256:
        raise BundleError(
            f"the scores of {calibration_id} in {reference_path(model_dir)} do not match its record; "
            "restore the file or calibrate again"
        )
    if wrong := _not_recomputed(record, reference):
        raise _altered(record_path(model_dir, calibration_id), wrong)
    return Calibration(record, reference)


def latest(model_dir: Path) -> Calibration | None:
    """Return the newest calibration of a model, or None if it has none."""
    found = records(model_dir)
    return load(model_dir, found[-1].calibration_id) if found else None


def for_alpha(model_dir: Path, alpha: float) -> Calibration:
    """Return the newest calibration with the target ``alpha``.

    Raises
    ------
    UncalibratedError
        There is none; the message lists the targets of the existing calibrations.
    """
    found = records(model_dir)
    fitting = [record for record in found if np.isclose(record.alpha, alpha, rtol=1e-9)]
    if not fitting:
        rates = sorted({f"{record.alpha:g}" for record in found})
        raise UncalibratedError(_missing("alpha", f"{alpha:g}", rates, model_dir))
    return load(model_dir, fitting[-1].calibration_id)


def check_leakage(
    training_subjects: Collection[str], training_contents: Collection[str], scans: pd.DataFrame
) -> None:
    """Check that no scan was used in training or adaptation, by subject or by content.

    Parameters
    ----------
    training_subjects, training_contents
        Hashed subject names and content hashes of the training scans (``training_subjects.json``).
    scans
        ``scan_id``, ``subject_hash`` and ``content_hash`` of the scans.

    Raises
    ------
    LeakageError
        Some were; the message lists their ids.
    """
    subject = scans["subject_hash"].isin(set(training_subjects))
    content = scans["content_hash"].isin(set(training_contents))
    seen = scans.loc[subject | content, "scan_id"].astype(str).tolist()
    if seen:
        raise LeakageError(
            f"{len(seen)} of {len(scans)} scans were seen in training or adaptation ({int(subject.sum())} by "
            f"subject, {int(content.sum())} by content): {', '.join(seen)}; give scans of other subjects"
        )


def _read(model_dir: Path, path: Path) -> CalibrationRecord:
    """Read a record and check its hashes, its id and its model."""
    values = read_json(path, DAMAGED_RECORD)
    record = CalibrationRecord.parse(current_calibration(values), str(path))
    earlier_names = {new: old for old, new in CALIBRATION.items() if old in values}
    if wrong := _not_hashed(record, rename_keys(_facts(record), earlier_names)):
        reference = _reference_of(model_dir, path.stem)
        numbers = _not_recomputed(record, reference) if not record.field_sha256 and not reference.empty else []
        raise _altered(path, numbers or wrong)
    if path.stem != record.calibration_id:
        raise _altered(path, ["calibration_id"])
    metadata = model_dir / "metadata.json"
    model_id = read_json(metadata)["model_id"] if metadata.is_file() else record.model_id
    if record.model_id != model_id:
        raise BundleError(
            f"{path}: found a calibration of model {record.model_id}, expected of {model_id}; "
            "delete it and calibrate this model"
        )
    return record


def _facts(record: CalibrationRecord) -> dict[str, Any]:
    """Return the fields that the id of a record is a hash of."""
    facts = record.model_dump(mode="json", exclude={"calibration_id", "record_sha256", "field_sha256"})
    return facts | {"created_at": record.created_at.isoformat()}


def _with_hashes(record: CalibrationRecord) -> CalibrationRecord:
    facts = _facts(record)
    record_hash = sha256_of_json(facts)
    return record.model_copy(
        update={
            "calibration_id": _id(record, record_hash),
            "record_sha256": record_hash,
            "field_sha256": {name: sha256_of_json(value) for name, value in facts.items()},
        }
    )


def _id(record: CalibrationRecord, record_hash: str) -> str:
    return f"cal-{record.created_at:%Y%m%dT%H%M%SZ}-{record_hash[:8]}"


def _not_hashed(record: CalibrationRecord, facts: Mapping[str, Any]) -> list[str]:
    """Return the fields of a record that do not agree with its hashes.

    A record of an earlier version has no hash per field; all fields that may have changed are named.

    Parameters
    ----------
    facts
        The hashed fields, under the names they were written with.
    """
    record_hash = sha256_of_json(facts)
    if record.record_sha256 is None and not record.field_sha256:
        if record.calibration_id == _id(record, record_hash):
            return []
        return ["calibration_id, or " + " or ".join(facts)]
    found = {name: sha256_of_json(value) for name, value in facts.items()}
    if record.record_sha256 != record_hash:
        return [name for name in facts if record.field_sha256.get(name) != found[name]] or ["record_sha256"]
    if record.field_sha256 != found:
        return ["field_sha256"]
    return [] if record.calibration_id == _id(record, record_hash) else ["calibration_id"]


def _not_recomputed(record: CalibrationRecord, reference: pd.DataFrame) -> list[str]:
    """Return the numbers of a record that do not follow from its reference scores."""
    try:
        point = operating_point(_scores_of(reference, record.score_name), record.alpha, CONFIDENCE)
    except AlphaTooSmallError:
        return ["alpha"]
    except UncalibratedError:
        return ["score_name"]
    exact = {"n_healthy": point.n_healthy, "threshold": point.threshold, "expected_rate": point.expected_rate}
    close = {"interval_low": point.interval.low, "interval_high": point.interval.high}  # SciPy's last digits vary
    wrong = [
        *(name for name, value in exact.items() if getattr(record, name) != value),
        *(name for name, value in close.items() if not np.isclose(getattr(record, name), value, rtol=1e-6)),
    ]
    return ["alpha", *wrong] if {"expected_rate", "interval_high"} <= set(wrong) else wrong


def _altered(path: Path, wrong: Sequence[str]) -> BundleError:
    return BundleError(
        f"{path} was altered after the calibration was made: {', '.join(wrong)} not as written then; restore the "
        "file from its source, or delete it and calibrate again"
    )


def _reference_of(model_dir: Path, calibration_id: str) -> pd.DataFrame:
    rows = _all_rows(model_dir)
    rows = rows[rows["calibration_id"] == calibration_id] if not rows.empty else rows
    reference = rows.drop(columns="calibration_id", errors="ignore").dropna(axis=1, how="all")
    return reference.reset_index(drop=True)


def _checked(reference: pd.DataFrame) -> pd.DataFrame:
    missing = [column for column in IDENTITY_COLUMNS if column not in reference.columns]
    names = _score_names(reference)
    if missing or not names:
        raise CohortError(
            f"reference scores lack {', '.join(missing) or f'a {SCORE_PREFIX}<name> column'}; expected "
            f"{', '.join(IDENTITY_COLUMNS)} and {SCORE_PREFIX}<name> for every score"
        )
    table = reference[[*IDENTITY_COLUMNS, *(SCORE_PREFIX + name for name in names)]].reset_index(drop=True)
    for column in ("scan_id", "content_hash"):
        twice = table.loc[table[column].duplicated(keep=False), "scan_id"].astype(str)
        if len(twice):
            raise CohortError(f"the same scan occurs twice in the calibration ({column}): {', '.join(twice)}")
    for name in names:
        bad = table.loc[~np.isfinite(_scores_of(table, name)), "scan_id"].astype(str)
        if len(bad):
            raise CohortError(f"score {name!r} is not finite for {', '.join(bad)}; leave those scans out")
    return table


def _caveats(table: pd.DataFrame) -> tuple[str, ...]:
    n_subjects = table["subject_hash"].nunique()
    if n_subjects == len(table):
        return ()
    return (
        f"{len(table)} scans of {n_subjects} subjects: scans of one subject are correlated, so there are "
        "fewer independent scans than n_healthy",
    )


def _scores_of(table: pd.DataFrame, name: str) -> Floats:
    if SCORE_PREFIX + name not in table.columns:
        raise UncalibratedError(unknown_name("calibrated score", name, _score_names(table)))
    return table[SCORE_PREFIX + name].to_numpy(dtype=np.float64)


def _score_names(table: pd.DataFrame) -> list[str]:
    return [str(c).removeprefix(SCORE_PREFIX) for c in table.columns if str(c).startswith(SCORE_PREFIX)]


def _hash_of_scores(table: pd.DataFrame) -> str:
    rows: list[dict[str, Any]] = [
        {
            **{c: str(row[c]) for c in IDENTITY_COLUMNS},
            **{n: float(row[SCORE_PREFIX + n]) for n in _score_names(table)},
        }
        for row in table.to_dict("records")
    ]
    return sha256_of_json(sorted(rows, key=lambda row: str(row["scan_id"])))


def _all_rows(model_dir: Path) -> pd.DataFrame:
    path = reference_path(model_dir)
    if not path.is_file():
        return pd.DataFrame()
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:  # those of pyarrow are among them
        raise DamagedFileError(
            f"{path} is damaged ({error}); restore it from a copy, or remove it and calibrate again: earlier "
            "calibrations cannot be used without it"
        ) from error


def _folder(model_dir: Path) -> Path:
    return model_dir / "calibrations"


def _missing(kind: str, name: str, known: list[str], model_dir: Path) -> str:
    return unknown_name(kind, name, known) if known else _no_calibration_message(model_dir)


def _no_calibration_message(model_dir: Path) -> str:
    return f"{model_dir} has no calibration; run `anomaly calibrate` with held-out healthy scans"
