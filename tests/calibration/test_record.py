from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from anomaly.calibration.record import (
    Calibration,
    CalibrationRecord,
    Purpose,
    Scope,
    VoxelOperatingPoint,
    _with_hashes,
    append,
    calibrate,
    check_leakage,
    for_alpha,
    latest,
    load,
    records,
)
from anomaly.core.errors import (
    AlphaTooSmallError,
    BundleError,
    CohortError,
    ConfigError,
    DamagedFileError,
    LeakageError,
    UncalibratedError,
)
from anomaly.core.files import read_json, write_json

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)


def reference(n: int = 24, seed: int = 0, **more: object) -> pd.DataFrame:
    scores = np.random.default_rng(seed).gamma(3.0, size=n)
    return pd.DataFrame(
        {
            "scan_id": [f"sub-{i:02d}_T1w" for i in range(n)],
            "subject_hash": [f"subject{i}" for i in range(n)],
            "content_hash": [f"content{i}" for i in range(n)],
            "score_reconstruction": scores,
            **more,
        }
    )


def purpose(reason: str = "yearly check", n_subjects: int = 24) -> Purpose:
    return Purpose("ada", reason, Scope(modality="T1w", cohort="holdout", n_subjects=n_subjects), "0123456789ab")


def calibration(
    table: pd.DataFrame | None = None, alpha: float = 0.1, now: datetime = NOON, reason: str = "yearly check"
) -> Calibration:
    return calibrate(
        reference() if table is None else table,
        alpha=alpha,
        score_name="reconstruction",
        purpose=purpose(reason),
        voxels=VoxelOperatingPoint(0.001, 3.5),
        now=now,
    )


def test_a_calibration_comes_back_from_disk_as_it_was_stored(tmp_path: Path) -> None:
    stored = calibration()
    append(tmp_path, stored)
    loaded = load(tmp_path, stored.record.calibration_id)
    assert loaded.record == stored.record
    pd.testing.assert_frame_equal(loaded.reference, stored.reference)


def test_a_record_states_user_time_reason_and_scope(tmp_path: Path) -> None:
    path = append(tmp_path, calibration())
    values = json.loads(path.read_text(encoding="utf-8"))
    assert path.parent == tmp_path / "calibrations"
    assert path.stem == values["calibration_id"]
    assert (values["user_name"], values["reason"], values["alpha"]) == ("ada", "yearly check", 0.1)
    assert values["created_at"].startswith("2024-05-01T12:00:00")
    assert values["scope"] == {"modality": "T1w", "cohort": "holdout", "n_subjects": 24}
    assert values["voxel_threshold"] == 3.5
    assert values["expected_rate"] == 2 / 25
    assert values["interval_low"] < 0.08 < values["interval_high"]


def test_a_flag_agrees_with_the_p_value() -> None:
    made = calibration()
    for score in [*made.reference_scores(), 0.0, 3.0, 99.0]:
        p_value = made.p_values({"reconstruction": score})["reconstruction"]
        assert made.flag(score) == (p_value <= 0.1)


def test_the_threshold_survives_the_round_trip_to_the_last_bit(tmp_path: Path) -> None:
    stored = calibration()
    append(tmp_path, stored)
    loaded = latest(tmp_path)
    assert loaded is not None
    assert loaded.record.threshold == stored.record.threshold
    assert not loaded.flag(stored.record.threshold)
    assert loaded.flag(np.nextafter(stored.record.threshold, np.inf))


def test_every_score_has_p_values_and_percentiles() -> None:
    made = calibration(reference(score_kl=np.arange(24.0)))
    assert made.score_names == ["reconstruction", "kl"]
    assert made.p_values({"kl": 23.0, "reconstruction": 1e9}) == {"kl": 2 / 25, "reconstruction": 1 / 25}
    assert made.percentiles({"kl": 12.0}) == {"kl": 50.0}


def test_a_score_without_a_reference_is_refused_with_those_that_have_one() -> None:
    with pytest.raises(UncalibratedError, match="valid: reconstruction"):
        calibration().p_values({"elbo": 1.0})


def test_a_scan_without_a_score_is_neither_flagged_nor_cleared() -> None:
    with pytest.raises(ValueError, match="NaN"):
        calibration().flag(float("nan"))


