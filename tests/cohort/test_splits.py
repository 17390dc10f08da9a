"""Splits by subject: reproducible, and as the manifest requires."""

from __future__ import annotations

from dataclasses import replace

import pytest

from anomaly.cohort.splits import refuse_overlap, split_by_subject
from anomaly.cohort.table import ScanRecord
from anomaly.core.errors import CohortError, LeakageError
from anomaly.core.results import ScanStatus

FRACTIONS = {"train": 0.7, "validation": 0.1, "test": 0.2}


def scans(n_subjects: int, n_sessions: int = 1) -> list[ScanRecord]:
    return [
        ScanRecord(f"sub-{s:03d}_ses-{t}", ScanStatus.ACCEPTED, f"sub-{s:03d}", content_hash=f"{s}/{t}")
        for s in range(n_subjects) for t in range(n_sessions)
    ]  # fmt: skip


def subjects(records: list[ScanRecord]) -> set[str]:
    return {record.subject for record in records}


def test_all_scans_of_a_subject_are_in_one_split() -> None:
    parts = split_by_subject(scans(30, n_sessions=3), FRACTIONS)
    refuse_overlap(parts)
    assert sum(map(len, parts.values())) == 90


def test_the_splits_have_the_given_fractions() -> None:
    parts = split_by_subject(scans(100), FRACTIONS)
    assert {name: len(records) for name, records in parts.items()} == {"train": 70, "validation": 10, "test": 20}


def test_the_split_does_not_depend_on_the_order_of_the_scans() -> None:
    forwards, backwards = split_by_subject(scans(40), FRACTIONS), split_by_subject(scans(40)[::-1], FRACTIONS)
    assert {n: subjects(r) for n, r in forwards.items()} == {n: subjects(r) for n, r in backwards.items()}


def test_another_seed_gives_another_split() -> None:
    first, second = split_by_subject(scans(40), FRACTIONS, 0), split_by_subject(scans(40), FRACTIONS, 1)
    assert subjects(first["test"]) != subjects(second["test"])


def test_every_split_gets_a_subject() -> None:
    parts = split_by_subject(scans(3), {"train": 0.98, "validation": 0.01, "test": 0.01})
    assert [len(records) for records in parts.values()] == [1, 1, 1]


def test_fractions_below_one_leave_subjects_out() -> None:
    parts = split_by_subject(scans(100), {"train": 0.3, "test": 0.2})
    assert {name: len(records) for name, records in parts.items()} == {"train": 30, "test": 20}


def test_a_split_of_the_manifest_is_kept() -> None:
    records = [replace(r, split="test") if r.subject < "sub-005" else r for r in scans(50)]
    parts = split_by_subject(records, FRACTIONS)
    assert {f"sub-{s:03d}" for s in range(5)} <= subjects(parts["test"])
    refuse_overlap(parts)


def test_a_subject_in_two_splits_is_leakage() -> None:
    first, second = scans(1, n_sessions=2)
    with pytest.raises(LeakageError, match="sub-000"):
        split_by_subject([replace(first, split="train"), replace(second, split="test")], FRACTIONS)


def test_the_same_content_under_two_names_is_leakage() -> None:
    first, second = scans(2)
    with pytest.raises(LeakageError, match="content"):
        refuse_overlap({"train": [first], "test": [replace(second, content_hash=first.content_hash)]})


def test_too_few_subjects_for_the_splits_is_an_error() -> None:
    with pytest.raises(CohortError, match="2 subjects cannot fill 3 splits"):
        split_by_subject(scans(2), FRACTIONS)


def test_fractions_above_one_are_an_error() -> None:
    with pytest.raises(CohortError, match="at most 1"):
        split_by_subject(scans(5), {"train": 0.9, "test": 0.2})
