"""Describe the installation, a trained model or a config.

The installation is described without importing torch, which takes seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomaly import RESEARCH_USE_ONLY
from anomaly.bundle.shipped import find_model, shipped_models
from anomaly.core.versions import software_versions
from anomaly.models.registry import FAMILIES
from pipelines.common import cores, find_config, shipped_configs

if TYPE_CHECKING:
    from anomaly.bundle.config import ExperimentConfig

CONFIGS = ("models", "preprocessing", "benchmarks", "validation")


def facts() -> dict[str, Any]:
    """Return versions, devices, families, and shipped models and configs."""
    return {
        "versions": software_versions(),
        "devices": {
            "cpu_cores": cores(),
            "nvidia_gpus": _nvidia_gpus(),
            "torch": util.find_spec("torch") is not None,
        },
        "families": {name: family.description for name, family in FAMILIES.items()},
        "models": {name: str(folder) for name, folder in shipped_models().items()},
        "configs": {kind: list(shipped_configs(kind)) for kind in CONFIGS},
        "notice": RESEARCH_USE_ONLY,
    }


def describe(what: str) -> dict[str, Any]:
    """Describe a trained model, or the model that a config would train, with its number of parameters.

    Parameters
    ----------
    what
        Folder of a model, name of a shipped model or config, or path of a YAML file.

    Raises
    ------
    ConfigError, BundleError
        There is no such config, the folder holds no complete model, or the name fits two models.
    """
    folder = find_model(what)
    return _trained(folder) if folder.is_dir() else _configured(what)


def full_config(what: str) -> str:
    """Return the complete config of a model as YAML text, with the description of every key as its comment.

    Parameters
    ----------
    what
        Folder of a model, name of a shipped model or config, or path of a YAML file.

    Raises
    ------
    ConfigError, BundleError
        There is no such config, the folder holds no complete model, or the name fits two models.
    """
    from anomaly.bundle.config import annotated_config
    from anomaly.bundle.ensemble import stored_config

    folder = find_model(what)
    return annotated_config(stored_config(folder) if folder.is_dir() else _experiment(what))


def _experiment(name_or_path: str) -> ExperimentConfig:
    from anomaly.bundle.config import load_experiment

    path = find_config(name_or_path, "models")
    return load_experiment(path, shipped_configs("preprocessing"), shipped_configs("models"))


def _trained(folder: Path) -> dict[str, Any]:
    from anomaly.bundle.store import verified_metadata
    from anomaly.calibration.record import records

    found = verified_metadata(folder)
    training, rates = found["training"], sorted({record.alpha for record in records(folder)})
    return {
        "name": found["name"],
        "model_id": found["model_id"],
        "family": found["family"],
        "members": ", ".join(found.get("members", ())) or None,
        "modality": found["modality"],
        "adapted": _adapted(found.get("adaptation")),
        "grid": _size(found["grid"]["shape"], found["grid"]["affine"][0][0]),
        "trainable_parameters": training["n_parameters"],
        "training_scans": found["data"].get("n_train", found["data"].get("n_scans")),
        "steps": training["steps"],
        "minutes": training["seconds"] / 60,
        "created": f"{found['created_at']} by {found['user_name']}",
        "derived_from": found.get("derived_from"),
        "licence": found.get("shipped", {}).get("licence"),
        "folder": str(folder),
        "target_false_positive_rates": ", ".join(f"{rate:g}" for rate in rates) or "not calibrated",
    }


def _adapted(adaptation: dict[str, Any] | None) -> str | None:
    if adaptation is None:
        return None
    return f"from {adaptation['parent']} with {adaptation['n_scans']} healthy scans: {adaptation['reason']}"


def _configured(name_or_path: str) -> dict[str, Any]:
    from anomaly.models.registry import create
    from anomaly.preprocessing.template import target_grid

    config = _experiment(name_or_path)
    grid = target_grid(config.preprocessing.grid.spacing_mm)
    detector = create(config.model_settings(), grid)
    return {
        "name": config.name,
        "description": config.description,
        "family": detector.family,
        "modality": config.modality.value,
        "grid": _size(grid.shape, grid.spacing[0]),
        "images": f"{detector.view.kind}s of {_listed(detector.view.image_shape(grid.shape))} voxels",
        "neighbours_shown": detector.view.channels - 1,
        "trainable_parameters": detector.n_parameters(),
        "steps": config.training.steps if config.training else 0,
        "evidence": ", ".join(config.scoring.maps),
        "scan_score": config.scoring.scan_score,
    }


def _size(shape: Sequence[int], spacing: float) -> str:
    return f"{_listed(shape)} voxels of {spacing:g} mm"


def _listed(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))


def as_text(found: dict[str, Any]) -> str:
    """Format the facts as text."""
    lines = ["Versions"]
    lines += [f"  {name:<14} {version}" for name, version in found["versions"].items()]
    gpus = found["devices"]["nvidia_gpus"]
    lines += [
        "",
        "Devices",
        f"  cpu cores      {found['devices']['cpu_cores']}",
        f"  NVIDIA GPUs    {gpus or 'none'}",
    ]
    models = ", ".join(found["models"]) or "none"
    lines += ["", "Shipped models (anomaly score NAME …)", f"  {models}"]
    lines += ["", "Families (anomaly train --config …)"]
    width = max(map(len, found["families"]))
    lines += [f"  {name:<{width}} {description}" for name, description in found["families"].items()]
    for kind, names in found["configs"].items():
        lines += ["", f"Shipped {kind}", "  " + ", ".join(names)]
    return "\n".join([*lines, "", found["notice"]])


def _nvidia_gpus() -> int:
    """Count the GPUs that the driver lists, without starting CUDA or importing torch."""
    folder = Path("/proc/driver/nvidia/gpus")
    return len(list(folder.iterdir())) if folder.is_dir() else 0
