"""Measure how fast every network trains and scores on one device. ``make bench-gpu`` prints the table.

No scans are needed, because speed does not depend on their content: all scans are the MNI152 brain with noise. On a
GPU the full shipped configs are measured. On a CPU the small ones are, which only shows that everything runs. The
rate is the number of floating-point operations of the network, forward and backward, divided by the time of a whole
training step. Its share of the device's peak shows how much faster the step could be.
"""

from __future__ import annotations

import argparse
import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from anomaly.bundle.config import ExperimentConfig, load_experiment
from anomaly.core.covariates import covariates
from anomaly.core.errors import AnomalyError
from anomaly.core.volume import FloatArray, Geometry, MaskArray
from anomaly.evaluation.tables import markdown
from anomaly.models.base import Detector, NetworkDetector
from anomaly.models.registry import FAMILIES, create, detector_class
from anomaly.preprocessing.template import template_on
from anomaly.scoring.scorer import Scorer
from anomaly.training.run import FitRun
from anomaly.training.settings import TrainingSettings
from pipelines.benchmark.speed.step_timing import step_flop, step_seconds
from pipelines.common import cores, find_config, shipped_configs

VARIANTS: Mapping[str, dict[str, Any]] = {
    "eager": {},
    "channels-last": {"channels_last": True},
    "compiled": {"compile": True},
    "compiled, channels-last": {"compile": True, "channels_last": True},
}
N_SCANS = 4

PEAK_TFLOPS: Mapping[str, tuple[float | None, float]] = {
    "B200": (2250, 75),
    "H200": (989, 67),
    "GH200": (989, 67),
    "H100 PCIe": (756, 51),
    "H100 NVL": (835, 60),
    "H100": (989, 67),
    "A100": (312, 19.5),
    "A30": (165, 10.3),
    "A40": (149.7, 37.4),
    "A10": (125, 31.2),
    "L40S": (362, 91.6),
    "L40": (181, 90.5),
    "L4": (121, 30.3),
    "RTX 6000 Ada": (364, 91.1),
    "RTX A6000": (154.8, 38.7),
    "RTX A5000": (111.1, 27.8),
    "RTX 4090": (165.2, 82.6),
    "RTX 4080": (97.5, 48.7),
    "RTX 3090": (71, 35.6),
    "V100-SXM2": (None, 15.7),
    "T4": (None, 8.1),
}
"""Peak TFLOP/s without sparsity, as NVIDIA states them: bfloat16 (summed in float32) and float32 (not TF32)."""

OTHER_CHIP_SUFFIXES = (
    r"\b(Laptop|Max-Q|SUPER|Ti|D|MIG)\b"  # a name with one of these is another, slower or faster chip
)


@dataclass(frozen=True)
class TemplateScans:
    """Copies of the template with different noise; implements :class:`anomaly.core.image_views.VolumeSource`."""

    volumes: Sequence[tuple[FloatArray, MaskArray]]
    grid: Geometry

    @classmethod
    def for_experiment(cls, experiment: ExperimentConfig) -> TemplateScans:
        """Return scans on the grid and with the contrast of a config."""
        template = template_on(experiment.preprocessing.grid.spacing_mm)
        clean, rng = template.contrast(experiment.modality), np.random.default_rng(0)
        noisy = [clean + rng.normal(0, 0.02, clean.shape) * template.mask for _ in range(N_SCANS)]
        return cls([(voxels.astype(np.float32), template.mask) for voxels in noisy], template.geometry)

    def __len__(self) -> int:
        return len(self.volumes)

    def __getitem__(self, index: int) -> tuple[FloatArray, MaskArray]:
        """Return voxels and mask ``(I, J, K)``."""
        return self.volumes[index]

    def covariates(self, index: int) -> FloatArray:
        """Return an arbitrary age and sex."""
        return covariates(30.0 + index, "FM"[index % 2])


def speed_table(
    models: Sequence[str], precisions: Sequence[str], variants: Sequence[str], device: str, steps: int
) -> pd.DataFrame:
    """Measure each model with each precision and variant, one row each."""
    rows = []
    for name in models:
        experiment = load_experiment(
            find_config(name, "models"), shipped_configs("preprocessing"), shipped_configs("models")
        )
        scans = TemplateScans.for_experiment(experiment)
        for precision in precisions:
            for variant in variants:
                print(f"{name}, {precision}, {variant}", file=sys.stderr, flush=True)
                row = {"model": name, "precision": precision, "variant": variant}
                rows.append(row | measure_row(experiment, scans, precision, variant, device, steps))
    return pd.DataFrame(rows)


