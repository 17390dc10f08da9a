"""The image bank: images of all 3,552 visible combinations of attributes, each drawn once and stored."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from anomaly.core.errors import InputError
from anomaly.core.files import atomic_path, sha256_of_json
from anomaly.core.progress import Progress, no_progress
from anomaly.core.versions import versions
from anomaly.core.volume import FloatArray
from anomaly.evaluation.categorical import UNKNOWN
from pipelines.validation.datasets.avatars.distribution import (
    HAIR,
    VALUES,
    codes,
    combinations_of,
    every_combination,
    visible,
)
from pipelines.validation.datasets.avatars.mosaic import mosaic
from pipelines.validation.datasets.avatars.rendering import BACKGROUND, render_many
from pipelines.validation.labelled_dataset import Labels

HAIR_COLOR = 1  # index of the hair colour among the attributes
RENDERERS = ("python-avatars", "resvg-py")  # libraries that draw the images
HAS_HAIR = np.array([value in HAIR for value in VALUES[0]])


@dataclass(frozen=True, eq=False)
class ImageBank:
    """Images by combination of attributes.

    Parameters
    ----------
    images
        uint8 ``(3552, size, size, 3)``, in the order of :func:`visible_codes`.
    """

    images: npt.NDArray[np.uint8]

    @cached_property
    def _positions(self) -> Labels:
        """Position of each combination's image, by its codes; the code −1 addresses the last entry."""
        positions = np.full(_SHAPE, -1, dtype=np.int64)
        positions[tuple(visible_codes().T)] = np.arange(len(self.images))
        return positions

    def mosaics(self, rows: npt.ArrayLike) -> FloatArray:
        """Return the mosaics ``(N, 2H, 2W)`` of combinations with codes ``(N, 5)``.

        Raises
        ------
        ValueError
            If a value is missing, except the hair colour where no hair is visible.
        """
        shown = hide_invisible(rows)
        if ((shown == UNKNOWN).sum(axis=1) != ~HAS_HAIR[shown[:, 0]]).any():
            raise ValueError(
                "found combinations with missing values; expected all but the hair colour where no hair is visible"
            )
        return mosaic(self.images[self._positions[tuple(shown.T)]])


def visible_codes() -> Labels:
    """Return the codes ``(3552, 5)`` of all combinations that images can show, −1 where hidden."""
    return codes(dict.fromkeys(map(visible, every_combination())))


def hide_invisible(rows: npt.ArrayLike) -> Labels:
    """Return codes ``(N, 5)`` with −1 for the hair colour where no hair is visible."""
    shown = np.array(rows, dtype=np.int64)
    shown[~HAS_HAIR[shown[:, 0]], HAIR_COLOR] = UNKNOWN
    return shown


def load_image_bank(folder: Path, size: int, progress: Progress = no_progress) -> ImageBank:
    """Load the image bank of one size from a folder; draw and store it there first if it is missing.

    Raises
    ------
    InputError
        If the stored images cannot be read.
    """
    key = sha256_of_json([versions(RENDERERS), BACKGROUND, size])
    path = folder / f"avatars-{size}-{key[:12]}.npz"
    if not path.is_file():
        images = render_many(combinations_of(visible_codes()), size, partial(_report, progress))
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, images=images)
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as stored:
            return ImageBank(stored["images"])
    except (OSError, ValueError, KeyError, BadZipFile, zlib.error) as error:
        raise InputError(f"{path} has no readable images ({error}); delete it to draw anew") from error


def _report(progress: Progress, done: int, total: int) -> None:
    if done % 100 == 0:
        progress(done, total, "drawing every avatar")


_SHAPE = tuple(len(values) + (feature == HAIR_COLOR) for feature, values in enumerate(VALUES))
