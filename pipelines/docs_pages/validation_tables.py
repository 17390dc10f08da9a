"""The tables of docs/validation.md, from finished validations.

::

    python -m pipelines.docs_pages.validation_tables validation/mnist-small validation/avatars-small

The prose of the page is written by hand. The tables between ``<!-- measured: TASK CHECK -->`` and ``<!-- end -->``
are replaced.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from anomaly.core.errors import InputError
from anomaly.core.files import read_json, write_text
from anomaly.evaluation.tables import MISSING_VALUE, fill_tables, markdown, table_marker

MAX_COLUMNS = 10  # a table with more measures is transposed
PAGE = Path(__file__).resolve().parents[2] / "docs" / "validation.md"


def write_docs(folders: Sequence[Path], page: Path = PAGE) -> None:
    """Write the results of validations into the page, wherever it has a place for them.

    Raises
    ------
    InputError
        If a folder holds no finished validation, or the page has no place for anything of it.
    """
    text = page.read_text(encoding="utf-8")
    for folder in folders:
        if not (folder / "result.json").is_file():
            raise InputError(f"no {folder / 'result.json'}; run `anomaly validate` there first")
        tables = check_tables(read_json(folder / "result.json"))
        wanted = {name: table for name, table in tables.items() if table_marker(name) in text}
        if not wanted:
            raise InputError(f"{page} has no place for any of {', '.join(tables)}")
        text = fill_tables(text, wanted)
    write_text(page, text)


def check_tables(result: Mapping[str, Any]) -> dict[str, str]:
    """Return a table for each check, ``"task check"`` → markdown: models and their measures."""
    rows: dict[str, dict[str, dict[str, float | None]]] = {}
    for model, found in result["models"].items():
        for name, value in found["measures"].items():
            check, _, measure = name.partition(".")
            rows.setdefault(check, {}).setdefault(model, {})[measure] = value
    outcome = result["result"] + (f"; not run: {', '.join(result['not_run'])}" if result["not_run"] else "")
    head = f"Measured on {result['source']}; result: {outcome}.\n\n"
    return {f"{result['task']} {check}": head + markdown(_table(of_models)) for check, of_models in rows.items()}


def _table(of_models: Mapping[str, Mapping[str, float | None]]) -> pd.DataFrame:
    columns = list(dict.fromkeys(measure for found in of_models.values() for measure in found))
    rows = [
        {"model": model, **{column.replace("_", " "): _cell(found.get(column)) for column in columns}}
        for model, found in of_models.items()
    ]
    table = pd.DataFrame(rows)
    if len(columns) <= MAX_COLUMNS:
        return table
    transposed = table.set_index("model").T.rename_axis("measure").reset_index()
    return transposed.rename_axis(columns=None)


def _cell(value: float | None) -> str:
    return MISSING_VALUE if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", type=Path, nargs="+", help="finished validations")
    parser.add_argument("--page", type=Path, default=PAGE)
    chosen = parser.parse_args()
    write_docs(chosen.folders, chosen.page)


if __name__ == "__main__":
    main()
