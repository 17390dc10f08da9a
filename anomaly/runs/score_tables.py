"""Write and read the results of a run as tables: one row per scan, one column per fact."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from anomaly.core.errors import DamagedFileError, InputError
from anomaly.core.files import atomic_path
from anomaly.core.results import ScanScore, ScanStatus
from anomaly.core.tsv import write_table
from anomaly.runs.layout import NOT_SCORED_TSV, SCORES_PARQUET, SCORES_TSV
from anomaly.runs.reader import SCORE_AGAIN

COLUMNS = (
    "scan_id", "subject", "session", "modality", "age", "sex", "source", "content_hash", "status", "reason_code",
    "reason", "remedy", "score", "p_value", "percentile", "flagged", "n_regions", "flagged_ml", "warnings",
    "model_id", "calibration_id", "map_path", "mask_path",
)  # fmt: skip
NOT_SCORED_COLUMNS = (
    "scan_id", "subject", "modality", "source", "status", "reason_code", "reason", "remedy", "warnings",
)  # fmt: skip

NUMBER_COLUMNS = ("age", "score", "p_value", "flagged_ml")


def to_frame(results: Sequence[ScanScore]) -> pd.DataFrame:
    """Return one row per scan, most anomalous first: by p-value, then by score, then by name."""
    frame = pd.DataFrame([_row(result) for result in results])
    for column in COLUMNS:
        if column not in frame:
            frame[column] = None
    frame = frame.astype(
        {"age": "float64", "score": "float64", "p_value": "float64", "percentile": "float64", "flagged": "boolean"}
    )
    ordered = [*COLUMNS, *sorted(set(frame.columns) - set(COLUMNS))]
    return frame[ordered].sort_values(
        ["p_value", "score", "scan_id"], ascending=[True, False, True], na_position="last", ignore_index=True
    )


def write_tables(folder: Path, results: Sequence[ScanScore]) -> None:
    """Write ``scores.parquet``, ``scores.tsv`` and ``refused_failed.tsv``."""
    frame = to_frame(results)
    with atomic_path(folder / SCORES_PARQUET) as temporary:
        frame.to_parquet(temporary, index=False)
    write_table(frame, folder / SCORES_TSV, na_rep="n/a", float_format="%.6g")
    not_scored = frame[frame["status"] != ScanStatus.SCORED.value]
    write_table(not_scored[list(NOT_SCORED_COLUMNS)], folder / NOT_SCORED_TSV, na_rep="n/a")


def read_score_table(folder: Path) -> pd.DataFrame:
    """Return ``scores.parquet``, one row per scan; numbers that are missing are NaN.

    Raises
    ------
    InputError
        The folder holds no finished run.
    DamagedFileError
        The table is damaged.
    """
    path = folder / SCORES_PARQUET
    if not path.is_file():
        raise InputError(f"no finished run in {folder} ({path.name} is missing); make one with `anomaly score`")
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:  # those of pyarrow are among them
        raise DamagedFileError(f"{path} is damaged ({error}); {SCORE_AGAIN}") from error
    for column in NUMBER_COLUMNS:
        values = table[column] if column in table else pd.Series(np.nan, table.index)
        table[column] = pd.to_numeric(values, errors="coerce").astype("float64")
    return table if "sex" in table else table.assign(sex="")  # earlier versions did not write it


def _row(result: ScanScore) -> dict[str, Any]:
    row: dict[str, Any] = {name: getattr(result, name) for name in COLUMNS if hasattr(result, name)}
    row["status"] = result.status.value
    row["warnings"] = "; ".join(result.warnings)
    row["n_regions"] = len(result.regions)
    row["flagged_ml"] = round(sum(region.volume_ml for region in result.regions), 4)
    if result.neighbours:
        row["nearest_similarity"] = result.neighbours[0].similarity
    row |= {f"score_{name}": value for name, value in result.scores.items()}
    row |= {f"p_{name}": value for name, value in result.p_values.items()}
    row |= {f"percentile_{name}": value for name, value in result.percentiles.items()}
    return row
