from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from anomaly.core.covariates import covariates
from anomaly.core.volume import FloatArray, Geometry, MaskArray
from anomaly.scoring.reference import HealthyReference, fit_reference, similarity, standardised
from anomaly.scoring.settings import ScoringSettings

GRID = Geometry((8, 9, 10), np.diag([4.0, 4.0, 2.0, 1.0]))
SETTINGS = ScoringSettings(maps={"residual": 1.0, "pca": 3.0}, sd_smoothing_mm=0, sd_floor=0.0)
N_SCANS = 20


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


def test_similarity_is_the_correlation_inside_the_brain(rng: np.random.Generator) -> None:
    image = rng.uniform(0.5, 1.5, GRID.shape).astype(np.float32)
    mask = np.zeros(GRID.shape, dtype=bool)
    mask[2:6] = True
    assert similarity(2 * image + 3, mask, image) == pytest.approx(1)
    assert similarity(-image, mask, image) == pytest.approx(-1)
    assert similarity(np.ones_like(image), mask, image) == 0  # a constant image correlates with nothing
    assert similarity(image, np.zeros_like(mask), image) == 0
