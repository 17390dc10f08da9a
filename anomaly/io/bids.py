"""BIDS: entities and suffixes of file names, ``participants.tsv``, lesion masks."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from anomaly.core.errors import InputError
from anomaly.core.volume import Modality
from anomaly.io.contrast import classify_name
from anomaly.io.file_types import image_stem
from anomaly.io.series_words import ImageKind
from anomaly.io.tables import Table, TableRow, read_table, warn_of_unknown_values
from anomaly.io.vocabulary import parse_age, parse_group, parse_sex

_log = logging.getLogger(__name__)

MAX_ID_LENGTH = 160
"""Characters of an id. File systems allow 255 bytes in a name, and output files append up to about 60."""

_ID_HASH_LENGTH = 8
NAMES_WITHOUT_SUBJECT = {
    "t1w", "t1", "t1n", "mprage", "t2w", "t2", "flair", "ct", "scan", "image", "anat",
}  # fmt: skip
"""File names that are the same for every subject; ids then begin with the name of the folder."""

_SUBJECT_FOLDER = re.compile(r"sub-(?=\w*\d)\w")
_MASK_NAME = re.compile(
    r"(^|_)(label-|desc-[A-Za-z0-9]*mask)|(^|[_-])(mask|dseg|probseg|seg|segmentation|label|labels|lesion|roi)$",
    re.IGNORECASE,
)  # fmt: skip


@dataclass(frozen=True)
class ScanName:
    """What the name and folder of a file tell about a scan.

    Parameters
    ----------
    is_subject_named
        Whether a ``sub-…`` entity or folder names the subject.
    """

    scan_id: str
    subject: str
    session: str
    kind: ImageKind
    is_subject_named: bool = False

    @property
    def modality(self) -> Modality:
        """The modality that the name gives."""
        return self.kind.modality


@dataclass(frozen=True)
class Participant:
    """One row of ``participants.tsv``."""

    age: float | None = None
    sex: str = ""
    group: str = ""


def is_scan_name(name: str) -> bool:
    """Return whether the name of a NIfTI file is that of a scan, not of a mask, label map or segmentation."""
    return _MASK_NAME.search(image_stem(name)) is None


def parse_scan_name(path: Path) -> ScanName:
    """Parse the name of a NIfTI file by its BIDS entities or, if there are none, by file and folder.

    A file named after its kind of image alone, as in ``patient7/T1.nii.gz``, gets the name of its folder, too.
    Where no ``sub-…`` names the subject, :mod:`anomaly.io.subjects` finds it from the folders of all scans.
    """
    base = unicodedata.normalize("NFC", image_stem(path.name))
    folders = [unicodedata.normalize("NFC", part) for part in path.parent.parts[::-1]]
    named = _entity("sub", base) or next((part for part in folders if _SUBJECT_FOLDER.match(part)), "")
    session = _entity("ses", base) or next((part for part in folders if re.match(r"ses-\w", part)), "")
    subject, scan_id = named or base, base
    if not _entity("sub", base) and base.lower() in NAMES_WITHOUT_SUBJECT and path.parent.name:
        scan_id = f"{path.parent.name}_{base}"
        subject = named or path.parent.name
    return ScanName(
        safe_file_name(scan_id), safe_file_name(subject), safe_file_name(session) if session else "",
        classify_name(base), bool(named),
    )  # fmt: skip


def safe_file_name(name: str) -> str:
    """Return a name as an id: safe in file names and tables, of limited length.

    Where letters are lost, because they are not ASCII or the name is too long, a hash of the name is added, so that
    different names stay different.
    """
    composed = unicodedata.normalize("NFC", name)
    safe = re.sub(r"[^A-Za-z0-9._+-]+", "-", composed).strip(".-") or "scan"
    loses_letters = any(not c.isascii() and unicodedata.category(c)[0] not in "PZ" for c in composed)
    if not loses_letters and len(safe) <= MAX_ID_LENGTH:
        return safe
    digest = hashlib.sha256(composed.encode(errors="surrogateescape")).hexdigest()[:_ID_HASH_LENGTH]
    return f"{safe[: MAX_ID_LENGTH - _ID_HASH_LENGTH - 1]}-{digest}"


def find_lesion_mask(path: Path) -> Path | None:
    """Return the BIDS lesion mask of a scan, ``…_label-lesion_mask.nii[.gz]`` in the same folder."""
    prefix = image_stem(path.name).rsplit("_", 1)[0]
    names = (f"{prefix}_label-lesion_{kind}{end}" for kind in ("mask", "roi") for end in (".nii.gz", ".nii"))
    masks = (path.with_name(name) for name in names)
    return next((mask for mask in masks if os.path.isfile(mask)), None)  # noqa: PTH113 - a long name is no error


def read_participants(path: Path, cache: dict[Path, dict[str, Participant]]) -> dict[str, Participant]:
    """Read the participants of the BIDS data set that contains a file; empty if there is none.

    Parameters
    ----------
    path
        A file in a ``sub-…`` folder.
    cache
        Root of a data set → its participants; filled here, so that each table is read once.

    Returns
    -------
    dict
        Subject, as :func:`parse_scan_name` names it → participant.

    Raises
    ------
    InputError
        The table is no text, has no ``participant_id``, or says two things about one participant.
    """
    folder = path.parent.resolve()  # the file may be a link to a store elsewhere
    root = next((p.parent for p in (folder, *folder.parents) if re.match(r"sub-\w", p.name)), None)
    if root is None:
        return {}
    if root not in cache:
        table = root / "participants.tsv"
        cache[root] = parse_participants(read_table(table, "\t"), str(table)) if table.is_file() else {}
    return cache[root]


def warn_of_unmatched_participants(root: Path, participants: set[str], subjects: set[str]) -> None:
    """Log the participants of a data set without a scan, and its subjects without a row in ``participants.tsv``."""
    table = root / "participants.tsv"
    for what, names in (
        ("no scan was found for", participants - subjects),
        ("there is no row for", subjects - participants),
    ):
        if names:
            listed = ", ".join(sorted(names)[:5]) + (", …" if len(names) > 5 else "")
            _log.warning(
                "%s: %s %d of %d subjects: %s", table, what, len(names), len(participants | subjects), listed
            )


def _entity(key: str, base: str) -> str:
    match = re.search(rf"(?:^|_)({key}-[^\W_]+)", base)
    return match[1] if match else ""


def parse_participants(table: Table, where: str) -> dict[str, Participant]:
    """Return the participants of a table: subject, as :func:`parse_scan_name` names it → participant.

    Raises
    ------
    InputError
        The table has no ``participant_id``, or says two things about one participant; ``where`` names it.
    """
    if "participant_id" not in table.columns:
        found = ", ".join(table.columns)
        raise InputError(
            f"{where}: found the columns {found}; expected participant_id among them; rename the column"
        )
    warn_of_unknown_values(where, table)
    participants: dict[str, Participant] = {}
    for row in table.rows:
        name = row.values["participant_id"]
        key = safe_file_name(name if name.startswith("sub-") else f"sub-{name}")
        if participants.setdefault(key, _participant(row)) != _participant(row):
            raise InputError(f"{where}, line {row.line}: {name} has two rows that differ; keep one")
    return participants


def _participant(row: TableRow) -> Participant:
    age, sex, group = (row.values.get(column, "") for column in ("age", "sex", "group"))
    return Participant(parse_age(age), parse_sex(sex), parse_group(group))
