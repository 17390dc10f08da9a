"""Names of the files in a run folder.

::

    run/run.json  scores.parquet  scores.tsv  refused_failed.tsv  index.html
    run/<scan>/score.json  <scan>_space-template_volumes.npz  report.html  report.json
    run/<scan>/<scan>_desc-anomaly_map.nii.gz  …                outputs, see :mod:`anomaly.export.outputs`
"""

from __future__ import annotations

from pathlib import Path

RUN_INFO = "run.json"
SCAN_SCORE = "score.json"
SCORES_PARQUET = "scores.parquet"
SCORES_TSV = "scores.tsv"
NOT_SCORED_TSV = "refused_failed.tsv"
NEIGHBOUR_PREFIX = "neighbours_"  # arrays neighbours_<plane> among the template volumes


def run_info_path(folder: Path) -> Path:
    """Return the path of the settings of a run."""
    return folder / RUN_INFO


def score_path(folder: Path, scan_id: str) -> Path:
    """Return the path of the result of one scan."""
    return folder / scan_id / SCAN_SCORE


def volumes_path(folder: Path, scan_id: str) -> Path:
    """Return the path of the template-space volumes of one scan."""
    return folder / scan_id / f"{scan_id}_space-template_volumes.npz"
