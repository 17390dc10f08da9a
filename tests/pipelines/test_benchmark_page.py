from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from anomaly.core.errors import InputError
from pipelines.bench_ablation import PUBLISHED
from pipelines.benchmark_page import PAGE, filled, place_of, write_page
from pipelines.benchmark_table import Row, measured_table

TABLE = measured_table([Row("ingest", "3 s", "≤ 4 s"), Row("memory", "900 MiB")])


def test_tables_are_replaced_and_prose_stays() -> None:
    page = "before\n<!-- measured: speed -->\nold\n<!-- end -->\nafter\n"
    new = filled(page, {"speed": TABLE})
    assert new.startswith("before\n<!-- measured: speed -->\n")
    assert new.endswith("<!-- end -->\nafter\n")
    assert "| ingest | 3 s | ≤ 4 s |" in new
    assert "old" not in new
    assert filled(new, {"speed": TABLE}) == new


def test_the_shipped_page_has_a_place_for_every_table() -> None:
    tables = {name: name for name in ("detection", "parts", "other_scans", "speed", "preprocessing")}
    assert filled(PAGE.read_text(encoding="utf-8"), tables)


def test_a_page_without_a_place_for_a_table_is_refused() -> None:
    with pytest.raises(InputError, match="no place for 'speed'"):
        filled("nothing here", {"speed": TABLE})


def test_without_a_finished_benchmark_there_is_nothing_to_write(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="anomaly benchmark --config ixi"):
        write_page(tmp_path / "data", tmp_path / "output")


@pytest.mark.parametrize("wanted", [True, False])
def test_an_ablation_is_measured_where_the_page_has_a_place_for_it(
    wanted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []

    def ablation(name: str, *_: object) -> pd.DataFrame:
        trained.append(name)
        return pd.DataFrame([{"config": name, "variant": "as shipped", "dark, AP": 0.5}])

    monkeypatch.setattr("pipelines.benchmark_page.ablation", ablation)
    for name, nothing in {"bench": [], "evidence_tables": {}, "preprocessing_rows": []}.items():
        monkeypatch.setattr(f"pipelines.benchmark_page.{name}", lambda *_, nothing=nothing: nothing)
    places = ["detection", "speed", "preprocessing", *(["ablation"] if wanted else [])]
    page = tmp_path / "page.md"
    page.write_text("".join(f"{place_of(name)}<!-- end -->\n" for name in places))
    (tmp_path / "results.md").write_text("# Results\n")
    write_page(tmp_path, tmp_path, page)
    assert trained == (list(PUBLISHED) if wanted else [])
    assert ("| dae | as shipped | 0.500 |" in page.read_text()) == wanted
