"""Read a table that a person wrote: its encoding, its separator, and rows that do not fit its columns."""

from __future__ import annotations

import codecs
import csv
import io
import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from anomaly.core.errors import InputError
from anomaly.io.vocabulary import unknown_values

_log = logging.getLogger(__name__)

SEPARATORS = "\t;,"
_SAVE_AS = "save it as UTF-8 text"


@dataclass(frozen=True)
class TableRow:
    """One row of a table: its line in the file, and column → text, without surrounding spaces."""

    line: int
    values: dict[str, str]


@dataclass(frozen=True)
class Table:
    """The columns of a table, in order, and its rows; empty rows are left out."""

    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]


def read_table(path: Path, separator: str) -> Table:
    """Read a table.

    Parameters
    ----------
    separator
        What the columns should be separated by. A header that uses a semicolon, a comma or a tab instead is read
        as it is, with a warning.

    Raises
    ------
    InputError
        The file cannot be read, is no text, has a column twice, or a row has more values than columns.
    """
    text = _decode(path)
    if text.lower().startswith("sep="):  # a line that Excel writes
        text = text.split("\n", 1)[-1]
    header = text.split("\n", 1)[0]
    found = _separator(header, separator)
    if found != separator:
        _log.warning("%s: columns are separated by %r, expected %r; read with %r", path, found, separator, found)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=found)
    try:
        lines = [(reader.line_num, [value.strip() for value in row]) for row in reader]
    except csv.Error as error:
        raise InputError(f"cannot read the table {path}, line {reader.line_num}: {error}") from error
    rows = [(line, row) for line, row in lines if any(row)]
    if not rows:
        raise InputError(f"{path}: there is no header; expected one line with the names of the columns")
    columns = _without_trailing_empty(rows[0][1])
    _check_columns(path, columns)
    return Table(tuple(columns), tuple(_row(path, columns, line, values) for line, values in rows[1:]))


def warn_of_unknown_values(path: Path, table: Table) -> None:
    """Log one warning for each column of group, split, sex or age with values that are not understood."""
    for column in ("group", "split", "sex", "age"):
        values = [row.values[column] for row in table.rows] if column in table.columns else []
        if message := unknown_values(column, values):
            _log.warning("%s: %s", path, message)


def _decode(path: Path) -> str:
    """Return the text of a file: UTF-8, UTF-16 with a byte order mark, else Windows-1252 with a warning."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the table {path}: {error}") from error
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return _decoded(path, content, "utf-16")
    if b"\0" in content:
        raise InputError(f"{path}: found NUL bytes, as in UTF-16 without a byte order mark or in a file that is no "
                         f"text; expected UTF-8; {_SAVE_AS}")  # fmt: skip
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = _decoded(path, content, "cp1252")
        _log.warning("%s is not UTF-8; read as Windows-1252; %s if letters look wrong", path, _SAVE_AS)
        return text


def _decoded(path: Path, content: bytes, encoding: str) -> str:
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: found neither UTF-8 nor {encoding} text ({error.reason} at byte {error.start}); "
                         f"expected UTF-8; {_SAVE_AS}") from error  # fmt: skip


def _separator(header: str, expected: str) -> str:
    """Return the separator of a header line: the expected one if it occurs, else the most frequent other one."""
    counts = {mark: header.count(mark) for mark in SEPARATORS}
    return expected if counts[expected] or not any(counts.values()) else max(counts, key=lambda mark: counts[mark])


def _without_trailing_empty(columns: list[str]) -> list[str]:
    filled = [index for index, column in enumerate(columns) if column]
    return columns[: filled[-1] + 1]


def _check_columns(path: Path, columns: list[str]) -> None:
    twice = [column for column, count in Counter(columns).items() if count > 1 and column]
    if twice:
        raise InputError(f"{path}: the column {twice[0]!r} occurs twice; rename or remove one")


def _row(path: Path, columns: list[str], line: int, values: list[str]) -> TableRow:
    if len(values) > len(columns) and any(values[len(columns) :]):
        raise InputError(f"{path}, line {line}: more values than columns; quote values that contain a separator")
    if len(values) < len(columns):
        _log.warning("%s, line %d: %d values for %d columns; the last ones are taken as missing", path, line,
                     len(values), len(columns))  # fmt: skip
    padded = [*values, *[""] * len(columns)]
    return TableRow(line, dict(zip(columns, padded, strict=False)))
