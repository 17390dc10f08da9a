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
    """Read a table on disk; see :func:`parse_table`.

    Raises
    ------
    InputError
        The file cannot be read, or is no table.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the table {path}: {error}") from error
    return parse_table(content, str(path), separator)


def parse_table(content: bytes, where: str, separator: str) -> Table:
    """Parse the content of a table.

    Parameters
    ----------
    where
        Name of the table in messages.
    separator
        What the columns should be separated by. A header that uses a semicolon, a comma or a tab instead is read
        as it is, with a warning.

    Raises
    ------
    InputError
        The content is no text, has a column twice, or a row has more values than columns.
    """
    text = _decode(content, where)
    if text.lower().startswith("sep="):  # a line that Excel writes
        text = text.split("\n", 1)[-1]
    found = _separator(text.split("\n", 1)[0], separator)
    if found != separator:
        _log.warning("%s: columns are separated by %r, expected %r; read with %r", where, found, separator, found)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=found)
    try:
        lines = [(reader.line_num, [value.strip() for value in row]) for row in reader]
    except csv.Error as error:
        raise InputError(f"cannot read the table {where}, line {reader.line_num}: {error}") from error
    rows = [(line, row) for line, row in lines if any(row)]
    if not rows:
        raise InputError(f"{where}: there is no header; expected one line with the names of the columns")
    columns = _without_trailing_empty(rows[0][1])
    _check_columns(where, columns)
    return Table(tuple(columns), tuple(_row(where, columns, line, values) for line, values in rows[1:]))


def warn_of_unknown_values(where: str, table: Table) -> None:
    """Log one warning for each column of group, split, sex or age with values that are not understood."""
    for column in ("group", "split", "sex", "age"):
        values = [row.values[column] for row in table.rows] if column in table.columns else []
        if message := unknown_values(column, values):
            _log.warning("%s: %s", where, message)


def _decode(content: bytes, where: str) -> str:
    """Return a text: UTF-8, UTF-16 with a byte order mark, else Windows-1252 with a warning."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return _decode_as("utf-16", content, where)
    if b"\0" in content:
        raise InputError(
            f"{where}: found NUL bytes, as in UTF-16 without a byte order mark or in a file that is no text; "
            f"expected UTF-8; {_SAVE_AS}"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = _decode_as("cp1252", content, where)
        _log.warning("%s is not UTF-8; read as Windows-1252; %s if letters look wrong", where, _SAVE_AS)
        return text


def _decode_as(encoding: str, content: bytes, where: str) -> str:
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where}: found neither UTF-8 nor {encoding} text ({error.reason} at byte {error.start}); "
            f"expected UTF-8; {_SAVE_AS}"
        ) from error


def _separator(header: str, expected: str) -> str:
    """Return the separator of a header line: the expected one if it occurs, else the most frequent other one."""
    counts = {mark: header.count(mark) for mark in SEPARATORS}
    return expected if counts[expected] or not any(counts.values()) else max(counts, key=lambda mark: counts[mark])


def _without_trailing_empty(columns: list[str]) -> list[str]:
    filled = [index for index, column in enumerate(columns) if column]
    return columns[: filled[-1] + 1]


def _check_columns(where: str, columns: list[str]) -> None:
    twice = [column for column, count in Counter(columns).items() if count > 1 and column]
    if twice:
        raise InputError(f"{where}: the column {twice[0]!r} occurs twice; rename or remove one")


def _row(where: str, columns: list[str], line: int, values: list[str]) -> TableRow:
    if len(values) > len(columns) and any(values[len(columns) :]):
        raise InputError(f"{where}, line {line}: more values than columns; quote values that contain a separator")
    if len(values) < len(columns):
        _log.warning("%s, line %d: %d values for %d columns; the last ones are taken as missing", where, line,
                     len(values), len(columns))  # fmt: skip
    padded = [*values, *[""] * len(columns)]
    return TableRow(line, dict(zip(columns, padded, strict=False)))
