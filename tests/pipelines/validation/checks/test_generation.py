from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from anomaly.core.errors import ConfigError, InputError
from pipelines.validation.checks.generation import (
    check_conditional_generation,
    check_generation,
    interpolations,
)
from pipelines.validation.labelled_dataset import LabelledImages
from pipelines.validation.model_under_test import Dataset
from tests.pipelines.validation import small_avatars
from tests.pipelines.validation.small_datasets import Fake, small_digits, under_test

pytestmark = pytest.mark.slow  # trains models


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return small_digits(tmp_path_factory.mktemp("dataset"))


def drawn_from(pixels: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Fake:
    return Fake(torch.from_numpy(np.ascontiguousarray(pixels)))


def moved(dataset: Dataset) -> Tensor:
    """Return training images that are changed a little: neither copies nor unlike digits."""
    pixels = torch.from_numpy(dataset.train.pixels)
    noise = 0.25 * torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
    return (pixels + noise * (pixels > 0)).clamp(0, 1)


def test_test_images_have_high_precision_and_recall(dataset: Dataset, tmp_path: Path) -> None:
    found = check_generation(under_test(dataset, drawn_from(dataset.test.pixels), tmp_path)).measures
    assert found["precision"] > 0.95
    assert found["recall"] > 0.9
    assert found["frechet"] < 1
    assert found["confident_fraction"] > 0.8
    assert found["class_total_variation"] < 0.15
    assert found["memorised_fraction"] < 0.02


def test_noise_has_low_coverage_and_recall(dataset: Dataset, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).random((500, 8, 8), dtype=np.float32)
    found = check_generation(under_test(dataset, drawn_from(noise), tmp_path)).measures
    assert found["frechet"] > 20
    assert found["coverage"] < 0.5
    assert found["recall"] < 0.5


def test_a_sampler_of_training_images_memorises(dataset: Dataset, tmp_path: Path) -> None:
    found = check_generation(under_test(dataset, drawn_from(dataset.train.pixels), tmp_path)).measures
    assert found["memorised_fraction"] == 1
    assert found["precision"] > 0.95  # precision alone does not detect memorisation
    with_one_changed = check_generation(under_test(dataset, Fake(moved(dataset)), tmp_path)).measures
    assert with_one_changed["memorised_fraction"] < 0.5


def test_one_kind_alone_is_a_collapse(dataset: Dataset, tmp_path: Path) -> None:
    ones = dataset.test.pixels[dataset.test.labels[:, 0] == 1]
    found = check_generation(under_test(dataset, drawn_from(ones), tmp_path)).measures
    assert found["class_total_variation"] > 0.8
    assert found["rarest_class_ratio"] < 0.1
    assert found["recall"] < 0.3


def test_the_grids_are_png_images(dataset: Dataset, tmp_path: Path) -> None:
    found = check_generation(under_test(dataset, drawn_from(dataset.test.pixels), tmp_path)).images
    assert list(found) == [
        "Samples",
        "Classes of the samples",
        "Samples above their nearest training images",
    ]
    for number, png in enumerate(found.values()):
        path = tmp_path / f"{number}.png"
        path.write_bytes(png)
        with Image.open(path) as image:
            assert min(image.size) > 20
            assert len(image.getcolors() or ()) > 3


def test_a_model_that_samples_nothing_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="remove the check generation"):
        check_generation(under_test(dataset, object_of("pca"), tmp_path))
    with pytest.raises(ConfigError, match="remove the check conditional"):
        check_conditional_generation(under_test(dataset, object_of("pca"), tmp_path))


def object_of(family: str) -> object:
    return type("Silent", (), {"family": family})()


