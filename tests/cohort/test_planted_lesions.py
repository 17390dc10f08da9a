from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from anomaly.cohort.fine_grain import fine_grain, grain_energy
from anomaly.cohort.lesion_shapes import smooth_noise
from anomaly.cohort.planted_lesions import (
    CT_LESION_KINDS,
    LESION_KINDS,
    LESION_ML,
    LESION_STRENGTHS,
    MR_LESION_KINDS,
    LesionKind,
    draw_lesion,
    draw_strength,
    plant,
    plant_in_scan,
    planted_scans,
)
from anomaly.core.covariates import UNKNOWN_COVARIATES
from anomaly.core.errors import InputError
from anomaly.core.volume import FloatArray, Geometry, MaskArray, Modality
from tests.conftest import make_volume

GRID = Geometry((32, 36, 30), np.diag([2.0, 2.0, 2.0, 1.0]))


def brain(seed: int = 0) -> tuple[FloatArray, MaskArray]:
    volume = make_volume(GRID.shape, 2.0, seed)
    return volume.voxels, volume.voxels > 0


def ball(centre: tuple[int, int, int] = (16, 18, 15), radius: float = 4.0) -> MaskArray:
    i, j, k = np.indices(GRID.shape)
    return np.asarray((i - centre[0]) ** 2 + (j - centre[1]) ** 2 + (k - centre[2]) ** 2 <= radius**2)


def grainy_brain(rng: np.random.Generator) -> tuple[FloatArray, MaskArray]:
    """A brain with smooth structure and with noise, as a scan has them."""
    voxels, mask = brain()
    structure = 10 * smooth_noise(GRID.shape, 2.0, rng) + 5 * rng.standard_normal(GRID.shape)
    return np.where(mask, voxels + structure, 0).astype(np.float32), mask


def shown_in(kind: LesionKind) -> Modality:
    return Modality.CT if kind in CT_LESION_KINDS else Modality.T1W


class Scans:
    grid = GRID

    def __len__(self) -> int:
        return 4

    def covariates(self, index: int) -> FloatArray:
        del index
        return UNKNOWN_COVARIATES

    def __getitem__(self, index: int) -> tuple[FloatArray, MaskArray]:
        return brain(index)


def test_a_dark_lesion_decreases_the_signal_by_its_strength(rng: np.random.Generator) -> None:
    voxels, mask = brain()
    planted = plant(voxels, mask, ball(), "dark", 0.4, rng)
    core = ball(radius=1.5)
    assert planted.voxels[core].mean() / voxels[core].mean() == pytest.approx(0.6, abs=0.08)


def test_a_bright_lesion_increases_the_signal_by_its_strength(rng: np.random.Generator) -> None:
    voxels, mask = brain()
    core = ball(radius=1.5)
    planted = plant(voxels, mask, ball(), "bright", 0.3, rng)
    assert planted.voxels[core].mean() / voxels[core].mean() == pytest.approx(1.3, abs=0.08)


def test_signal_loss_is_relative_to_the_intensity_of_zero_signal() -> None:
    voxels, mask = brain()
    first, second = np.random.default_rng(1), np.random.default_rng(1)
    planted = plant(voxels - 100, mask, ball(), "dark", 0.4, first, no_signal=-100.0)
    same = plant(voxels, mask, ball(), "dark", 0.4, second)
    np.testing.assert_allclose(planted.voxels + 100, same.voxels, atol=1e-2)


def test_a_texture_lesion_keeps_the_mean_and_raises_the_local_deviation(rng: np.random.Generator) -> None:
    voxels, mask = grainy_brain(rng)
    planted = plant(voxels, mask, ball(radius=7), "texture", 1.0, rng)
    change = (planted.voxels - voxels)[mask]
    assert abs(change.sum()) < 1e-2 * np.abs(change).sum()
    assert planted.voxels[ball()].std() > 1.1 * voxels[ball()].std()


def test_mass_effect_moves_tissue_outwards(rng: np.random.Generator) -> None:
    mask = ball(radius=12)
    marker = ball((18, 18, 15), 0.5)  # two voxels to the right of the centre
    voxels = np.where(mask, 100 + 4000 * ndimage.gaussian_filter(marker.astype(np.float32), 1.2), 0)
    planted = plant(voxels.astype(np.float32), mask, ball(), "mass_effect", 0.5, rng)
    row = planted.voxels[16:28, 18, 15] - 100
    assert voxels[16:28, 18, 15].argmax() == 2
    assert row.argmax() == pytest.approx(4, abs=1)


def test_mass_effect_keeps_the_outline_of_the_brain(rng: np.random.Generator) -> None:
    mask = ball(radius=12)
    voxels = np.where(mask, 100, 0).astype(np.float32)
    planted = plant(voxels, mask, ball((10, 18, 15)), "mass_effect", 0.6, rng)
    np.testing.assert_allclose(planted.voxels[mask], 100, rtol=0.35)
    assert (planted.voxels[mask] > 0).all()


