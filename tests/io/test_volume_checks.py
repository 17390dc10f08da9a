"""Shapes, geometries and voxels that cannot be those of a scan."""

from __future__ import annotations

import numpy as np
import pytest

from anomaly.core.errors import ScanRefusedError
from anomaly.core.volume import Modality, ScanWarning
from anomaly.io.volume_checks import check_shape, make_volume

AFFINE = np.diag([2.0, 2, 2, 1])


def voxels() -> np.ndarray:
    return np.arange(60.0).reshape(3, 4, 5)


def test_a_volume_carries_the_warnings_of_its_reader() -> None:
    problem = ScanWarning("pixdim", "2 mm and 3 mm", "one voxel size", "check it")
    volume = make_volume(voxels(), AFFINE, "a", Modality.T1W, [problem])
    assert volume.warnings == (problem,)
    assert volume.voxels.dtype == np.float32


def test_values_beyond_float32_are_refused() -> None:
    with pytest.raises(ScanRefusedError) as caught:
        make_volume(voxels() * 1e300, AFFINE, "a", Modality.T1W)
    assert caught.value.code == "non_finite"


@pytest.mark.parametrize(
    ("shape", "code"),
    [((3, 4), "not_3d"), ((3, 4, 1), "not_3d"), ((3, 4, 5, 2), "not_3d"), ((1 << 32, 1 << 31, 2), "too_large")],
)
def test_a_shape_that_is_not_one_volume_is_refused(shape: tuple[int, ...], code: str) -> None:
    with pytest.raises(ScanRefusedError) as caught:
        check_shape(shape)
    assert caught.value.code == code


def test_axes_of_one_after_the_third_are_dropped() -> None:
    assert check_shape((3, 4, 5, 1, 1)) == (3, 4, 5)
