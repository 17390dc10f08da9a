"""Results as tables: one row per estimate for programs, one cell per estimate for readers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from anomaly.core.errors import InputError
from anomaly.evaluation.bootstrap import Estimate

Rows = Mapping[str, Mapping[str, Estimate]]
"""Row name → metric name → estimate."""

MISSING_VALUE = "–"


def cell(estimate: Estimate | None, digits: int = 2) -> str:
    """Format an estimate as ``"0.86 (0.79 to 0.92)"``; the interval may be missing, a missing value is a dash."""
    if estimate is None or math.isnan(estimate.value):
        return MISSING_VALUE
    value = f"{estimate.value:.{digits}f}"
    if math.isnan(estimate.low):
        return value
    return f"{value} ({estimate.low:.{digits}f} to {estimate.high:.{digits}f})"


def number_table(rows: Rows) -> pd.DataFrame:
    """Return one row per row name and metric: ``name metric value low high n_subjects n_draws``."""
    columns = ["name", "metric", "value", "low", "high", "n_subjects", "n_draws"]
    found = [
        (name, metric, e.value, e.low, e.high, e.n_subjects, e.n_draws)
        for name, metrics in rows.items()
        for metric, e in metrics.items()
    ]
    return pd.DataFrame(found, columns=columns)


def text_table(rows: Rows, first_column: str = "name", digits: int = 2) -> pd.DataFrame:
    """Return one row per row name and one column per metric, each cell an estimate with its interval."""
    metrics = list(dict.fromkeys(metric for found in rows.values() for metric in found))
    data = [
        {first_column: name, **{m.replace("_", " "): cell(found.get(m), digits) for m in metrics}}
        for name, found in rows.items()
    ]
    return pd.DataFrame(data, columns=[first_column, *(m.replace("_", " ") for m in metrics)])


def markdown(table: pd.DataFrame) -> str:
    """Format a table as GitHub markdown."""
    lines = [[str(column) for column in table.columns], ["---"] * len(table.columns)]
    lines += [[_text(value) for value in row] for row in table.itertuples(index=False)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def table_marker(name: str) -> str:
    """Return the comment line that marks where a table belongs in a page."""
    return f"<!-- measured: {name} -->\n"


def fill_tables(text: str, tables: Mapping[str, str]) -> str:
    """Replace the measured tables of a page; the rest stays as it is.

    Raises
    ------
    InputError
        The page has no marker for a table.
    """
    for name, table in tables.items():
        begin = table_marker(name)
        before, _, rest = text.partition(begin)
        _, end, after = rest.partition("<!-- end -->")
        if not end:
            raise InputError(f"the page has no marker for {name!r}: {begin.strip()} … <!-- end -->")
        text = f"{before}{begin}\n{table.strip()}\n\n{end}{after}"
    return text


def as_json(value: Any) -> Any:
    """Replace nan and infinity by None, because JSON has neither."""
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def _text(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
