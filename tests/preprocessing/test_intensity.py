"""Normalisation of intensities."""

from __future__ import annotations

import numpy as np
import pytest

from anomaly.core.config import ConfigError
from anomaly.core.errors import CohortError, ScanRefusedError
from anomaly.core.volume import Modality
from anomaly.preprocessing.intensity import (
    NYUL_PERCENTILES,
    IntensitySettings,
    learn_landmarks,
    normalise,
    tissue_mode,
)
from anomaly.preprocessing.template import template_on
from pipelines.ingest import load_chain

TEMPLATE = template_on(4.0)
MASK = TEMPLATE.mask
SCAN = np.where(MASK, 30 + 170 * TEMPLATE.t1, 0).astype(np.float32)
WHITE = TEMPLATE.white > 0.9
LANDMARKS = tuple(np.linspace(0, 1, len(NYUL_PERCENTILES)))

METHODS = {
    "white_matter": IntensitySettings(method="white_matter"),
    "tissues": IntensitySettings(method="tissues"),
    "nyul": IntensitySettings(method="nyul", landmarks=LANDMARKS),
    "percentile": IntensitySettings(method="percentile"),
    "zscore": IntensitySettings(method="zscore", clip=(-5, 5)),
}


@pytest.mark.parametrize("settings", METHODS.values(), ids=METHODS)
def test_normalisation_removes_the_scaling_of_the_scanner(settings: IntensitySettings) -> None:
    once, scaled = (normalise(scan, MASK, TEMPLATE, settings) for scan in (SCAN, 7.3 * SCAN))
    assert np.allclose(once, scaled, atol=0.02)


@pytest.mark.parametrize("settings", METHODS.values(), ids=METHODS)
def test_background_is_exactly_zero_in_float32(settings: IntensitySettings) -> None:
    result = normalise(SCAN + 5, MASK, TEMPLATE, settings)
    assert result.dtype == np.float32
    assert not result[~MASK].any()


def test_white_matter_gets_its_value() -> None:
    result = normalise(SCAN, MASK, TEMPLATE, IntensitySettings(method="white_matter", white_value=0.6))
    assert np.median(result[WHITE]) == pytest.approx(0.6, abs=0.03)


def test_both_tissues_get_their_values() -> None:
    result = normalise(SCAN, MASK, TEMPLATE, METHODS["tissues"])
    assert tissue_mode(result, MASK & (TEMPLATE.grey > 0.9)) == pytest.approx(0.58, abs=0.02)


def test_grey_and_white_matter_in_the_wrong_order_are_refused() -> None:
    t2 = np.where(MASK, 100 * TEMPLATE.contrast(Modality.T2W), 0).astype(np.float32)
    with pytest.raises(ScanRefusedError, match="white matter the brighter"):
        normalise(t2, MASK, TEMPLATE, IntensitySettings())


@pytest.mark.parametrize("name", ["flair", "t2w"])
def test_shipped_chains_bring_grey_and_white_matter_to_their_values(name: str) -> None:
    chain = load_chain(name)
    scan = np.where(MASK, 340 * TEMPLATE.contrast(chain.modality), 0).astype(np.float32)
    result = normalise(scan, MASK, TEMPLATE, chain.intensity)
    assert tissue_mode(result, WHITE) == pytest.approx(chain.intensity.white_value, abs=0.02)
    assert tissue_mode(result, MASK & (TEMPLATE.grey > 0.9)) == pytest.approx(chain.intensity.grey_value, abs=0.02)
    with pytest.raises(ScanRefusedError, match="grey matter the brighter"):
        normalise(SCAN, MASK, TEMPLATE, chain.intensity)


def test_the_range_of_windows_is_known_for_ct_only() -> None:
    windows = IntensitySettings(method="window", windows=((40, 80), (80, 200)))
    assert windows.range_hu == (-20, 180)
    assert METHODS["tissues"].range_hu is None


