"""Colour images for models of one channel: each pixel becomes a block of 2 × 2.

    R  G
    B  (R + G + B) / 3          each 0 to 1

A convolution of stride 2 whose kernel starts on the blocks, or a space-to-depth of 2, has the four as channels of
one pixel, like a model of colour images. The fourth value follows from the other three, so that a model which pools
the block gets a grey image.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

RGBImages = npt.NDArray[np.uint8]
Mosaic = npt.NDArray[np.float32]


def mosaic(rgb: npt.ArrayLike) -> Mosaic:
    """Return ``(N, 2H, 2W)``, 0 to 1, of RGB images ``(N, H, W, 3)``, 0 to 255."""
    images = np.asarray(rgb, dtype=np.float32) / 255
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"found images of shape {images.shape}; expected (N, H, W, 3)")
    n, h, w, _ = images.shape
    four = np.concatenate([images, images.mean(axis=-1, keepdims=True)], axis=-1)
    blocks = four.reshape(n, h, w, 2, 2).transpose(0, 1, 3, 2, 4)
    return np.asarray(blocks.reshape(n, 2 * h, 2 * w), dtype=np.float32)


def to_rgb(images: npt.ArrayLike) -> RGBImages:
    """Return the RGB images uint8 ``(N, H, W, 3)`` of mosaics ``(N, 2H, 2W)``, clipped to 0 to 1.

    The fourth value, the mean, is ignored: in a generated mosaic it may differ from the mean of the others.
    """
    values = np.asarray(images, dtype=np.float32)
    if values.ndim != 3 or values.shape[1] % 2 or values.shape[2] % 2:
        raise ValueError(f"found mosaics of shape {values.shape}; expected (N, 2H, 2W)")
    n, h, w = values.shape[0], values.shape[1] // 2, values.shape[2] // 2
    four = values.reshape(n, h, 2, w, 2).transpose(0, 1, 3, 2, 4).reshape(n, h, w, 4)
    return np.rint(np.clip(four[..., :3], 0, 1) * 255).astype(np.uint8)
