"""Write tables as text so that a spreadsheet opens a cell as text and never runs it as a formula.

A cell of text that starts with one of :data:`FORMULA_STARTS` gets an apostrophe in front, which a spreadsheet shows
as the sign of text. :func:`plain_text` removes it again. Numbers are not touched.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomaly.core.files import atomic_path

if TYPE_CHECKING:
    import pandas as pd

FORMULA_STARTS = "=+-@\t\r\n＝＋－＠"
_RUNS_AS_FORMULA = re.compile(f"'*[{re.escape(FORMULA_STARTS)}]")


def write_table(table: pd.DataFrame, path: Path, *, number_lists: Collection[str] = (), **options: Any) -> None:
    """Write a table with tabs (``.csv``: with commas), atomically, and with its texts escaped.

    Parameters
    ----------
    number_lists
        Columns whose texts are numbers separated by spaces; they are left as they are.
    options
        Further options of :meth:`pandas.DataFrame.to_csv`.
    """
    escaped = table.copy()
    for column in set(table.select_dtypes(exclude=["number", "bool"])) - set(number_lists):
        escaped[column] = [escaped_text(value) if isinstance(value, str) else value for value in table[column]]
    texts = (value for column in escaped for value in escaped[column] if isinstance(value, str))
    line_end = "\r\n" if any("\r" in text for text in texts) else "\n"  # the writer quotes what ends a line, only
    separator = "," if path.suffix == ".csv" else "\t"
    with atomic_path(path) as temporary:
        escaped.to_csv(temporary, sep=separator, index=False, lineterminator=line_end, **options)


def escaped_text(text: str) -> str:
    """Return a text that no spreadsheet runs as a formula."""
    return f"'{text}" if _RUNS_AS_FORMULA.match(text) else text


def plain_text(text: str) -> str:
    """Return the text that :func:`escaped_text` was given."""
    return text[1:] if text.startswith("'") and _RUNS_AS_FORMULA.match(text) else text
