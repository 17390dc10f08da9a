"""The whole chain on ``sample_data/``, with no other data, as six commands a user could type."""

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
    """Return the commands of the demonstration, as a user would type them."""
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
    """Run every step as a command and return the page to open; a finished model is not made again.

    Raises
    ------
    subprocess.CalledProcessError
        A step failed. Refused scans are no failure: the sample holds scans that must be refused.
    """
    started = monotonic()
    for command in commands(output, config, preprocessing, sample, alpha):
        if (made := _made_by(command[0], output / "model")) is not None and made.exists():
            sys.stderr.write(f"\n{made} is there already: anomaly {command[0]} is left out\n")
            continue
        sys.stderr.write(f"\n$ anomaly {' '.join(command)}\n")
        done = subprocess.run([sys.executable, "-m", "anomaly", *command], check=False)
        if done.returncode not in (0, 3):
            raise subprocess.CalledProcessError(done.returncode, command)
    sys.stderr.write(f"\nThe whole chain took {monotonic() - started:.0f} s.\n")
    return output / "run" / "index.html"


def _made_by(verb: str, model: Path) -> Path | None:
    """Return what a verb makes once and does not make again: the model, and its calibration."""
    return {"train": model / "metadata.json", "calibrate": model / "calibrations"}.get(verb)


def main() -> None:
    """Run the demonstration; what ``make demo`` calls."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo"))
    page = demo(parser.parse_args().output)
    print(f"Open {page.resolve()}")


if __name__ == "__main__":
    main()
