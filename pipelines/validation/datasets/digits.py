"""Handwritten digits: MNIST if it is on disk or may be downloaded, otherwise the small digits of scikit-learn.

Source: LeCun, Bottou, Bengio & Haffner 1998, "Gradient-based learning applied to document recognition" (MNIST, and
the IDX format); Alpaydin & Kaynak 1998 (the 8 × 8 digits).
"""

from __future__ import annotations

import gzip
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anomaly.core.errors import InputError
from anomaly.core.volume import FloatArray
from pipelines.validation.labelled_dataset import LabelledImages, Labels

IDX_UNSIGNED_BYTE = 0x08  # IDX code of unsigned bytes
FILE_PREFIXES = {"train": "train", "test": "t10k"}
N_TRAIN = 60_000
TEST_FRACTION = 0.2  # of the 8 × 8 digits


@dataclass(frozen=True, eq=False)
class Digits:
    """Training and test digits, labelled 0 to 9, and where they are from."""

    train: LabelledImages
    test: LabelledImages
    source: str


def load_digits(folder: Path | None, fetch: bool = False) -> Digits:
    """Load MNIST from IDX files; without them from OpenML, if ``fetch`` allows it; otherwise the small digits.

    Parameters
    ----------
    folder
        Holds ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and the same of ``t10k``, gzipped or not.
    fetch
        Whether MNIST may be downloaded from openml.org (once; scikit-learn keeps a copy).

    Raises
    ------
    InputError
        If the files in the folder are wrong or missing, or the download fails.
    """
    if folder is not None and folder.is_dir():
        parts = {name: _from_idx(folder, stem) for name, stem in FILE_PREFIXES.items()}
        return Digits(parts["train"], parts["test"], f"MNIST, {len(parts['train'])} + {len(parts['test'])} digits")
    return _download() if fetch else _small()


def data_folder() -> Path | None:
    """Return the folder of MNIST, ``$ANOMALY_DATA/mnist``; None if the variable is not set."""
    root = os.environ.get("ANOMALY_DATA")
    return None if root is None else Path(root) / "mnist"


def read_idx(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Read an IDX file of unsigned bytes, gzipped or not.

    Raises
    ------
    InputError
        If it is not such a file, or is truncated.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {error}; expected an IDX file") from error
    if len(content) < 4 or content[:3] != bytes((0, 0, IDX_UNSIGNED_BYTE)):
        raise InputError(
            f"{path}: found the first bytes {content[:4].hex()}; expected an IDX file of bytes, 000008.."
        )
    dims = content[3]
    if len(content) < 4 + 4 * dims:
        raise InputError(f"{path}: found {len(content)} bytes; expected a header of {4 + 4 * dims}")
    shape = np.frombuffer(content, dtype=">u4", count=dims, offset=4).astype(int)
    values = np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * dims)
    if values.size != shape.prod():
        raise InputError(f"{path}: found {values.size} bytes; expected {shape.prod()}, of shape {shape.tolist()}")
    return values.reshape(shape)


def _from_idx(folder: Path, stem: str) -> LabelledImages:
    images, labels = (read_idx(_either(folder, f"{stem}-{name}-ubyte")) for name in ("images-idx3", "labels-idx1"))
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise InputError(f"{folder}: found {stem} images of shape {images.shape} with labels {labels.shape}")
    return LabelledImages(_in_unit_range(images, 255), labels.astype(np.int64)[:, None])


def _either(folder: Path, name: str) -> Path:
    found = [path for path in (folder / f"{name}.gz", folder / name) if path.is_file()]
    if not found:
        raise InputError(f"{folder} holds no {name}.gz; expected the four files of MNIST in IDX format")
    return found[0]


def _download() -> Digits:
    from sklearn.datasets import fetch_openml

    try:
        found = fetch_openml("mnist_784", version=1, as_frame=False, parser="liac-arff")
    except OSError as error:
        raise InputError(
            f"MNIST could not be downloaded from openml.org: {error}; put its IDX files into "
            "$ANOMALY_DATA/mnist, or omit --fetch for the small digits of scikit-learn"
        ) from error
    pixels = _in_unit_range(found.data.reshape(-1, 28, 28), 255)
    images = LabelledImages(pixels, found.target.astype(np.int64)[:, None])
    train, test = images.select(slice(N_TRAIN)), images.select(slice(N_TRAIN, None))
    return Digits(train, test, f"MNIST from openml.org, {len(train)} + {len(test)} digits")


def _small() -> Digits:
    from sklearn.datasets import load_digits as bundled
    from sklearn.model_selection import train_test_split

    found = bundled()
    labels: Labels = found.target.astype(np.int64)
    train, test = train_test_split(np.arange(len(labels)), test_size=TEST_FRACTION, stratify=labels, random_state=0)
    images = LabelledImages(_in_unit_range(found.images, 16), labels[:, None])
    parts = images.select(train), images.select(test)
    return Digits(*parts, f"NOT MNIST: the 8×8 digits of scikit-learn, {len(train)} + {len(test)}")


def _in_unit_range(images: np.ndarray[tuple[int, ...], np.dtype[np.generic]], highest: float) -> FloatArray:
    return np.asarray(images, dtype=np.float32) / np.float32(highest)
