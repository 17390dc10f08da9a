from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from anomaly.core.errors import ConfigError, InputError
from pipelines.validation.checks.generation import between, conditional, generation
from pipelines.validation.labelled_dataset import Pictures
from pipelines.validation.model_under_test import World
from tests.pipelines.validation.small_datasets import Fake, candidate, small_digits


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return small_digits(tmp_path_factory.mktemp("world"))


def drawn_from(pixels: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Fake:
    return Fake(torch.from_numpy(np.ascontiguousarray(pixels)))


def moved(world: World) -> Tensor:
    """Return training pictures that are changed a little: neither copies nor anything else."""
    pixels = torch.from_numpy(world.train.pixels)
    noise = 0.25 * torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
    return (pixels + noise * (pixels > 0)).clamp(0, 1)


def test_real_digits_pass_for_real_and_are_of_all_kinds(world: World, tmp_path: Path) -> None:
    found = generation(candidate(world, drawn_from(world.test.pixels), tmp_path)).measures
    assert found["precision"] > 0.95
    assert found["recall"] > 0.9
    assert found["frechet"] < 1
    assert found["legible"] > 0.8
    assert found["kinds_apart"] < 0.15
    assert found["copied"] < 0.02


def test_noise_passes_for_nothing(world: World, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).random((500, 8, 8), dtype=np.float32)
    found = generation(candidate(world, drawn_from(noise), tmp_path)).measures
    assert found["frechet"] > 20
    assert found["coverage"] < 0.5
    assert found["recall"] < 0.5


def test_a_sampler_of_training_pictures_is_a_copier(world: World, tmp_path: Path) -> None:
    found = generation(candidate(world, drawn_from(world.train.pixels), tmp_path)).measures
    assert found["copied"] == 1
    assert found["precision"] > 0.95  # which alone would not tell
    changed = generation(candidate(world, Fake(moved(world)), tmp_path)).measures
    assert changed["copied"] < 0.5


def test_one_kind_alone_is_a_collapse(world: World, tmp_path: Path) -> None:
    ones = world.test.pixels[world.test.labels[:, 0] == 1]
    found = generation(candidate(world, drawn_from(ones), tmp_path)).measures
    assert found["kinds_apart"] > 0.8
    assert found["rarest_kind"] < 0.1
    assert found["recall"] < 0.3


def test_the_sheets_are_pictures(world: World, tmp_path: Path) -> None:
    found = generation(candidate(world, drawn_from(world.test.pixels), tmp_path)).pictures
    assert list(found) == [
        "Samples",
        "What the samples show",
        "Samples above the training pictures nearest to them",
    ]
    for number, png in enumerate(found.values()):
        path = tmp_path / f"{number}.png"
        path.write_bytes(png)
        with Image.open(path) as image:
            assert min(image.size) > 20
            assert len(image.getcolors() or ()) > 3


def test_what_draws_nothing_is_not_examined(world: World, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leave out the exam generation"):
        generation(candidate(world, object_of("pca"), tmp_path))
    with pytest.raises(ConfigError, match="leave out the exam conditional"):
        conditional(candidate(world, object_of("pca"), tmp_path))


def object_of(family: str) -> object:
    return type("Silent", (), {"family": family})()


class OnRequest(Fake):
    """A model that draws the digit it is asked for, or always the next one."""

    def __init__(self, world: World, off_by: int) -> None:
        super().__init__(torch.from_numpy(world.test.pixels))
        self.labels, self.off_by = torch.from_numpy(world.test.labels[:, 0]), off_by

    is_conditional = True

    def sample(self, n: int, rng: torch.Generator, covariates: Tensor | None = None) -> Tensor:
        assert covariates is not None
        wanted = (covariates[:, 0].long() + self.off_by) % 10
        return torch.stack([self.pictures[self.labels == digit][0] for digit in wanted])[:, None]


def test_requests_are_followed_or_not(world: World, tmp_path: Path) -> None:
    followed = conditional(candidate(world, OnRequest(world, 0), tmp_path)).measures
    ignored = conditional(candidate(world, OnRequest(world, 1), tmp_path)).measures
    assert followed["as_asked"] >= 0.9
    assert ignored == {"as_asked": 0.0, "as_asked_lowest": 0.0}


class Pixelwise:
    """A model whose code is the picture itself."""

    def embed(self, images: Tensor, mask: Tensor) -> Tensor:
        return images.flatten(1)

    def decode(self, z: Tensor) -> Tensor:
        return z.reshape(-1, 1, 8, 8)


def test_the_way_between_two_codes_begins_at_one_and_ends_at_the_other(world: World) -> None:
    some = world.test.select(slice(6))
    pixels, ways = some.pixels, between(Pixelwise(), some).reshape(3, 10, 8, 8)
    assert np.allclose(ways[:, 0], pixels[:3])
    assert np.allclose(ways[:, -1], pixels[3:])
    assert np.allclose(ways[1].mean(axis=0), (pixels[1] + pixels[4]) / 2, atol=1e-6)


class Told(Pixelwise):
    """A model that draws the label it is told as a grey level."""

    def interpolate(
        self, first: Tensor, second: Tensor, weight: float, covariates: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        assert covariates is not None
        return torch.lerp(*covariates, weight).div(10)[:, :, None, None].expand(-1, -1, 8, 8)


def test_a_conditional_model_is_told_what_the_pictures_show_that_it_goes_between(world: World) -> None:
    some = world.test.select(slice(6))
    ways = between(Told(), some).reshape(3, 10, 8, 8)
    assert np.allclose(ways[:, 0, 0, 0], some.labels[:3, 0] / 10)
    assert np.allclose(ways[:, -1, 0, 0], some.labels[3:, 0] / 10)


def test_copies_of_pictures_that_are_learnt_from_twice_or_as_draws_are_copies_too(
    world: World, tmp_path: Path
) -> None:
    twice = replace(world, train=Pictures(np.repeat(world.train.pixels, 2, 0), np.repeat(world.train.labels, 2, 0)))
    copier = drawn_from(world.train.pixels)
    assert generation(candidate(twice, copier, tmp_path)).measures["copied"] == 1
    in_draws = candidate(world, copier, tmp_path)
    in_draws.__dict__["seen"] = replace(world.train, draws=5)
    assert generation(in_draws).measures["copied"] == 1


def test_pictures_that_are_no_numbers_are_an_error_that_says_so(world: World, tmp_path: Path) -> None:
    broken = np.full((20, 8, 8), np.nan, dtype=np.float32)
    with pytest.raises(InputError, match="not finite"):
        generation(candidate(world, drawn_from(broken), tmp_path))
