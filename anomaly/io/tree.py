"""The files of a folder or a zip that may be scans: one set of rules for both.

Left out are hidden files and folders, folders that this program wrote, the folders of a BIDS data set that hold no
raw scans, and what a ``.bidsignore`` file names.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

from pathspec import GitIgnoreSpec

from anomaly.core.errors import ScanRefusedError
from anomaly.io.stored_file import StoredFile, is_transient, open_file, read_stream, unreadable_error

_OUTPUT_MARKERS = ("cohort.json", "run.json")
_BIDS_SIDE_FOLDERS = {"derivatives", "sourcedata", "code", "stimuli"}
_BIDS_IGNORE = ".bidsignore"


@dataclass(frozen=True)
class Listing:
    """One folder of a tree.

    Parameters
    ----------
    path
        Relative to the root of the tree, in POSIX form; ``""`` for the root.
    folders
        Names of its folders. The walk does not enter those that are removed.
    names
        Names of its files, and of what else is neither file nor folder.
    """

    path: str
    folders: list[str]
    names: list[str]

    def join(self, name: str) -> str:
        """Return the path of something in this folder."""
        return f"{self.path}/{name}" if self.path else name


@dataclass(frozen=True)
class FoundFile:
    """A file of a tree, and the names of all files in its folder, in lower case."""

    file: StoredFile
    neighbours: frozenset[str]


class Tree(Protocol):
    """A folder or a zip."""

    @property
    def is_zip(self) -> bool:
        """Whether the files are members of a zip."""
        ...

    @property
    def problems(self) -> list[tuple[StoredFile, ScanRefusedError]]:
        """Why parts of the tree could not be listed; filled by the walk."""
        ...

    def walk(self) -> Iterator[Listing]:
        """Yield the folders in a fixed order, each before the folders in it."""
        ...

    def file(self, path: str) -> StoredFile:
        """Return the file at a path of a listing."""
        ...

    def open(self, file: StoredFile) -> AbstractContextManager[tuple[IO[bytes], int]]:
        """Open a file; give a stream of its bytes and their number."""
        ...


@dataclass(frozen=True)
class FolderTree:
    """The files in a folder on disk. Links to folders are followed, each folder once."""

    root: Path
    problems: list[tuple[StoredFile, ScanRefusedError]] = field(default_factory=list)
    is_zip: bool = False

    def walk(self) -> Iterator[Listing]:
        """Yield the folders in a fixed order, each before the folders in it."""
        visited: set[str] = set()
        for folder, folders, names in os.walk(self.root, followlinks=True, onerror=self._add_problem):
            real = os.path.realpath(folder)
            if real in visited:  # a symbolic link to a parent folder
                folders.clear()
                continue
            visited.add(real)
            path = Path(folder).relative_to(self.root).as_posix()
            listing = Listing("" if path == "." else path, sorted(folders), sorted(names))
            yield listing
            folders[:] = listing.folders

    def file(self, path: str) -> StoredFile:
        """Return the file at a path of a listing."""
        return StoredFile(self.root / path)

    def open(self, file: StoredFile) -> AbstractContextManager[tuple[IO[bytes], int]]:
        """Open a file; give a stream of its bytes and their number."""
        return open_file(file)

    def _add_problem(self, error: OSError) -> None:
        found = "no permission" if isinstance(error, PermissionError) else type(error).__name__
        refusal = unreadable_error(f"a folder that cannot be opened ({found})", "a folder of scans",
                                   "give yourself access to it, or leave it out", is_transient(error))  # fmt: skip
        self.problems.append((StoredFile(Path(error.filename or self.root)), refusal))


class ZipTree:
    """The files in a zip, which is open.

    Other software may have written the names of members with backslashes or from the root.
    """

    is_zip = True

    def __init__(self, archive: zipfile.ZipFile, path: Path) -> None:
        self.problems: list[tuple[StoredFile, ScanRefusedError]] = []
        self._archive = archive
        self._path = path
        names = [info.filename for info in archive.infolist() if not info.is_dir()]
        self._members = {_normal_path(name): name for name in names}
        if len(self._members) < len(names):
            refusal = unreadable_error(f"{len(names)} files with {len(self._members)} names in a zip",
                                       "one file of each name", "unpack the zip and give the folder")  # fmt: skip
            self.problems.append((StoredFile(path), refusal))

    def walk(self) -> Iterator[Listing]:
        """Yield the folders in a fixed order, each before the folders in it."""
        listings = self._listings()
        waiting = [listings[""]]
        while waiting:
            listing = waiting.pop()
            yield listing
            waiting += [listings[listing.join(folder)] for folder in reversed(listing.folders)]

    def file(self, path: str) -> StoredFile:
        """Return the file at a path of a listing."""
        return StoredFile(self._path, self._members[path])

    def open(self, file: StoredFile) -> AbstractContextManager[tuple[IO[bytes], int]]:
        """Open a file; give a stream of its bytes and their number."""
        return open_file(file, self._archive)

    def _listings(self) -> dict[str, Listing]:
        listings = {"": Listing("", [], [])}
        for path in sorted(self._members):
            listing = listings[""]
            *parents, name = path.split("/")
            for parent in parents:
                inner = listing.join(parent)
                if inner not in listings:
                    listing.folders.append(parent)
                    listings[inner] = Listing(inner, [], [])
                listing = listings[inner]
            listing.names.append(name)
        return listings


def find_files(tree: Tree) -> Iterator[FoundFile]:
    """Yield the files of a tree that may be scans, in a fixed order."""
    ignored = _IgnoredPaths()
    for listing in tree.walk():
        if any(marker in listing.names for marker in _OUTPUT_MARKERS):
            listing.folders.clear()
            continue
        if _BIDS_IGNORE in listing.names:
            _read_ignore_file(tree, listing, ignored)
        is_bids = "dataset_description.json" in listing.names or any(f.startswith("sub-") for f in listing.folders)
        listing.folders[:] = [
            folder for folder in listing.folders
            if not _is_hidden(folder) and not (is_bids and folder in _BIDS_SIDE_FOLDERS)
            and not ignored.match(listing.join(folder) + "/")
        ]  # fmt: skip
        neighbours = frozenset(name.lower() for name in listing.names)
        for name in listing.names:
            if not _is_hidden(name) and not ignored.match(listing.join(name)):
                yield FoundFile(tree.file(listing.join(name)), neighbours)


class _IgnoredPaths:
    """What the ``.bidsignore`` files of a tree name, in the syntax of gitignore, relative to their folders."""

    def __init__(self) -> None:
        self._specs: list[tuple[str, GitIgnoreSpec]] = []

    def add(self, folder: str, text: str) -> None:
        self._specs.append((f"{folder}/" if folder else "", GitIgnoreSpec.from_lines(text.splitlines())))

    def match(self, path: str) -> bool:
        return any(
            path.startswith(folder) and spec.match_file(path.removeprefix(folder)) for folder, spec in self._specs
        )


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _read_ignore_file(tree: Tree, listing: Listing, ignored: _IgnoredPaths) -> None:
    """Read a ``.bidsignore`` file; one that cannot be read is a problem of the tree."""
    file = tree.file(listing.join(_BIDS_IGNORE))
    try:
        with tree.open(file) as (stream, n_bytes):
            ignored.add(listing.path, read_stream(stream, n_bytes).decode("utf-8-sig", "replace"))
    except ScanRefusedError as error:
        refusal = unreadable_error(f"a {_BIDS_IGNORE} file that cannot be read: {error.found}",
                                   "patterns of file names, one a line", "correct or remove it",
                                   error.is_transient)  # fmt: skip
        tree.problems.append((file, refusal))


def _normal_path(name: str) -> str:
    return "/".join(part for part in name.replace("\\", "/").split("/") if part not in {"", ".", ".."})