def test_a_new_calibration_leaves_the_old_one_as_it_was(tmp_path: Path) -> None:
    first = append(tmp_path, calibration())
    before = first.read_bytes()
    later = calibration(reference(30, 1, score_kl=np.arange(30.0)), alpha=0.05, now=NOON.replace(hour=13))
    append(tmp_path, later)
    assert first.read_bytes() == before
    assert [record.alpha for record in records(tmp_path)] == [0.1, 0.05]
    assert load(tmp_path, first.stem).score_names == ["reconstruction"]
    assert len(load(tmp_path, later.record.calibration_id).reference) == 30
    newest = latest(tmp_path)
    assert newest is not None
    assert newest.record == later.record


def test_a_record_is_never_overwritten(tmp_path: Path) -> None:
    append(tmp_path, calibration())
    with pytest.raises(BundleError, match="never overwritten"):
        append(tmp_path, calibration())


def test_a_model_without_a_calibration_has_no_latest(tmp_path: Path) -> None:
    assert latest(tmp_path) is None
    with pytest.raises(UncalibratedError, match="anomaly calibrate"):
        load(tmp_path, "cal-1")
    with pytest.raises(UncalibratedError, match="anomaly calibrate"):
        for_alpha(tmp_path, 0.05)


def test_the_newest_calibration_for_a_rate_is_found(tmp_path: Path) -> None:
    for hour, alpha in [(1, 0.05), (2, 0.1), (3, 0.05)]:
        append(tmp_path, calibration(alpha=alpha, now=NOON.replace(hour=hour)))
    assert for_alpha(tmp_path, 0.05).record.created_at.hour == 3
    with pytest.raises(UncalibratedError, match=r"valid: 0\.05, 0\.1"):
        for_alpha(tmp_path, 0.2)


def test_altered_reference_scores_are_noticed(tmp_path: Path) -> None:
    stored = calibration()
    append(tmp_path, stored)
    path = tmp_path / "reference_scores.parquet"
    table = pd.read_parquet(path)
    table.assign(score_reconstruction=table["score_reconstruction"] * 1.01).to_parquet(path, index=False)
    with pytest.raises(BundleError, match="do not match its record"):
        load(tmp_path, stored.record.calibration_id)
    path.unlink()
    with pytest.raises(BundleError, match="do not match its record"):
        load(tmp_path, stored.record.calibration_id)


def test_a_target_too_small_for_the_scans_is_refused() -> None:
    with pytest.raises(AlphaTooSmallError, match="at least 99"):
        calibration(alpha=0.01)


def test_a_calibration_needs_a_reason() -> None:
    with pytest.raises(ConfigError, match="reason"):
        calibration(reason="")


def test_the_same_scan_cannot_count_twice() -> None:
    table = reference()
    table.loc[3, "content_hash"] = table.loc[5, "content_hash"]
    with pytest.raises(CohortError, match="sub-03_T1w, sub-05_T1w"):
        calibration(table)


def test_a_score_that_is_not_finite_names_the_scan() -> None:
    table = reference()
    table.loc[7, "score_reconstruction"] = np.nan
    with pytest.raises(CohortError, match="sub-07_T1w"):
        calibration(table)


def test_missing_columns_are_named() -> None:
    with pytest.raises(CohortError, match="subject_hash"):
        calibration(reference().drop(columns="subject_hash"))


def test_several_scans_of_a_subject_are_noted() -> None:
    table = reference().assign(subject_hash="one")
    assert "24 scans of 1 subjects" in calibration(table).record.notes[0]


def test_scans_seen_in_training_are_refused_by_name() -> None:
    with pytest.raises(LeakageError, match=r"2 of 24.*1 by subject, 1 by content.*sub-02_T1w, sub-04_T1w"):
        check_leakage({"subject2"}, {"content4"}, reference())


def test_unseen_scans_pass_the_leakage_check() -> None:
    check_leakage({"someone"}, {"something"}, reference())


