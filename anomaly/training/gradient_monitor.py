"""Notices gradients that explode.

The clip bounds each step, so nothing goes visibly wrong: but a clipped huge gradient is a step of full length in a
direction that noise has chosen, and a series of them unlearns.
"""

from __future__ import annotations

import statistics
from collections import deque

WINDOW = 100  # norms whose median is the usual one
FEWEST = 20  # norms that say what is usual
HUGE = 1000.0  # times the usual norm
SERIES = 5  # huge norms in a row; a single one is a rare batch


class GradientMonitor:
    """Knows the usual size of gradients of one part of a model."""

    def __init__(self) -> None:
        self.norms: deque[float] = deque(maxlen=WINDOW)
        self.series = 0

    @property
    def usual(self) -> float:
        """The median of the latest norms that were not huge; infinite before enough were seen."""
        return statistics.median(self.norms) if len(self.norms) >= FEWEST else float("inf")

    def explodes(self, norm: float) -> bool:
        """Note the norm of a gradient; return whether it completes a series of huge ones."""
        if 0 < HUGE * self.usual < norm:
            self.series += 1
        else:
            self.series = 0
            self.norms.append(norm)
        return self.series == SERIES
