"""How well an image agrees with a reference, place by place: the median correlation over small blocks.

One correlation over the whole brain is dominated by whatever has the largest contrast, so a large or very bright
lesion lowers it as much as a wrong contrast does. Here both images are cut into blocks of :data:`BLOCK_MM`, the
Pearson correlation is computed in each, and the median over the blocks is returned. A lesion changes the blocks
that it lies in, and the median changes little before half of the brain is abnormal. Misalignment, another
contrast, another body part and noise change all blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from anomaly.core.volume import FloatArray, MaskArray

BLOCK_MM = 16.0
MIN_BLOCK_VOXELS = 3  # along each axis
MIN_VARIANCE = 1e-12  # of intensities of order 1, relative to their mean square

Floats = npt.NDArray[np.float64]


def median_block_correlation(
    image: FloatArray, reference: FloatArray, inside: MaskArray, spacing: Sequence[float]
) -> float:
    """Return the median, over blocks of 16 mm, of the Pearson correlation of an image with a reference.

    Only blocks that lie completely inside count, so that the outline of the brain says nothing; if there is none,
    all voxels inside are one block. A block without contrast in the reference says nothing and does not count; one
    without contrast in the image alone has correlation 0. Without any block the result is 0.

    Parameters
    ----------
    image, reference
        ``(I, J, K)`` on one grid; their units and scales do not matter.
    inside
        Voxels to compare.
    spacing
        Voxel size along each axis, millimetres.
    """
    edges = [
        min(n, max(MIN_BLOCK_VOXELS, round(BLOCK_MM / mm))) for n, mm in zip(inside.shape, spacing, strict=True)
    ]
    complete = _blocks(inside, edges).all(axis=1)
    pair = [_blocks(values, edges)[complete] for values in (image, reference)]
    if not complete.any():
        pair = [values[inside][None] for values in (image, reference)]
    found = _correlations(pair[0].astype(np.float64), pair[1].astype(np.float64))
    return float(np.median(found)) if found.size else 0.0


def _blocks(values: npt.NDArray[np.generic], edges: Sequence[int]) -> npt.NDArray[np.generic]:
    """Cut an array into blocks ``(blocks, voxels)``; voxels beyond the array are 0."""
    padded = np.pad(values, [(0, -n % edge) for n, edge in zip(values.shape, edges, strict=True)])
    (i, a), (j, b), (k, c) = ((n // edge, edge) for n, edge in zip(padded.shape, edges, strict=True))
    return padded.reshape(i, a, j, b, k, c).transpose(0, 2, 4, 1, 3, 5).reshape(i * j * k, a * b * c)


def _correlations(images: Floats, references: Floats) -> Floats:
    """Return the Pearson correlation of each pair of rows whose reference varies; 0 where the image does not."""
    (x, x_varies), (y, y_varies) = _centred(images), _centred(references)
    product = np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    r = np.where(x_varies & y_varies, (x * y).sum(axis=1) / np.where(product > 0, product, 1), 0)
    return np.asarray(r[y_varies])


def _centred(rows: Floats) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Return rows without their mean, and whether each of them varies."""
    if not rows.size:
        return rows, np.zeros(len(rows), dtype=bool)
    centred = rows - rows.mean(axis=1, keepdims=True)
    varies = (centred**2).mean(axis=1) > MIN_VARIANCE * np.maximum((rows**2).mean(axis=1), MIN_VARIANCE)
    return centred, varies
