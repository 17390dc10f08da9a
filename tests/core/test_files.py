"""Atomic writes, JSON and hashes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from anomaly.core.files import atomic_path, read_json, sha256_of_voxels, write_json


def test_a_write_that_fails_keeps_the_old_file_and_leaves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    write_json(path, {"old": 1})

    def fail_half_way() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        fail_half_way()

    assert read_json(path) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_not_a_number_is_not_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"score": float("nan")})


def test_numpy_values_are_written_as_plain_json(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"n": np.int64(3), "x": np.float32(0.5), "a": np.arange(2), "p": tmp_path})

    assert read_json(tmp_path / "a.json") == {"n": 3, "x": 0.5, "a": [0, 1], "p": str(tmp_path)}


def test_a_negative_zero_in_the_affine_does_not_change_the_hash() -> None:
    voxels, negative = np.ones((2, 2, 2)), np.eye(4)
    negative[0, 1] = -0.0

    assert sha256_of_voxels(voxels, negative) == sha256_of_voxels(voxels, np.eye(4))


def test_the_hash_depends_on_values_and_affine_but_not_on_the_data_type() -> None:
    voxels = np.arange(24).reshape(2, 3, 4)

    assert sha256_of_voxels(voxels.astype(np.uint8), np.eye(4)) == sha256_of_voxels(voxels.astype(float), np.eye(4))
    assert sha256_of_voxels(voxels, np.eye(4)) != sha256_of_voxels(voxels, 2 * np.eye(4))
    assert sha256_of_voxels(voxels, np.eye(4)) != sha256_of_voxels(voxels + 1, np.eye(4))
