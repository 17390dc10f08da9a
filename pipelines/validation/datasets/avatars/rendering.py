"""Drawings of avatars, made by python-avatars (SVG) and resvg.

Skin, eyes, eyebrows, nose, mouth, (no) beard and background are the same in every image, so that an image shows the
five attributes and nothing else. It hides one: a bald head, or one under a hat, has no hair colour
(:func:`pipelines.validation.datasets.avatars.distribution.visible`). The background differs strongly from every
colour of hair, skin and clothes; on white, the white clothes of 22 of the 50 could hardly be seen.

An out-of-distribution avatar has one value that the table does not have, all other attributes being drawn from the
distribution:

- an eyepatch as accessory;
- a hat on the head, in the colour of the clothes, so that only its shape is new;
- a shirt with a graphic print, white on black as the library draws it, and dark on all other colours: 22 of the 50
  wear white.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from anomaly.core.errors import InputError, unknown_name
from pipelines.validation.datasets.avatars.distribution import HIDDEN, Attributes, sample, visible

RGBImages = npt.NDArray[np.uint8]

BACKGROUND = "#6070A0"
CANVAS = 'width="264px" height="280px" viewBox="0 0 264 280"'  # as python-avatars writes it
SQUARE = 'width="280px" height="280px" viewBox="-8 0 280 280"'
DARK_PRINT = "#graphic_shirt_Graphic path { fill: #262E33 }"

HATS = {f"WinterHat{i}": f"WINTER_HAT_{i}" for i in (1, 2, 3, 4)} | {"Hat": "HAT"}
PRINTS = {f"GraphicShirt{name}": name.upper() for name in ("Bat", "Bear", "Deer", "Diamond", "Pizza", "Skull")}

LIBRARY_NAMES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "top_type": {
            "NoHair": "NONE",
            "LongHairBun": "BUN",
            "LongHairCurly": "CURLY",
            "LongHairStraight": "STRAIGHT_1",
            "ShortHairShortWaved": "SHORT_WAVED",
            "ShortHairShortFlat": "SHORT_FLAT",
            "ShortHairFrizzle": "FRIZZLE",
            **HATS,
        },
        "hair_color": {
            "Black": "BLACK",
            "Blonde": "BLONDE",
            "Brown": "BROWN",
            "PastelPink": "PASTEL_PINK",
            "Red": "RED",
            "SilverGrey": "SILVER_GRAY",
            HIDDEN: "BLACK",
        },
        "accessories_type": {"Blank": "NONE", "Round": "ROUND", "Sunglasses": "SUNGLASSES", "Eyepatch": "EYEPATCH"},
        "clothing_type": {
            "Hoodie": "HOODIE",
            "Overall": "OVERALL",
            "ShirtScoopNeck": "SHIRT_SCOOP_NECK",
            "ShirtVNeck": "SHIRT_V_NECK",
            **PRINTS,
        },
        "clothing_color": {
            "Black": "BLACK",
            "Blue01": "BLUE_01",
            "Grey01": "GRAY_01",
            "PastelGreen": "PASTEL_GREEN",
            "PastelOrange": "PASTEL_ORANGE",
            "Pink": "PINK",
            "Red": "RED",
            "White": "WHITE",
        },
    }
)
"""Attribute → value, in the table or not → name in python-avatars; for prints, the name of the graphic."""

OOD_KINDS: Mapping[str, tuple[str, tuple[str, ...]]] = MappingProxyType(
    {
        "eyepatch": ("accessories_type", ("Eyepatch",)),
        "hat": ("top_type", tuple(HATS)),
        "graphic shirt": ("clothing_type", tuple(PRINTS)),
    }
)
"""Kind of out-of-distribution avatar → its attribute, and the values that the table does not have."""


def out_of_distribution_sample(n: int, seed: int, kinds: Sequence[str] = tuple(OOD_KINDS)) -> list[Attributes]:
    """Draw ``n`` out-of-distribution avatars; avatar i is of the kind ``kinds[i % len(kinds)]``.

    Raises
    ------
    InputError
        A kind is unknown; names the valid ones.
    """
    for kind in kinds:
        if kind not in OOD_KINDS:
            raise InputError(unknown_name("kind of out-of-distribution avatar", kind, list(OOD_KINDS)))
    rng = np.random.default_rng(seed)
    found = []
    for i, combination in enumerate(sample(n, int(rng.integers(2**32)))):
        feature, values = OOD_KINDS[kinds[i % len(kinds)]]
        found.append(combination._replace(**{feature: values[rng.integers(len(values))]}))
    return found


def out_of_distribution_kind(combination: Attributes) -> str | None:
    """Return the kind of an out-of-distribution avatar; None if all its values are in the table."""
    return next(
        (kind for kind, (feature, values) in OOD_KINDS.items() if getattr(combination, feature) in values), None
    )


def render(combination: Attributes, size: int) -> RGBImages:
    """Return the drawing of an avatar, uint8 ``(size, size, 3)``: rows from the top; red, green, blue.

    Raises
    ------
    InputError
        A value is unknown; names the valid ones.
    """
    import resvg_py
    from PIL import Image

    png = resvg_py.svg_to_bytes(
        svg_string=to_svg(combination),
        width=size,
        height=size,
        background=BACKGROUND,
        style_sheet=None if combination.clothing_color == "Black" else DARK_PRINT,
        skip_system_fonts=True,
    )
    with Image.open(io.BytesIO(png)) as image:
        pixels = np.array(image.convert("RGB"), dtype=np.uint8)
    if pixels.shape != (size, size, 3):
        raise ValueError(f"found an image of shape {pixels.shape}; expected {(size, size, 3)}: a square canvas")
    return pixels


def render_many(
    combinations: Sequence[Attributes], size: int, progress: Callable[[int, int], None] | None = None
) -> RGBImages:
    """Return the drawings of avatars, uint8 ``(N, size, size, 3)``; each different one is drawn once.

    Parameters
    ----------
    progress
        Called after each drawing with the number done and the total.
    """
    shown = [visible(combination) for combination in combinations]
    different = list(dict.fromkeys(shown))
    images = np.empty((len(different), size, size, 3), dtype=np.uint8)
    for i, combination in enumerate(different):
        images[i] = render(combination, size)
        if progress is not None:
            progress(i + 1, len(different))
    place = {combination: i for i, combination in enumerate(different)}
    return images[[place[combination] for combination in shown]]


def to_svg(combination: Attributes) -> str:
    """Return the SVG text of an avatar on a square canvas without a background; prints are white."""
    import python_avatars as pa

    top, hair, accessory, clothing, color = (
        _name(feature, value) for feature, value in combination._asdict().items()
    )
    is_print = combination.clothing_type in PRINTS
    avatar = pa.Avatar(
        style=pa.AvatarStyle.TRANSPARENT,
        top=(pa.HatType if combination.top_type in HATS else pa.HairType)[top],
        hat_color=pa.ClothingColor[color],
        hair_color=pa.HairColor[hair],
        accessory=pa.AccessoryType[accessory],
        clothing=pa.ClothingType["GRAPHIC_SHIRT" if is_print else clothing],
        clothing_color=pa.ClothingColor[color],
        shirt_graphic=pa.ClothingGraphic[clothing if is_print else "NONE"],
        **_constant_parts(pa),
    )
    return str(avatar.render()).replace(CANVAS, SQUARE, 1)


def _constant_parts(pa: Any) -> dict[str, Any]:
    return {
        "eyebrows": pa.EyebrowType.DEFAULT,
        "eyes": pa.EyeType.DEFAULT,
        "nose": pa.NoseType.DEFAULT,
        "mouth": pa.MouthType.DEFAULT,
        "facial_hair": pa.FacialHairType.NONE,
        "skin_color": pa.SkinColor.LIGHT,
    }


def _name(feature: str, value: str) -> str:
    if value not in LIBRARY_NAMES[feature]:
        raise InputError(unknown_name(feature, value, list(LIBRARY_NAMES[feature])))
    return LIBRARY_NAMES[feature][value]
