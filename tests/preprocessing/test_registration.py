"""Registration to MNI152 space."""

from __future__ import annotations

import numpy as np
import pytest

from anomaly.core.errors import ScanRefusedError
from anomaly.core.volume import Geometry, Modality, Volume
from anomaly.preprocessing.registration import (
    Registration,
    RegistrationSettings,
    check_registration,
    register,
)
from anomaly.preprocessing.template import load_template
from tests.preprocessing.phantoms import brain, placement


def error_mm(found: np.ndarray, truth: np.ndarray) -> float:
    """Return the mean distance between the positions of the brain's voxels under two transforms, millimetres."""
    full = load_template()
    points = full.geometry.to_world(np.argwhere(full.mask)[::5003])
    scan = np.c_[points, np.ones(len(points))] @ np.linalg.inv(truth).T
    return float(np.linalg.norm(scan @ (found - truth).T, axis=1).mean())


@pytest.mark.slow
@pytest.mark.parametrize("modality", [Modality.T1W, Modality.T2W, Modality.FLAIR])
def test_a_known_placement_is_found_again(modality: Modality) -> None:
    volume, mask = brain(placement(), modality)
    found = register(volume, mask, RegistrationSettings())
    assert error_mm(found.template_from_scan, placement()) < 2.0
    assert found.overlap > 0.95
    assert found.correlation > 0.85


@pytest.mark.slow
def test_registration_is_reproducible_to_the_bit() -> None:
    volume, mask = brain(placement(-12, 0.85))
    first, second = (register(volume, mask, RegistrationSettings()) for _ in range(2))
    assert np.array_equal(first.template_from_scan, second.template_from_scan)
    assert (first.overlap, first.correlation) == (second.overlap, second.correlation)


@pytest.mark.slow
def test_a_head_with_a_wrong_orientation_in_its_header_is_refused() -> None:
    volume, mask = brain(placement(0))
    turn = np.diag([-1.0, -1.0, 1.0, 1.0])  # back to front, right to left: half a turn
    mislabelled = Volume(
        volume.voxels, Geometry(volume.geometry.shape, turn @ volume.geometry.affine), "sub-01", Modality.T1W
    )
    found = register(mislabelled, mask, RegistrationSettings())
    assert found.overlap > 0.9
    with pytest.raises(ScanRefusedError, match="orientation") as refused:
        check_registration(found, RegistrationSettings())
    assert refused.value.code == "registration_orientation"


@pytest.mark.slow
def test_an_image_without_a_brain_is_refused() -> None:
    grid = brain()[0].geometry
    box = np.zeros(grid.shape, dtype=bool)
    box[20:36, 10:44, 26:32] = True
    noise = np.random.default_rng(0).uniform(50, 100, grid.shape).astype(np.float32)
    found = register(Volume(noise * box, grid, "sub-01", Modality.T1W), box, RegistrationSettings())
    with pytest.raises(ScanRefusedError):
        check_registration(found, RegistrationSettings())


@pytest.mark.parametrize(
    ("numbers", "code"),
    [
        ({"overlap": 0.6}, "registration_overlap"),
        ({"correlation": 0.1}, "registration_correlation"),
        ({"rotation_deg": 120.0}, "registration_orientation"),
    ],
)
def test_each_limit_refuses_with_what_was_found_and_expected(numbers: dict[str, float], code: str) -> None:
    good = {"overlap": 0.95, "correlation": 0.7, "rotation_deg": 5.0, "volume_ratio": 1.3}
    with pytest.raises(ScanRefusedError, match=r"found .* expected") as refused:
        check_registration(Registration(np.eye(4), **(good | numbers)), RegistrationSettings())
    assert refused.value.code == code


def test_a_good_registration_passes() -> None:
    check_registration(Registration(np.eye(4), 0.95, 0.7, 5.0, 1.3), RegistrationSettings())
