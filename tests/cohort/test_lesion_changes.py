from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import ndimage

from anomaly.cohort.fine_grain import smooth_part
from anomaly.cohort.lesion_changes import (
    Site,
    expanded,
    focal,
    haemorrhage,
    scaled,
    subdural,
    textured,
    tumour,
)
from anomaly.core.errors import InputError
from anomaly.core.volume import FloatArray, MaskArray, Modality

SHAPE = (40, 40, 40)
EVERYWHERE = np.ones(SHAPE, dtype=bool)


def ball(radius: float, centre: tuple[int, int, int] = (20, 20, 20)) -> MaskArray:
    offset = np.indices(SHAPE) - np.array(centre)[:, None, None, None]
    return np.asarray(np.linalg.norm(offset, axis=0) <= radius)


def site_with(
    voxels: FloatArray,
    lesion: MaskArray,
    modality: Modality = Modality.T1W,
    no_signal: float = 0.0,
    hounsfield: float = 1.0,
) -> Site:
    smooth = smooth_part(voxels, EVERYWHERE)
    rng = np.random.default_rng(0)
    return Site(voxels, EVERYWHERE, lesion, smooth, modality, no_signal, hounsfield, (1, 1, 1), 1.0, rng)


def uniform(value: float = 100.0) -> FloatArray:
    return np.full(SHAPE, value, dtype=np.float32)


def test_scaling_changes_the_signal_above_that_of_zero_signal() -> None:
    smooth, where = scaled(site_with(uniform(100), ball(8), no_signal=20), -0.5)
    assert smooth[20, 20, 20] == pytest.approx(60, abs=0.5)
    assert where.max() == pytest.approx(1)
    assert smooth[2, 2, 2] == pytest.approx(100)


@pytest.mark.parametrize(
    ("modality", "dark"),
    [(Modality.T1W, True), (Modality.CT, True), (Modality.T2W, False), (Modality.FLAIR, False)],
)
def test_foci_are_dark_or_bright_as_the_modality_shows_them(modality: Modality, dark: bool) -> None:
    smooth, _ = focal(site_with(uniform(), ball(4), modality), 0.4)
    assert (smooth[20, 20, 20] < 100) == dark


def test_a_texture_has_mean_0_and_is_coarser_than_the_grain() -> None:
    rng = np.random.default_rng(1)
    voxels = np.asarray(100 + 10 * ndimage.gaussian_filter(rng.standard_normal(SHAPE), 1.0) * 6, dtype=np.float32)
    voxels += rng.normal(0, 5, SHAPE).astype(np.float32)
    site = site_with(voxels, ball(10))
    smooth, where = textured(site, 1.0)
    texture = smooth - site.smooth
    assert abs(texture.sum()) < 1e-3 * np.abs(texture).sum()
    assert texture[ball(8)].std() > 2
    neighbours = np.corrcoef(texture[19:21][:, ball(8)[20]])[0, 1]
    assert neighbours > 0.5
    assert not texture[where == 0].any()


def test_expanding_neither_folds_nor_loses_tissue_around_the_lesion() -> None:
    along = np.broadcast_to(np.arange(SHAPE[0], dtype=np.float32)[:, None, None], SHAPE).copy()
    smooth, where = expanded(site_with(along, ball(6)), 0.5)
    line = smooth[:, 20, 20]
    assert np.all(np.diff(line) > 0)  # the order of tissue along a line is kept
    assert np.diff(line)[18:22].max() < 0.6  # stretched inside
    assert np.diff(line)[28:31].max() > 1.3  # compressed around
    np.testing.assert_allclose(line[[2, 37]], [2, 37], atol=0.01)  # tissue further away does not move
    assert not where[~ball(12.5)].any()


def test_a_tumour_has_a_core_a_rim_and_compressed_oedema() -> None:
    smooth, where = tumour(site_with(uniform(), ball(12), Modality.T1W_CE), 0.4)
    values = smooth[20, 20, 20:34]
    assert values[0] == pytest.approx(60, abs=10)  # core
    assert smooth[ball(10)].max() > 115  # rim, enhanced
    assert values[10:12].min() == pytest.approx(80, abs=8)  # oedema
    assert not where[~ball(17)].any()


@pytest.mark.parametrize(
    ("modality", "dark"),
    [(Modality.T1W, True), (Modality.CT, True), (Modality.T2W, False), (Modality.FLAIR, False)],
)
def test_oedema_is_dark_on_t1w_and_bright_on_t2w_and_flair(modality: Modality, dark: bool) -> None:
    smooth, _ = tumour(site_with(uniform(), ball(12), modality), 0.4)
    assert (np.median(smooth[ball(11) & ~ball(9)]) < 100) == dark


def test_the_tissue_around_a_tumour_is_displaced() -> None:
    along = np.broadcast_to(100 + np.arange(SHAPE[0], dtype=np.float32)[:, None, None], SHAPE).copy()
    smooth, _ = tumour(site_with(along, ball(12), no_signal=1000.0), 0.3)
    middle = tumour(site_with(uniform(0), ball(12), no_signal=1000.0), 0.3)[0]
    assert smooth[28, 20, 20] - middle[28, 20, 20] < 128


@pytest.mark.parametrize(("no_signal", "hounsfield"), [(0.0, 1.0), (0.25, 1 / 80)])
def test_blood_has_its_density_in_any_units(no_signal: float, hounsfield: float) -> None:
    brain = uniform(no_signal + 33 * hounsfield)
    smooth, _ = haemorrhage(site_with(brain, ball(8), Modality.CT, no_signal, hounsfield), 70.0)
    density = (smooth - no_signal) / hounsfield
    assert density[20, 20, 20] == pytest.approx(70, abs=1)
    assert 33 * 0.75 < density.min() < 33 * 0.9  # the rim of oedema
    smooth, _ = subdural(site_with(brain, ball(8), Modality.CT, no_signal, hounsfield), 60.0)
    density = (smooth - no_signal) / hounsfield
    assert density[20, 20, 20] == pytest.approx(60, abs=1)
    assert density.min() == pytest.approx(33, abs=0.1)


@pytest.mark.parametrize("change", [haemorrhage, subdural])
def test_a_density_in_mr_is_refused(change: Callable[[Site, float], object]) -> None:
    with pytest.raises(InputError, match="cannot be planted in T1w; expected CT"):
        change(site_with(uniform(), ball(8)), 70.0)
