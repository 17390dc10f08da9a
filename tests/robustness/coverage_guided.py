"""Coverage-guided fuzzing of the NIfTI and DICOM readers with atheris, which is not among the test dependencies.

::

    pip install atheris
    python -m tests.robustness.coverage_guided nifti work/fuzz/nifti -max_total_time=3600

The folder collects inputs that reach new code. An input that crashes a reader ends the run and is written to
``crash-…`` in the present folder. Further options are those of libFuzzer.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["anomaly.io", "nibabel", "pydicom"]):
    from anomaly.core.errors import InputError, ScanRefusedError
    from anomaly.io.discover import discover
from tests.io.dicom_factory import encode, make_series
from tests.robustness.targets import nifti_image

N_COMPANIONS = 3  # intact slices beside the fuzzed one


def read_nifti_bytes(content: bytes) -> None:
    """Read bytes as an uncompressed NIfTI file."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "scan.nii").write_bytes(content)
        read_source(Path(folder))


def read_dicom_bytes(content: bytes) -> None:
    """Read bytes as one slice of a DICOM series."""
    with tempfile.TemporaryDirectory() as folder:
        for index, companion in enumerate(companions()):
            Path(folder, f"{index}.dcm").write_bytes(companion)
        Path(folder, "last.dcm").write_bytes(content)
        read_source(Path(folder))


@cache
def companions() -> list[bytes]:
    """Return the intact slices of the series, all but its last."""
    return [encode(ds) for ds in make_series(n_slices=N_COMPANIONS + 1)[:-1]]


def read_source(folder: Path) -> None:
    """Read every scan of a folder; refusals are right, any other error is a find."""
    try:
        scans = discover([folder])
    except InputError:
        return
    for scan in scans:
        try:
            scan.read()
        except ScanRefusedError:
            continue


READERS: dict[str, Callable[[bytes], None]] = {"nifti": read_nifti_bytes, "dicom": read_dicom_bytes}


def seed_inputs(kind: str) -> list[bytes]:
    """Return intact files to start from."""
    if kind == "nifti":
        return [nifti_image().to_bytes()]
    return [encode(ds) for modality in ("MR", "CT") for ds in make_series(n_slices=1, modality=modality)]


def main() -> None:
    """Fuzz one reader: ``KIND CORPUS_FOLDER [libFuzzer options]``."""
    kind, corpus, *options = sys.argv[1:]
    Path(corpus).mkdir(parents=True, exist_ok=True)
    for index, content in enumerate(seed_inputs(kind)):
        Path(corpus, f"seed-{index}").write_bytes(content)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    atheris.Setup([sys.argv[0], corpus, *options], READERS[kind])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
