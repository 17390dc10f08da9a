from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from scipy import ndimage

from anomaly.cohort.lesion_shapes import random_blob
from anomaly.cohort.planted_lesions import LesionKind, plant
from anomaly.core.covariates import covariates
from anomaly.core.volume import FloatArray, Geometry, MaskArray, Modality
from anomaly.preprocessing.template import template_on
from anomaly.scoring.reference import HealthyReference, fit_reference, similarity, standardised
from anomaly.scoring.settings import ScoringSettings

GRID = Geometry((8, 9, 10), np.diag([4.0, 4.0, 2.0, 1.0]))
SETTINGS = ScoringSettings(maps={"residual": 1.0, "pca": 3.0}, sd_smoothing_mm=0, sd_floor=0.0)
N_SCANS = 20
TEMPLATE = template_on(4.0)


def scans() -> Iterator[tuple[dict[str, FloatArray], FloatArray, MaskArray, FloatArray]]:
    """Yield scans whose brains all cover the left half of the grid; only two of them cover the right half."""
    for seed in range(N_SCANS):
        rng = np.random.default_rng(seed)
        mask = np.zeros(GRID.shape, dtype=bool)
        mask[: 8 if seed < 2 else 4] = True
        maps = {name: rng.normal(2, 1, GRID.shape).astype(np.float32) for name in ("residual", "pca")}
        yield (
            maps,
            rng.normal(1, 0.1, GRID.shape).astype(np.float32),
            mask,
            covariates(20 + 3 * seed, "FM"[seed % 2]),
        )


@pytest.fixture(scope="module")
def reference() -> HealthyReference:
    return fit_reference(scans(), GRID, SETTINGS)


def test_the_mean_and_sd_of_a_voxel_are_those_over_the_scans(reference: HealthyReference) -> None:
    values = np.stack([maps["pca"][1, 2, 3] for maps, *_ in scans()]).astype(np.float64)
    assert reference.mean["pca"][1, 2, 3] == pytest.approx(values.mean(), rel=1e-5)
    assert reference.sd["pca"][1, 2, 3] == pytest.approx(values.std(ddof=1), rel=1e-4)


def test_voxels_that_few_brains_cover_have_no_mean_and_the_sd_of_the_most_variable_voxels(
    reference: HealthyReference,
) -> None:
    sd = reference.sd["residual"]
    assert not reference.mean["residual"][4:].any()
    assert not reference.mean_image[4:].any()
    assert np.ptp(sd[4:]) == 0
    assert sd[4, 0, 0] == pytest.approx(np.percentile(sd[:4], 99), rel=1e-4)


def test_standardised_maps_are_a_weighted_mean_of_z_scores(reference: HealthyReference) -> None:
    maps, _, mask, _ = next(scans())
    z = {name: (maps[name] - reference.mean[name]) / reference.sd[name] for name in maps}
    found = standardised(maps, mask, reference, SETTINGS.maps)
    np.testing.assert_allclose(found[mask], ((z["residual"] + 3 * z["pca"]) / 4)[mask], rtol=1e-5)
    assert not found[~mask].any()


def test_a_saved_reference_is_the_same(reference: HealthyReference) -> None:
    arrays = reference.arrays()
    found = HealthyReference.from_arrays(arrays, {"kl": 1.0}, {"kl": 2.0}, {"kl": [1.0, 3.0]})

    assert set(arrays) == {"mean.residual", "mean.pca", "sd.residual", "sd.pca", "appearance", "acquisition"}
    np.testing.assert_array_equal(found.sd["pca"], reference.sd["pca"])
    np.testing.assert_array_equal(found.mean_image, reference.mean_image)
    np.testing.assert_array_equal(found.acquisition.features, reference.acquisition.features)
    assert (found.score_mean, found.score_std, found.held_out_scores) == (
        {"kl": 1.0},
        {"kl": 2.0},
        {"kl": [1.0, 3.0]},
    )


@pytest.mark.parametrize("standardise", ["voxelwise", "normative"])
def test_only_a_normative_reference_depends_on_age(standardise: str) -> None:
    settings = SETTINGS.model_copy(update={"standardise": standardise})
    found = fit_reference(scans(), GRID, settings)
    saved = HealthyReference.from_arrays(found.arrays(), {}, {}, {})

    assert (found.normative is not None) == (saved.normative is not None) == (standardise == "normative")


def test_a_subject_of_unknown_age_is_compared_with_all_ages(reference: HealthyReference) -> None:
    normative = fit_reference(scans(), GRID, SETTINGS.model_copy(update={"standardise": "normative"}))
    maps, _, mask, _ = next(scans())
    np.testing.assert_array_equal(
        standardised(maps, mask, normative, SETTINGS.maps, covariates(None, "F")),
        standardised(maps, mask, reference, SETTINGS.maps),
    )