def measure_row(
    experiment: ExperimentConfig, scans: TemplateScans, precision: str, variant: str, device: str, steps: int
) -> dict[str, str]:
    """Return the figures of one row, or the error where the model cannot run."""
    settings = (experiment.training or TrainingSettings()).model_copy(update={"precision": precision})
    detector: Any = create(experiment.model_settings(), scans.grid)
    try:
        with tempfile.TemporaryDirectory() as folder:
            run = FitRun(Path(folder) / "run", device=device, resume=False, **VARIANTS[variant])
            seconds = step_seconds(detector, scans, settings, run, steps)
        flop = step_flop(detector, scans, settings, device, steps)
        scan = scan_seconds(detector, experiment, scans, device)
    except (RuntimeError, AnomalyError) as error:  # too little memory, or nothing to compile with
        return {"images/s": f"{type(error).__name__}: {str(error).splitlines()[0][:60]}"}
    peak = peak_rate(device_name(device), precision)
    return {
        "images/s": f"{settings.batch_size / seconds:.1f}",
        "GFLOP per image": f"{flop / settings.batch_size / 1e9:.2f}",
        "TFLOP/s": f"{flop / seconds / 1e12:.3g}",
        "share of peak": "unknown" if peak is None else f"{flop / seconds / 1e12 / peak:.1%}",
        "s per scan scored": f"{scan:.3f}",
    }


def scan_seconds(detector: Detector, experiment: ExperimentConfig, scans: TemplateScans, device: str) -> float:
    """Return the median seconds to score a prepared scan, evidence map included, without the first (warm-up)."""
    scorer, times = Scorer(detector.to(device).eval(), experiment.scoring), []
    for index in range(N_SCANS):
        began = time.perf_counter()
        scorer.score(*scans[index], scans.covariates(index))
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def peak_rate(name: str, precision: str) -> float | None:
    """Return the peak rate of a device in TFLOP/s at a precision; None if it is unknown."""
    if re.search(OTHER_CHIP_SUFFIXES, name):
        return None
    chip = next((chip for chip in PEAK_TFLOPS if re.search(rf"\b{re.escape(chip)}\b", name)), None)
    return None if chip is None else PEAK_TFLOPS[chip][0 if precision == "bf16" else 1]


def device_name(device: str) -> str:
    """Return the name of the GPU, or of the processor with its number of cores."""
    if device == "cuda":
        return str(torch.cuda.get_device_name())
    return f"{platform.processor() or platform.machine()}, {cores()} cores, no GPU"


def networks(small: bool) -> list[str]:
    """Return the shipped configs of all families that are trained by gradient descent."""
    ending = "-small" if small else ""
    return [name + ending for name in FAMILIES if issubclass(detector_class(name), NetworkDetector)]


def heading(device: str) -> str:
    """Return a sentence about the device and the version of PyTorch."""
    lines = [f"Measured on {device_name(device)}; PyTorch {torch.__version__}."]
    if device == "cpu":
        lines.append("This is not a GPU: the models are small, and the figures only show that everything runs.")
    return "\n".join(lines)


def main() -> None:
    """Print the table; ``make bench-gpu`` calls this."""
    available = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default=available)
    parser.add_argument(
        "--models", help="shipped configs, comma-separated; default: all networks, the small ones on a CPU"
    )
    parser.add_argument(
        "--precisions", default="bf16,32" if available == "cuda" else "32", help="bf16, 32 or both, comma-separated"
    )
    parser.add_argument("--variants", help="; ".join(VARIANTS), action="append", choices=VARIANTS)
    parser.add_argument(
        "--steps", type=int, default=50 if available == "cuda" else 2, help="training steps to time"
    )
    options = parser.parse_args()
    models = options.models.split(",") if options.models else networks(small=options.device == "cpu")
    variants = options.variants or (list(VARIANTS) if options.device == "cuda" else ["eager"])
    table = speed_table(models, options.precisions.split(","), variants, options.device, options.steps)
    print(f"{heading(options.device)}\n\n{markdown(table.fillna('–'))}")


if __name__ == "__main__":
    main()
