"""Splits by subject: all scans of a subject stand on one side."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from anomaly.cohort.table import ScanRecord
from anomaly.core.errors import CohortError, LeakageError


def split_by_subject(
    records: Sequence[ScanRecord], fractions: Mapping[str, float], seed: int = 0
) -> dict[str, list[ScanRecord]]:
    """Return the scans of each split.

    Subjects are put in an order that depends on the seed and their names alone, then cut by the fractions, so
    that neither the order of the scans nor the machine matters. A ``split`` that the manifest gives is honoured;
    only subjects without one are dealt out.

    Parameters
    ----------
    records
        Scans; all of one subject go together.
    fractions
        Split → share of the subjects, adding up to at most 1. Every share above 0 gets at least one subject.
    seed
        Another seed deals otherwise.

    Raises
    ------
    LeakageError
        If the manifest puts one subject into two splits.
    CohortError
        If there are fewer subjects than splits, or the fractions add up to more than 1.
    """
    given = given_splits(records)
    free = sorted({r.subject for r in records if r.subject not in given}, key=lambda s: _order(seed, s))
    dealt = given | _deal(free, fractions)
    parts: dict[str, list[ScanRecord]] = {name: [] for name in fractions}
    for record in records:
        if record.subject in dealt:
            parts.setdefault(dealt[record.subject], []).append(record)
    return parts


def given_splits(records: Sequence[ScanRecord]) -> dict[str, str]:
    """Return subject → split, as far as the manifest says.

    Raises
    ------
    LeakageError
        If it puts one subject into two splits.
    """
    given: dict[str, str] = {}
    for record in records:
        if record.split and given.setdefault(record.subject, record.split) != record.split:
            raise LeakageError(
                f"subject {record.subject!r} is in the splits {given[record.subject]!r} and {record.split!r}; "
                "give all scans of a subject the same split"
            )
    return given


def refuse_overlap(parts: Mapping[str, Sequence[ScanRecord]]) -> None:
    """Raise LeakageError if a subject or a scan's content stands in two splits."""
    seen: dict[str, str] = {}
    for name, records in parts.items():
        keys = {f"subject {r.subject}" for r in records} | {f"content {r.content_hash}" for r in records}
        for key in sorted(keys - {"content "}):
            if key in seen:
                raise LeakageError(f"{key} is in the splits {seen[key]!r} and {name!r}; split by subject")
            seen[key] = name


def _deal(subjects: Sequence[str], fractions: Mapping[str, float]) -> dict[str, str]:
    total = sum(fractions.values())
    if total > 1 + 1e-9 or min(fractions.values(), default=0) < 0:
        raise CohortError(f"the fractions {dict(fractions)} must be positive and add up to at most 1")
    wanted = [name for name, share in fractions.items() if share > 0]
    if not subjects:
        return {}
    if len(subjects) < len(wanted):
        raise CohortError(f"{len(subjects)} subjects cannot fill {len(wanted)} splits; give more subjects")
    counts = _counts(len(subjects), {name: fractions[name] for name in wanted})
    names = [name for name in wanted for _ in range(counts[name])]
    return dict(zip(subjects, names, strict=False))


def _counts(n: int, fractions: Mapping[str, float]) -> dict[str, int]:
    """Return how many of n each share gets: rounded, at least 1, the largest share gives way."""
    counts = {name: max(1, round(share * n)) for name, share in fractions.items()}
    room = n if sum(fractions.values()) > 1 - 1e-9 else max(len(counts), round(n * sum(fractions.values())))
    largest = max(counts, key=lambda name: counts[name])
    counts[largest] += room - sum(counts.values())
    return counts


def _order(seed: int, subject: str) -> str:
    return hashlib.sha256(f"{seed}/{subject}".encode()).hexdigest()
