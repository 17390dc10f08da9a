"""The MNI152 template on the target grid."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from anomaly.core.volume import Modality
from anomaly.preprocessing.template import load_template, target_grid, template_on


def test_a_spacing_of_two_millimetres_gives_the_documented_grid() -> None:
    grid = target_grid(2.0)
    assert grid.shape == (80, 96, 80)
    assert np.array_equal(np.diag(grid.affine), [2, 2, 2, 1])


@pytest.mark.parametrize("spacing", [1.0, 1.5, 3.0, 4.0])
def test_every_grid_covers_the_brain_and_can_be_downsampled_four_times(spacing: float) -> None:
    grid, full = target_grid(spacing), load_template()
    brain = grid.to_index(full.geometry.to_world(np.argwhere(full.mask)[::997]))
    assert all(n % 16 == 0 for n in grid.shape)
    assert (brain >= -0.5).all()
    assert (brain <= np.array(grid.shape) - 0.5).all()


def test_the_brain_mask_has_no_holes_and_the_size_of_the_template() -> None:
    full = load_template()
    assert np.array_equal(full.mask, ndimage.binary_fill_holes(full.mask))
    assert full.mask.sum() * full.geometry.voxel_ml == pytest.approx(1887, abs=5)


def test_the_template_is_cached_and_read_only() -> None:
    assert template_on(4.0) is template_on(4.0)
    with pytest.raises(ValueError, match="read-only"):
        template_on(4.0).t1[0, 0, 0] = 1


def test_tissues_have_the_contrast_of_each_modality() -> None:
    template = template_on(4.0)
    white, csf = template.white > 0.9, template.csf > 0.6
    for modality, white_is_brighter in ((Modality.T1W, True), (Modality.T2W, False), (Modality.FLAIR, True)):
        image = template.contrast(modality)
        assert (image[white].mean() > image[csf].mean()) == white_is_brighter


def test_depth_is_zero_between_the_last_voxel_inside_and_the_first_outside() -> None:
    template = template_on(4.0)
    depth = template.depth_mm()
    assert depth[template.mask].min() == 2.0
    assert depth[~template.mask].max() == -2.0
