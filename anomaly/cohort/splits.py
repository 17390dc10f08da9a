"""Split a cohort by subject: all scans of a subject go into the same split."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from anomaly.cohort.table import ScanRecord
from anomaly.core.errors import CohortError, LeakageError


def split_by_subject(
    records: Sequence[ScanRecord], fractions: Mapping[str, float], seed: int = 0
) -> dict[str, list[ScanRecord]]:
    """Assign scans to splits.

    Subjects are sorted by a hash of the seed and their name, and the sorted list is cut by the fractions. The
    result depends neither on the order of the scans nor on the machine. Subjects that have a ``split`` in the
    manifest keep it; the fractions apply to the others.

    Parameters
    ----------
    records
        The scans to split.
    fractions
        Split → share of the subjects, adding up to at most 1. Every share above 0 gets at least one subject.
    seed
        Seed of the order of the subjects.

    Returns
    -------
    dict
        Split → its scans.

    Raises
    ------
    LeakageError
        If the manifest puts one subject into two splits.
    CohortError
        If there are fewer subjects than splits, or the fractions add up to more than 1.
    """
    from_manifest = splits_from_manifest(records)
    unassigned = {record.subject for record in records} - from_manifest.keys()
    split_of_subject = from_manifest | _assign(sorted(unassigned, key=lambda s: _sort_key(seed, s)), fractions)
    parts: dict[str, list[ScanRecord]] = {name: [] for name in fractions}
    for record in records:
        if record.subject in split_of_subject:
            parts.setdefault(split_of_subject[record.subject], []).append(record)
    return parts


def splits_from_manifest(records: Sequence[ScanRecord]) -> dict[str, str]:
    """Return subject → split for the subjects whose split the manifest gives.

    Raises
    ------
    LeakageError
        If it puts one subject into two splits.
    """
    from_manifest: dict[str, str] = {}
    for record in records:
        first = from_manifest.setdefault(record.subject, record.split) if record.split else ""
        if first != record.split:
            raise LeakageError(
                f"subject {record.subject!r} is in the splits {first!r} and {record.split!r}; "
                "give all scans of a subject the same split"
            )
    return from_manifest


def refuse_overlap(parts: Mapping[str, Sequence[ScanRecord]]) -> None:
    """Raise LeakageError if a subject or the content of a scan is in two splits."""
    seen: dict[str, str] = {}
    for name, records in parts.items():
        keys = {f"subject {r.subject}" for r in records} | {f"content {r.content_hash}" for r in records}
        for key in sorted(keys - {"content "}):
            if key in seen:
                raise LeakageError(f"{key} is in the splits {seen[key]!r} and {name!r}; split by subject")
            seen[key] = name


def _assign(subjects: Sequence[str], fractions: Mapping[str, float]) -> dict[str, str]:
    """Cut a list of subjects by the fractions; return subject → split."""
    total = sum(fractions.values())
    if total > 1 + 1e-9 or min(fractions.values(), default=0) < 0:
        raise CohortError(f"the fractions {dict(fractions)} must be positive and add up to at most 1")
    wanted = [name for name, share in fractions.items() if share > 0]
    if not subjects:
        return {}
    if len(subjects) < len(wanted):
        raise CohortError(f"{len(subjects)} subjects cannot fill {len(wanted)} splits; give more subjects")
    counts = _subjects_per_split(len(subjects), {name: fractions[name] for name in wanted})
    names = [name for name in wanted for _ in range(counts[name])]
    return dict(zip(subjects, names, strict=False))


def _subjects_per_split(n: int, fractions: Mapping[str, float]) -> dict[str, int]:
    """Return the number of subjects of each split: rounded, at least 1; the largest split takes up the rounding."""
    counts = {name: max(1, round(share * n)) for name, share in fractions.items()}
    n_wanted = n if sum(fractions.values()) > 1 - 1e-9 else max(len(counts), round(n * sum(fractions.values())))
    largest = max(counts, key=lambda name: counts[name])
    counts[largest] += n_wanted - sum(counts.values())
    return counts


def _sort_key(seed: int, subject: str) -> str:
    return hashlib.sha256(f"{seed}/{subject}".encode()).hexdigest()
