from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from anomaly.core.errors import DamagedFileError, InputError
from anomaly.core.results import Neighbour, Region, ScanScore, ScanStatus
from anomaly.runs.score_tables import read_score_table, to_frame, write_tables

REGION = Region(1, 1.25, 9.0, 6.0, (1.0, -2.0, 3.5), (4, 5, 6), "dark")
SCORED = ScanScore(
    "a", ScanStatus.SCORED, score=2.0, p_value=0.2, flagged=False, scores={"kl": 2.0}, p_values={"kl": 0.2},
    percentiles={"kl": 80.0}, outputs={"anomaly_map": "a/map.nii.gz", "flagged_mask": "a/mask.nii.gz"},
)  # fmt: skip
FLAGGED = ScanScore(
    "b", ScanStatus.SCORED, score=5.0, p_value=0.01, flagged=True, regions=(REGION, REGION),
    warnings=("one", "two"), neighbours=(Neighbour("healthy scan 1", 0.75, 0),),
)  # fmt: skip
REFUSED = ScanScore("c", ScanStatus.REFUSED, reason_code="not_3d", reason="found 4 axes", remedy="give volumes")


def test_the_most_anomalous_scan_comes_first_and_a_scan_without_a_score_last() -> None:
    assert to_frame([REFUSED, SCORED, FLAGGED])["scan_id"].tolist() == ["b", "a", "c"]


def test_a_row_holds_scores_regions_warnings_and_paths() -> None:
    rows = to_frame([SCORED, FLAGGED, REFUSED]).set_index("scan_id")

    assert rows.loc["a", ["score_kl", "p_kl", "percentile_kl"]].tolist() == [2.0, 0.2, 80.0]
    assert rows.loc["a", ["map_path", "mask_path"]].tolist() == ["a/map.nii.gz", "a/mask.nii.gz"]
    assert rows.loc["b", ["n_regions", "flagged_ml", "warnings"]].tolist() == [2, 2.5, "one; two"]
    assert rows.loc["b", "nearest_similarity"] == 0.75
    assert pd.isna(rows.loc["c", "flagged"])


def test_a_row_holds_age_and_sex_where_they_are_known() -> None:
    rows = to_frame([replace(SCORED, age=63.0, sex="F"), REFUSED]).set_index("scan_id")
    assert rows.loc["a", ["age", "sex"]].tolist() == [63.0, "F"]
    assert np.isnan(rows.loc["c", "age"])


def test_a_table_of_an_earlier_version_has_no_age_and_no_sex(tmp_path: Path) -> None:
    to_frame([SCORED]).drop(columns=["age", "sex"]).to_parquet(tmp_path / "scores.parquet")
    table = read_score_table(tmp_path)
    assert np.isnan(table.loc[0, "age"])
    assert table.loc[0, "sex"] == ""


def test_scans_without_a_score_have_a_table_of_their_own(tmp_path: Path) -> None:
    write_tables(tmp_path, [SCORED, FLAGGED, REFUSED])

    not_scored = pd.read_csv(tmp_path / "refused_failed.tsv", sep="\t")
    assert not_scored[["scan_id", "reason", "remedy"]].to_numpy().tolist() == [
        ["c", "found 4 axes", "give volumes"]
    ]
    assert len(pd.read_csv(tmp_path / "scores.tsv", sep="\t")) == 3
    assert len(pd.read_parquet(tmp_path / "scores.parquet")) == 3


def test_a_run_without_any_scored_scan_has_the_same_columns() -> None:
    assert {"score", "p_value", "flagged", "map_path"} <= set(to_frame([REFUSED]))


def test_a_written_table_is_read_with_nan_for_what_is_missing(tmp_path: Path) -> None:
    write_tables(tmp_path, [SCORED, REFUSED])
    table = read_score_table(tmp_path).set_index("scan_id")

    assert table.loc["a", "score"] == 2.0
    assert np.isnan(table.loc["c", "score"])
    assert table.dtypes[["score", "p_value", "flagged_ml"]].tolist() == [np.dtype("float64")] * 3


def test_a_folder_without_a_finished_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no finished run in .*scores\.parquet is missing"):
        read_score_table(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PAR1cut", b"not a table"])
def test_a_damaged_table_is_named_with_a_remedy(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "scores.parquet").write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"scores.parquet is damaged .*; run the same `anomaly score` again"):
        read_score_table(tmp_path)
