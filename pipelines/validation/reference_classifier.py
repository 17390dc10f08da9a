"""Reference classifier: it labels generated images, and its features are the space in which images are compared.

It has two convolutions of stride 2 and a dense layer of 64 features, then one linear head per attribute. It is
trained once for all models of a task, on the training images; its accuracy on the test images has a threshold of
its own.
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
from anomaly.core.files import atomic_path
from anomaly.core.progress import Progress, no_progress
from anomaly.core.volume import FloatArray
from pipelines.validation.cache_keys import CLASSIFIER_VERSION, NAME_LENGTH, key_of, key_of_images
from pipelines.validation.labelled_dataset import NOT_VISIBLE, LabelledImages, Labels, batches

N_FEATURES = 64  # length of the feature vectors in which images are compared


class ClassifierSettings(Settings):
    """Size and training of the reference classifier."""

    steps: int = Field(1500, ge=1, description="optimiser steps")
    batch_size: int = Field(128, ge=1, description="images per batch")
    learning_rate: float = Field(3e-3, gt=0, description="peak learning rate of AdamW")
    channels: int = Field(32, ge=1, description="channels of the first convolution; the second has twice as many")
    normalise: bool = Field(False, description="batch normalisation after each convolution")
    noise: float = Field(0.0, ge=0, description="largest SD of the white noise added to training images")
    shift: int = Field(0, ge=0, description="largest shift of a training batch along each axis, pixels")
    min_accuracy: float = Field(0.99, ge=0, le=1, description="lowest accuracy that passes, for each attribute")


class Classifier(nn.Module):
    """Network that labels images, one head per attribute.

    Parameters
    ----------
    shape
        ``(H, W)`` of the images.
    classes
        Number of values of each attribute.
    channels
        Channels of the first convolution.
    normalise
        Whether each convolution is followed by batch normalisation.
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
            nn.Linear(2 * channels * cells, N_FEATURES),
        )
        self.heads = nn.ModuleList(
            nn.Sequential(nn.ReLU(), nn.Dropout(0.3), nn.Linear(N_FEATURES, n)) for n in classes
        )

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return features ``(B, 64)`` and the logits of each attribute, of images ``(B, 1, H, W)``."""
        code = self.code(images)
        return code, [head(code) for head in self.heads]

    @torch.inference_mode()
    def features(self, pixels: FloatArray) -> FloatArray:
        """Return features ``(N, 64)`` of images ``(N, H, W)``."""
        return np.concatenate([self(some)[0].numpy() for some in batches(pixels)])

    @torch.inference_mode()
    def probabilities(self, pixels: FloatArray) -> list[FloatArray]:
        """Return for each attribute the probabilities ``(N, n)`` of its values, of images ``(N, H, W)``."""
        answers = [[logits.softmax(dim=1).numpy() for logits in self(some)[1]] for some in batches(pixels)]
        return [np.concatenate(parts) for parts in zip(*answers, strict=True)]

    def read(self, pixels: FloatArray) -> Labels:
        """Return the most probable labels ``(N, F)`` of images ``(N, H, W)``."""
        return np.stack([found.argmax(axis=1) for found in self.probabilities(pixels)], axis=1)

    def accuracy(self, images: LabelledImages) -> npt.NDArray[np.float64]:
        """Return the accuracy ``(F,)`` for each attribute, of the images in which it is visible."""
        correct, visible = self.read(images.pixels) == images.labels, images.labels != NOT_VISIBLE
        return np.asarray((correct & visible).sum(axis=0) / visible.sum(axis=0))


def trained_classifier(
    train: LabelledImages,
    classes: tuple[int, ...],
    settings: ClassifierSettings,
    folder: Path,
    progress: Progress = no_progress,
    seed: int = 0,
) -> Classifier:
    """Train the classifier of a task, or load it from the folder where it was trained with these settings.

    Parameters
    ----------
    classes
        Number of values of each attribute.
    folder
        Keeps the classifier, under a name that is its cache key.
    """
    shape = (train.pixels.shape[1], train.pixels.shape[2])
    path = folder / f"classifier-{classifier_key(settings, train, classes, seed)[:NAME_LENGTH]}.safetensors"
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


def classifier_key(
    settings: ClassifierSettings, train: LabelledImages, classes: tuple[int, ...], seed: int = 0
) -> str:
    """Return the cache key of a classifier: settings without the threshold, training images, classes and seed."""
    facts = settings.model_dump(mode="json", exclude={"min_accuracy"})
    return key_of("classifier", CLASSIFIER_VERSION, facts, key_of_images(train), classes, seed)


def _train(
    classifier: Classifier,
    train: LabelledImages,
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
            F.cross_entropy(values, labels[rows, n], ignore_index=NOT_VISIBLE) for n, values in enumerate(logits)
        )
        optimiser.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        optimiser.step()
        schedule.step()
        if step % 50 == 0:
            progress(step, settings.steps, "training the classifier")


def _noisy(images: Tensor, largest: float, rng: np.random.Generator) -> Tensor:
    """Return images with white noise, whose SD is drawn for each image between 0 and ``largest``."""
    if largest == 0:
        return images
    sd = largest * rng.random((len(images), 1, 1, 1), dtype=np.float32)
    return images + torch.from_numpy(sd * rng.standard_normal(images.shape, dtype=np.float32))
