"""Verify that a run or a model is as the commands wrote it: its audit log, and the files that the log seals."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from anomaly.bundle.shipped import find_model
from anomaly.core.audit_log import AUDIT_LOG, Disagreement, disagreements, read_audit_log, read_list
from anomaly.core.errors import InputError
from anomaly.runs.seal import pending_hashes

RESULTS = {
    "run": (
        "run.json", "scores.*", "refused_failed.tsv", "files.json", "pages.json", "index.*", "*/score.json",
        "*/*.nii.gz", "*/*.npz", "*/*.dcm", "*/report.*", "evaluation/*",
    ),
    "model": (
        "metadata.json", "config.yaml", "*.safetensors", "training_subjects.json", "MODEL_CARD.md",
        "reference_scores.parquet", "calibrations/*.json", "members/*/*",
    ),
    "folder": (),
}  # fmt: skip
"""Kind of folder → patterns of the files that must be sealed."""


def verify(folder: Path, head: str | None = None) -> dict[str, Any]:
    """Compare a run or a model with its audit log.

    Parameters
    ----------
    folder
        A folder that a command wrote, or the name of a shipped model.
    head
        The hash of a line of the log, as an earlier call returned it: the line must still be there.

    Returns
    -------
    dict
        ``verified``; numbers of entries and files; ``disagreeing`` files and lines, ``not_sealed`` results, the
        commands that were ``interrupted``, and the ``head`` of the log.

    Raises
    ------
    InputError
        The folder has no chained log, so that nothing can be verified.
    """
    folder = find_model(folder)
    log = read_audit_log(folder)
    if len(log.entries) == log.unchained and not log.disagreements:
        found = f"no {AUDIT_LOG}" if not log.entries else "a log without a chain"
        raise InputError(
            f"{folder} cannot be verified: found {found}, expected a chained log. An earlier version wrote the "
            "folder, or its log was removed; score or train into a new folder to get one"
        )
    kind = _kind(folder)
    wrong = [*log.disagreements, *_missing_head(log.line_hashes, head), *disagreements(folder, log.sealed)]
    damaged = {one.file for one in wrong}
    listed = {
        path: value for name in log.lists if name not in damaged for path, value in read_list(folder, name).items()
    }
    wrong += disagreements(folder, {path: value for path, value in listed.items() if path not in log.sealed})
    sealed, pending = {**listed, **log.sealed}, set(pending_hashes(folder))
    rewritten = {one.file for one in wrong if (one.file, one.found) in pending}
    wrong = [one for one in wrong if one.file not in rewritten]
    not_sealed = sorted(rewritten | set(_results(folder, kind)) - set(sealed))
    return {
        "path": str(folder),
        "kind": kind,
        "verified": not wrong and not not_sealed,
        "entries": len(log.entries),
        "entries_without_chain": log.unchained,
        "files": len(sealed),
        "disagreeing_files": len(wrong),
        "files_not_sealed": len(not_sealed),
        "interrupted": ", ".join(log.interrupted) or None,
        "head": log.head,
        "disagreeing": [asdict(one) for one in wrong],
        "not_sealed": not_sealed,
    }


def _kind(folder: Path) -> str:
    if (folder / "metadata.json").is_file() or (folder / "calibrations").is_dir():
        return "model"
    return "run" if (folder / "run.json").is_file() or (folder / "files.json").is_file() else "folder"


def _results(folder: Path, kind: str) -> list[str]:
    found = (path for pattern in RESULTS[kind] for path in folder.glob(pattern) if path.is_file())
    names = (path.relative_to(folder).as_posix() for path in found if not path.name.startswith("."))
    return [name for name in names if not name.startswith("ingested/")]


def _missing_head(line_hashes: frozenset[str], head: str | None) -> list[Disagreement]:
    if head is None or head in line_hashes:
        return []
    return [Disagreement(AUDIT_LOG, "no line with the given head", head)]