@pytest.mark.parametrize("kind", LESION_KINDS)
def test_every_kind_changes_the_lesion_and_nothing_outside_the_brain(
    kind: LesionKind, rng: np.random.Generator
) -> None:
    voxels, mask = brain()
    planted = plant(voxels, mask, ball((10, 18, 15)), kind, draw_strength(kind, rng), rng, modality=shown_in(kind))
    assert np.abs(planted.voxels - voxels)[planted.lesion].mean() > 0.5
    np.testing.assert_array_equal(planted.voxels[~mask], voxels[~mask])
    assert not (planted.lesion & ~mask).any()
    assert planted.voxels.dtype == np.float32
    assert planted.kind == kind


@pytest.mark.parametrize("kind", LESION_KINDS)
@pytest.mark.parametrize("whole_numbers", [False, True])
def test_every_kind_keeps_the_energy_of_the_fine_grain(
    kind: LesionKind, whole_numbers: bool, rng: np.random.Generator
) -> None:
    voxels, mask = grainy_brain(rng)
    voxels = np.round(voxels) if whole_numbers else voxels
    planted = plant(voxels, mask, ball(radius=7), kind, LESION_STRENGTHS[kind][0], rng, modality=shown_in(kind))
    kept = grain_energy(planted.voxels, mask, planted.lesion) / grain_energy(voxels, mask, planted.lesion)
    assert kept == pytest.approx(1, abs=0.02)
    assert np.all(planted.voxels == np.round(planted.voxels)) == whole_numbers


@pytest.mark.parametrize("kind", LESION_KINDS)
def test_every_kind_leaves_the_fine_grain_in_place(kind: LesionKind, rng: np.random.Generator) -> None:
    voxels, mask = grainy_brain(rng)
    planted = plant(voxels, mask, ball(radius=7), kind, LESION_STRENGTHS[kind][0], rng, modality=shown_in(kind))
    before, after = (fine_grain(v, mask)[planted.lesion] for v in (voxels, planted.voxels))
    assert np.corrcoef(before, after)[0, 1] > 0.8


@pytest.mark.parametrize("kind", LESION_KINDS)
def test_the_same_seed_plants_the_same_lesion(kind: LesionKind) -> None:
    voxels, mask = brain()
    first, second = (
        plant(voxels, mask, ball(), kind, 0.4, np.random.default_rng(3), modality=shown_in(kind)) for _ in range(2)
    )
    np.testing.assert_array_equal(first.voxels, second.voxels)


@pytest.mark.parametrize("kind", LESION_KINDS)
def test_voxels_outside_the_lesion_and_its_soft_edge_stay_as_they_were(
    kind: LesionKind, rng: np.random.Generator
) -> None:
    voxels, mask = grainy_brain(rng)
    planted = plant(
        voxels, mask, ball(), kind, draw_strength(kind, rng), rng, modality=shown_in(kind), edge_voxels=1.0
    )
    reach = 8 if kind == "mass_effect" else 4  # displaced tissue, or the soft edge
    around = ball(radius=4 + reach + 0.5)
    np.testing.assert_array_equal(planted.voxels[~around], voxels[~around])


@pytest.mark.parametrize(("kind", "modality", "dark"), [
    ("multifocal", Modality.T1W, True), ("multifocal", Modality.FLAIR, False),
    ("tumour", Modality.T1W, True), ("tumour", Modality.T2W, False), ("tumour", Modality.CT, True),
])  # fmt: skip
def test_lesions_are_dark_or_bright_as_the_modality_shows_them(
    kind: LesionKind, modality: Modality, dark: bool, rng: np.random.Generator
) -> None:
    voxels, mask = grainy_brain(rng)
    planted = plant(voxels, mask, ball(radius=6), kind, 0.4, rng, modality=modality)
    change = (planted.voxels - voxels)[planted.lesion].mean() / voxels[planted.lesion].mean()
    assert 0.02 < abs(change) < 0.4
    assert (change < 0) == dark


def test_blood_in_ct_has_its_density(rng: np.random.Generator) -> None:
    mask = brain()[1]
    voxels = np.where(mask, 33 + rng.normal(0, 4, GRID.shape), -1000).astype(np.float32)
    planted = plant(voxels, mask, ball(radius=7), "haemorrhage", 70.0, rng, modality=Modality.CT)
    assert planted.voxels[ball(radius=2)].mean() == pytest.approx(70, abs=6)
    assert planted.voxels[ball(radius=7) & ~ball(radius=6)].mean() < 40
    scaled = plant(
        voxels / 80, mask, ball(radius=7), "subdural", 60.0, rng, modality=Modality.CT, hounsfield=1 / 80
    )
    assert 80 * scaled.voxels[ball(radius=3)].mean() == pytest.approx(60, abs=4)


def test_foreground_remains_above_zero_signal(rng: np.random.Generator) -> None:
    voxels, mask = grainy_brain(rng)
    voxels = np.where(mask, np.maximum(voxels - 75, 1), 0).astype(np.float32)
    planted = plant(np.round(voxels), mask, ball(radius=7), "dark", 0.5, rng)
    np.testing.assert_array_equal(planted.voxels > 0, mask)


