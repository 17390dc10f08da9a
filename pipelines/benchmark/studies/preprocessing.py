"""Measure the preprocessing on real scans: brain extraction, registration, intensity anchors, seconds per step.

``python -m pipelines.benchmark.studies.preprocessing`` reads the scans in the folder that the environment variable
``ANOMALY_DATA`` names. The figures in ``docs/decisions/0002-brain-extraction-and-registration.md`` come from here.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from anomaly.core.errors import ScanRefusedError
from anomaly.core.overlap import dice
from anomaly.core.volume import Modality, Volume
from anomaly.io.nifti import read_nifti
from anomaly.preprocessing.brain_mask import find_brain
from anomaly.preprocessing.chain import Chain, ChainSettings, Prepared
from anomaly.preprocessing.intensity import tissue_mode
from anomaly.preprocessing.orient import to_ras
from anomaly.preprocessing.template import template_on
from pipelines.ingest import load_chain

MIN_TISSUE_PROBABILITY = 0.9
PRINTED_METRICS = (
    "registration_overlap",
    "registration_correlation",
    "registration_rotation_deg",
    "brain_volume_ml",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--every", type=int, default=1, help="use every n-th scan only")
    parser.add_argument("--chain", type=Path, help="YAML file of another chain than the default")
    options = parser.parse_args(arguments)
    data = os.environ.get("ANOMALY_DATA")
    if not data:
        sys.stderr.write("ANOMALY_DATA is not set; expected the folder that holds ixi/, ixi_head/ and pathology/\n")
        return 2
    settings = load_chain(options.chain) if options.chain else ChainSettings()
    measure_brain_extraction(Path(data) / "ixi_head", settings, options.every)
    for folder in ("pathology", "ixi"):
        measure_chain(Path(data) / folder, settings, options.every)
    return 0


def measure_brain_extraction(folder: Path, settings: ChainSettings, every: int = 1) -> list[float]:
    """Print and return the Dice of extracted brains with the brain masks that come with the heads."""
    rows = []
    for path in _scans(folder, every):
        mask_path = path.with_name(path.name.replace("_T1w", "_desc-brain_mask"))
        mask = to_ras(read_nifti(mask_path)).voxels > 0
        volume, began = to_ras(_read(path)), time.process_time()
        extracted, _ = find_brain(volume, settings.brain_mask)
        rows.append((dice(extracted, mask), extracted.sum() / mask.sum(), time.process_time() - began))
        print(f"{path.parts[-3]:16} Dice {rows[-1][0]:.3f}  volume ratio {rows[-1][1]:.3f}")
    overlap, ratio, seconds = np.array(rows).T
    print(f"{folder.name}: n {len(rows)}, Dice mean {overlap.mean():.3f}, SD {overlap.std():.3f}, ", end="")
    print(f"lowest {overlap.min():.3f}; volume ratio {ratio.mean():.3f}; CPU seconds {np.median(seconds):.1f}\n")
    return [float(value) for value in overlap]


def measure_chain(folder: Path, settings: ChainSettings, every: int) -> None:
    """Print registration metrics and CPU seconds of whole scans, the worst first, and the refused scans."""
    chain, metrics = Chain(settings), {}
    template_on(settings.grid.spacing_mm)
    for path in _scans(folder, every):
        began = time.process_time()
        try:
            prepared = chain.apply(_read(path))
        except ScanRefusedError as refused:
            print(f"{path.parts[-3]:16} refused: {refused}")
            continue
        anchors = _anchors(prepared) if settings.intensity.method != "window" else {}
        metrics[path.parts[-3]] = prepared.numbers | anchors | {"cpu_seconds": time.process_time() - began}
    _print_summary(folder.name, metrics)


def _anchors(prepared: Prepared) -> dict[str, float]:
    """Return the modes of grey and white matter after normalisation; they should be the same for all subjects."""
    template = template_on(float(prepared.grid.spacing[0]))
    white, grey = (
        prepared.mask & (template.white > MIN_TISSUE_PROBABILITY),
        prepared.mask & (template.grey > MIN_TISSUE_PROBABILITY),
    )
    return {"white_mode": tissue_mode(prepared.voxels, white), "grey_mode": tissue_mode(prepared.voxels, grey)}


def _print_summary(name: str, metrics: dict[str, dict[str, float]]) -> None:
    worst = sorted(metrics, key=lambda subject: metrics[subject]["registration_overlap"])[:8]
    for subject in worst:
        columns = (f"{key.removeprefix('registration_')} {metrics[subject][key]:.3f}" for key in PRINTED_METRICS)
        print(f"{subject:16} " + "  ".join(columns))
    print(f"{name}: n {len(metrics)}")
    for key in sorted({key for numbers in metrics.values() for key in numbers}):
        values = np.array([numbers[key] for numbers in metrics.values()])
        print(f"  {key:26} mean {values.mean():9.3f}  SD {values.std():8.3f}  lowest {values.min():9.3f}  "
              f"highest {values.max():9.3f}")  # fmt: skip
    print()


def _scans(folder: Path, every: int) -> Iterator[Path]:
    yield from sorted(folder.glob("sub-*/anat/*_T1w.nii.gz"))[::every]


def _read(path: Path) -> Volume:
    return read_nifti(path, modality=Modality.T1W)


if __name__ == "__main__":
    raise SystemExit(main())