def test_there_is_one_row_of_acquisition_features_per_scan(reference: HealthyReference) -> None:
    assert reference.acquisition.features.shape == (N_SCANS, 9)


def test_without_scans_the_reference_changes_nothing() -> None:
    empty = fit_reference((), GRID, SETTINGS)
    assert not empty.mean["pca"].any()
    assert (empty.sd["pca"] == 1).all()


def _healthy_brain(seed: int) -> FloatArray:
    """Return a T1w template at 4 mm whose anatomy, contrast and noise vary with the seed."""
    rng = np.random.default_rng(seed)
    shift = [4 * ndimage.gaussian_filter(rng.standard_normal(TEMPLATE.mask.shape), 3) / 0.03 for _ in range(3)]
    positions = np.indices(TEMPLATE.mask.shape) + 0.15 * np.array(shift)
    image = ndimage.map_coordinates(TEMPLATE.contrast(Modality.T1W), positions, order=1)
    noisy = image ** rng.uniform(0.8, 1.2) + rng.normal(0, 0.02, image.shape)
    return np.where(TEMPLATE.mask, noisy, 0).astype(np.float32)


def _lesion(voxels: FloatArray, kind: LesionKind, strength: float) -> FloatArray:
    """Plant a lesion of 96 ml."""
    rng = np.random.default_rng(1)
    lesion = random_blob(TEMPLATE.mask, 96, TEMPLATE.geometry.voxel_ml, rng)
    return plant(voxels, TEMPLATE.mask, lesion, kind, strength, rng).voxels


def _left_hemisphere(voxels: FloatArray, factor: float) -> FloatArray:
    left = np.arange(voxels.shape[0])[:, None, None] < voxels.shape[0] // 2
    return np.where(left, voxels * np.float32(factor), voxels)


def _noise(sigma: float) -> FloatArray:
    noise = ndimage.gaussian_filter(np.random.default_rng(2).standard_normal(TEMPLATE.mask.shape), sigma)
    return (0.6 + 0.1 * noise / noise.std()).astype(np.float32)


ILL: dict[str, Callable[[FloatArray], FloatArray]] = {
    "healthy": lambda voxels: voxels,
    "cavity": lambda voxels: _lesion(voxels, "dark", 0.95),
    "bright lesion": lambda voxels: _lesion(voxels, "bright", 3.0),
    "texture": lambda voxels: _lesion(voxels, "texture", 3.0),
    "mass effect": lambda voxels: _lesion(voxels, "mass_effect", 0.6),
    "one hemisphere at half the intensity": lambda voxels: _left_hemisphere(voxels, 0.5),
    "one hemisphere at a tenth of the intensity": lambda voxels: _left_hemisphere(voxels, 0.1),
}
WRONG: dict[str, Callable[[FloatArray], FloatArray]] = {
    "inverted contrast": lambda voxels: 1 - voxels,
    "upside down": lambda voxels: voxels[:, :, ::-1],
    "back to front": lambda voxels: voxels[:, ::-1],
    "FLAIR": lambda voxels: TEMPLATE.contrast(Modality.FLAIR) + 0 * voxels,
    "T2w": lambda voxels: TEMPLATE.contrast(Modality.T2W) + 0 * voxels,
    "white noise": lambda voxels: _noise(0) + 0 * voxels,
    "smooth noise": lambda voxels: _noise(2) + 0 * voxels,
    "another organ: an even core, darker at the surface": lambda voxels: (
        TEMPLATE.depth_mm().clip(0, 12).astype(np.float32) / 12 + 0 * voxels
    ),
}


@pytest.fixture(scope="module")
def mean_brain() -> FloatArray:
    return np.mean([_healthy_brain(seed) for seed in range(8)], axis=0).astype(np.float32)


@pytest.mark.parametrize("change", ILL.values(), ids=ILL)
def test_a_scan_is_not_refused_for_looking_ill(
    mean_brain: FloatArray, change: Callable[[FloatArray], FloatArray]
) -> None:
    found = similarity(change(_healthy_brain(20)), TEMPLATE.mask, mean_brain, TEMPLATE.geometry)
    assert found > ScoringSettings().min_block_correlation + 0.1


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_a_scan_of_another_contrast_alignment_or_organ_is_refused(
    mean_brain: FloatArray, change: Callable[[FloatArray], FloatArray]
) -> None:
    found = similarity(change(_healthy_brain(20)), TEMPLATE.mask, mean_brain, TEMPLATE.geometry)
    assert found < ScoringSettings().min_block_correlation - 0.05


def test_the_correlation_over_the_whole_brain_would_refuse_an_ill_scan(mean_brain: FloatArray) -> None:
    ill = _left_hemisphere(_healthy_brain(20), 0.1)
    assert np.corrcoef(ill[TEMPLATE.mask], mean_brain[TEMPLATE.mask])[0, 1] < 0.3