def test_mass_effect_takes_the_largest_part_of_a_lesion(rng: np.random.Generator) -> None:
    voxels, mask = brain()
    planted = plant(voxels, mask, ball() | ball((16, 29, 15), 1.0), "mass_effect", 0.4, rng)
    np.testing.assert_array_equal(planted.lesion, ball())


def test_lesions_are_drawn_with_the_shape_and_volume_of_their_kind(rng: np.random.Generator) -> None:
    _, mask = brain()
    brain_ml = mask.sum() * GRID.voxel_ml
    for kind in LESION_KINDS:
        lesion = draw_lesion(kind, mask, GRID, (3.0, 3.1), rng)
        assert not (lesion & ~mask).any()
        n_parts, volume = ndimage.label(lesion)[1], lesion.sum() * GRID.voxel_ml
        assert n_parts == 1 or kind == "multifocal"
        assert volume <= 0.15 * brain_ml
        assert kind in LESION_ML or volume == pytest.approx(3, rel=0.5)


def test_a_dark_lesion_has_soft_edges(rng: np.random.Generator) -> None:
    voxels, mask = brain()
    loss = 1 - plant(voxels, mask, ball(), "dark", 0.4, rng).voxels[mask] / voxels[mask]
    assert ((loss > 0.05) & (loss < 0.35)).sum() > 50


def test_planting_does_not_change_the_healthy_scan(rng: np.random.Generator) -> None:
    voxels, mask = brain()
    before = voxels.copy()
    plant(voxels, mask, ball(), "dark", 0.4, rng)
    np.testing.assert_array_equal(voxels, before)


def test_strengths_stay_in_their_range(rng: np.random.Generator) -> None:
    drawn = [draw_strength("dark", rng) for _ in range(100)]
    assert LESION_STRENGTHS["dark"] == (0.15, 0.5)
    assert min(drawn) >= 0.15
    assert max(drawn) <= 0.5


def test_an_unknown_kind_is_refused_with_the_known_ones(rng: np.random.Generator) -> None:
    voxels, mask = brain()
    with pytest.raises(InputError, match="bright, dark, haemorrhage, mass_effect, multifocal, subdural"):
        plant(voxels, mask, ball(), "wavy", 0.4, rng)  # type: ignore[arg-type]


def test_a_lesion_outside_the_brain_is_refused(rng: np.random.Generator) -> None:
    voxels, mask = brain()
    with pytest.raises(InputError, match="does not overlap the foreground"):
        plant(voxels, mask, ~mask, "dark", 0.4, rng)


def test_a_lesion_is_planted_at_its_position_in_an_oblique_scan(rng: np.random.Generator) -> None:
    c, s = np.cos(0.3), np.sin(0.3)
    oblique = np.array([[-1.5 * c, -s, 0, 40], [-1.5 * s, c, 0, 20], [0, 0, 1.25, -10], [0, 0, 0, 1]])
    scan = make_volume((40, 44, 36), 1.0).with_voxels(np.full((40, 44, 36), 80.0), Geometry((40, 44, 36), oblique))
    centre = scan.geometry.to_world([20, 22, 18])  # where the lesion is to appear, in the scan's world
    shift = np.eye(4)
    shift[:3, 3] = GRID.to_world([16, 18, 15]) - centre
    planted, lesion = plant_in_scan(scan, shift, ball(), GRID, "dark", 0.5, rng)
    np.testing.assert_allclose(np.argwhere(lesion).mean(axis=0), [20, 22, 18], atol=0.3)
    assert planted.voxels[20, 22, 18] == pytest.approx(40, abs=1)
    assert lesion.sum() * scan.geometry.voxel_ml == pytest.approx(ball().sum() * GRID.voxel_ml, rel=0.15)
    assert planted.meta["synthetic_lesion"]["kind"] == "dark"
    assert "synthetic_lesion" not in scan.meta


def test_a_lesion_in_a_scan_stays_inside_the_brain(rng: np.random.Generator) -> None:
    voxels, mask = brain()
    scan = make_volume(GRID.shape, 2.0).with_voxels(voxels, GRID)
    planted, lesion = plant_in_scan(scan, np.eye(4), ball((6, 18, 15)), GRID, "dark", 0.4, rng)
    assert lesion.any()
    assert not (lesion & ~mask).any()
    np.testing.assert_array_equal(planted.voxels[~mask], voxels[~mask])


def test_planted_scans_are_reproducible_by_their_seed() -> None:
    first, second, other = (list(planted_scans(Scans(), seed, kinds=MR_LESION_KINDS[:4])) for seed in (1, 1, 2))
    assert [scan.kind for scan in first] == list(MR_LESION_KINDS[:4])
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.voxels, b.voxels)
    assert any((a.lesion != b.lesion).any() for a, b in zip(first, other, strict=True))


def test_planted_scans_use_real_shapes_that_fit() -> None:
    _, mask = brain()
    for scan in planted_scans(Scans(), 0, shapes=[ball()]):
        np.testing.assert_array_equal(scan.lesion, ball() & scan.mask)
    for scan in planted_scans(Scans(), 0, shapes=[~mask], volume_ml=(1, 2)):
        assert scan.lesion.any()  # a shape outside the brain gives way to a blob
