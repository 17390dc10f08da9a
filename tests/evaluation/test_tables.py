from __future__ import annotations

from anomaly.evaluation.bootstrap import Estimate
from anomaly.evaluation.tables import as_json, cell, markdown, number_table, text_table

NAN = float("nan")
GOOD = Estimate(0.861, 0.79, 0.92, 40, 2000)


def test_a_cell_gives_the_value_and_its_interval() -> None:
    assert cell(GOOD) == "0.86 (0.79 to 0.92)"
    assert cell(GOOD, digits=1) == "0.9 (0.8 to 0.9)"


def test_a_cell_without_an_interval_or_a_value_says_so() -> None:
    assert cell(Estimate(0.5, NAN, NAN, 1, 0)) == "0.50"
    assert cell(Estimate(NAN, NAN, NAN, 0, 0)) == "–"
    assert cell(None) == "–"


def test_numbers_come_one_estimate_per_row() -> None:
    table = number_table({"dae": {"auroc": GOOD, "dice": GOOD}})
    assert list(table.columns) == ["name", "metric", "value", "low", "high", "n_subjects", "n_draws"]
    assert table["metric"].tolist() == ["auroc", "dice"]
    assert table.loc[0, "value"] == 0.861


def test_the_table_for_people_has_a_dash_where_a_metric_is_missing() -> None:
    table = text_table({"dae": {"auroc": GOOD, "voxel_ap": GOOD}, "atlas": {"auroc": GOOD}}, "model")
    assert list(table.columns) == ["model", "auroc", "voxel ap"]
    assert table.loc[1, "voxel ap"] == "–"


def test_markdown_survives_a_pipe_in_a_name() -> None:
    text = markdown(text_table({"a|b": {"auroc": GOOD}}))
    assert text == "| name | auroc |\n| --- | --- |\n| a\\|b | 0.86 (0.79 to 0.92) |\n"


def test_json_has_no_nan() -> None:
    assert as_json({"a": NAN, "b": [1.0, float("inf")], 3: (True, None, "x")}) == {
        "a": None,
        "b": [1.0, None],
        "3": [True, None, "x"],
    }
