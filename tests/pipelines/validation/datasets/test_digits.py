from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from anomaly.core.errors import InputError
from pipelines.validation.datasets.digits import data_folder, load_digits, read_idx


def idx(values: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> bytes:
    shape = np.array(values.shape, dtype=">u4").tobytes()
    return bytes((0, 0, 8, values.ndim)) + shape + values.tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for stem, n in (("train", 6), ("t10k", 4)):
        images = rng.integers(0, 256, (n, 5, 5), dtype=np.uint8)
        (tmp_path / f"{stem}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (tmp_path / f"{stem}-labels-idx1-ubyte").write_bytes(idx(np.arange(n, dtype=np.uint8)))
    return tmp_path


def test_digits_are_read_from_idx_files_gzipped_or_not(folder: Path) -> None:
    digits = load_digits(folder)
    assert digits.train.pixels.shape == (6, 5, 5)
    assert digits.train.pixels.max() <= 1
    raw = read_idx(folder / "train-images-idx3-ubyte.gz")
    assert np.allclose(digits.train.pixels * 255, raw)
    assert digits.test.labels[:, 0].tolist() == [0, 1, 2, 3]


def test_a_file_cut_short_is_refused(folder: Path) -> None:
    path = folder / "t10k-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"found 3 bytes; expected 4"):
        load_digits(folder)


def test_a_file_that_is_none_is_refused(folder: Path) -> None:
    (folder / "t10k-labels-idx1-ubyte").write_bytes(b"\x89PNG")
    with pytest.raises(InputError, match=r"89504e47; expected an IDX file"):
        load_digits(folder)


def test_a_broken_gzip_is_refused(folder: Path) -> None:
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(InputError, match="cannot be read"):
        load_digits(folder)


def test_a_folder_without_the_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected the four files of MNIST"):
        load_digits(tmp_path)


def test_without_mnist_the_small_digits_say_so() -> None:
    digits = load_digits(None)
    assert digits.source.startswith("NOT MNIST")
    assert digits.train.pixels.shape[1:] == (8, 8)
    assert 0.9 < digits.train.pixels.max() <= 1
    together = np.concatenate([digits.train.pixels, digits.test.pixels])
    assert len(together) == 1797


@pytest.mark.real_data
def test_mnist_has_its_known_counts() -> None:
    digits = load_digits(data_folder())
    counts = np.bincount(digits.train.labels[:, 0])
    assert counts.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert abs(float(digits.train.pixels.mean()) - 0.1307) < 1e-4  # the mean everyone normalises by
