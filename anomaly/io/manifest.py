"""Read ``manifest.csv``, a table of scans that the user writes.

::

    path,subject,session,modality,group,split,mask,age,sex
    healthy/a_T1w.nii.gz,sub-a,,T1w,healthy,train,,34.2,F

Only ``path`` is required. Paths are relative to the manifest. ``mask`` is a lesion mask, for evaluation only.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from anomaly.core.errors import InputError, unknown_name
from anomaly.core.tsv import plain_text
from anomaly.core.volume import Modality
from anomaly.io.bids import parse_age, parse_sex

COLUMNS = ("path", "subject", "session", "modality", "group", "split", "mask", "age", "sex")


@dataclass(frozen=True)
class ManifestRow:
    """One scan of a manifest; ``""`` and ``None`` for values that are not given."""

    path: Path
    subject: str = ""
    session: str = ""
    modality: Modality = Modality.UNKNOWN
    group: str = ""
    split: str = ""
    mask: Path | None = None
    age: float | None = None
    sex: str = ""


def read_manifest(path: Path) -> list[ManifestRow]:
    """Read the rows of a manifest (``.csv``, or ``.tsv`` with tabs).

    Raises
    ------
    InputError
        If a column or modality is unknown, or a path is missing. The message names the manifest and the line.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            _check_columns(path, [c.strip() for c in reader.fieldnames or []])
            lines = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read the manifest {path}: {error}") from error
    return [_parse_row(path, line, {(k or "").strip(): (v or "") for k, v in row.items()}) for line, row in lines]


def _check_columns(path: Path, found: list[str]) -> None:
    for column in found:
        if column not in COLUMNS:
            raise InputError(f"{path}: {unknown_name('column', column, list(COLUMNS))}")
    if "path" not in found:
        raise InputError(f"{path}: there is no column 'path'; columns: {', '.join(COLUMNS)}, only path is required")


def _parse_row(manifest: Path, line: int, values: dict[str, object]) -> ManifestRow:
    if values.pop("", None):
        raise InputError(f"{manifest}, line {line}: more values than columns; quote values that contain a comma")
    text = {key: plain_text(str(value).strip()) for key, value in values.items()}
    if not text["path"]:
        raise InputError(f"{manifest}, line {line}: the path is empty")
    folder = manifest.parent
    return ManifestRow(
        path=folder / text["path"],
        subject=text.get("subject", ""),
        session=text.get("session", ""),
        modality=_parse_modality(manifest, line, text.get("modality", "")),
        group=text.get("group", ""),
        split=text.get("split", ""),
        mask=folder / text["mask"] if text.get("mask") else None,
        age=parse_age(text.get("age", "")),
        sex=parse_sex(text.get("sex", "")),
    )


def _parse_modality(manifest: Path, line: int, text: str) -> Modality:
    known = {m.value.lower(): m for m in Modality}
    if not text:
        return Modality.UNKNOWN
    if text.lower() not in known:
        raise InputError(f"{manifest}, line {line}: {unknown_name('modality', text, [m.value for m in Modality])}")
    return known[text.lower()]
