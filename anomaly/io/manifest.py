"""Read ``manifest.csv``, a table of scans that the user writes.

::

    path,subject,session,modality,group,split,mask,age,sex
    healthy/a_T1w.nii.gz,sub-a,,T1w,healthy,train,,34.2,F

Only ``path`` is required. Paths are relative to the manifest. ``mask`` is a lesion mask, for evaluation only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from anomaly.core.errors import InputError, unknown_name
from anomaly.core.tsv import plain_text
from anomaly.core.volume import Modality
from anomaly.io.tables import TableRow, read_table, warn_of_unknown_values
from anomaly.io.vocabulary import parse_age, parse_group, parse_sex, parse_split, without_missing

COLUMNS = ("path", "subject", "session", "modality", "group", "split", "mask", "age", "sex")
_MODALITIES = {m.value.lower(): m for m in Modality} | {"t1": Modality.T1W, "t2": Modality.T2W}


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
        If the file is no table, a column or modality is unknown, or a path is missing. The message names the
        manifest and the line.
    """
    table = read_table(path, "\t" if path.suffix.lower() == ".tsv" else ",")
    _check_columns(path, table.columns)
    warn_of_unknown_values(str(path), table)
    return [_parse_row(path, row) for row in table.rows]


def _check_columns(path: Path, found: tuple[str, ...]) -> None:
    for column in found:
        if column not in COLUMNS:
            raise InputError(f"{path}: {unknown_name('column', column, list(COLUMNS))}")
    if "path" not in found:
        raise InputError(f"{path}: there is no column 'path'; columns: {', '.join(COLUMNS)}, only path is required")


def _parse_row(manifest: Path, row: TableRow) -> ManifestRow:
    text = {key: without_missing(plain_text(value)) for key, value in row.values.items()}
    if not text["path"]:
        raise InputError(f"{manifest}, line {row.line}: the path is empty")
    folder = manifest.parent
    return ManifestRow(
        path=folder / text["path"],
        subject=text.get("subject", ""),
        session=text.get("session", ""),
        modality=_parse_modality(manifest, row.line, text.get("modality", "")),
        group=parse_group(text.get("group", "")),
        split=parse_split(text.get("split", "")),
        mask=folder / text["mask"] if text.get("mask") else None,
        age=parse_age(text.get("age", "")),
        sex=parse_sex(text.get("sex", "")),
    )


def _parse_modality(manifest: Path, line: int, text: str) -> Modality:
    if not text:
        return Modality.UNKNOWN
    if text.lower() not in _MODALITIES:
        raise InputError(f"{manifest}, line {line}: {unknown_name('modality', text, [m.value for m in Modality])}")
    return _MODALITIES[text.lower()]