EDITS: dict[str, Any] = {
    "calibration_id": "cal-20240501T120000Z-00000000",
    "created_at": "2024-05-01T12:00:01Z",
    "user_name": "bob",
    "reason": "monthly check",
    "scope": {"modality": "CT", "cohort": "holdout", "n_subjects": 24},
    "model_id": "ba9876543210",
    "alpha": 0.2,
    "n_healthy": 25,
    "score_name": "kl",
    "threshold": 0.5,
    "expected_rate": 0.01,
    "interval_low": 0.0,
    "interval_high": 0.05,
    "voxel_alpha": 0.01,
    "voxel_threshold": 99.0,
    "reference_sha256": "0" * 64,
    "notes": ["checked by two people"],
    "record_sha256": "0" * 64,
    "field_sha256": {},
}


def edit(path: Path, **changes: Any) -> None:
    write_json(path, read_json(path) | changes)


def test_the_edits_cover_every_field_of_a_record() -> None:
    assert set(EDITS) == set(CalibrationRecord.model_fields)


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_field_of_a_record_is_refused_by_name(tmp_path: Path, name: str) -> None:
    path = append(tmp_path, calibration(reference(score_kl=np.arange(24.0))))
    edit(path, **{name: EDITS[name]})
    with pytest.raises(BundleError, match=rf"{path.name} was altered.*: (?:\w+, )*{name}(?:, \w+)* not as"):
        latest(tmp_path)


def test_an_edited_record_is_refused_however_it_is_chosen(tmp_path: Path) -> None:
    path = append(tmp_path, calibration())
    append(tmp_path, calibration(alpha=0.2, now=NOON.replace(hour=13)))
    edit(path, reason="monthly check")
    for use in (records, latest, lambda folder: load(folder, path.stem), lambda folder: for_alpha(folder, 0.1)):
        with pytest.raises(BundleError, match=f"{path.name} was altered.*: reason not as"):
            use(tmp_path)


@pytest.mark.parametrize("name", sorted(set(EDITS) - {"field_sha256", "record_sha256"}))
def test_an_edited_record_without_hashes_is_refused(tmp_path: Path, name: str) -> None:
    path = append(tmp_path, calibration())
    edit(path, field_sha256={}, record_sha256=None)
    assert latest(tmp_path) is not None
    edit(path, **{name: EDITS[name]})
    with pytest.raises(BundleError, match=rf"was altered.*: .*{name}"):
        latest(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"), [("threshold", 0.5), ("n_healthy", 25), ("expected_rate", 0.01), ("interval_high", 0.05)]
)
def test_a_number_that_does_not_follow_from_the_reference_is_refused_even_with_new_hashes(
    tmp_path: Path, name: str, value: float
) -> None:
    made = calibration()
    record = _with_hashes(made.record.model_copy(update={name: value}))
    append(tmp_path, Calibration(record, made.reference))
    with pytest.raises(BundleError, match=rf"was altered.*: {name} not as"):
        latest(tmp_path)


def test_a_record_under_another_name_is_refused(tmp_path: Path) -> None:
    path = append(tmp_path, calibration())
    path.rename(path.with_name("cal-20300101T000000Z-00000000.json"))
    with pytest.raises(BundleError, match="calibration_id not as"):
        latest(tmp_path)


def test_the_record_of_another_model_is_refused(tmp_path: Path) -> None:
    append(tmp_path, calibration())
    write_json(tmp_path / "metadata.json", {"model_id": "0123456789ab"})
    assert latest(tmp_path) is not None
    write_json(tmp_path / "metadata.json", {"model_id": "ffffffffffff"})
    with pytest.raises(BundleError, match="found a calibration of model 0123456789ab, expected of ffffffffffff"):
        latest(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PAR1cut", b"not a table"])
def test_damaged_reference_scores_are_named_with_a_remedy(tmp_path: Path, content: bytes) -> None:
    record = calibration()
    append(tmp_path, record)
    (tmp_path / "reference_scores.parquet").write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"reference_scores.parquet is damaged .*; restore it from a copy"):
        latest(tmp_path)
    with pytest.raises(DamagedFileError, match="or remove it and calibrate again"):
        append(tmp_path, calibration(reason="again"))
    assert len(records(tmp_path)) == 1


def test_a_damaged_record_is_named_with_a_remedy(tmp_path: Path) -> None:
    append(tmp_path, calibration()).write_text("")
    with pytest.raises(
        DamagedFileError, match="it is empty; restore it from a copy, or remove it and calibrate again"
    ):
        records(tmp_path)
