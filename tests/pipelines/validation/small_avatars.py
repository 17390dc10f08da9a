"""A world of avatars that costs nothing: the picture of a look is five stripes, and what reads them is exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from anomaly.core.volume import FloatArray
from pipelines.validation.datasets.avatars.dataset import FEATURES, Avatars, in_colour
from pipelines.validation.datasets.avatars.distribution import VALUES
from pipelines.validation.datasets.avatars.image_bank import Album, every_picture, hidden
from pipelines.validation.datasets.avatars.mosaic import colours, mosaic
from pipelines.validation.datasets.avatars.settings import AvatarSettings
from pipelines.validation.labelled_dataset import NOT_SHOWN, Labels, Pictures
from pipelines.validation.model_under_test import Candidate, World
from pipelines.validation.settings import ValidationSettings

SIZE = 10
BALD = 250  # brightness of the stripe of a hair colour that is not there
SETTINGS = AvatarSettings(train=400, test=400, held_out=50, calibration=200, outside=60, reference=50)


def brightness(rows: Labels) -> Any:
    """Return the brightness of each stripe ``(N, 5)``: values are at least 25 grey levels apart."""
    return np.where(rows == NOT_SHOWN, BALD, 10 + 28 * rows).astype(np.uint8)


def painted(rows: Labels) -> Any:
    """Return pictures uint8 ``(N, 10, 10, 3)``, two rows to each feature."""
    stripes = np.repeat(brightness(rows), 2, axis=1)
    return np.broadcast_to(stripes[:, :, None, None], (len(rows), SIZE, SIZE, 3)).copy()


class Reader:
    """Reads stripes; as unsure as they are uneven."""

    def probabilities(self, pixels: FloatArray) -> list[FloatArray]:
        stripes = colours(pixels).astype(np.float64).reshape(len(pixels), 5, 2, SIZE, 3)
        found = []
        for feature, values in enumerate(VALUES):
            levels = brightness(np.arange(len(values))[:, None])[:, 0].astype(np.float64)
            apart = np.abs(stripes[:, feature].reshape(len(pixels), -1, 1) - levels).mean(axis=1)
            closeness = np.exp(-apart / 3)
            found.append((closeness / closeness.sum(axis=1, keepdims=True)).astype(np.float32))
        return found

    def features(self, pixels: FloatArray) -> FloatArray:
        return colours(pixels).astype(np.float32).reshape(len(pixels), 5, -1).mean(axis=2)

    def accuracy(self, pictures: Pictures) -> Any:
        read = np.stack([p.argmax(axis=1) for p in self.probabilities(pictures.pixels)], axis=1)
        return ((read == pictures.labels) | (pictures.labels == NOT_SHOWN)).mean(axis=0)


class StripedAvatars(Avatars):
    """Strangers wear a stripe that is bright at one end."""

    def strangers(self, n: int) -> Any:
        kinds = np.array(["eyepatch", "hat", "graphic shirt"])[np.arange(n) % 3]
        rgb = painted(self.looks("outside", n).labels)
        for number, kind in enumerate(kinds):
            start = {"eyepatch": 4, "hat": 0, "graphic shirt": 6}[kind]
            rgb[number, start : start + 2, : SIZE // 2] = 255
        return mosaic(rgb), kinds


def small_world() -> World:
    avatars = StripedAvatars(SETTINGS, Album(painted(every_picture())))
    train, test = avatars.looks("train", SETTINGS.train), avatars.looks("test", SETTINGS.test)
    return World(train, test, "stripes", FEATURES, Reader(), in_colour, hidden, avatars)  # type: ignore[arg-type]


def candidate(world: World, model: Any, folder: Path, samples: int = 400) -> Candidate:
    """Return a model under examination that is there already."""
    trial = {"model": {"family": "pca"}, "exams": ["looks"], "bars": {"looks.valid": {"least": 0}}}
    values = {"name": "tiny", "world": "avatars", "description": "Stripes.", "trials": {"fake": trial}}
    exams = {"samples": samples, "neighbours_of": 200}
    settings = ValidationSettings.parse(values | {"exams": exams}, "test")
    made = Candidate(world, settings.trials["fake"], settings, folder)
    made.__dict__["detector"] = model
    return made


class Drawing:
    """A generator of looks, given by their codes."""

    family = "drawing"

    def __init__(self, world: World, rows: Labels) -> None:
        self.album, self.rows = world.avatars.album, rows  # type: ignore[union-attr]

    def sample(self, n: int, rng: torch.Generator) -> torch.Tensor:
        chosen = torch.randint(len(self.rows), (n,), generator=rng).numpy()
        return torch.from_numpy(self.album.of(self.rows[chosen]))[:, None]


class Noise:
    """A generator of noise."""

    family = "noise"

    def sample(self, n: int, rng: torch.Generator) -> torch.Tensor:
        return torch.rand((n, 1, 2 * SIZE, 2 * SIZE), generator=rng)


class Tailor:
    """A conditional generator: draws what it is asked for, but for features it ignores and those it mixes up."""

    family = "tailor"

    def __init__(self, world: World, ignored: int | None = None, follows: tuple[int, int] | None = None) -> None:
        self.album, self.ignored, self.follows = world.avatars.album, ignored, follows  # type: ignore[union-attr]

    is_conditional = True

    def sample(self, n: int, rng: torch.Generator, covariates: torch.Tensor | None = None) -> torch.Tensor:
        covariates = torch.full((n, 5), torch.nan) if covariates is None else covariates
        rows = torch.where(covariates.isnan(), 0, covariates).numpy().astype(np.int64)
        if self.ignored is not None:
            rows[:, self.ignored] = torch.randint(2, (len(rows),), generator=rng).numpy()
        if self.follows is not None:
            leader, follower = self.follows
            rows[:, follower] = rows[:, leader] % len(VALUES[follower])
        return torch.from_numpy(self.album.of(rows))[:, None]


class Pixels:
    """A code that is the picture itself, so that arithmetic on it is exact."""

    family = "pixels"

    def embed(self, images: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return z.reshape(-1, 1, 2 * SIZE, 2 * SIZE)


class Forgetful(Pixels):
    """A code that says nothing: whatever it is, the mean picture is decoded."""

    family = "forgetful"

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return z.mean(dim=0, keepdim=True).expand_as(z).reshape(-1, 1, 2 * SIZE, 2 * SIZE)
