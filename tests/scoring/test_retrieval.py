from __future__ import annotations

import math

import numpy as np
import pytest

from anomaly.scoring.retrieval import N_BITS, HealthyIndex, Similarity, build_index, middle_slices

METRICS: tuple[Similarity, ...] = ("cosine", "hash")


def codes(n: int, dimensions: int = 40, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(3.0, 2.0, (n, dimensions)).astype(np.float32)


def make_index(found: np.ndarray, metric: Similarity = "cosine", ages: np.ndarray | None = None) -> HealthyIndex:
    slices = [middle_slices(np.full((4, 6, 5), n, dtype=np.float32), 255.0) for n in range(len(found))]
    return build_index(found, np.full(len(found), math.nan) if ages is None else ages, slices, metric)


@pytest.mark.parametrize("metric", METRICS)
def test_the_most_similar_scan_of_a_training_scan_is_itself(metric: Similarity) -> None:
    found = codes(20)
    index = make_index(found, metric)
    for n, code in enumerate(found):
        (first, similarity), *_ = index.nearest(code, 3)
        assert first == n
        assert similarity == pytest.approx(1, abs=1e-5)


def test_cosine_and_hash_agree_on_clear_clusters() -> None:
    rng = np.random.default_rng(1)
    centres = rng.normal(0, 5, (4, 40))
    found = np.concatenate([centre + rng.normal(0, 0.5, (6, 40)) for centre in centres]).astype(np.float32)
    index = make_index(found)
    for cluster, centre in enumerate(centres):
        new = (centre + rng.normal(0, 0.5, 40)).astype(np.float32)
        for metric in METRICS:
            assert {n // 6 for n, _ in index.nearest(new, 6, metric)} == {cluster}


def test_the_share_of_equal_bits_estimates_the_angle() -> None:
    found = codes(60, dimensions=200)
    index = make_index(found)
    new = found[0] + 0.7 * (found[1] - found[0])
    angle = {n: math.acos(min(1.0, cosine)) / math.pi for n, cosine in index.nearest(new, 60, "cosine")}
    equal = dict(index.nearest(new, 60, "hash"))
    errors = np.array([equal[n] - (1 - angle[n]) for n in equal])
    assert abs(errors.mean()) < 0.03
    assert np.abs(errors).max() < 4 * 0.5 / math.sqrt(N_BITS)


def test_two_healthy_scans_taken_at_random_have_a_similarity_of_about_0() -> None:
    found = codes(100, dimensions=80)
    index = make_index(found)
    others = [similarity for code in found[:10] for n, similarity in index.nearest(code, 100)[1:]]
    assert abs(np.mean(others)) < 0.05


@pytest.mark.parametrize("metric", METRICS)
def test_of_equally_similar_scans_the_first_comes_first(metric: Similarity) -> None:
    found = codes(12)
    found[[3, 7, 11]] = found[3]
    assert [n for n, _ in make_index(found, metric).nearest(found[7], 3)] == [3, 7, 11]


def test_a_constant_dimension_does_not_count() -> None:
    found = codes(10)
    found[:, 5] = 1.0
    index = make_index(found)
    strange = found[4].copy()
    strange[5] = 1e6
    assert index.nearest(strange, 1) == index.nearest(found[4], 1)


@pytest.mark.parametrize("metric", METRICS)
def test_a_saved_index_finds_the_same(metric: Similarity) -> None:
    index = make_index(codes(9), metric, np.arange(9.0))
    loaded = HealthyIndex.from_arrays(index.arrays(), metric)
    new = codes(1, seed=5)[0]
    assert loaded.neighbours(new, 4) == index.neighbours(new, 4)


def test_a_neighbour_has_a_number_its_age_in_whole_years_if_known_and_its_own_slices() -> None:
    found, ages = codes(3), np.array([53.6, math.nan, 20.0])
    index = make_index(found, ages=ages)
    first, second = index.neighbours(found[0], 1)[0], index.neighbours(found[1], 1)[0]
    assert first.label == "healthy scan 1, 54 years"
    assert second.label == "healthy scan 2"
    assert (index.slices_of([second, first])["axial"] == np.array([1, 0]).reshape(2, 1, 1)).all()


def test_there_are_no_more_neighbours_than_scans() -> None:
    assert len(make_index(codes(2)).neighbours(codes(1)[0], 5)) == 2


def test_middle_slices_cut_the_middle_of_each_axis_on_one_scale() -> None:
    voxels = np.zeros((4, 6, 5), dtype=np.float32)
    voxels[2, 3, 2] = 0.5
    voxels[1, 3, 2] = 9.0
    voxels[2, 1, 2] = -1.0
    cuts = middle_slices(voxels, 1.0)
    assert {plane: cut.shape for plane, cut in cuts.items()} == {
        "axial": (4, 6), "coronal": (4, 5), "sagittal": (6, 5)
    }  # fmt: skip
    assert cuts["axial"][2, 3] == cuts["coronal"][2, 2] == cuts["sagittal"][3, 2] == 127
    assert cuts["axial"][1, 3] == 255
    assert cuts["axial"][2, 1] == 0
