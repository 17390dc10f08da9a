"""Keep the hashes of the files of every scan of a run, so that `anomaly audit verify` notices a change.

``files.json`` holds the hash of each file as it was written. A later call on the same run keeps the hashes of the
scans that it does not score again. A file that was changed in between therefore never passes for a result. Until a
call finishes, ``files.partial.jsonl`` holds the hashes of what it has written, for the call that continues it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from anomaly.core.audit_log import (
    NO_FILE,
    are_texts,
    disagreements,
    hash_files,
    hash_of_file,
    read_audit_log,
    read_list,
)
from anomaly.core.errors import DamagedFileError, InputError
from anomaly.core.files import canonical_json, output_error, write_text
from anomaly.core.results import ScanScore
from anomaly.runs.layout import PENDING_FILES, SCAN_FILES, SCAN_SCORE, score_path, volumes_path
from anomaly.runs.reader import read_score


def files_of_scan(folder: Path, result: ScanScore) -> list[Path]:
    """Return the paths of the files of a scan: its result, its outputs and its volumes for reports."""
    outputs = [folder / path for path in result.outputs.values()]
    return [score_path(folder, result.scan_id), *outputs, volumes_path(folder, result.scan_id)]


def check_list(folder: Path, name: str) -> None:
    """Raise InputError if a list of hashes is not as it was written."""
    sealed = read_audit_log(folder).sealed.get(name)
    pending = {value for file, value in pending_hashes(folder) if file == name}
    accepted = pending | {sealed or NO_FILE}  # a call may have been killed before or after it wrote the list
    if (sealed or pending) and hash_of_file(folder, name) not in accepted:
        raise InputError(
            f"{folder / name} was changed after it was written, so that the results it lists cannot be verified; "
            "restore it, or choose another folder; `anomaly audit verify` lists what disagrees"
        )


def note_pending(folder: Path, hashes: Mapping[str, str]) -> None:
    """Note the hashes of files that were just written.

    Raises
    ------
    OutputError
        They cannot be written.
    """
    path = folder / PENDING_FILES
    try:
        with path.open("a", encoding="ascii") as stream:
            stream.write(f"\n{canonical_json(dict(hashes))}\n")  # the line before may be cut
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise output_error(path, error) from error


def read_pending(folder: Path) -> dict[str, str]:
    """Return path → SHA-256 of what a call wrote that was interrupted; empty if the last call finished."""
    return dict(pending_hashes(folder))


def pending_hashes(folder: Path) -> list[tuple[str, str]]:
    """Return path and SHA-256 as an interrupted call noted them, in order; a path may occur several times."""
    path = folder / PENDING_FILES
    if not path.is_file() or "score" not in read_audit_log(folder).interrupted:
        return []
    lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    return [pair for line in lines for pair in _noted(line).items()]


def _noted(line: str) -> dict[str, str]:
    """Return the hashes in a line; none if it was cut or damaged."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) and are_texts(found.values()) else {}


def check_results(folder: Path, pending: Mapping[str, str], replaced: Collection[str] = ()) -> None:
    """Check that every ``score.json`` that a call keeps is as it was written; one that is damaged is made again.

    Parameters
    ----------
    pending
        Path → SHA-256 of what an interrupted call wrote.
    replaced
        Scans that the call scores again in any case; they are not checked.

    Raises
    ------
    InputError
        A result was changed, or no command wrote it.
    """
    kept = [path for path in sorted(folder.glob(f"*/{SCAN_SCORE}")) if path.parent.name not in replaced]
    names = {path.relative_to(folder).as_posix(): path for path in kept}
    listed = {**read_list(folder, SCAN_FILES), **pending}
    wrong = disagreements(folder, {name: listed[name] for name in names if name in listed})
    _refuse(folder, [one.file for one in wrong if _is_whole(names[one.file])], "changed after they were written")
    if _is_finished(folder):
        _refuse(folder, [name for name in names if name not in listed], "written by no command")


def _is_finished(folder: Path) -> bool:
    """Return whether the last call finished, so that the list must name every result."""
    log = read_audit_log(folder)
    return SCAN_FILES in log.sealed and "score" not in log.interrupted


def _is_whole(path: Path) -> bool:
    """Return whether the file of a result can be read."""
    try:
        read_score(path)
    except DamagedFileError:
        return False
    return True


def _refuse(folder: Path, results: Sequence[str], why: str) -> None:
    """Raise InputError if there are results that must not be kept."""
    if results:
        raise InputError(
            f"{folder}: found {len(results)} results that were {why} ({', '.join(results[:5])}); restore "
            "them, or delete the folder of each of these scans, so that it is scored again; `anomaly audit verify` "
            "lists what disagrees"
        )


def write_hashes(folder: Path, name: str, written: Mapping[str, str], files: Iterable[Path]) -> None:
    """Update a list of hashes.

    Parameters
    ----------
    name
        File name of the list.
    written
        Path → SHA-256 of the files that this call wrote; those that the list is not of are left out.
    files
        All files that the list is of. The earlier hash of a file that this call did not write is kept; one without
        a hash, left by a call that was interrupted, gets that of today.
    """
    of_list = {path.relative_to(folder).as_posix(): path for path in files}
    known = {**read_list(folder, name), **{file: value for file, value in written.items() if file in of_list}}
    new = [path for file, path in of_list.items() if file not in known]
    text = canonical_json({**hash_files(folder, new), **known}) + "\n"
    if (folder / PENDING_FILES).is_file():
        note_pending(folder, {name: hashlib.sha256(text.encode()).hexdigest()})
    write_text(folder / name, text)
