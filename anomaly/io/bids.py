"""What names say: BIDS entities, modality suffixes, participants.tsv."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path

from anomaly.core.volume import Modality
from anomaly.io.nifti import stem

MODALITIES = {
    "t1w": Modality.T1W, "t1": Modality.T1W, "t1n": Modality.T1W, "mprage": Modality.T1W,
    "t2w": Modality.T2W, "t2": Modality.T2W, "flair": Modality.FLAIR, "ct": Modality.CT,
}  # fmt: skip

OTHER_IMAGES = {
    "bold", "cbv", "sbref", "dwi", "adc", "asl", "m0scan", "epi", "fieldmap", "phase", "phasediff",
    "phase1", "phase2", "magnitude", "magnitude1", "magnitude2", "pdw", "pdt2", "t2star", "t2starw",
    "t2starmap", "swi", "angio", "inplanet1", "inplanet2", "unit1", "t1map", "t2map", "pet", "meg", "t1ce",
    "t1c", "t1gd",
}  # fmt: skip

_NOT_A_SCAN = re.compile(
    r"(^|_)(label-|desc-[A-Za-z0-9]*mask)|(^|[_-])(mask|dseg|probseg|seg|segmentation|label|labels|lesion|roi)$",
    re.IGNORECASE,
)  # fmt: skip


@dataclass(frozen=True)
class Name:
    """What a file's name and folders say of a scan."""

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
    """Return whether a NIfTI file is a scan by its name, and not a mask, label map or segmentation."""
    return _NOT_A_SCAN.search(stem(name)) is None


def read_name(path: Path) -> Name:
    """Return what a NIfTI file's name says, by BIDS entities or, failing those, by file and folder.

    A file that is named by its modality alone, ``patient7/T1.nii.gz``, is of the subject its folder is named for.
    """
    base = stem(path.name)
    suffix = re.split(r"[_-]", base)[-1]
    modality = MODALITIES.get(suffix.lower(), Modality.UNKNOWN)
    subject = _entity("sub", base) or next((p for p in path.parent.parts[::-1] if re.match(r"sub-\w", p)), "")
    session = _entity("ses", base) or next((p for p in path.parent.parts[::-1] if re.match(r"ses-\w", p)), "")
    scan_id = base
    if not _entity("sub", base) and (base.lower() in MODALITIES or base.lower() in {"scan", "image", "anat"}):
        scan_id = f"{path.parent.name}_{base}" if path.parent.name else base
        subject = subject or path.parent.name
    return Name(safe(scan_id), subject or safe(base), session, modality, suffix)


def is_other_image(name: Name) -> bool:
    """Return whether the suffix names an image of a kind that no model here is for."""
    return name.suffix.lower() in OTHER_IMAGES


def safe(name: str) -> str:
    """Return a name that is safe in file names and tables."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", name).strip(".-") or "scan"


def lesion_mask_beside(path: Path) -> Path | None:
    """Return the BIDS lesion mask of a scan, ``…_label-lesion_mask.nii[.gz]`` in the same folder."""
    prefix = stem(path.name).rsplit("_", 1)[0]
    names = (f"{prefix}_label-lesion_{kind}{end}" for kind in ("mask", "roi") for end in (".nii.gz", ".nii"))
    return next((path.with_name(name) for name in names if path.with_name(name).is_file()), None)


def participants_of(path: Path, cache: dict[Path, dict[str, Participant]]) -> dict[str, Participant]:
    """Return the participants of the BIDS data set that a file lies in; empty where there is none."""
    root = next((p.parent for p in path.resolve().parents if re.match(r"sub-\w", p.name)), None)
    if root is None:
        return {}
    if root not in cache:
        table = root / "participants.tsv"
        cache[root] = _read_participants(table) if table.is_file() else {}
    return cache[root]


def parse_age(text: str) -> float | None:
    """Return years; ``None`` for ``n/a`` and what is no number. ``89+`` is 89."""
    try:
        return float(text.strip().rstrip("+"))
    except ValueError:
        return None


def parse_sex(text: str) -> str:
    """Return ``"M"``, ``"F"``, ``"O"`` or ``""``."""
    return {"m": "M", "male": "M", "f": "F", "female": "F", "o": "O", "other": "O"}.get(text.strip().lower(), "")


def _entity(key: str, base: str) -> str:
    match = re.search(rf"(?:^|_)({key}-[A-Za-z0-9]+)", base)
    return match[1] if match else ""


def _read_participants(path: Path) -> dict[str, Participant]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    return {
        (row.get("participant_id") or "").strip(): Participant(
            parse_age(row.get("age") or ""), parse_sex(row.get("sex") or ""), _known(row.get("group") or "")
        )
        for row in rows
    }


def _known(text: str) -> str:
    return "" if text.strip().lower() == "n/a" else text.strip()
