"""What holds for every input, not only for examples; hypothesis chooses the inputs."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from anomaly.calibration.conformal import flag_rank, minimum_alpha, p_values
from anomaly.calibration.operating_point import operating_point
from anomaly.core.volume import Geometry, Volume
from anomaly.export.nifti import write_nifti
from anomaly.io.bids import parse_scan_name, safe_file_name
from anomaly.io.nifti import read_nifti
from anomaly.preprocessing.orient import to_ras

settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=60, database=None)
settings.load_profile("repeatable")

SIZES = st.integers(2, 6)
SPACINGS = st.floats(0.3, 8.0)
SHIFTS = st.floats(-200.0, 200.0)
ANGLES = st.floats(-np.pi, np.pi)
SCORES = st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=60)
ALPHAS = st.floats(0.001, 0.999)
LABELS = st.text("abcXYZ019", min_size=1, max_size=8)


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    """Draw a grid in any orientation: rotated, and with flipped and permuted axes."""
    rotation = np.eye(3)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        angle, plane = draw(ANGLES), np.eye(3)
        plane[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        rotation = rotation @ plane
    flips = np.diag(draw(st.tuples(*[st.sampled_from((-1.0, 1.0))] * 3)))
    affine = np.eye(4)
    affine[:3, :3] = rotation @ flips @ np.diag(draw(st.tuples(SPACINGS, SPACINGS, SPACINGS)))
    affine[:3, 3] = draw(st.tuples(SHIFTS, SHIFTS, SHIFTS))
    return Geometry(draw(st.tuples(SIZES, SIZES, SIZES)), affine)


def numbered_voxels(geometry: Geometry) -> npt.NDArray[np.float32]:
    """Return voxels that all differ."""
    return np.arange(np.prod(geometry.shape), dtype=np.float32).reshape(geometry.shape)


@pytest.mark.slow
@given(geometries())
def test_indices_and_positions_are_inverse_to_each_other(geometry: Geometry) -> None:
    indices = np.argwhere(np.ones(geometry.shape, dtype=bool))
    np.testing.assert_allclose(geometry.to_index(geometry.to_world(indices)), indices, atol=1e-6)


@given(geometries())
def test_reorientation_keeps_every_voxel_at_its_position(geometry: Geometry) -> None:
    volume = Volume(numbered_voxels(geometry), geometry, "scan")
    turned = to_ras(volume)
    indices = np.argwhere(np.ones(turned.geometry.shape, dtype=bool))
    before = np.rint(geometry.to_index(turned.geometry.to_world(indices))).astype(int)
    np.testing.assert_array_equal(turned.voxels[tuple(indices.T)], volume.voxels[tuple(before.T)])
    assert np.array_equal(to_ras(turned).voxels, turned.voxels)


@pytest.mark.slow
@given(geometries())
def test_a_written_scan_is_read_as_it_was(geometry: Geometry) -> None:
    voxels = numbered_voxels(geometry)
    with tempfile.TemporaryDirectory() as folder:
        for ending in (".nii", ".nii.gz"):
            path = Path(folder, f"scan{ending}")
            write_nifti(path, voxels, geometry)
            volume = read_nifti(path)
            assert volume.geometry.same_as(geometry)
            np.testing.assert_array_equal(volume.voxels, voxels)


@given(SCORES, ALPHAS)
def test_no_more_than_the_target_of_exchangeable_scans_has_a_p_value_below_it(
    scores: list[float], alpha: float
) -> None:
    """Each scan in turn is the new one: at most (n + 1) alpha of the n + 1 scans are flagged, ties or not."""
    ranked = [float(p_values(score, scores[:k] + scores[k + 1 :])) for k, score in enumerate(scores)]
    assert sum(p <= alpha for p in ranked) <= alpha * len(scores)


@given(SCORES, ALPHAS, st.floats(-1e6, 1e6))
def test_a_score_above_the_threshold_is_the_same_as_a_p_value_within_the_target(
    reference: list[float], alpha: float, score: float
) -> None:
    assume(alpha >= minimum_alpha(len(reference)))
    point = operating_point(reference, alpha)
    for value in (score, point.threshold, np.nextafter(point.threshold, np.inf)):
        assert (value > point.threshold) == (float(p_values(value, reference)) <= alpha)


@given(st.integers(1, 5000), ALPHAS)
def test_the_expected_rate_is_the_largest_that_the_target_allows(n_healthy: int, alpha: float) -> None:
    assume(alpha >= minimum_alpha(n_healthy))
    rank = flag_rank(n_healthy, alpha)
    assert rank / (n_healthy + 1) <= alpha < (rank + 1) / (n_healthy + 1)


@given(arrays(np.float64, 20, elements=st.floats(-1e3, 1e3)), st.floats(-1e3, 1e3), st.floats(0, 1e3))
def test_a_higher_score_has_no_higher_p_value(
    reference: npt.NDArray[np.float64], score: float, more: float
) -> None:
    assert p_values(score + more, reference) <= p_values(score, reference)


@given(LABELS, LABELS, st.sampled_from(["T1w", "T2w", "FLAIR"]), st.sampled_from([".nii", ".nii.gz"]))
def test_bids_names_give_subject_session_and_modality(subject: str, session: str, suffix: str, ending: str) -> None:
    stem = f"sub-{subject}_ses-{session}_{suffix}"
    name = parse_scan_name(Path(f"sub-{subject}/ses-{session}/anat/{stem}{ending}"))
    assert (name.scan_id, name.subject, name.session) == (stem, f"sub-{subject}", f"ses-{session}")
    assert name.modality.value == suffix


@given(st.text(min_size=1, max_size=300))
def test_a_safe_file_name_is_safe_and_stays_the_same(text: str) -> None:
    name = safe_file_name(text)
    assert name
    assert all(letter.isascii() and (letter.isalnum() or letter in "._+-") for letter in name)
    assert not name.startswith(".")
    assert safe_file_name(name) == name
