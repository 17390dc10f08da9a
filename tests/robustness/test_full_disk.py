"""Every writer of files, where a file cannot grow beyond a size, as on a full disk."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file as save_tensors

from anomaly.core.errors import OutputError
from anomaly.core.files import atomic_path, write_json
from anomaly.core.volume import Geometry
from anomaly.evaluation.figures import save
from anomaly.export.nifti import write_nifti

MAX_BYTES = 1000
NOISE = np.random.default_rng(0).random((16, 16, 16)).astype(np.float32)
TABLE = pd.DataFrame({"score": NOISE.ravel()})


def save_figure(path: Path) -> None:
    save(plt.figure(), path)


def with_atomic_path(write: Callable[[Path], object]) -> Callable[[Path], None]:
    def write_atomically(path: Path) -> None:
        with atomic_path(path) as temporary:
            write(temporary)

    return write_atomically


WRITERS: dict[str, Callable[[Path], None]] = {
    "score.json": lambda path: write_json(path, {"scores": NOISE.ravel().tolist()}),
    "map.nii": lambda path: write_nifti(path, NOISE, Geometry(NOISE.shape, np.eye(4))),
    "map.nii.gz": lambda path: write_nifti(path, NOISE, Geometry(NOISE.shape, np.eye(4))),
    "roc.png": save_figure,
    "volumes.npz": with_atomic_path(lambda path: np.savez(path, evidence=NOISE)),
    "exceedance.npy": with_atomic_path(lambda path: np.save(path, NOISE)),
    "scores.parquet": with_atomic_path(lambda path: TABLE.to_parquet(path)),
    "scores.tsv": with_atomic_path(lambda path: TABLE.to_csv(path, sep="\t")),
    "last.ckpt": with_atomic_path(lambda path: torch.save({"weights": torch.from_numpy(NOISE)}, path)),
    "weights.safetensors": with_atomic_path(lambda path: save_tensors({"w": torch.from_numpy(NOISE)}, path)),
    "reference.safetensors": with_atomic_path(lambda path: save_arrays({"w": NOISE}, path)),
}


@contextmanager
def files_of_at_most(n_bytes: int) -> Iterator[None]:
    """Let this process write no larger files in the block."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_that_cannot_be_written_leaves_the_old_one_and_is_one_clear_error(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("old")
    with files_of_at_most(MAX_BYTES), pytest.raises(OutputError, match=f"cannot write .*{name}: File too large"):
        WRITERS[name](path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    WRITERS[name](path)
    assert path.stat().st_size > MAX_BYTES
