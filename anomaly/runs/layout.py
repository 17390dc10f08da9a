"""Names of the files in a run folder.

::

    run/run.json  scores.parquet  scores.tsv  refused_failed.tsv  files.json  index.html  pages.json
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
SCAN_FILES = "files.json"  # hashes of the files of every scan
PENDING_FILES = "files.partial.jsonl"  # hashes of what a call wrote that has not finished
PAGE_FILES = "pages.json"  # hashes of the pages
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
