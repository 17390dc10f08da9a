"""Ground truth of scans: healthy or lesion, and the lesion mask.

::

    scan_id         label    mask
    sub-01_T1w      healthy
    sub-07_T1w      lesion   masks/sub-07_lesion.nii.gz

A row refers to one scan by ``scan_id``, or to all scans of a subject by ``subject``. ``label`` is 0 or 1, or
healthy or lesion. ``mask`` is optional: a path relative to the table, of an image on the grid of the scan.
``age`` and ``sex`` are optional, too; they are used where the run does not know them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from anomaly.core.covariates import reported_age
from anomaly.core.errors import InputError, unknown_name
from anomaly.core.tsv import plain_text
from anomaly.io.vocabulary import HEALTHY_WORDS, is_missing, parse_age, parse_sex

HEALTHY = ("0", "false", *HEALTHY_WORDS)
LESION = ("1", "lesion", "pathology", "patient", "true")
MASK_ENDINGS = ("", "_mask", "_lesion", "_label-lesion_mask")


@dataclass(frozen=True)
class Truth:
    """Ground truth of one scan.

    Parameters
    ----------
    is_abnormal
        Whether it has a lesion.
    mask
        Path of its lesion mask; None without one.
    age, sex
        Of the subject: years, None where unknown; ``"F"``, ``"M"``, or ``""`` where unknown.
    """

    is_abnormal: bool
    mask: Path | None = None
    age: float | None = field(default=None, compare=False)  # visits of a subject differ in age
    sex: str = field(default="", compare=False)


@dataclass(frozen=True)
class Labels:
    """Ground truth of many scans.

    Parameters
    ----------
    key
        The column that identifies scans: ``"scan_id"`` or ``"subject"``.
    truths
        Scan id or subject → ground truth.
    """

    key: str
    truths: dict[str, Truth]


def read_labels(path: Path, masks_dir: Path | None = None) -> Labels:
    """Read a table of labels (``.tsv``, or ``.csv`` with commas).

    Parameters
    ----------
    path
        The table.
    masks_dir
        Folder that mask paths are relative to; by default the folder of the table. For a lesion without a mask
        path, it is searched for ``<name>.nii.gz``, ``<name>_mask.nii.gz``, ``<name>_lesion.nii.gz`` and
        ``<name>_label-lesion_mask.nii.gz``.

    Raises
    ------
    InputError
        The table is missing or empty, a column is missing, a label is unknown, or two labels contradict each other.
    """
    table = _read(path)
    key = next((name for name in ("scan_id", "subject") if name in table.columns), None)
    if key is None or "label" not in table.columns:
        raise InputError(
            f"{path}: found columns {', '.join(map(str, table.columns)) or 'none'}; expected scan_id (or subject), "
            "label, and optionally mask, age and sex"
        )
    truths: dict[str, Truth] = {}
    for line, row in enumerate(table.to_dict("records"), start=2):
        name = plain_text(str(row[key]).strip())
        truth = _truth(path, line, row, name, masks_dir)
        if truths.setdefault(name, truth) != truth:
            raise InputError(
                f"{path}, line {line}: {key} {name!r} has two different rows; name the scans by scan_id instead"
            )
    return Labels(key, truths)


@dataclass(frozen=True, eq=False)
class MatchedScans:
    """The scans of a run that have a label.

    Parameters
    ----------
    table
        Their rows of the score table, with ``is_abnormal`` and ``subject`` (the scan id if the subject is unknown),
        and with ``age`` and ``sex`` of the labels where the score table does not know them.
    truths
        Scan id → ground truth.
    unlabelled, unscored
        Scan ids of the run without a label; names in the labels without a scored scan.
    """

    table: pd.DataFrame
    truths: dict[str, Truth]
    unlabelled: tuple[str, ...]
    unscored: tuple[str, ...]


def match(scores: pd.DataFrame, labels: Labels) -> MatchedScans:
    """Match the scores of a run with labels.

    Parameters
    ----------
    scores
        ``scan_id``, ``subject``, ``age``, ``sex`` and ``score`` (nan where a scan was refused or failed).

    Raises
    ------
    InputError
        No scan matches; the message gives examples from the run and from the labels.
    """
    names = scores[labels.key].astype(str)
    known = names.isin(set(labels.truths))
    if not known.any():
        raise InputError(
            f"no {labels.key} of the labels is in the run: the run has {_some(names)}; the labels have "
            f"{_some(labels.truths)}"
        )
    table = scores[known].reset_index(drop=True)
    scan_ids = table["scan_id"].astype(str)
    truths = {scan: labels.truths[name] for scan, name in zip(scan_ids, names[known], strict=True)}
    subjects = table["subject"].fillna("").astype(str)
    sexes = table["sex"].fillna("").astype(str)
    table = table.assign(
        is_abnormal=[truths[scan].is_abnormal for scan in scan_ids],
        subject=subjects.where(subjects != "", scan_ids),
        age=table["age"].fillna(pd.Series([truths[scan].age for scan in scan_ids], dtype="float64")),
        sex=sexes.where(sexes != "", [truths[scan].sex for scan in scan_ids]),
    )
    scored = set(names[known][scores.loc[known, "score"].notna()])
    return MatchedScans(
        table=table,
        truths=truths,
        unlabelled=tuple(scores.loc[~known, "scan_id"].astype(str)),
        unscored=tuple(name for name in labels.truths if name not in scored),
    )


def _some(names: Iterable[object], n: int = 3) -> str:
    found = [str(name) for name in names]
    return ", ".join(found[:n]) + (", …" if len(found) > n else "")


def _read(path: Path) -> pd.DataFrame:
    try:
        separator = "," if path.suffix.lower() == ".csv" else "\t"
        table = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise InputError(f"cannot read the labels {path}: {error}") from error
    if table.empty:
        raise InputError(f"{path} holds no rows; expected one per scan or subject")
    return table


def _truth(path: Path, line: int, row: dict[object, object], name: str, masks_dir: Path | None) -> Truth:
    label = str(row["label"]).strip().lower()
    if label not in (*HEALTHY, *LESION):
        raise InputError(f"{path}, line {line}: {unknown_name('label', label, [*HEALTHY, *LESION])}")
    is_abnormal = label in LESION
    age, sex = reported_age(parse_age(str(row.get("age", "")))), parse_sex(str(row.get("sex", "")))
    return Truth(is_abnormal, _mask(path, row, name, masks_dir) if is_abnormal else None, age, sex)


def _mask(path: Path, row: dict[object, object], name: str, masks_dir: Path | None) -> Path | None:
    mask = plain_text(str(row.get("mask", "")).strip())
    if not is_missing(mask):
        return (masks_dir or path.parent) / mask
    return _by_name(masks_dir, name) if masks_dir else None


def _by_name(folder: Path, name: str) -> Path | None:
    candidates = (folder / f"{name}{ending}{kind}" for ending in MASK_ENDINGS for kind in (".nii.gz", ".nii"))
    return next((path for path in candidates if path.is_file()), None)
