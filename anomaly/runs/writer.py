"""What a run folder says of itself: which model, which calibration, on what scale things are shown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anomaly.calibration.record import Calibration
from anomaly.core.errors import BundleError
from anomaly.core.files import read_json, write_json
from anomaly.core.provenance import command_line, now
from anomaly.core.versions import software_versions

DISPLAY_RANGE = 3.0  # the colour scale ends at so many voxel thresholds, in every scan alike


def check_run_folder(folder: Path, model_id: str, calibration: Calibration | None) -> None:
    """Raise BundleError if a run folder holds results of another model or calibration."""
    path = folder / "run.json"
    if not path.is_file():
        return
    before = read_json(path)
    was = (before["model"]["model_id"], (before["calibration"] or {}).get("calibration_id"))
    if was != (model_id, calibration_id(calibration)):
        raise BundleError(
            f"{folder} holds results of model {was[0]} with calibration {was[1] or 'none'}, not of "
            f"{model_id} with {calibration_id(calibration) or 'none'}; choose another folder, or --overwrite"
        )


def write_run(
    folder: Path, model: Mapping[str, Any], scoring: Mapping[str, Any], calibration: Calibration | None
) -> None:
    """Write ``run.json``.

    Parameters
    ----------
    model
        The metadata of the bundle.
    scoring
        Its scoring settings, as JSON.
    """
    names = calibration.score_names if calibration else []
    threshold = calibration.record.voxel_threshold if calibration else None
    write_json(
        folder / "run.json",
        {
            "version": 1,
            "created_at": now(),
            "command": command_line(),
            "model": {
                "model_id": model["model_id"],
                "trained_on": model["data"],
                **{
                    key: model[key]
                    for key in ("name", "family", "members", "modality", "intended_use", "version", "created_at")
                    if key in model
                },
            },
            "calibration": calibration.record.model_dump(mode="json") if calibration else None,
            "reference_scores": {n: calibration.reference_scores(n).tolist() for n in names} if calibration else {},
            "score_name": scoring["scan_score"],
            "display": {
                "evidence_max": DISPLAY_RANGE * (threshold or model["display"]["evidence_typical"]),
                "voxel_threshold": threshold,
                "intensity_max": model["display"]["intensity_max"],
            },
            "retrieval": model.get("retrieval"),
            "settings": dict(scoring),
            "software": software_versions(),
        },
    )


def calibration_id(calibration: Calibration | None) -> str | None:
    """Return the id of a calibration, None where there is none."""
    return calibration.record.calibration_id if calibration else None
