from __future__ import annotations

import numpy as np
import pytest

from anomaly.cohort.fine_grain import fine_grain, grain_energy, keep_grain_energy, middle_band, smooth_part
from anomaly.core.volume import FloatArray

SHAPE = (24, 24, 24)
MASK = np.ones(SHAPE, dtype=bool)
MASK[:3] = False
LESION = np.zeros(SHAPE, dtype=bool)
LESION[8:18, 8:18, 8:18] = True
LIMITS = (-2.0, 2.0)


def noise(rng: np.random.Generator, sd: float = 5.0) -> FloatArray:
    return np.where(MASK, 100 + sd * rng.standard_normal(SHAPE), 0).astype(np.float32)


def as_it_is(voxels: FloatArray) -> FloatArray:
    return voxels


def test_smoothing_stays_inside_the_mask() -> None:
    voxels = np.where(MASK, 100, 0).astype(np.float32)
    np.testing.assert_allclose(smooth_part(voxels, MASK)[MASK], 100, rtol=1e-5)
    assert not smooth_part(voxels, MASK)[~MASK].any()
    assert grain_energy(voxels, MASK, MASK) == pytest.approx(0, abs=1e-6)


def test_smooth_part_and_grain_add_up_to_the_scan(rng: np.random.Generator) -> None:
    voxels = noise(rng)
    np.testing.assert_allclose(smooth_part(voxels, MASK) + fine_grain(voxels, MASK), voxels, rtol=1e-5)


def test_the_grain_holds_most_of_the_energy_of_noise(rng: np.random.Generator) -> None:
    assert grain_energy(noise(rng), MASK, LESION) == pytest.approx(0.7 * 25, rel=0.15)


def test_a_smoothed_scan_gets_the_energy_of_its_grain_back(rng: np.random.Generator) -> None:
    voxels = noise(rng)
    smooth = smooth_part(voxels, MASK)
    changed = np.asarray(100 + 0.5 * (smooth - 100) + voxels - smooth, dtype=np.float32)
    band = middle_band(smooth, MASK, LESION.astype(np.float32))
    kept = keep_grain_energy(voxels, changed, [(band, LIMITS)], MASK, LESION, as_it_is)
    assert grain_energy(changed, MASK, LESION) < 0.9 * grain_energy(voxels, MASK, LESION)
    assert grain_energy(kept, MASK, LESION) == pytest.approx(grain_energy(voxels, MASK, LESION), rel=0.005)
    assert kept[LESION].mean() == pytest.approx(changed[LESION].mean(), rel=1e-4)
    np.testing.assert_array_equal(kept[~LESION], changed[~LESION])


def test_the_second_band_adds_what_the_limits_of_the_first_leave(rng: np.random.Generator) -> None:
    voxels = noise(rng)
    changed = smooth_part(voxels, MASK)
    first = middle_band(changed, MASK, LESION.astype(np.float32))
    second = LESION * rng.standard_normal(SHAPE).astype(np.float32)
    energies = [
        grain_energy(keep_grain_energy(voxels, changed, bands, MASK, LESION, as_it_is), MASK, LESION)
        for bands in ([(first, (0.0, 0.1))], [(first, (0.0, 0.1)), (second, (-9.0, 9.0))])
    ]
    assert energies[0] < 0.5 * grain_energy(voxels, MASK, LESION)
    assert energies[1] == pytest.approx(grain_energy(voxels, MASK, LESION), rel=0.01)


def test_a_middle_band_has_mean_0_and_stays_inside_its_weight(rng: np.random.Generator) -> None:
    band = middle_band(noise(rng), MASK, LESION.astype(np.float32))
    assert band.sum() == pytest.approx(0, abs=1e-2)
    assert not band[~LESION].any()


def test_the_rounding_of_the_voxels_counts(rng: np.random.Generator) -> None:
    voxels = np.round(noise(rng, sd=0.6))
    changed = np.asarray(0.7 * voxels, dtype=np.float32)
    band = middle_band(voxels, MASK, LESION.astype(np.float32))
    kept = keep_grain_energy(voxels, changed, [(band, LIMITS)], MASK, LESION, np.round)
    before = grain_energy(voxels, MASK, LESION)
    assert abs(grain_energy(kept, MASK, LESION) / before - 1) < 0.05


def test_a_scan_without_structure_stays_as_it_was_changed() -> None:
    voxels = np.where(MASK, 100, 0).astype(np.float32)
    band = middle_band(voxels, MASK, LESION.astype(np.float32))
    kept = keep_grain_energy(voxels, voxels, [(band, LIMITS)], MASK, LESION, as_it_is)
    np.testing.assert_array_equal(kept, voxels)
