"""What a run folder says of itself: which model, which calibration, on what scale things are shown."""

from __future__ import annotations

from pathlib import Path

from anomaly.bundle.store import Bundle
from anomaly.calibration.record import Calibration
from anomaly.core.errors import BundleError
from anomaly.core.files import read_json, write_json
from pipelines.common import command_line, now, software

DISPLAY_RANGE = 3.0  # the colour scale ends at so many voxel thresholds, in every scan alike


def check_run_folder(folder: Path, bundle: Bundle, calibration: Calibration | None) -> None:
    """Raise BundleError if a run folder holds results of another model or calibration."""
    path = folder / "run.json"
    if not path.is_file():
        return
    before = read_json(path)
    was = (before["model"]["model_id"], (before["calibration"] or {}).get("calibration_id"))
    if was != (bundle.model_id, calibration_id(calibration)):
        raise BundleError(
            f"{folder} holds results of model {was[0]} with calibration {was[1] or 'none'}, not of "
            f"{bundle.model_id} with {calibration_id(calibration) or 'none'}; choose another folder, or --overwrite"
        )


def write_run(folder: Path, bundle: Bundle, calibration: Calibration | None) -> None:
    """Write ``run.json``."""
    known = bundle.metadata
    names = calibration.score_names if calibration else []
    threshold = calibration.record.voxel_threshold if calibration else None
    write_json(
        folder / "run.json",
        {
            "version": 1,
            "created_at": now(),
            "command": command_line(),
            "model": {
                "model_id": bundle.model_id,
                "trained_on": known["data"],
                **{
                    key: known[key]
                    for key in ("name", "family", "members", "modality", "intended_use", "version", "created_at")
                    if key in known
                },
            },
            "calibration": calibration.record.model_dump(mode="json") if calibration else None,
            "reference_scores": {n: calibration.reference_scores(n).tolist() for n in names} if calibration else {},
            "score_name": bundle.config.scoring.scan_score,
            "display": {
                "evidence_max": DISPLAY_RANGE * (threshold or known["display"]["evidence_typical"]),
                "voxel_threshold": threshold,
                "intensity_max": known["display"]["intensity_max"],
            },
            "retrieval": known.get("retrieval"),
            "settings": bundle.config.scoring.model_dump(mode="json"),
            "software": software(),
        },
    )


def calibration_id(calibration: Calibration | None) -> str | None:
    """Return the id of a calibration, None where there is none."""
    return calibration.record.calibration_id if calibration else None


def choose_device(device: str) -> str:
    """Return the torch device that ``"auto"`` stands for, or the one that was asked for.

    Raises
    ------
    TrainingError
        If there is no such device; what a training says of it, too.
    """
    from anomaly.training.hardware import hardware
    from anomaly.training.protocols import Run

    accelerator, _ = hardware(Run(Path(), device=device))
    if device == "auto":
        return "cuda" if accelerator == "gpu" else "cpu"
    return device
