"""The audit log of a folder, ``audit.jsonl``: who ran which command when, and the hashes of what it wrote.

Each line is one entry as canonical JSON. ``previous`` is the SHA-256 of the line before it, and ``sha256`` that of
the entry itself. No line can therefore be changed, removed or inserted without a trace in the lines after it.
``files`` are the hashes of the files that the command wrote. Those of many scans are in a list, a JSON file of its
own: path → SHA-256; ``lists`` names the lists among ``files``. A file that an entry lists is *sealed*.

The hashes have no key. Whoever can write to the folder can replace all of it, log included, and removing the last
lines together with all that they sealed leaves no trace. Both are found by comparing the hash of a line (``head``)
that was noted elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anomaly.core.files import canonical_json, output_error, read_json, sha256_of_file, sha256_of_json
from anomaly.core.locks import appending

AUDIT_LOG = "audit.jsonl"
NO_FILE = "no such file"


@dataclass(frozen=True)
class Disagreement:
    """A line of the log, or a file, that is not as it was written.

    Parameters
    ----------
    file
        Path relative to the folder; for a line, the name of the log and its number.
    """

    file: str
    found: str
    expected: str


@dataclass(frozen=True)
class AuditLog:
    """The entries of a log, and what is wrong with their chain.

    Parameters
    ----------
    entries
        The entries that can be read, in order.
    unchained
        Number of entries of an earlier version, before the chain begins.
    head
        SHA-256 of the last line; ``""`` for none.
    line_hashes
        SHA-256 of every line.
    """

    entries: tuple[dict[str, Any], ...] = ()
    unchained: int = 0
    head: str = ""
    line_hashes: frozenset[str] = frozenset()
    disagreements: tuple[Disagreement, ...] = ()

    @property
    def sealed(self) -> dict[str, str]:
        """Path → SHA-256 of the files that the entries list, each as it was written last."""
        return {path: value for entry in self.entries for path, value in entry.get("files", {}).items()}

    @property
    def lists(self) -> list[str]:
        """Names of the lists among the sealed files."""
        return sorted({name for entry in self.entries for name in entry.get("lists", ())})

    @property
    def interrupted(self) -> list[str]:
        """Commands that started and did not finish."""
        state = {entry["verb"]: entry["event"] for entry in self.entries if "event" in entry}
        return [verb for verb, event in state.items() if event == "started"]


@dataclass
class _Reader:
    """Reads the lines of a log one after another."""

    name: str
    entries: list[dict[str, Any]] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)
    disagreements: list[Disagreement] = field(default_factory=list)
    unchained: int = 0

    def read(self, line: bytes) -> None:
        where, before = f"{self.name}, line {len(self.hashes) + 1}", self.hashes[-1] if self.hashes else ""
        self.hashes.append(_sha256(line))
        try:
            entry = dict(json.loads(line))
        except (ValueError, TypeError):
            self.disagreements.append(Disagreement(where, "no JSON object", "an entry"))
            return
        if wrong := _wrong_fields(entry):
            self.disagreements.append(Disagreement(where, f"{', '.join(wrong)} of another type", "an entry"))
            return
        self.entries.append(entry)
        if "previous" not in entry and self.unchained == len(self.hashes) - 1:
            self.unchained += 1
            return
        own = sha256_of_json({name: value for name, value in entry.items() if name != "sha256"})
        if entry.get("sha256") != own:
            self.disagreements.append(Disagreement(where, f"sha256 {entry.get('sha256')}", own))
        if entry.get("previous") != before:
            expected = before or "none, on the first line"
            self.disagreements.append(Disagreement(where, f"previous {entry.get('previous')}", expected))


def read_audit_log(folder: Path) -> AuditLog:
    """Read the log of a folder and check its chain; a folder without one has an empty log."""
    path = folder / AUDIT_LOG
    reader = _Reader(AUDIT_LOG)
    content = path.read_bytes() if path.is_file() else b""
    for line in _lines(content) if content else ():
        reader.read(line)
    return AuditLog(
        tuple(reader.entries),
        reader.unchained,
        reader.hashes[-1] if reader.hashes else "",
        frozenset(reader.hashes),
        tuple(reader.disagreements),
    )


def append_entry(folder: Path, entry: Mapping[str, Any]) -> None:
    """Append an entry to the log of a folder; commands that append at the same time wait for each other.

    Raises
    ------
    OutputError
        The log cannot be written.
    """
    path = folder / AUDIT_LOG
    with appending(path):
        try:
            _append(path, entry)
        except OSError as error:
            raise output_error(path, error) from error


def _append(path: Path, entry: Mapping[str, Any]) -> None:
    with path.open("a+b") as stream:
        stream.seek(0)
        before = stream.read()
        if before and not before.endswith(b"\n"):
            stream.write(b"\n")  # a line that was cut stays a line of its own
        chained = {**entry, "previous": _sha256(_lines(before)[-1]) if before else ""}
        line = canonical_json({**chained, "sha256": sha256_of_json(chained)})
        stream.write(line.encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def hash_files(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    """Return path relative to the folder → SHA-256 of files; what is no file is left out."""
    return {path.relative_to(folder).as_posix(): sha256_of_file(path) for path in files if path.is_file()}


def hash_of_file(folder: Path, name: str) -> str:
    """Return the SHA-256 of a file in a folder; ``NO_FILE`` if there is none."""
    return sha256_of_file(folder / name) if (folder / name).is_file() else NO_FILE


def read_list(folder: Path, name: str) -> dict[str, str]:
    """Read a list of hashes, path → SHA-256; empty if there is none."""
    path = folder / name
    return dict(read_json(path)) if path.is_file() else {}


def disagreements(folder: Path, sealed: Mapping[str, str]) -> list[Disagreement]:
    """Return the sealed files that are missing or not as they were written."""
    found = {name: hash_of_file(folder, name) for name in sorted(sealed)}
    return [Disagreement(name, found[name], sealed[name]) for name in found if found[name] != sealed[name]]


def are_texts(values: Iterable[Any]) -> bool:
    """Return whether all values are texts."""
    return all(isinstance(value, str) for value in values)


def _wrong_fields(entry: Mapping[str, Any]) -> list[str]:
    """Return the fields of an entry that are not of the type that commands write."""
    files, lists = entry.get("files", {}), entry.get("lists", [])
    is_right = {
        "verb": are_texts([entry.get("verb", None if "event" in entry else "")]),
        "event": are_texts([entry.get("event", "")]),
        "files": isinstance(files, dict) and are_texts(files.values()),
        "lists": isinstance(lists, list) and are_texts(lists),
    }
    return [name for name, right in is_right.items() if not right]


def _lines(content: bytes) -> list[bytes]:
    return content.removesuffix(b"\n").split(b"\n")


def _sha256(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
