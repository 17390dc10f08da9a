from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from anomaly.core.errors import InputError
from anomaly.core.files import write_json
from pipelines.docs_pages.validation_tables import check_tables, write_docs


def result() -> dict[str, Any]:
    return {
        "task": "tiny",
        "result": "passed",
        "source": "ten digits",
        "not_run": [],
        "models": {
            "vae": {
                "measures": {
                    "generation.frechet": 12.345,
                    "generation.memorised_fraction": 0.0,
                    "likelihood.nll_500": 90.12,
                }
            },
            "gan": {"measures": {"generation.frechet": 1234.5, "generation.memorised_fraction": None}},
        },
    }


def test_each_check_has_a_table_with_a_row_per_model() -> None:
    tables = check_tables(result())
    assert set(tables) == {"tiny generation", "tiny likelihood"}
    assert "| vae | 12.3 | 0 |" in tables["tiny generation"]
    assert "| gan | 1234 | – |" in tables["tiny generation"]
    assert "gan" not in tables["tiny likelihood"]
    assert "ten digits; result: passed.\n" in tables["tiny likelihood"]
    some = check_tables(result() | {"not_run": ["flow", "knn"]})
    assert "result: passed; not run: flow, knn.\n" in some["tiny likelihood"]


def test_a_table_of_many_measures_is_transposed() -> None:
    many = result()
    many["models"]["vae"]["measures"] |= {f"generation.m_{number}": number for number in range(10)}
    table = check_tables(many)["tiny generation"]
    assert "| measure | vae | gan |" in table
    assert "| m 7 | 7 | – |" in table


def test_tables_are_written_where_the_page_has_a_place(tmp_path: Path) -> None:
    write_json(tmp_path / "run" / "result.json", result())
    page = tmp_path / "page.md"
    page.write_text("Prose.\n<!-- measured: tiny likelihood -->\nold\n<!-- end -->\nMore.\n")
    write_docs([tmp_path / "run"], page)
    text = page.read_text()
    assert "| vae | 90.1 |" in text
    assert "old" not in text
    assert text.startswith("Prose.")
    assert text.endswith("More.\n")


def test_what_is_not_finished_or_has_no_place_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing")
    with pytest.raises(InputError, match="run `anomaly validate` there first"):
        write_docs([tmp_path], page)
    write_json(tmp_path / "result.json", result())
    with pytest.raises(InputError, match="no place for any of tiny generation"):
        write_docs([tmp_path], page)
