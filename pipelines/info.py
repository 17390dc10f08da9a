"""What is installed and what can be asked for. Instant: nothing heavy is imported."""

from __future__ import annotations

from importlib import util
from pathlib import Path
from typing import Any

from anomaly import RESEARCH_USE_ONLY
from anomaly.models.registry import FAMILIES
from pipelines.common import cores, shipped_configs, software


def facts() -> dict[str, Any]:
    """Return versions, devices, families and shipped configs."""
    return {
        "versions": software(),
        "devices": {
            "cpu_cores": cores(),
            "nvidia_gpus": _nvidia_gpus(),
            "torch": util.find_spec("torch") is not None,
        },
        "families": {name: family.description for name, family in FAMILIES.items()},
        "configs": {kind: list(shipped_configs(kind)) for kind in ("models", "preprocessing", "benchmarks")},
        "notice": RESEARCH_USE_ONLY,
    }


def as_text(found: dict[str, Any]) -> str:
    """Return the facts for people."""
    lines = ["Versions"]
    lines += [f"  {name:<14} {version}" for name, version in found["versions"].items()]
    gpus = found["devices"]["nvidia_gpus"]
    lines += [
        "",
        "Devices",
        f"  cpu cores      {found['devices']['cpu_cores']}",
        f"  NVIDIA GPUs    {gpus or 'none'}",
    ]
    lines += ["", "Families (anomaly train --config …)"]
    width = max(map(len, found["families"]))
    lines += [f"  {name:<{width}} {description}" for name, description in found["families"].items()]
    for kind, names in found["configs"].items():
        lines += ["", f"Shipped {kind}", "  " + ", ".join(names)]
    return "\n".join([*lines, "", found["notice"]])


def _nvidia_gpus() -> int:
    """Count the GPUs the driver lists, without starting CUDA or importing torch."""
    folder = Path("/proc/driver/nvidia/gpus")
    return len(list(folder.iterdir())) if folder.is_dir() else 0
