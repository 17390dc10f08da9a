from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from anomaly.bundle.arrays import HEADER_KEY, INSIDE, VoxelBits, read_arrays, write_arrays, write_compact_arrays
from anomaly.core.errors import DamagedFileError

SHAPE = (16, 20, 18)
VOXELS = 16 * 20 * 18


def on_grid(rng: np.random.Generator, low: float = 1, high: float = 2, *, background: float = 0.0) -> np.ndarray:
    """Return an array with random values in the middle of the grid, and a background around it."""
    full = np.full(SHAPE, background, dtype=np.float32)
    full[3:13, 4:16, 3:15] = rng.uniform(low, high, (10, 12, 12))
    return full


def restored(path: Path, arrays: dict[str, np.ndarray], voxel_bits: VoxelBits = 16) -> dict[str, np.ndarray]:
    write_compact_arrays(path, arrays, SHAPE, voxel_bits)
    return read_arrays(path)


def test_arrays_that_are_written_as_they_are_are_read_as_they_were(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    arrays = {"a": rng.normal(size=SHAPE), "n": np.array(3), "m": on_grid(rng).T}
    write_arrays(tmp_path / "a.safetensors", arrays)
    found = read_arrays(tmp_path / "a.safetensors")
    assert found.keys() == arrays.keys()
    for name, values in arrays.items():
        np.testing.assert_array_equal(found[name], values)
        assert (found[name].dtype, found[name].shape) == (values.dtype, values.shape)


@pytest.mark.parametrize("shape", [SHAPE, (1, 1, *SHAPE), (VOXELS,), (1, VOXELS)])
@pytest.mark.parametrize(("low", "high"), [(0.2, 0.9), (-1.2, 1.5), (1e-7, 3e-5), (1e-3, 1e4)])
def test_voxels_are_restored_with_16_bits_of_their_range_and_the_background_exactly(
    tmp_path: Path, rng: np.random.Generator, shape: tuple[int, ...], low: float, high: float
) -> None:
    values = on_grid(rng, low, high, background=0.3).reshape(shape)
    found = restored(tmp_path / "a.safetensors", {"sd": values})["sd"]
    np.testing.assert_allclose(found, values, rtol=1e-7, atol=(high - low) / 131069)
    np.testing.assert_array_equal(found == np.float32(0.3), values == np.float32(0.3))
    assert (found.dtype, found.shape) == (np.float32, shape)


@pytest.mark.parametrize("largest", [1e-30, 1e-5, 65504.0, 65520.0, 1e30])
def test_an_array_of_any_magnitude_keeps_its_relative_error(
    tmp_path: Path, rng: np.random.Generator, largest: float
) -> None:
    values = (largest * rng.uniform(1e-6, 1, (8, 1000))).astype(np.float32)
    np.testing.assert_allclose(
        restored(tmp_path / "a.safetensors", {"w": values})["w"], values, rtol=2**-11, atol=0
    )


def test_only_voxels_inside_are_stored(tmp_path: Path, rng: np.random.Generator) -> None:
    restored(tmp_path / "a.safetensors", {"mean": on_grid(rng), "sd": on_grid(rng, background=1.0)})
    stored = load_file(tmp_path / "a.safetensors")
    assert stored["mean"].shape == stored["sd"].shape == (1, 10 * 12 * 12)
    assert stored["mean"].dtype == np.uint16
    assert stored[INSIDE].nbytes == VOXELS / 8


def test_a_voxel_outside_one_array_keeps_its_value_in_another(tmp_path: Path, rng: np.random.Generator) -> None:
    wide = on_grid(rng)
    wide[14] = 5.0
    found = restored(tmp_path / "a.safetensors", {"narrow": on_grid(rng), "wide": wide})
    assert (found["wide"][14] == 5).all()
    assert (found["narrow"][14] == 0).all()


def test_principal_components_are_8_bit_integers_with_scales_of_their_own(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    components = np.stack([size * rng.normal(size=VOXELS) for size in (1, 1e-4, 30)]).astype(np.float32)
    components[:, :100] = 0
    found = restored(tmp_path / "a.safetensors", {"components": components})["components"]
    limits = np.ptp(components, axis=1) / 510
    assert (np.abs(found - components).max(axis=1) <= 1.001 * limits).all()
    assert load_file(tmp_path / "a.safetensors")["components"].dtype == np.uint8
    assert (found[:, :100] == 0).all()


def test_all_voxels_may_be_stored_in_8_bits(tmp_path: Path, rng: np.random.Generator) -> None:
    values, weights = rng.uniform(2, 4, SHAPE).astype(np.float32), rng.normal(size=5000).astype(np.float32)
    values[0] = 1.0
    found = restored(tmp_path / "a.safetensors", {"mean": values, "w": weights}, 8)
    np.testing.assert_allclose(found["mean"], values, rtol=0, atol=2.001 / 510)
    np.testing.assert_allclose(found["w"], weights, rtol=2**-11, atol=0)


def test_small_arrays_integers_and_numbers_that_are_not_finite_are_stored_as_they_are(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    broken = on_grid(rng)
    broken[5, 5, 5] = np.nan
    arrays = {
        "bias": rng.normal(size=64).astype(np.float32), "count": np.arange(VOXELS), "broken": broken,
        "one": np.array(1.5, dtype=np.float32),
    }  # fmt: skip
    found = restored(tmp_path / "a.safetensors", arrays)
    for name, values in arrays.items():
        np.testing.assert_array_equal(found[name], values)
        assert found[name].dtype == values.dtype


@pytest.mark.parametrize("value", [0.0, 2.5])
@pytest.mark.parametrize("shape", [SHAPE, (3, VOXELS)])
def test_constant_voxels_are_restored(tmp_path: Path, value: float, shape: tuple[int, ...]) -> None:
    arrays = {"constant": np.full(shape, value, dtype=np.float32)}
    np.testing.assert_array_equal(restored(tmp_path / "a.safetensors", arrays)["constant"], arrays["constant"])


def test_numbers_that_were_restored_are_stored_without_a_further_error(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    first = restored(tmp_path / "a.safetensors", {"w": rng.normal(size=9000).astype("f4")})
    second = restored(tmp_path / "b.safetensors", first)
    for name, values in first.items():
        np.testing.assert_array_equal(second[name], values)


def test_the_same_arrays_give_the_same_file(tmp_path: Path, rng: np.random.Generator) -> None:
    arrays = {"mean": on_grid(rng)}
    for name in ("a", "b"):
        write_compact_arrays(tmp_path / name, arrays, SHAPE)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(("missing", "shape"), [("mean", SHAPE), (INSIDE, SHAPE), ("", (5, *SHAPE))])
def test_arrays_that_do_not_fit_the_header_are_refused(
    tmp_path: Path, rng: np.random.Generator, missing: str, shape: tuple[int, ...]
) -> None:
    path = tmp_path / "a.safetensors"
    write_compact_arrays(path, {"mean": on_grid(rng)}, SHAPE)
    with safe_open(path, framework="numpy") as file:
        header = file.metadata()[HEADER_KEY].replace("[16, 20, 18]", str(list(shape)))
    kept = {name: values for name, values in load_file(path).items() if name != missing}
    save_file(kept, path, metadata={HEADER_KEY: header})
    with pytest.raises(DamagedFileError, match="do not fit its header"):
        read_arrays(path)
