"""Tell the subjects of files apart that no ``sub-…`` names, by the names of the files and of their folders.

A file whose name is more than a kind of image (``ixi7``, ``Smith_T1``) belongs to the subject of that name. Files
that are named alike for everybody (``T1``, ``mprage_brain``) belong to the folder: the first one that differs
between them, so ``subj01/anat/T1`` and ``subj02/anat/T1`` are two subjects. Folders named after an image, a date or
a visit are the same subject's: ``P1/2019-01-01/T1`` and ``P1/2020-01-01/T1`` are one.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from anomaly.io.bids import NAMES_WITHOUT_SUBJECT, safe_file_name
from anomaly.io.file_types import image_stem
from anomaly.io.series_words import is_generic, normalise

_VISIT_FOLDER = re.compile(
    r"(?i)(ses|sess|session|visit|timepoint|tp|baseline|bl|follow-?up|fu|month|week|day|year|raw|rawdata|input)"
    r"[-_ ]?\d*|(19|20)\d\d([-_.]?(0[1-9]|1[0-2])([-_.]?([0-2]\d|3[01])([-_ T].*)?)?)?"
)


@dataclass(frozen=True)
class Identity:
    """Whose scan a file is, and the name of the scan."""

    subject: str
    scan_id: str


@dataclass(frozen=True)
class _File:
    """A file that is named alike for everybody; ``folders`` from the top, without those that name nobody."""

    index: int
    stem: str
    folders: tuple[str, ...]


def tell_subjects_apart(paths: Sequence[PurePath]) -> list[Identity]:
    """Return the identity of each file without a ``sub-…`` entity or folder.

    Parameters
    ----------
    paths
        Absolute paths of all files found together; a file in a zip lies in a folder of the zip's name.
    """
    stems = [image_stem(path.name) for path in paths]
    repeated = {stem for stem, count in Counter(stems).items() if count > 1}
    files = [
        _File(index, stem, tuple(f for f in paths[index].parts[1:-1] if not names_nobody(f)))
        for index, stem in enumerate(stems)
        if is_generic(stem) and (not _starts_with_number(stem) or stem in repeated)
    ]
    subject_of = _subjects_by_folder(files)
    return [
        _identity(path, stem, subject_of.get(index, ""))
        for index, (path, stem) in enumerate(zip(paths, stems, strict=True))
    ]


def names_nobody(folder: str) -> bool:
    """Return whether a folder is named after an image, a date or a visit, and so not after a subject."""
    may_be_initials = len(folder) < 3 and folder.lower() not in {"t1", "t2"}
    is_image = is_generic(folder) and not any(word.isdigit() for word in normalise(folder).split())
    return (is_image and not may_be_initials) or _VISIT_FOLDER.fullmatch(folder) is not None


def _identity(path: PurePath, stem: str, folder: str) -> Identity:
    if stem.lower() in NAMES_WITHOUT_SUBJECT:
        owner = folder if names_nobody(path.parent.name) else path.parent.name
        return Identity(safe_file_name(folder or stem), safe_file_name(f"{owner}_{stem}" if owner else stem))
    subject = f"{folder}_{stem}" if folder and _starts_with_number(stem) else folder or stem
    return Identity(safe_file_name(subject), safe_file_name(stem))


def _starts_with_number(stem: str) -> bool:
    return normalise(stem).split()[0].isdigit()


def _subjects_by_folder(files: Sequence[_File]) -> dict[int, str]:
    """Return index → name of the folder that tells the subject; of several folders if one name is not enough."""
    subjects = _split_at_differences(files)
    shared = len(_common([file.folders for file in files]))
    folders = [_common([file.folders for file in subject]) for subject in subjects]
    names = [path[-1] if path else "" for path in folders]
    is_unique = [names.count(name) == 1 for name in names]
    full = [
        name if unique else "_".join(path[shared:])
        for name, path, unique in zip(names, folders, is_unique, strict=True)
    ]
    return {file.index: name for subject, name in zip(subjects, full, strict=True) for file in subject}


def _split_at_differences(files: Sequence[_File]) -> list[list[_File]]:
    """Split files at the first folder that differs; split again while two folders hold files of one name."""
    if len({file.folders for file in files}) <= 1:
        return [list(files)] if files else []
    depth = len(_common([file.folders for file in files]))
    parts: dict[tuple[str, ...], list[_File]] = defaultdict(list)
    for file in files:
        parts[file.folders[depth : depth + 1]].append(file)
    return [
        subject
        for part in parts.values()
        for subject in (_split_at_differences(part) if _repeats_a_name(part) else [part])
    ]


def _repeats_a_name(files: Sequence[_File]) -> bool:
    return len({(file.folders, file.stem) for file in files}) > len({file.stem for file in files})


def _common(paths: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Return the folders that all paths begin with."""
    common = []
    for level in zip(*paths, strict=False):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    return tuple(common)
