"""BIDS: entities and suffixes of file names, ``participants.tsv``, lesion masks."""

from __future__ import annotations

import csv
import os
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

from anomaly.core.volume import Modality
from anomaly.io.file_types import image_stem

MODALITY_BY_SUFFIX = {
    "t1w": Modality.T1W, "t1": Modality.T1W, "t1n": Modality.T1W, "mprage": Modality.T1W,
    "t2w": Modality.T2W, "t2": Modality.T2W, "flair": Modality.FLAIR, "ct": Modality.CT,
}  # fmt: skip

UNSUPPORTED_SUFFIXES = {
    "bold", "cbv", "sbref", "dwi", "adc", "asl", "m0scan", "epi", "fieldmap", "phase", "phasediff",
    "phase1", "phase2", "magnitude", "magnitude1", "magnitude2", "pdw", "pdt2", "t2star", "t2starw",
    "t2starmap", "swi", "angio", "inplanet1", "inplanet2", "unit1", "t1map", "t2map", "pet", "meg", "t1ce",
    "t1c", "t1gd",
}  # fmt: skip

_MASK_NAME = re.compile(
    r"(^|_)(label-|desc-[A-Za-z0-9]*mask)|(^|[_-])(mask|dseg|probseg|seg|segmentation|label|labels|lesion|roi)$",
    re.IGNORECASE,
)  # fmt: skip


@dataclass(frozen=True)
class ScanName:
    """What the name and folder of a file tell about a scan."""

    scan_id: str
    subject: str
    session: str
    modality: Modality
    suffix: str


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

    A file named after its modality alone, as in ``patient7/T1.nii.gz``, belongs to the subject that its folder is
    named after.
    """
    base = image_stem(path.name)
    suffix = re.split(r"[_-]", base)[-1]
    modality = MODALITY_BY_SUFFIX.get(suffix.lower(), Modality.UNKNOWN)
    subject = _entity("sub", base) or next((p for p in path.parent.parts[::-1] if re.match(r"sub-\w", p)), "")
    session = _entity("ses", base) or next((p for p in path.parent.parts[::-1] if re.match(r"ses-\w", p)), "")
    scan_id = base
    if not _entity("sub", base) and (
        base.lower() in MODALITY_BY_SUFFIX or base.lower() in {"scan", "image", "anat"}
    ):
        scan_id = f"{path.parent.name}_{base}" if path.parent.name else base
        subject = subject or path.parent.name
    return ScanName(safe_file_name(scan_id), subject or safe_file_name(base), session, modality, suffix)


def is_unsupported_image(name: ScanName) -> bool:
    """Return whether the suffix names a kind of image that no model supports."""
    return name.suffix.lower() in UNSUPPORTED_SUFFIXES


def safe_file_name(name: str) -> str:
    """Replace the characters of a name that are unsafe in file names and tables."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", name).strip(".-") or "scan"


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
        ``participant_id`` → participant.
    """
    folder = path.parent.resolve()  # the file may be a link to a store elsewhere
    root = next((p.parent for p in (folder, *folder.parents) if re.match(r"sub-\w", p.name)), None)
    if root is None:
        return {}
    if root not in cache:
        table = root / "participants.tsv"
        cache[root] = parse_participants(table) if table.is_file() else {}
    return cache[root]


def parse_age(text: str) -> float | None:
    """Return an age in years, or None if the text is not a number. ``89+`` is 89."""
    try:
        return float(text.strip().rstrip("+"))
    except ValueError:
        return None


def parse_sex(text: str) -> str:
    """Return ``"M"``, ``"F"``, ``"O"`` (other), or ``""`` if unknown."""
    return {"m": "M", "male": "M", "f": "F", "female": "F", "o": "O", "other": "O"}.get(text.strip().lower(), "")


def _entity(key: str, base: str) -> str:
    match = re.search(rf"(?:^|_)({key}-[A-Za-z0-9]+)", base)
    return match[1] if match else ""


def parse_participants(path: Path | zipfile.Path) -> dict[str, Participant]:
    """Parse a ``participants.tsv``, on disk or in a zip: ``participant_id`` → participant."""
    with path.open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    return {
        (row.get("participant_id") or "").strip(): Participant(
            parse_age(row.get("age") or ""), parse_sex(row.get("sex") or ""), _without_na(row.get("group") or "")
        )
        for row in rows
    }


def _without_na(text: str) -> str:
    return "" if text.strip().lower() == "n/a" else text.strip()
