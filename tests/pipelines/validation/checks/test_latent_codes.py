from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from anomaly.core.errors import ConfigError
from pipelines.validation.checks.latent_codes import check_latent_codes, inpaint, psnr
from pipelines.validation.model_under_test import Dataset
from tests.pipelines.validation.small_datasets import small_digits, under_test

pytestmark = pytest.mark.slow  # trains models


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return small_digits(tmp_path_factory.mktemp("dataset"))


class Linear:
    """Principal components of 8 × 8 images, fitted to some of them."""

    family = "linear"

    def __init__(self, pixels: np.ndarray[tuple[int, ...], np.dtype[np.float32]], size: int) -> None:
        self.pca = PCA(size).fit(pixels.reshape(len(pixels), -1))

    def embed(self, images: Tensor, mask: Tensor) -> Tensor:
        return torch.from_numpy(self.pca.transform(images.flatten(1).numpy())).float()

    def decode(self, z: Tensor) -> Tensor:
        return torch.from_numpy(self.pca.inverse_transform(z.numpy())).float().reshape(-1, 1, 8, 8)

    def reconstruct(self, images: Tensor, mask: Tensor) -> Tensor:
        return self.decode(self.embed(images, mask))


def test_principal_components_are_as_good_as_themselves(dataset: Dataset, tmp_path: Path) -> None:
    found = check_latent_codes(under_test(dataset, Linear(dataset.train.pixels, 10), tmp_path)).measures
    assert found["code_size"] == 10
    assert found["pca_error_ratio"] == pytest.approx(1, abs=1e-3)
    assert found["linear_probe"] > 0.85
    assert 0.5 < found["precision_at_10"] < 1
    assert found["inpainting_psnr_gain"] > 0.5
    assert found["denoising_psnr_gain"] > 0.5


def test_a_code_of_two_numbers_is_drawn_as_a_map_and_a_plane(dataset: Dataset, tmp_path: Path) -> None:
    found = check_latent_codes(under_test(dataset, Linear(dataset.train.pixels, 2), tmp_path))
    assert {"Codes of the test images", "The plane of codes, decoded"} <= found.images.keys()
    assert found.measures["linear_probe"] < 0.75


class Shuffled(Linear):
    """The same, with codes that do not depend on the images."""

    def embed(self, images: Tensor, mask: Tensor) -> Tensor:
        rng = torch.Generator().manual_seed(int(images.sum() * 1000))
        return torch.randn((len(images), 10), generator=rng)


def test_uninformative_codes_are_detected(dataset: Dataset, tmp_path: Path) -> None:
    found = check_latent_codes(under_test(dataset, Shuffled(dataset.train.pixels, 10), tmp_path)).measures
    assert found["linear_probe"] < 0.2
    assert found["precision_at_10"] < 0.2
    assert found["pca_error_ratio"] < 1


def test_hidden_pixels_are_inpainted_and_visible_ones_do_not_change(dataset: Dataset) -> None:
    model, pixels = Linear(dataset.train.pixels, 20), dataset.test.pixels[:50]
    hide_invisible = np.zeros((8, 8), dtype=bool)
    hide_invisible[4:] = True
    mean = dataset.train.pixels.mean(axis=0)
    restored = inpaint(model, pixels, hide_invisible, mean)
    assert np.array_equal(restored[:, :4], pixels[:, :4])
    assert psnr(pixels, restored) > psnr(pixels, np.where(hide_invisible, mean, pixels))


def test_the_peak_signal_to_noise_ratio_is_that_of_the_mean_squared_error() -> None:
    truth = np.zeros((2, 4, 4), dtype=np.float32)
    assert psnr(truth, truth + 0.1) == pytest.approx(20, abs=1e-4)


def test_a_model_without_a_code_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    silent = type("Silent", (), {"family": "diffusion"})()
    with pytest.raises(ConfigError, match="remove the check latent_codes"):
        check_latent_codes(under_test(dataset, silent, tmp_path))
