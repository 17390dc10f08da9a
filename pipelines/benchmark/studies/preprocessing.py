"""Measure the preprocessing on real scans: brain extraction, registration, intensity anchors, seconds per step.

``python -m pipelines.benchmark.studies.preprocessing``; the scans are found through the environment variable
``ANOMALY_DATA``.
The figures in ``docs/decisions/0002-brain-extraction-and-registration.md`` come from here.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from anomaly.core.config import load_yaml
from anomaly.core.errors import ScanRefusedError
from anomaly.core.overlap import dice
from anomaly.core.volume import Modality, Volume
from anomaly.io.nifti import read_nifti
from anomaly.preprocessing.brain_mask import find_brain
from anomaly.preprocessing.chain import Chain, ChainSettings, Prepared
from anomaly.preprocessing.intensity import tissue_mode
from anomaly.preprocessing.orient import to_ras
from anomaly.preprocessing.template import template_on

SURE_TISSUE = 0.9
SHOWN = ("registration_overlap", "registration_correlation", "registration_rotation_deg", "brain_volume_ml")


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
    settings = (
        ChainSettings.parse(load_yaml(options.chain), str(options.chain)) if options.chain else ChainSettings()
    )
    bench_extraction(Path(data) / "ixi_head", settings, options.every)
    for folder in ("pathology", "ixi"):
        bench_chain(Path(data) / folder, settings, options.every)
    return 0


def bench_extraction(folder: Path, settings: ChainSettings, every: int = 1) -> list[float]:
    """Print and return the Dice of extracted brains against the masks given with the heads."""
    rows = []
    for path in _scans(folder, every):
        given = path.with_name(path.name.replace("_T1w", "_desc-brain_mask"))
        mask = to_ras(read_nifti(given)).voxels > 0
        volume, began = to_ras(_read(path)), time.process_time()
        found, _ = find_brain(volume, settings.brain_mask)
        rows.append((dice(found, mask), found.sum() / mask.sum(), time.process_time() - began))
        print(f"{path.parts[-3]:16} Dice {rows[-1][0]:.3f}  volume ratio {rows[-1][1]:.3f}")
    overlap, ratio, seconds = np.array(rows).T
    print(f"{folder.name}: n {len(rows)}, Dice mean {overlap.mean():.3f}, SD {overlap.std():.3f}, ", end="")
    print(f"lowest {overlap.min():.3f}; volume ratio {ratio.mean():.3f}; CPU seconds {np.median(seconds):.1f}\n")
    return [float(value) for value in overlap]


def bench_chain(folder: Path, settings: ChainSettings, every: int) -> None:
    """Print the registration and the CPU seconds of whole scans, the worst first, and what was refused."""
    chain, done = Chain(settings), {}
    template_on(settings.grid.spacing_mm)
    for path in _scans(folder, every):
        began = time.process_time()
        try:
            prepared = chain.apply(_read(path))
        except ScanRefusedError as refused:
            print(f"{path.parts[-3]:16} refused: {refused}")
            continue
        anchors = _anchors(prepared) if settings.intensity.method != "window" else {}
        done[path.parts[-3]] = prepared.numbers | anchors | {"cpu_seconds": time.process_time() - began}
    _print_summary(folder.name, done)


def _anchors(prepared: Prepared) -> dict[str, float]:
    """Return where grey and white matter ended up after normalisation: they should not differ between subjects."""
    template = template_on(float(prepared.grid.spacing[0]))
    white, grey = prepared.mask & (template.white > SURE_TISSUE), prepared.mask & (template.grey > SURE_TISSUE)
    return {"white_mode": tissue_mode(prepared.voxels, white), "grey_mode": tissue_mode(prepared.voxels, grey)}


def _print_summary(name: str, done: dict[str, dict[str, float]]) -> None:
    worst = sorted(done, key=lambda subject: done[subject]["registration_overlap"])[:8]
    for subject in worst:
        shown = (f"{key.removeprefix('registration_')} {done[subject][key]:.3f}" for key in SHOWN)
        print(f"{subject:16} " + "  ".join(shown))
    print(f"{name}: n {len(done)}")
    for key in sorted({key for numbers in done.values() for key in numbers}):
        values = np.array([numbers[key] for numbers in done.values()])
        print(f"  {key:26} mean {values.mean():9.3f}  SD {values.std():8.3f}  lowest {values.min():9.3f}  "
              f"highest {values.max():9.3f}")  # fmt: skip
    print()


def _scans(folder: Path, every: int) -> Iterator[Path]:
    yield from sorted(folder.glob("sub-*/anat/*_T1w.nii.gz"))[::every]


def _read(path: Path) -> Volume:
    return read_nifti(path, modality=Modality.T1W)


if __name__ == "__main__":
    raise SystemExit(main())
