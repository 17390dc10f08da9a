"""Volumes and their geometry."""

from __future__ import annotations

import numpy as np
import pytest

from anomaly.core.volume import Geometry, Modality, Volume

OBLIQUE = np.array([[0, -2.0, 0.3, 5], [1.9, 0, 0, -7], [0, 0.4, 3.0, 11], [0, 0, 0, 1]])


def test_to_index_is_the_inverse_of_to_world() -> None:
    geometry = Geometry((5, 6, 7), OBLIQUE)
    indices = np.array([[0, 0, 0], [4, 5, 6], [1, 2, 3]])

    np.testing.assert_allclose(geometry.to_index(geometry.to_world(indices)), indices, atol=1e-12)


def test_spacing_is_the_length_of_a_voxel_step_along_each_axis() -> None:
    spacing = Geometry((5, 6, 7), np.diag([-2.0, 3.0, 0.5, 1.0])).spacing

    assert spacing == (2.0, 3.0, 0.5)


def test_a_voxel_of_2_by_3_by_half_a_millimetre_has_three_microlitres() -> None:
    assert Geometry((5, 6, 7), np.diag([-2.0, 3.0, 0.5, 1.0])).voxel_ml == pytest.approx(0.003)


def test_an_affine_is_read_only() -> None:
    geometry = Geometry((5, 6, 7), np.eye(4))

    with pytest.raises(ValueError, match="read-only"):
        geometry.affine[0, 0] = 5


def test_a_volume_refuses_voxels_that_do_not_fit_its_grid() -> None:
    with pytest.raises(ValueError, match=r"\(2, 2, 2\).*\(3, 3, 3\)"):
        Volume(np.zeros((2, 2, 2), np.float32), Geometry((3, 3, 3), np.eye(4)), "sub-01", Modality.T1W)


def test_shifted_grids_are_not_the_same() -> None:
    shifted = np.eye(4)
    shifted[0, 3] = 1.0

    assert not Geometry((3, 3, 3), np.eye(4)).same_as(Geometry((3, 3, 3), shifted))
    assert Geometry((3, 3, 3), np.eye(4)).same_as(Geometry((3, 3, 3), np.eye(4)))


def test_only_t1ce_has_a_modality_without_agent() -> None:
    assert Modality.T1W_CE.without_agent is Modality.T1W
    assert all(m.without_agent is m for m in Modality if m is not Modality.T1W_CE)
