"""The distribution of subjects: age, sex, and how the anatomy differs from the template.

The subjects of all splits are drawn from the same distribution, so that healthy scans are exchangeable.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import numpy as np
from scipy import ndimage

from sample_data.recipe.anatomy import Array

Sex = Literal["F", "M"]

SEED = 20250
COARSE_STEP_MM = 6.0
COARSE_ORIGIN_MM = np.array([-120.0, -156.0, -108.0])
COARSE_SHAPE = (41, 50, 42)
BRAIN_CENTRE_MM = np.array([0.0, -18.0, 8.0])
VENTRICLES_MM = np.array([0.0, -12.0, 16.0])


class Stream(IntEnum):
    """Purpose of a random stream. Each purpose has its own, so that a change to one does not change the others."""

    PERSON = 0
    ANATOMY = 1
    GRID = 2
    SCANNER = 3
    NOISE = 4
    LESION = 5
    CALCIFICATION = 6
    BEAM_HARDENING = 7
    SKULL = 8


def random_stream(number: int, stream: Stream) -> np.random.Generator:
    """Return the random generator of one subject for one purpose."""
    return np.random.default_rng([SEED, number, int(stream)])


@dataclass(frozen=True)
class Person:
    """Age and sex of a synthetic subject.

    Parameters
    ----------
    age
        Years, 20 to 80.
    sex
        ``F`` or ``M``.
    """

    age: int
    sex: Sex


@dataclass(frozen=True)
class Warp:
    """The transform from a subject to the template.

    Parameters
    ----------
    linear
        Shape (3, 3), subject to template, about ``BRAIN_CENTRE_MM``.
    shift
        Shape (3,), millimetres.
    displacement
        Shape (3, I, J, K), millimetres, on the coarse grid of template space.
    ventricles
        Relative widening of the tissue around the ventricles; negative narrows it.
    """

    linear: Array
    shift: Array
    displacement: Array
    ventricles: float

    def to_template(self, points: Array) -> Array:
        """Transform points of the subject, shape (..., 3), RAS+ millimetres, to template space."""
        linear = (points - BRAIN_CENTRE_MM - self.shift) @ self.linear.T + BRAIN_CENTRE_MM
        index = np.moveaxis((linear - COARSE_ORIGIN_MM) / COARSE_STEP_MM, -1, 0)
        displaced = [ndimage.map_coordinates(part, index, order=1, mode="nearest") for part in self.displacement]
        return np.asarray(linear + np.stack(displaced, axis=-1) + self._towards_ventricles(linear))

    def _towards_ventricles(self, points: Array) -> Array:
        """Displacement towards the ventricles, which widens them in the subject; shape (..., 3)."""
        offset = points - VENTRICLES_MM
        weight = np.exp(-0.5 * ((offset / (22.0, 28.0, 18.0)) ** 2).sum(axis=-1))
        return np.asarray(-self.ventricles * weight[..., None] * offset)


def draw_person(number: int) -> Person:
    """Draw an age, uniform in 20 to 80 years, and a sex."""
    rng = random_stream(number, Stream.PERSON)
    return Person(age=int(rng.integers(20, 81)), sex="F" if rng.random() < 0.5 else "M")


def draw_warp(number: int, person: Person) -> Warp:
    """Draw a size and pose, a smooth deformation at two scales, and ventricles that widen with age."""
    rng = random_stream(number, Stream.ANATOMY)
    size = (0.96 if person.sex == "M" else 0.93) * np.exp(rng.normal(0.0, 0.025, 3))
    turn = _rotation(np.deg2rad(np.clip(rng.normal(0.0, 2.5, 3), -6.0, 6.0)))
    shift = np.clip(rng.normal(0.0, 2.0, 3), -4.0, 4.0)
    displacement = _smooth_field(rng, 24.0, 2.4) + _smooth_field(rng, 9.0, 0.9)
    ventricles = 0.004 * (person.age - 45) + rng.normal(0.0, 0.05)
    return Warp(np.diag(1.0 / size) @ turn, shift, displacement, float(np.clip(ventricles, -0.15, 0.25)))


def _smooth_field(rng: np.random.Generator, scale_mm: float, amplitude_mm: float) -> Array:
    """Draw a Gaussian random vector field, shape (3, I, J, K), of a given smoothness and standard deviation."""
    noise = rng.standard_normal((3, *COARSE_SHAPE))
    field = np.stack([ndimage.gaussian_filter(part, scale_mm / COARSE_STEP_MM, mode="wrap") for part in noise])
    return np.asarray(field * amplitude_mm / field.std())


def _rotation(angles: Array) -> Array:
    """Rotation by ``angles`` (3,) radians about x, then y, then z; shape (3, 3)."""
    cos, sin = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cos[0], -sin[0]], [0, sin[0], cos[0]]])
    about_y = np.array([[cos[1], 0, sin[1]], [0, 1, 0], [-sin[1], 0, cos[1]]])
    about_z = np.array([[cos[2], -sin[2], 0], [sin[2], cos[2], 0], [0, 0, 1]])
    return np.asarray(about_z @ about_y @ about_x)