def test_a_large_lesion_changes_the_tissue_modes_less_than_the_percentiles() -> None:
    lesion = SCAN.copy()
    lesion[10:22, 10:22, 20:32] *= 3.0
    moved = {
        name: np.abs(
            normalise(lesion, MASK, TEMPLATE, METHODS[name]) - normalise(SCAN, MASK, TEMPLATE, METHODS[name])
        )[30:40].max()
        for name in ("tissues", "percentile")
    }
    assert moved["tissues"] < 0.05 < moved["percentile"]


def test_few_grey_levels_do_not_disturb_the_mode() -> None:
    coarse = np.round(SCAN / 10) * 10
    assert tissue_mode(coarse, WHITE & MASK) == pytest.approx(tissue_mode(SCAN, WHITE & MASK), rel=0.05)


def test_landmarks_make_the_histograms_of_scans_equal() -> None:
    scans = [(SCAN, MASK), (np.where(MASK, 4 * SCAN**1.1, 0).astype(np.float32), MASK)]
    settings = IntensitySettings(method="nyul", landmarks=learn_landmarks(scans))
    first, second = (normalise(voxels, mask, TEMPLATE, settings) for voxels, mask in scans)
    assert np.abs(first - second).mean() < 0.01


def test_landmarks_need_scans() -> None:
    with pytest.raises(CohortError, match="at least one"):
        learn_landmarks([])


def test_nyul_without_landmarks_is_an_error_that_says_how_to_learn_them() -> None:
    with pytest.raises(ConfigError, match="learn_landmarks"):
        IntensitySettings.parse({"method": "nyul"}, "test")


@pytest.mark.parametrize(
    ("windows", "expected"),
    [([(40, 80)], [0, 0.5, 1, 1]), ([(40, 80), (50, 200)], [0.125, 0.475, 0.825, 1])],
)
def test_windows_show_hounsfield_units(windows: list[tuple[float, float]], expected: list[float]) -> None:
    voxels = np.array([-500 if len(windows) == 1 else 0, 40, 80, 3000], np.float32).reshape(4, 1, 1)
    settings = IntensitySettings(method="window", windows=windows)
    shown = normalise(voxels, np.ones_like(voxels, bool), TEMPLATE, settings).ravel()
    assert shown == pytest.approx(expected if len(windows) == 1 else [0.125, 0.475, 0.825, 1], abs=1e-6)


def test_an_empty_or_flat_scan_is_refused() -> None:
    with pytest.raises(ScanRefusedError, match="tissue"):
        normalise(np.zeros_like(SCAN), MASK, TEMPLATE, IntensitySettings())


@pytest.mark.parametrize("modality", [Modality.T2W, Modality.FLAIR])
def test_other_contrasts_are_normalised_by_white_matter_as_well(modality: Modality) -> None:
    scan = np.where(MASK, 100 * TEMPLATE.contrast(modality), 0).astype(np.float32)
    result = normalise(scan, MASK, TEMPLATE, IntensitySettings(method="white_matter", white_value=0.4))
    assert np.median(result[WHITE]) == pytest.approx(0.4, abs=0.03)


def test_the_scale_of_hounsfield_units_is_that_of_the_windows() -> None:
    one = IntensitySettings(method="window", windows=((40.0, 100.0),))
    zero, unit = one.hounsfield_scale()
    for density in (0.0, 30.0, 75.0):
        windowed = normalise(np.where(MASK, density, 0).astype(np.float32), MASK, TEMPLATE, one)
        assert windowed[MASK][0] == pytest.approx(zero + density * unit)
    two = IntensitySettings(method="window", windows=((40.0, 80.0), (40.0, 160.0)))
    assert two.hounsfield_scale() == (pytest.approx(0.125), pytest.approx(0.75 / 80))
    assert IntensitySettings(method="tissues").hounsfield_scale() == (0.0, 1.0)
