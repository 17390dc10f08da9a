from __future__ import annotations

import csv
from pathlib import Path

import pandas as pd
import pytest

from anomaly.core.tsv import escaped_text, plain_text, write_table

FORMULAS = ["=1+1", "+A1", "-B2", "@SUM(A1)", "\t=x", "\rx", "\nx", "＝1+1", "-1", "'=x", "''-x"]
PLAIN = ["abc", "'abc", "a=b", "", "a\rb", "a\r\nb", 'say "x"', "n/a", "1 -2"]


@pytest.mark.parametrize("text", FORMULAS)
def test_a_text_that_a_spreadsheet_would_run_starts_with_an_apostrophe(text: str) -> None:
    assert escaped_text(text) == f"'{text}"
    assert plain_text(escaped_text(text)) == text


@pytest.mark.parametrize("text", PLAIN)
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert escaped_text(text) == plain_text(text) == text


@pytest.mark.parametrize("name", ["table.tsv", "table.csv"])
def test_every_text_is_read_back_and_numbers_are_not_touched(tmp_path: Path, name: str) -> None:
    texts = [*FORMULAS, *PLAIN]
    table = pd.DataFrame({"text": texts, "number": [-1.5] * len(texts), "list": ["-1 2"] * len(texts)})
    table["flag"] = pd.array([None, *[True] * (len(texts) - 1)], dtype="boolean")
    write_table(table, tmp_path / name, number_lists=["list"], na_rep="n/a")

    with (tmp_path / name).open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t" if name.endswith("tsv") else ","))
    assert [plain_text(row["text"]) for row in rows] == texts
    assert {(row["number"], row["list"]) for row in rows} == {("-1.5", "-1 2")}
    assert [row["flag"] for row in rows[:2]] == ["n/a", "True"]


def test_a_table_without_such_texts_is_written_as_before(tmp_path: Path) -> None:
    table = pd.DataFrame({"name": ["a", None], "value": [0.123456789, float("nan")]})
    write_table(table, tmp_path / "a.tsv", na_rep="n/a", float_format="%.6g")
    table.to_csv(tmp_path / "b.tsv", sep="\t", index=False, na_rep="n/a", float_format="%.6g")
    assert (tmp_path / "a.tsv").read_bytes() == (tmp_path / "b.tsv").read_bytes()
