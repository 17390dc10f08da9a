"""Looks as pictures, drawn by python-avatars (SVG) and resvg.

Skin, eyes, eyebrows, nose, mouth and background are the same in every picture, and nobody has a beard, so that a
picture tells the five features of its look and nothing else. It hides one: a bald head, or one under a hat, has
no hair colour (:func:`pipelines.validation.datasets.avatars.distribution.visible`). The background is far from
every colour of hair, skin
and clothes: white clothes, 22 of the 50, could hardly be told from a white one.

A look from outside the law has one value that the table does not know, and draws all others from the law:

- an eyepatch as accessory;
- a hat on the head, in the colour of the clothes, so that it is the shape that is new;
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
from pipelines.validation.datasets.avatars.distribution import HIDDEN, Look, drawn, visible

Pictures = npt.NDArray[np.uint8]

BACKGROUND = "#6070A0"
CANVAS = 'width="264px" height="280px" viewBox="0 0 264 280"'  # as python-avatars writes it
SQUARE = 'width="280px" height="280px" viewBox="-8 0 280 280"'
DARK_PRINT = "#graphic_shirt_Graphic path { fill: #262E33 }"

HATS = {f"WinterHat{i}": f"WINTER_HAT_{i}" for i in (1, 2, 3, 4)} | {"Hat": "HAT"}
PRINTS = {f"GraphicShirt{name}": name.upper() for name in ("Bat", "Bear", "Deer", "Diamond", "Pizza", "Skull")}

NAMES: Mapping[str, Mapping[str, str]] = MappingProxyType(
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
"""Feature → value, of the table or outside it → what python-avatars calls it; of prints: the graphic."""

OUTSIDE: Mapping[str, tuple[str, tuple[str, ...]]] = MappingProxyType(
    {
        "eyepatch": ("accessories_type", ("Eyepatch",)),
        "hat": ("top_type", tuple(HATS)),
        "graphic shirt": ("clothing_type", tuple(PRINTS)),
    }
)
"""Kind of look outside the law → its feature, and the values that the table does not know."""


def outside(n: int, seed: int, kinds: Sequence[str] = tuple(OUTSIDE)) -> list[Look]:
    """Return ``n`` looks from outside the law; the kinds take turns, look i being of ``kinds[i % len(kinds)]``.

    Raises
    ------
    InputError
        A kind is unknown; names the valid ones.
    """
    for kind in kinds:
        if kind not in OUTSIDE:
            raise InputError(unknown_name("kind of look outside the law", kind, list(OUTSIDE)))
    rng = np.random.default_rng(seed)
    found = []
    for i, look in enumerate(drawn(n, int(rng.integers(2**32)))):
        feature, values = OUTSIDE[kinds[i % len(kinds)]]
        found.append(look._replace(**{feature: values[rng.integers(len(values))]}))
    return found


def kind_outside(look: Look) -> str | None:
    """Return the kind of a look from outside the law; None of one whose values are all in the table."""
    return next((kind for kind, (feature, values) in OUTSIDE.items() if getattr(look, feature) in values), None)


def render(look: Look, size: int) -> Pictures:
    """Return the picture of a look, uint8 ``(size, size, 3)``: rows from the top; red, green, blue.

    Raises
    ------
    InputError
        A value is neither in the table nor one of those outside it; names the valid ones.
    """
    import resvg_py
    from PIL import Image

    png = resvg_py.svg_to_bytes(
        svg_string=drawing(look),
        width=size,
        height=size,
        background=BACKGROUND,
        style_sheet=None if look.clothing_color == "Black" else DARK_PRINT,
        skip_system_fonts=True,
    )
    with Image.open(io.BytesIO(png)) as image:
        picture = np.array(image.convert("RGB"), dtype=np.uint8)
    if picture.shape != (size, size, 3):
        raise ValueError(f"found a picture of shape {picture.shape}; expected {(size, size, 3)}: a square canvas")
    return picture


def render_many(looks: Sequence[Look], size: int, progress: Callable[[int, int], None] | None = None) -> Pictures:
    """Return the pictures of looks, uint8 ``(N, size, size, 3)``; each different picture is drawn once.

    Parameters
    ----------
    progress
        Told after each drawn picture: how many are done, of how many.
    """
    shown = [visible(look) for look in looks]
    different = list(dict.fromkeys(shown))
    pictures = np.empty((len(different), size, size, 3), dtype=np.uint8)
    for i, look in enumerate(different):
        pictures[i] = render(look, size)
        if progress is not None:
            progress(i + 1, len(different))
    place = {look: i for i, look in enumerate(different)}
    return pictures[[place[look] for look in shown]]


def drawing(look: Look) -> str:
    """Return the SVG text of a look on a square canvas without a background; prints are white."""
    import python_avatars as pa

    top, hair, accessory, clothing, color = (_name(feature, value) for feature, value in look._asdict().items())
    is_print = look.clothing_type in PRINTS
    avatar = pa.Avatar(
        style=pa.AvatarStyle.TRANSPARENT,
        top=(pa.HatType if look.top_type in HATS else pa.HairType)[top],
        hat_color=pa.ClothingColor[color],
        hair_color=pa.HairColor[hair],
        accessory=pa.AccessoryType[accessory],
        clothing=pa.ClothingType["GRAPHIC_SHIRT" if is_print else clothing],
        clothing_color=pa.ClothingColor[color],
        shirt_graphic=pa.ClothingGraphic[clothing if is_print else "NONE"],
        **_same_in_all(pa),
    )
    return str(avatar.render()).replace(CANVAS, SQUARE, 1)


def _same_in_all(pa: Any) -> dict[str, Any]:
    return {
        "eyebrows": pa.EyebrowType.DEFAULT,
        "eyes": pa.EyeType.DEFAULT,
        "nose": pa.NoseType.DEFAULT,
        "mouth": pa.MouthType.DEFAULT,
        "facial_hair": pa.FacialHairType.NONE,
        "skin_color": pa.SkinColor.LIGHT,
    }


def _name(feature: str, value: str) -> str:
    if value not in NAMES[feature]:
        raise InputError(unknown_name(feature, value, list(NAMES[feature])))
    return NAMES[feature][value]
