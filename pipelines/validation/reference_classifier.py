"""A small classifier, trained here: it says what generated pictures show, and in its features they are compared.

Two convolutions of stride 2, two dense layers; one answer for each feature that pictures are labelled with. It is
trained once for all models of a task, on the training pictures, and is measured on the test pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from anomaly.core.config import Settings
from anomaly.core.files import atomic_path, sha256_of_json
from anomaly.core.progress import Progress, no_progress
from anomaly.core.volume import FloatArray
from pipelines.validation.cache_keys import of_pictures
from pipelines.validation.labelled_dataset import NOT_SHOWN, Labels, Pictures, batches

CODE = 64  # length of the features that pictures are compared in


class ClassifierSettings(Settings):
    """How the classifier is trained."""

    steps: int = Field(1500, ge=1, description="optimiser steps")
    batch_size: int = Field(128, ge=1)
    learning_rate: float = Field(3e-3, gt=0, description="peak learning rate of AdamW")
    channels: int = Field(32, ge=1, description="of the first convolution; the second has twice as many")
    normalise: bool = Field(False, description="batch normalisation after each convolution")
    noise: float = Field(0.0, ge=0, description="largest SD of the noise that is added to a picture in training")
    shift: int = Field(0, ge=0, description="each batch is moved by up to so many pixels along both axes")
    least_accuracy: float = Field(0.99, ge=0, le=1, description="bar for each feature, on test pictures")


class Classifier(nn.Module):
    """What a picture shows, feature by feature.

    Parameters
    ----------
    shape
        ``(H, W)`` of the pictures.
    classes
        Number of values of each feature.
    channels
        Of the first convolution.
    normalise
        Whether batches are normalised after each convolution.
    """

    def __init__(
        self, shape: tuple[int, int], classes: tuple[int, ...], channels: int, normalise: bool = False
    ) -> None:
        super().__init__()
        cells = (-(-shape[0] // 4)) * (-(-shape[1] // 4))
        self.code = nn.Sequential(
            nn.Conv2d(1, channels, 5, stride=2, padding=2),
            nn.BatchNorm2d(channels) if normalise else nn.Identity(),
            nn.ReLU(),
            nn.Conv2d(channels, 2 * channels, 5, stride=2, padding=2),
            nn.BatchNorm2d(2 * channels) if normalise else nn.Identity(),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2 * channels * cells, CODE),
        )
        self.heads = nn.ModuleList(nn.Sequential(nn.ReLU(), nn.Dropout(0.3), nn.Linear(CODE, n)) for n in classes)

    def forward(self, pictures: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return features ``(B, 64)`` and the logits of each label of pictures ``(B, 1, H, W)``."""
        code = self.code(pictures)
        return code, [head(code) for head in self.heads]

    @torch.inference_mode()
    def features(self, pixels: FloatArray) -> FloatArray:
        """Return features ``(N, 64)`` of pictures ``(N, H, W)``."""
        return np.concatenate([self(some)[0].numpy() for some in batches(pixels)])

    @torch.inference_mode()
    def probabilities(self, pixels: FloatArray) -> list[FloatArray]:
        """Return for each label the probability ``(N, n)`` of its values, of pictures ``(N, H, W)``."""
        answers = [[logits.softmax(dim=1).numpy() for logits in self(some)[1]] for some in batches(pixels)]
        return [np.concatenate(parts) for parts in zip(*answers, strict=True)]

    def read(self, pixels: FloatArray) -> Labels:
        """Return the most probable labels ``(N, F)`` of pictures ``(N, H, W)``."""
        return np.stack([found.argmax(axis=1) for found in self.probabilities(pixels)], axis=1)

    def accuracy(self, pictures: Pictures) -> npt.NDArray[np.float64]:
        """Return the share ``(F,)`` of the pictures whose label, where they show it, is read rightly."""
        right, known = self.read(pictures.pixels) == pictures.labels, pictures.labels != NOT_SHOWN
        return np.asarray((right & known).sum(axis=0) / known.sum(axis=0))


def trained_classifier(
    train: Pictures,
    classes: tuple[int, ...],
    settings: ClassifierSettings,
    folder: Path,
    progress: Progress = no_progress,
    seed: int = 0,
) -> Classifier:
    """Return the classifier of a task, from the folder where it was trained before with these settings.

    Parameters
    ----------
    classes
        Number of values of each label.
    folder
        Where it is kept, under a name that depends on settings and pictures.
    """
    shape = (train.pixels.shape[1], train.pixels.shape[2])
    facts = [settings.model_dump(mode="json", exclude={"least_accuracy"}), of_pictures(train), classes, seed]
    path = folder / f"classifier-{sha256_of_json(facts)[:12]}.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        classifier = Classifier(shape, classes, settings.channels, settings.normalise)
        if path.is_file():
            classifier.load_state_dict(load_file(path))
        else:
            _train(classifier, train, settings, progress, np.random.default_rng(seed))
            with atomic_path(path) as temporary:
                save_file(classifier.state_dict(), temporary)
    return classifier.eval()


def _train(
    classifier: Classifier,
    train: Pictures,
    settings: ClassifierSettings,
    progress: Callable[[int, int, str], None],
    rng: np.random.Generator,
) -> None:
    optimiser = torch.optim.AdamW(classifier.parameters(), lr=settings.learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, settings.learning_rate, settings.steps)
    pixels, labels = torch.from_numpy(train.pixels)[:, None], torch.from_numpy(train.labels)
    classifier.train()
    for step in range(settings.steps):
        rows = torch.from_numpy(rng.integers(len(pixels), size=settings.batch_size))
        moved = tuple(rng.integers(-settings.shift, settings.shift + 1, size=2).tolist())
        logits = classifier(_noisy(pixels[rows].roll(moved, (2, 3)), settings.noise, rng))[1]
        loss = sum(
            F.cross_entropy(values, labels[rows, n], ignore_index=NOT_SHOWN) for n, values in enumerate(logits)
        )
        optimiser.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        optimiser.step()
        schedule.step()
        if step % 50 == 0:
            progress(step, settings.steps, "training the classifier")


def _noisy(pictures: Tensor, largest: float, rng: np.random.Generator) -> Tensor:
    """Return pictures with white noise, each of an SD of its own between 0 and the largest."""
    if largest == 0:
        return pictures
    sd = largest * rng.random((len(pictures), 1, 1, 1), dtype=np.float32)
    return pictures + torch.from_numpy(sd * rng.standard_normal(pictures.shape, dtype=np.float32))
