"""Image quality metrics of a scan as received."""

from __future__ import annotations

import numpy as np
import pytest

from anomaly.core.volume import Geometry, Modality, Volume
from anomaly.qc.metrics import image_quality_metrics
from tests.conftest import make_volume


def test_the_field_of_view_and_slices_are_those_of_the_shortest_axis() -> None:
    metrics = image_quality_metrics(make_volume(shape=(30, 40, 20), spacing=4.0))
    assert metrics["min_extent_mm"] == pytest.approx(80)
    assert metrics["min_slices"] == 20
    assert metrics["max_spacing_mm"] == pytest.approx(4)


def test_the_foreground_of_an_extracted_brain_is_the_brain() -> None:
    volume = make_volume(shape=(40, 48, 40))
    metrics = image_quality_metrics(volume)
    assert metrics["foreground_share"] == pytest.approx((volume.voxels > 0).mean(), abs=0.01)
    assert metrics["foreground_ml"] == pytest.approx((volume.voxels > 0).sum() * 0.064, rel=0.02)


def test_negative_values_inside_an_extracted_brain_do_not_turn_its_surroundings_into_tissue() -> None:
    volume = make_volume(shape=(40, 48, 40))
    voxels = volume.voxels.copy()
    voxels[20, 20, 18:22] = -90
    share = image_quality_metrics(volume.with_voxels(voxels))["foreground_share"]
    assert share == pytest.approx((volume.voxels > 0).mean(), abs=0.01)


def test_the_foreground_of_a_ct_is_what_is_denser_than_air() -> None:
    volume = make_volume(shape=(40, 48, 40), modality=Modality.CT)
    with_air = volume.with_voxels(np.where(volume.voxels > 0, volume.voxels / 3, -1000))
    metrics = image_quality_metrics(with_air)
    assert metrics["foreground_share"] == pytest.approx((volume.voxels > 0).mean(), abs=0.01)
    assert metrics["below_minus_200"] > 0.3


def test_metrics_do_not_depend_on_the_order_in_memory() -> None:
    volume = make_volume(shape=(80, 90, 100))
    fortran = Volume(np.asfortranarray(volume.voxels), volume.geometry, "a", volume.modality)
    one, two = image_quality_metrics(volume), image_quality_metrics(fortran)
    assert one["foreground_share"] == pytest.approx(two["foreground_share"], abs=0.01)
    assert image_quality_metrics(volume) == one


def test_all_metrics_are_finite() -> None:
    flat = Volume(np.arange(27, dtype=np.float32).reshape(3, 3, 3), Geometry((3, 3, 3), np.eye(4)), "a")
    assert all(np.isfinite(value) for value in image_quality_metrics(flat).values())
