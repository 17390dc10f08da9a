"""Write a run folder: its settings, and the template-space volumes of its scans.

The result of a scan is written by :mod:`anomaly.runs.score_store`, the tables by :mod:`anomaly.runs.score_tables`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from anomaly.calibration.record import Calibration
from anomaly.core.errors import BundleError
from anomaly.core.files import atomic_path, read_json_if_whole, write_json
from anomaly.core.provenance import command_line, now
from anomaly.core.scan_result import ScanResult
from anomaly.core.versions import software_versions
from anomaly.runs.layout import NEIGHBOUR_PREFIX, run_info_path, volumes_path

EVIDENCE_MAX_IN_THRESHOLDS = 3.0  # the colour scale of every scan ends at this many voxel thresholds
INTENSITY_KEYS = ("intensity_max", "hu_min", "hu_max")
MODEL_KEYS = (
    "name", "family", "members", "modality", "intended_use", "version", "created_at", "derived_from", "shipped"
)  # fmt: skip


def check_run_folder(folder: Path, model_id: str, calibration: Calibration | None) -> None:
    """Raise BundleError if a run folder holds results of another model or calibration."""
    before = read_json_if_whole(run_info_path(folder))
    if not before:  # a damaged file is written again; the result of each scan names the model it is of
        return
    found = ((before.get("model") or {}).get("model_id"), (before.get("calibration") or {}).get("calibration_id"))
    if found != (model_id, calibration_id(calibration)):
        raise BundleError(
            f"{folder} holds results of model {found[0]} with calibration {found[1] or 'none'}, not of "
            f"{model_id} with {calibration_id(calibration) or 'none'}; choose another folder, or --overwrite"
        )


def write_run_info(
    folder: Path,
    model: Mapping[str, Any],
    scoring: Mapping[str, Any],
    calibration: Calibration | None,
    notices: Sequence[str] = (),
) -> None:
    """Write ``run.json``.

    Parameters
    ----------
    model
        The metadata of the bundle.
    scoring
        Its scoring settings, as JSON.
    notices
        What a reader must know of all results of the run.
    """
    names = calibration.score_names if calibration else []
    write_json(
        run_info_path(folder),
        {
            "version": 1,
            "created_at": now(),
            "command": command_line(),
            "model": {
                "model_id": model["model_id"],
                "trained_on": model["data"],
                **{key: model[key] for key in MODEL_KEYS if key in model},
            },
            "calibration": calibration.record.model_dump(mode="json") if calibration else None,
            "notices": list(notices),
            "reference_scores": {n: calibration.reference_scores(n).tolist() for n in names} if calibration else {},
            "score_name": scoring["scan_score"],
            "display": _display(model["display"], calibration),
            "retrieval": model.get("retrieval"),
            "settings": dict(scoring),
            "software": software_versions(),
        },
    )


def write_template_volumes(folder: Path, result: ScanResult) -> None:
    """Write the scan, its reconstruction and the evidence on the template grid, with the slices of its neighbours.

    They are all that a report needs: a run folder is complete without the model.
    """
    volumes = result.template
    slices: dict[str, Any] = {NEIGHBOUR_PREFIX + plane: cut for plane, cut in result.neighbour_slices.items()}
    with atomic_path(volumes_path(folder, result.scan_id)) as temporary:
        np.savez(
            temporary,
            input=volumes.scan.astype(np.float16),
            reconstruction=volumes.reconstruction.astype(np.float16),
            evidence=volumes.evidence.astype(np.float16),
            mask=volumes.mask,
            affine=volumes.geometry.affine,
            **slices,
        )


def calibration_id(calibration: Calibration | None) -> str | None:
    """Return the id of a calibration, None for no calibration."""
    return calibration.record.calibration_id if calibration else None


def _display(typical: Mapping[str, float], calibration: Calibration | None) -> dict[str, float | None]:
    """Return the scales that all figures of a run share, see :class:`anomaly.runs.reader.Display`."""
    threshold = calibration.record.voxel_threshold if calibration else None
    return {
        "evidence_max": EVIDENCE_MAX_IN_THRESHOLDS * (threshold or typical["evidence_typical"]),
        "voxel_threshold": threshold,
        **{key: typical[key] for key in INTENSITY_KEYS if key in typical},
    }
