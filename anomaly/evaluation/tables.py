"""Results as tables: numbers for programs, one cell per estimate for people."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from anomaly.core.errors import InputError
from anomaly.evaluation.bootstrap import Estimate

Rows = Mapping[str, Mapping[str, Estimate]]
"""Row name → metric name → estimate."""

NOTHING = "–"


def cell(estimate: Estimate | None, digits: int = 2) -> str:
    """Return ``"0.86 (0.79 to 0.92)"``; a dash where there is no value, no brackets where no interval."""
    if estimate is None or math.isnan(estimate.value):
        return NOTHING
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
    """Return a table as GitHub markdown."""
    lines = [[str(column) for column in table.columns], ["---"] * len(table.columns)]
    lines += [[_text(value) for value in row] for row in table.itertuples(index=False)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def place_of(name: str) -> str:
    """Return the line that begins the place of a table."""
    return f"<!-- measured: {name} -->\n"


def filled(text: str, tables: Mapping[str, str]) -> str:
    """Return a page with its measured tables replaced; the rest stays as it is.

    Raises
    ------
    InputError
        If the page has no place for a table.
    """
    for name, table in tables.items():
        begin = place_of(name)
        before, _, rest = text.partition(begin)
        _, end, after = rest.partition("<!-- end -->")
        if not end:
            raise InputError(f"the page has no place for {name!r}: {begin.strip()} … <!-- end -->")
        text = f"{before}{begin}\n{table.strip()}\n\n{end}{after}"
    return text


def as_json(value: Any) -> Any:
    """Return a value with every nan and infinity as None, because JSON has neither."""
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def _text(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
