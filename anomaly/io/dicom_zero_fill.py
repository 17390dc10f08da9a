"""Find slices of which a part was never written.

A copy that was interrupted may have its full length and hold zeros from some byte on. Zeros may also be the
background of an image. They are damage where the neighbouring slices show something else.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import numpy as np

from anomaly.core.volume import MaskArray

MIN_NEIGHBOUR_SHARE = 0.95  # of pixels that are not zero in a neighbour, where the slice has a run of zeros
MIN_LOST_SHARE = 0.05  # of the pixels of a slice that are zero from there to the end, and in no neighbour
MAX_BACKGROUND_SHARE = 0.5  # of the pixels of a slice beside a blank one


def zero_filled_slices(zeros: Sequence[MaskArray]) -> list[int]:
    """Return the indices of the slices of a stack that are filled with zeros in part.

    Parameters
    ----------
    zeros
        For each slice, in the order of positions, ``(rows, columns)``: where the stored value is zero.
    """
    return [index for index in range(len(zeros)) if _is_zero_filled(index, zeros)]


def count_blank_ends(zeros: Sequence[MaskArray]) -> int:
    """Return the number of blank slices at the ends of a stack that is not mostly background beside them."""
    shares = [float(z.mean()) for z in zeros]
    return _count_blank_start(shares) + _count_blank_start(shares[::-1])


def _count_blank_start(shares: Sequence[float]) -> int:
    n_blank = sum(1 for _ in takewhile(lambda share: share == 1, shares))
    return n_blank if n_blank < len(shares) and shares[n_blank] < MAX_BACKGROUND_SHARE else 0


def _is_zero_filled(index: int, zeros: Sequence[MaskArray]) -> bool:
    own = zeros[index].ravel()
    start, end = _longest_run(own)
    neighbours = [~neighbour.ravel()[start:end] for neighbour in _neighbours(index, zeros)]
    is_blank_end = end - start == own.size and len(neighbours) < 2
    if end - start < zeros[index].shape[1] or is_blank_end:
        return False
    if all(neighbour.mean() >= MIN_NEIGHBOUR_SHARE for neighbour in neighbours):
        return True
    n_lost = np.logical_and.reduce(neighbours).sum()
    return len(neighbours) == 2 and end == own.size and bool(n_lost >= MIN_LOST_SHARE * own.size)


def _neighbours(index: int, zeros: Sequence[MaskArray]) -> list[MaskArray]:
    """Return the nearest slice on each side that is not blank."""
    sides = (reversed(zeros[:index]), zeros[index + 1 :])
    nearest = (next((z for z in side if not z.all()), None) for side in sides)
    return [z for z in nearest if z is not None]


def _longest_run(values: MaskArray) -> tuple[int, int]:
    """Return start and end of the longest run of True."""
    edges = np.flatnonzero(np.diff(values.astype(np.int8), prepend=0, append=0))
    starts, ends = edges[::2], edges[1::2]
    if not len(starts):
        return 0, 0
    longest = int(np.argmax(ends - starts))
    return int(starts[longest]), int(ends[longest])
