"""Overlap of two masks."""

from __future__ import annotations

from anomaly.core.volume import MaskArray


def dice(first: MaskArray, second: MaskArray) -> float:
    """Return the Dice coefficient of two masks, ``2 |A ∩ B| / (|A| + |B|)`` (Dice 1945), from 0 to 1.

    Two empty masks have Dice 1, because they agree completely: there is no lesion, and none was marked. So a mean
    over scans counts such a scan, which NaN would exclude.

    Parameters
    ----------
    first, second
        Masks of the same shape.
    """
    total = int(first.sum()) + int(second.sum())
    return 2.0 * int((first & second).sum()) / total if total else 1.0
