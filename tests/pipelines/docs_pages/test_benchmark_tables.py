from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from anomaly.core.errors import ConfigError, InputError
from anomaly.evaluation.tables import fill_tables, table_marker
from pipelines.benchmark.studies.ablation import PUBLISHED
from pipelines.benchmark.tables import Measurement, measurement_table
from pipelines.docs_pages.benchmark_tables import PAGE, TABLES, Sources, write_page

TABLE = measurement_table([Measurement("ingest", "3 s", "≤ 4 s"), Measurement("memory", "900 MiB")])


def test_tables_are_replaced_and_prose_stays() -> None:
    page = "before\n<!-- measured: speed -->\nold\n<!-- end -->\nafter\n"
    new = fill_tables(page, {"speed": TABLE})
    assert new.startswith("before\n<!-- measured: speed -->\n")
    assert new.endswith("<!-- end -->\nafter\n")
    assert "| ingest | 3 s | ≤ 4 s |" in new
    assert "old" not in new
    assert fill_tables(new, {"speed": TABLE}) == new


def test_the_shipped_page_has_a_place_for_every_table() -> None:
    tables = {name: name for name in TABLES if name != "ablation"}
    assert fill_tables(PAGE.read_text(encoding="utf-8"), tables)


def test_a_page_without_a_place_for_a_table_is_refused() -> None:
    with pytest.raises(InputError, match="no marker for 'speed'"):
        fill_tables("nothing here", {"speed": TABLE})


@pytest.mark.parametrize(("table", "config"), [("detection", "ixi"), ("families", "families")])
def test_without_a_finished_benchmark_there_is_nothing_to_write(table: str, config: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"anomaly benchmark --config {config}"):
        write_page(sources(tmp_path), page_for(tmp_path, table))


def test_a_table_that_is_not_known_is_refused_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown table 'weather'; valid: .*detection.*speed"):
        write_page(sources(tmp_path), page_for(tmp_path, "speed"), ["weather"])


@pytest.mark.parametrize("wanted", [(), ("ablation",)])
def test_only_tables_that_are_wanted_and_have_a_place_are_measured(
    wanted: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []

    def ablation(name: str, *_: object) -> pd.DataFrame:
        trained.append(name)
        return pd.DataFrame([{"config": name, "variant": "as shipped", "dark, AP": 0.5}])

    monkeypatch.setattr("pipelines.docs_pages.benchmark_tables.ablation", ablation)
    page = page_for(tmp_path, "ablation", *(["speed"] if wanted else []))
    write_page(sources(tmp_path), page, wanted)
    assert trained == list(PUBLISHED)
    assert "| dae | as shipped | 0.500 |" in page.read_text()


def sources(folder: Path) -> Sources:
    return Sources(folder / "data", folder / "ixi", folder / "families")


def page_for(folder: Path, *names: str) -> Path:
    page = folder / "page.md"
    page.write_text("".join(f"{table_marker(name)}<!-- end -->\n" for name in names))
    return page
