"""A small dataset of avatars: each image is five stripes, and the classifier reads them exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from anomaly.core.volume import FloatArray
from pipelines.validation.datasets.avatars.dataset import ATTRIBUTE_VALUES, Avatars, in_colour
from pipelines.validation.datasets.avatars.distribution import VALUES
from pipelines.validation.datasets.avatars.image_bank import ImageBank, hide_invisible, visible_codes
from pipelines.validation.datasets.avatars.mosaic import mosaic, to_rgb
from pipelines.validation.datasets.avatars.settings import AvatarSettings
from pipelines.validation.labelled_dataset import NOT_VISIBLE, LabelledImages, Labels
from pipelines.validation.model_under_test import Dataset, ModelUnderTest
from pipelines.validation.settings import ValidationSettings

SIZE = 10
BALD = 250  # brightness of the stripe of a hair colour that is not there
SETTINGS = AvatarSettings(train=400, test=400, held_out=50, calibration=200, out_of_distribution=60, reference=50)
NAIVE_BAYES = {
    "naive_bayes": {"of": "features"},
    "checks": ["unobserved_combinations"],
    "thresholds": {"unobserved_combinations.unobserved_fraction": {"min": 1}},
}
"""An entry of a task: naive Bayes of features."""


def brightness(rows: Labels) -> Any:
    """Return the brightness of each stripe ``(N, 5)``: values are at least 25 grey levels apart."""
    return np.where(rows == NOT_VISIBLE, BALD, 10 + 28 * rows).astype(np.uint8)


def painted(rows: Labels) -> Any:
    """Return images uint8 ``(N, 10, 10, 3)``, two rows to each feature."""
    stripes = np.repeat(brightness(rows), 2, axis=1)
    return np.broadcast_to(stripes[:, :, None, None], (len(rows), SIZE, SIZE, 3)).copy()


class Reader:
    """A classifier of stripes; the more uneven they are, the lower its confidence."""

    def probabilities(self, pixels: FloatArray) -> list[FloatArray]:
        stripes = to_rgb(pixels).astype(np.float64).reshape(len(pixels), 5, 2, SIZE, 3)
        found = []
        for feature, values in enumerate(VALUES):
            levels = brightness(np.arange(len(values))[:, None])[:, 0].astype(np.float64)
            apart = np.abs(stripes[:, feature].reshape(len(pixels), -1, 1) - levels).mean(axis=1)
            closeness = np.exp(-apart / 3)
            found.append((closeness / closeness.sum(axis=1, keepdims=True)).astype(np.float32))
        return found

    def features(self, pixels: FloatArray) -> FloatArray:
        return to_rgb(pixels).astype(np.float32).reshape(len(pixels), 5, -1).mean(axis=2)

    def accuracy(self, images: LabelledImages) -> Any:
        read = np.stack([p.argmax(axis=1) for p in self.probabilities(images.pixels)], axis=1)
        return ((read == images.labels) | (images.labels == NOT_VISIBLE)).mean(axis=0)


class StripedAvatars(Avatars):
    """Avatars whose out-of-distribution images have a stripe that is bright at one end."""

    def out_of_distribution_images(self, n: int) -> Any:
        kinds = np.array(["eyepatch", "hat", "graphic shirt"])[np.arange(n) % 3]
        rgb = painted(self.images("out of distribution", n).labels)
        for number, kind in enumerate(kinds):
            start = {"eyepatch": 4, "hat": 0, "graphic shirt": 6}[kind]
            rgb[number, start : start + 2, : SIZE // 2] = 255
        return mosaic(rgb), kinds


def small_dataset() -> Dataset:
    avatars = StripedAvatars(SETTINGS, ImageBank(painted(visible_codes())))
    train, test = avatars.images("train", SETTINGS.train), avatars.images("test", SETTINGS.test)
    return Dataset(train, test, "stripes", ATTRIBUTE_VALUES, Reader(), in_colour, hide_invisible, avatars)  # type: ignore[arg-type]


def sampled_labels(dataset: Dataset, n: int = 4000) -> Labels:
    """Return the labels of ``n`` avatars that follow the distribution."""
    assert dataset.avatars is not None
    return dataset.avatars.images("conditions", n).labels


def avatar_task(**models: Any) -> dict[str, Any]:
    """Return the values of a task on avatars."""
    return {"name": "avatars", "dataset": "avatars", "description": "Avatars.", "models": models}


def under_test(dataset: Dataset, model: Any, folder: Path, samples: int = 400) -> ModelUnderTest:
    """Return a model under test that needs no training."""
    entry = {
        "model": {"family": "pca"},
        "checks": ["avatar_samples"],
        "thresholds": {"avatar_samples.valid": {"min": 0}},
    }
    checks = {"samples": samples, "neighbour_images": 200}
    settings = ValidationSettings.parse(avatar_task(fake=entry) | {"checks": checks}, "test")
    made = ModelUnderTest(dataset, settings.models["fake"], settings, folder)
    made.__dict__["detector"] = model
    return made


class Drawing:
    """A generator of avatars with given labels."""

    family = "drawing"

    def __init__(self, dataset: Dataset, rows: Labels) -> None:
        self.image_bank, self.rows = dataset.avatars.image_bank, rows  # type: ignore[union-attr]

    def sample(self, n: int, rng: torch.Generator) -> torch.Tensor:
        selected = torch.randint(len(self.rows), (n,), generator=rng).numpy()
        return torch.from_numpy(self.image_bank.mosaics(self.rows[selected]))[:, None]


class Noise:
    """A generator of noise."""

    family = "noise"

    def sample(self, n: int, rng: torch.Generator) -> torch.Tensor:
        return torch.rand((n, 1, 2 * SIZE, 2 * SIZE), generator=rng)


class Tailor:
    """A conditional generator that may ignore one attribute, or let one follow another."""

    family = "tailor"

    def __init__(
        self, dataset: Dataset, ignored: int | None = None, follows: tuple[int, int] | None = None
    ) -> None:
        self.image_bank, self.ignored, self.follows = dataset.avatars.image_bank, ignored, follows  # type: ignore[union-attr]

    is_conditional = True

    def sample(self, n: int, rng: torch.Generator, covariates: torch.Tensor | None = None) -> torch.Tensor:
        covariates = torch.full((n, 5), torch.nan) if covariates is None else covariates
        rows = torch.where(covariates.isnan(), 0, covariates).numpy().astype(np.int64)
        if self.ignored is not None:
            rows[:, self.ignored] = torch.randint(2, (len(rows),), generator=rng).numpy()
        if self.follows is not None:
            leader, follower = self.follows
            rows[:, follower] = rows[:, leader] % len(VALUES[follower])
        return torch.from_numpy(self.image_bank.mosaics(rows))[:, None]


class Pixels:
    """A code that is the image itself, so that arithmetic on it is exact."""

    family = "pixels"

    def embed(self, images: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return z.reshape(-1, 1, 2 * SIZE, 2 * SIZE)


class Forgetful(Pixels):
    """A code without information: every code is decoded to the mean image."""

    family = "forgetful"

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return z.mean(dim=0, keepdim=True).expand_as(z).reshape(-1, 1, 2 * SIZE, 2 * SIZE)
