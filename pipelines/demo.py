"""Demonstration: all six steps on ``sample_data/``, run as commands that a user could type."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from time import monotonic

from pipelines.common import SAMPLE

ALPHA = "0.05"


def commands(
    output: Path, config: str, preprocessing: str, sample: Path = SAMPLE, alpha: str = ALPHA
) -> list[list[str]]:
    """Return the arguments of ``anomaly`` for each step."""
    cohort, model, run = str(output / "cohort"), str(output / "model"), str(output / "run")
    manifest = str(sample / "manifest.csv")
    return [
        ["ingest", manifest, "-o", cohort, "--preprocessing", preprocessing],
        ["train", "--config", config, "--cohort", cohort, "-o", model],
        ["calibrate", model, "--cohort", cohort, "--alpha", alpha, "--reason", "demonstration on sample data"],
        ["score", model, manifest, str(sample / "refuse"), "--split", "test", "-o", run],
        ["report", run],
        ["evaluate", run, "--labels", str(sample / "labels.tsv")],
    ]


def demo(
    output: Path,
    config: str = "dae-small",
    preprocessing: str = "t1w-4mm",
    sample: Path = SAMPLE,
    alpha: str = ALPHA,
) -> Path:
    """Run all steps and return the path of the worklist; a finished model is not trained again.

    Raises
    ------
    subprocess.CalledProcessError
        A step failed. Refused scans are not a failure: the sample includes scans that must be refused.
    """
    started = monotonic()
    for command in commands(output, config, preprocessing, sample, alpha):
        if (existing := _output_of(command[0], output / "model")) is not None and existing.exists():
            sys.stderr.write(f"\n{existing} exists: anomaly {command[0]} is skipped\n")
            continue
        sys.stderr.write(f"\n$ anomaly {' '.join(command)}\n")
        done = subprocess.run([sys.executable, "-m", "anomaly", *command], check=False)
        if done.returncode not in (0, 3):
            raise subprocess.CalledProcessError(done.returncode, command)
    sys.stderr.write(f"\nAll steps took {monotonic() - started:.0f} s.\n")
    return output / "run" / "index.html"


def _output_of(verb: str, model: Path) -> Path | None:
    """Return the output that a step creates only once: the model and its calibration; None for other steps."""
    return {"train": model / "metadata.json", "calibrate": model / "calibrations"}.get(verb)


def main() -> None:
    """Run the demonstration; called by ``make demo``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo"))
    page = demo(parser.parse_args().output)
    print(f"Open {page.resolve()}")


if __name__ == "__main__":
    main()
