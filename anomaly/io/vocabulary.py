"""The words that tables and headers use for missing values, groups, splits, sex and age.

One vocabulary for ``manifest.csv``, ``participants.tsv`` and DICOM. A text that is not understood gives the unknown
value (``""`` or None); the readers of tables say so in a warning.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

HEALTHY = "healthy"
HEALTHY_WORDS = (
    "healthy", "control", "controls", "healthy control", "healthy controls", "healthy volunteer", "volunteer",
    "normal", "normal control", "cognitively normal", "ctrl", "ctl", "con", "hc", "hv", "cn", "nc", "td",
    "typically developing", "unaffected",
)  # fmt: skip
OTHER_GROUP_WORDS = (
    "patient", "patients", "case", "disease", "diseased", "abnormal", "lesion", "lesions", "pathology", "planted",
)  # fmt: skip
SPLIT_WORDS = {
    "train": ("train", "training", "trn"),
    "validation": ("validation", "val", "valid", "dev", "development"),
    "calibration": ("calibration", "calib", "cal"),
    "test": ("test", "testing", "tst"),
}
MAX_AGE_YEARS = 120.0
MAX_AGE_RANGE_YEARS = 10.0
"""A range of ages that is at most this wide is read as its middle."""

_MISSING = {
    "", "n/a", "na", "n.a.", "n.a", "#n/a", "#na", "nan", "-nan", "null", "none", "nil", "-", "--", "—", "–", ".",
    "?", "??", "unknown", "unk", "unspecified", "undefined", "missing", "not available", "not applicable",
    "<na>", "nd", "not known", "not recorded", "keine angabe", "k.a.",
}  # fmt: skip
_SEXES = {
    "m": "M", "male": "M", "man": "M", "boy": "M", "f": "F", "female": "F", "woman": "F", "girl": "F", "w": "F",
    "o": "O", "other": "O", "diverse": "O", "d": "O",
}  # fmt: skip
_UNITS_PER_YEAR = {"d": 365.25, "w": 52.18, "m": 12.0, "y": 1.0}
_NUMBER = r"\d{1,5}(?:[.,]\d+)?"
_AGE = re.compile(
    rf"[>≥]?=?\s*({_NUMBER})\s*(d|days?|w|wks?|weeks?|m|mo|mos|months?|y|yo|y/o|yrs?|years?|a)?\s*(?:old)?\s*\+?",
    re.ASCII,
)
_AGE_RANGE = re.compile(rf"({_NUMBER})\s*(?:-|–|—|to)\s*({_NUMBER})\s*(?:y|yrs?|years?)?", re.ASCII)


def is_missing(text: str) -> bool:
    """Return whether a text means that there is no value."""
    return text.strip().strip("\"'").strip().lower() in _MISSING


def without_missing(text: str) -> str:
    """Return a text without surrounding spaces, or ``""`` if it means that there is no value."""
    return "" if is_missing(text) else text.strip()


def parse_group(text: str) -> str:
    """Return ``"healthy"`` for any word for healthy, ``""`` for none, and another group as it is written."""
    return HEALTHY if _plain(text) in HEALTHY_WORDS else without_missing(text)


def parse_split(text: str) -> str:
    """Return ``train``, ``validation``, ``calibration`` or ``test``, ``""`` for none, and others as written."""
    plain = _plain(text)
    return next((split for split, words in SPLIT_WORDS.items() if plain in words), without_missing(text))


def parse_sex(text: str) -> str:
    """Return ``"M"``, ``"F"``, ``"O"`` (other), or ``""`` if unknown: 0, 1 and 2 differ between studies."""
    return _SEXES.get(_plain(text), "")


def parse_dicom_age(text: str) -> float | None:
    """Return the years of a DICOM age such as ``045Y`` or ``018M``; without its unit an age is unknown."""
    return parse_age(text) if text.strip()[-1:].upper() in {"D", "W", "M", "Y"} else None


def parse_age(text: str) -> float | None:
    """Return an age in years, or None if it is not given, not understood or not that of a human.

    ``63,5``, ``045Y``, ``18 months`` and ``89+`` (89) are understood; ``60-65`` is 62.5, the middle of the range.
    """
    plain = text.strip().lower()
    if match := _AGE.fullmatch(plain):
        age = _years(_number(match[1]), (match[2] or "y")[0].replace("a", "y"))
    elif match := _AGE_RANGE.fullmatch(plain):
        age = _middle(_number(match[1]), _number(match[2]))
    else:
        return None
    return age if 0 <= age <= MAX_AGE_YEARS else None


def unknown_values(column: str, values: Iterable[str]) -> str:
    """Return a sentence about the values of a column that are not understood; ``""`` if all are.

    Parameters
    ----------
    column
        ``group``, ``split``, ``sex`` or ``age``.
    """
    unknown = sorted({value.strip() for value in values if not is_missing(value) and not _is_known(column, value)})
    if not unknown:
        return ""
    listed = ", ".join(map(repr, unknown[:5])) + (", …" if len(unknown) > 5 else "")
    return f"{column} {listed}: {_CONSEQUENCES[column]}"


def _is_known(column: str, value: str) -> bool:
    if column == "group":
        return _plain(value) in {*HEALTHY_WORDS, *OTHER_GROUP_WORDS}
    if column == "split":
        return parse_split(value) in SPLIT_WORDS
    return bool(parse_sex(value)) if column == "sex" else parse_age(value) is not None


_CONSEQUENCES = {
    "group": f"taken as not healthy; words for healthy: {', '.join(HEALTHY_WORDS)}",
    "split": f"kept as written; known splits: {', '.join(SPLIT_WORDS)}",
    "sex": "taken as unknown; expected M, F or O",
    "age": f"taken as unknown; expected years from 0 to {MAX_AGE_YEARS:g}, such as 63.5, 045Y or 18 months",
}


def _years(number: float, unit: str) -> float:
    return number if unit == "y" else round(number / _UNITS_PER_YEAR[unit], 2)


def _middle(low: float, high: float) -> float:
    return (low + high) / 2 if 0 <= high - low <= MAX_AGE_RANGE_YEARS else math.inf


def _number(text: str) -> float:
    return float(text.replace(",", "."))


def _plain(text: str) -> str:
    return re.sub(r"[\s_-]+", " ", text.strip().strip("\"'").lower()).strip()
