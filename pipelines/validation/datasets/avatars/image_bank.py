"""The pictures of all 3,552 looks, each drawn once and kept: whatever shows a look takes it from here."""

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
from pipelines.validation.datasets.avatars.distribution import HAIR, VALUES, codes, every_look, looks_of, visible
from pipelines.validation.datasets.avatars.mosaic import mosaic
from pipelines.validation.datasets.avatars.rendering import BACKGROUND, render_many
from pipelines.validation.labelled_dataset import Labels

HAIR_COLOR = 1  # place of the hair colour among the features
PAINTERS = ("python-avatars", "resvg-py")
HAIRY = np.array([value in HAIR for value in VALUES[0]])


@dataclass(frozen=True, eq=False)
class Album:
    """Pictures by look.

    Parameters
    ----------
    pictures
        uint8 ``(3552, size, size, 3)``, in the order of the looks as a picture shows them.
    """

    pictures: npt.NDArray[np.uint8]

    @cached_property
    def _places(self) -> Labels:
        """Return where the picture of each look is, by its codes; no hair colour comes last."""
        places = np.full(_SHAPE, -1, dtype=np.int64)
        places[tuple(every_picture().T)] = np.arange(len(self.pictures))
        return places

    def of(self, rows: npt.ArrayLike) -> FloatArray:
        """Return the mosaics ``(N, 2H, 2W)`` of looks, given as codes ``(N, 5)``.

        Raises
        ------
        ValueError
            If a value is missing, other than the hair colour of those who show none.
        """
        shown = hidden(rows)
        if ((shown == UNKNOWN).sum(axis=1) != ~HAIRY[shown[:, 0]]).any():
            raise ValueError(
                "found looks with values missing; expected all but the colour of hair that is not there"
            )
        return mosaic(self.pictures[self._places[tuple(shown.T)]])


def every_picture() -> Labels:
    """Return the codes ``(3552, 5)`` of all looks as pictures show them, −1 where hidden."""
    return codes(dict.fromkeys(map(visible, every_look())))


def hidden(rows: npt.ArrayLike) -> Labels:
    """Return codes ``(N, 5)`` with −1 for the hair colour of those who show none."""
    shown = np.array(rows, dtype=np.int64)
    shown[~HAIRY[shown[:, 0]], HAIR_COLOR] = UNKNOWN
    return shown


def load_album(folder: Path, size: int, progress: Progress = no_progress) -> Album:
    """Return the album of pictures of one size, drawn where the folder holds none.

    Raises
    ------
    InputError
        If what the folder holds cannot be read.
    """
    shown = sha256_of_json([versions(PAINTERS), BACKGROUND, size])
    path = folder / f"looks-{size}-{shown[:12]}.npz"
    if not path.is_file():
        pictures = render_many(looks_of(every_picture()), size, partial(_told, progress))
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, pictures=pictures)
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as kept:
            return Album(kept["pictures"])
    except (OSError, ValueError, KeyError, BadZipFile, zlib.error) as error:
        raise InputError(f"{path} holds no pictures that can be read ({error}); delete it to draw anew") from error


def _told(progress: Progress, done: int, total: int) -> None:
    if done % 100 == 0:
        progress(done, total, "drawing every look")


_SHAPE = tuple(len(values) + (feature == HAIR_COLOR) for feature, values in enumerate(VALUES))
