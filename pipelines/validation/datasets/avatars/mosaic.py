"""Colour for models that see one channel: each pixel becomes a block of 2 × 2.

    R  G
    B  (R + G + B) / 3          each 0 to 1

A convolution of stride 2 whose kernel starts on the blocks, or a space-to-depth of 2, has the four as channels of
one pixel and sees what a model of colour images would. The fourth place holds what the other three say already,
so that a model which pools the block, or looks at it from afar, sees a grey picture.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Pictures = npt.NDArray[np.uint8]
Mosaic = npt.NDArray[np.float32]


def mosaic(rgb: npt.ArrayLike) -> Mosaic:
    """Return ``(N, 2H, 2W)``, 0 to 1, of pictures ``(N, H, W, 3)``, 0 to 255."""
    pictures = np.asarray(rgb, dtype=np.float32) / 255
    if pictures.ndim != 4 or pictures.shape[-1] != 3:
        raise ValueError(f"found pictures of shape {pictures.shape}; expected (N, H, W, 3)")
    n, h, w, _ = pictures.shape
    four = np.concatenate([pictures, pictures.mean(axis=-1, keepdims=True)], axis=-1)
    blocks = four.reshape(n, h, w, 2, 2).transpose(0, 1, 3, 2, 4)
    return np.asarray(blocks.reshape(n, 2 * h, 2 * w), dtype=np.float32)


def colours(images: npt.ArrayLike) -> Pictures:
    """Return the pictures uint8 ``(N, H, W, 3)`` of mosaics ``(N, 2H, 2W)``; what lies outside 0 to 1 is cut off.

    The mean in the fourth place is left aside: a generated mosaic may contradict itself there.
    """
    values = np.asarray(images, dtype=np.float32)
    if values.ndim != 3 or values.shape[1] % 2 or values.shape[2] % 2:
        raise ValueError(f"found mosaics of shape {values.shape}; expected (N, 2H, 2W)")
    n, h, w = values.shape[0], values.shape[1] // 2, values.shape[2] // 2
    four = values.reshape(n, h, 2, w, 2).transpose(0, 1, 3, 2, 4).reshape(n, h, w, 4)
    return np.rint(np.clip(four[..., :3], 0, 1) * 255).astype(np.uint8)
