"""What a head CT shows besides the tissues of the maps: calcifications, venous blood and beam hardening.

Calcifications of the pineal gland, the choroid plexus, the falx and the basal ganglia are normal and become more
frequent with age.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from sample_data.recipe.anatomy import Array
from sample_data.recipe.subjects import Person, Stream, random_stream

Point = tuple[float, float, float]

SINUS_HU = 55.0
SINUS_HALF_WIDTH_MM = 5.0
HEAD_RADIUS_MM = 80.0
PETROUS_MM: Final[Point] = (0.0, -28.0, -38.0)


@dataclass(frozen=True)
class CalcificationSite:
    """Where calcification is normal.

    Parameters
    ----------
    centre
        Template coordinates of the right side, RAS+ millimetres; ``paired`` sites have a left one, too.
    radii
        Of the ellipsoid, millimetres.
    share_at_20, share_at_80
        Share of people of that age who have it.
    paired
        Whether there is one on each side.
    """

    centre: Point
    radii: Point
    share_at_20: float
    share_at_80: float
    paired: bool = False


CALCIFICATION_SITES: Final = {
    "pineal": CalcificationSite((0.0, -27.0, 0.0), (2.5, 3.0, 2.5), 0.35, 0.75),
    "choroid plexus": CalcificationSite((24.0, -40.0, 12.0), (3.0, 4.5, 3.5), 0.10, 0.65, paired=True),
    "falx": CalcificationSite((0.0, 16.0, 46.0), (1.5, 9.0, 5.0), 0.05, 0.25),
    "basal ganglia": CalcificationSite((18.0, -3.0, 1.0), (2.5, 4.0, 2.5), 0.02, 0.18, paired=True),
}


def draw_calcifications(number: int, person: Person, template: Array) -> Iterator[tuple[Array, float]]:
    """Yield the weight of each calcification of a subject, shape (I, J, K), 0 to 1, and its density in HU.

    Parameters
    ----------
    number
        Number of the subject, which seeds the drawing.
    person
        Their age.
    template
        Template coordinates of the voxels, shape (I, J, K, 3), RAS+ millimetres.
    """
    rng = random_stream(number, Stream.CALCIFICATION)
    for site in CALCIFICATION_SITES.values():
        share = np.interp(person.age, (20, 80), (site.share_at_20, site.share_at_80))
        has_it = rng.random() < share
        for side in (1.0, -1.0) if site.paired else (1.0,):
            centre = np.array(site.centre) * (side, 1, 1) + rng.normal(0.0, 1.0, 3)
            radii = np.array(site.radii) * rng.uniform(0.7, 1.3)
            density = float(rng.uniform(110.0, 260.0))
            if has_it:
                yield _ellipsoid(template, centre, radii), density


def sinus_weight(template: Array, maps: Mapping[str, Array]) -> Array:
    """Return the share of each voxel that is the superior sagittal sinus, shape (I, J, K)."""
    x, _, z = np.moveaxis(template, -1, 0)
    midline = np.exp(-((x / SINUS_HALF_WIDTH_MM) ** 2))
    return np.asarray(maps["brain_fluid"] * midline * (z > -10.0))


def beam_hardening(number: int, template: Array) -> Array:
    """Draw the error of density by beam hardening, shape (I, J, K), HU.

    The edge of the brain appears denser than its centre (cupping), and a dark band lies between the petrous bones.
    """
    rng = random_stream(number, Stream.BEAM_HARDENING)
    cupping, band = rng.uniform(0.0, 5.0), rng.uniform(0.0, 8.0)
    centre = np.array((0.0, -17.0, 10.0))
    radius = np.clip(np.sqrt(((template - centre) ** 2).sum(axis=-1)) / HEAD_RADIUS_MM, 0.0, 1.0)
    offset = (template - np.array(PETROUS_MM)) / (40.0, 8.0, 6.0)
    return np.asarray(cupping * radius**2 - band * np.exp(-0.5 * (offset**2).sum(axis=-1)))


def _ellipsoid(points: Array, centre: Array, radii: Array) -> Array:
    """Return an ellipsoid whose edge is 2 mm wide, shape (I, J, K), 0 to 1."""
    distance = np.sqrt((((points - centre) / radii) ** 2).sum(axis=-1))
    return np.asarray(np.clip(0.5 + (1.0 - distance) * radii.min() / 2.0, 0.0, 1.0))
