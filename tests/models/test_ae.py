from __future__ import annotations

from pathlib import Path

import pytest
import torch

from anomaly.core.errors import TrainingError
from anomaly.core.views import View
from anomaly.models.ae import Autoencoder, AutoencoderSettings
from anomaly.models.base import FitRun
from anomaly.models.network import crop, pad, padded_shape
from tests.models.factories import GRID, MemoryCohort, healthy_cohort, healthy_scan, images_of


@pytest.mark.parametrize("kind", ["slice", "patch", "volume"])
def test_slices_patches_and_volumes_that_no_stride_divides(kind: str) -> None:
    view = View.parse({"kind": kind, "size": (7, 9, 11)}, "view")
    detector = Autoencoder(AutoencoderSettings(view=view, channels=(8, 16, 16), latent_size=4), GRID)
    images, mask = images_of(*healthy_scan(0), view)
    assert detector.reconstruct(images, mask).shape == mask.shape


def test_the_latent_has_the_length_that_was_asked_for() -> None:
    detector = Autoencoder(AutoencoderSettings(channels=(8, 16), latent_size=5), GRID)
    assert detector.network.encode(torch.zeros(3, 1, *detector.padded)).shape == (3, 5)


def test_neighbouring_slices_explain_the_middle_one() -> None:
    view = View(kind="slice", neighbours=2)
    detector = Autoencoder(AutoencoderSettings(view=view, channels=(8, 16), latent_size=5), GRID)
    images, mask = images_of(*healthy_scan(0), view)
    assert images.shape[1] == 5
    evidence = detector.evidence(images, mask)
    torch.testing.assert_close(
        evidence.maps["residual"], (images[:, 2:3] - detector.reconstruct(images, mask)) * mask
    )


def test_a_latent_that_could_copy_the_image_is_refused(tmp_path: Path) -> None:
    detector = Autoencoder(AutoencoderSettings(channels=(8,), latent_size=16 * 20), GRID)
    with pytest.raises(TrainingError, match=r"latent_size 320 is not smaller than the image \(320 voxels\)"):
        detector.fit(healthy_cohort(2), [], FitRun(tmp_path))


def test_a_single_scan_is_too_few(tmp_path: Path) -> None:
    detector = Autoencoder(AutoencoderSettings(channels=(8,), latent_size=4), GRID)
    with pytest.raises(TrainingError, match=r"found 1 healthy scan\(s\).*expected at least 2"):
        detector.fit(MemoryCohort(healthy_cohort(1).volumes), [], FitRun(tmp_path))


@pytest.mark.parametrize("shape", [(5, 8), (5, 8, 9)])
def test_padding_is_undone_by_cropping(shape: tuple[int, ...]) -> None:
    images = torch.rand(2, 1, *shape)
    larger = padded_shape(shape, 4)
    assert all(n % 4 == 0 for n in larger)
    assert torch.equal(crop(pad(images, larger), shape), images)