class OnRequest(Fake):
    """A model that draws the digit it is asked for, or always the next one."""

    def __init__(self, dataset: Dataset, off_by: int) -> None:
        super().__init__(torch.from_numpy(dataset.test.pixels))
        self.labels, self.off_by = torch.from_numpy(dataset.test.labels[:, 0]), off_by

    is_conditional = True

    def sample(self, n: int, rng: torch.Generator, covariates: Tensor | None = None) -> Tensor:
        assert covariates is not None
        wanted = (covariates[:, 0].long() + self.off_by) % 10
        return torch.stack([self.images[self.labels == digit][0] for digit in wanted])[:, None]


def test_condition_accuracy_shows_whether_conditions_are_followed(dataset: Dataset, tmp_path: Path) -> None:
    followed = check_conditional_generation(under_test(dataset, OnRequest(dataset, 0), tmp_path)).measures
    ignored = check_conditional_generation(under_test(dataset, OnRequest(dataset, 1), tmp_path)).measures
    assert followed["condition_accuracy"] >= 0.9
    assert ignored == {"condition_accuracy": 0.0, "condition_accuracy_lowest": 0.0}


class Pixelwise:
    """A model whose code is the image itself."""

    def embed(self, images: Tensor, mask: Tensor) -> Tensor:
        return images.flatten(1)

    def decode(self, z: Tensor) -> Tensor:
        return z.reshape(-1, 1, 8, 8)


def test_the_way_between_two_codes_begins_at_one_and_ends_at_the_other(dataset: Dataset) -> None:
    some = dataset.test.select(slice(6))
    pixels, ways = some.pixels, interpolations(Pixelwise(), some).reshape(3, 10, 8, 8)
    assert np.allclose(ways[:, 0], pixels[:3])
    assert np.allclose(ways[:, -1], pixels[3:])
    assert np.allclose(ways[1].mean(axis=0), (pixels[1] + pixels[4]) / 2, atol=1e-6)


class LabelAsGreyLevel(Pixelwise):
    """A model whose image is the given label, as a grey level."""

    def interpolate(
        self, first: Tensor, second: Tensor, weight: float, covariates: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        assert covariates is not None
        return torch.lerp(*covariates, weight).div(10)[:, :, None, None].expand(-1, -1, 8, 8)


def test_a_conditional_model_interpolates_under_the_labels_of_both_images(dataset: Dataset) -> None:
    some = dataset.test.select(slice(6))
    ways = interpolations(LabelAsGreyLevel(), some).reshape(3, 10, 8, 8)
    assert np.allclose(ways[:, 0, 0, 0], some.labels[:3, 0] / 10)
    assert np.allclose(ways[:, -1, 0, 0], some.labels[3:, 0] / 10)


def test_copies_of_repeated_or_binarised_training_images_are_memorised_too(
    dataset: Dataset, tmp_path: Path
) -> None:
    twice = replace(
        dataset, train=LabelledImages(np.repeat(dataset.train.pixels, 2, 0), np.repeat(dataset.train.labels, 2, 0))
    )
    copier = drawn_from(dataset.train.pixels)
    assert check_generation(under_test(twice, copier, tmp_path)).measures["memorised_fraction"] == 1
    in_draws = under_test(dataset, copier, tmp_path)
    in_draws.__dict__["seen"] = replace(dataset.train, binarisations=5)
    assert check_generation(in_draws).measures["memorised_fraction"] == 1


def test_images_that_are_not_finite_are_an_error(dataset: Dataset, tmp_path: Path) -> None:
    broken = np.full((20, 8, 8), np.nan, dtype=np.float32)
    with pytest.raises(InputError, match="not finite"):
        check_generation(under_test(dataset, drawn_from(broken), tmp_path))


def test_the_check_runs_on_avatars(tmp_path: Path) -> None:
    avatars = small_avatars.small_dataset()
    model = small_avatars.Drawing(avatars, small_avatars.sampled_labels(avatars))
    found = check_generation(small_avatars.under_test(avatars, model, tmp_path)).measures
    assert found["confident_fraction"] == 1
    assert found["class_total_variation"] < 0.1
