"""Mean and standard deviation of many arrays of one shape, without holding all of them in memory.

Elementwise, over the arrays whose mask covers an element:

    mean = Σ x / n,    variance = (Σ x² / n − mean²) · n / (n − ddof)

The sums are float64. For float32 intensities of order 1, their rounding error is far below float32 precision.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class RunningMoments:
    """Elementwise mean and variance of the arrays that were added.

    Parameters
    ----------
    shape
        Shape of every array.

    Attributes
    ----------
    n_arrays
        How many arrays were added.
    count, total, total_of_squares
        float64 of ``shape``: number of covered values, their sum, and the sum of their squares.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.n_arrays = 0
        self.count, self.total, self.total_of_squares = (np.zeros(shape, dtype=np.float64) for _ in range(3))

    def add(self, values: npt.NDArray[Any], mask: npt.NDArray[np.bool_] | None = None) -> None:
        """Add one array; elements outside the mask are not counted. Without a mask, all are."""
        covered = values.astype(np.float64) if mask is None else np.where(mask, values, 0).astype(np.float64)
        self.n_arrays += 1
        self.count += 1 if mask is None else mask
        self.total += covered
        self.total_of_squares += covered**2

    def mean(self) -> Floats:
        """Return the mean of each element, 0 where no array covers it."""
        return np.asarray(self.total / np.maximum(self.count, 1))

    def variance(self, ddof: int = 0) -> Floats:
        """Return the variance of each element, never negative.

        Parameters
        ----------
        ddof
            The sum of squared deviations is divided by the count minus this (at least 1): 0 gives the variance of
            the arrays themselves, 1 the unbiased estimate from a sample.
        """
        variance = self.total_of_squares / np.maximum(self.count, 1) - self.mean() ** 2
        if ddof:
            variance = variance * self.count / np.maximum(self.count - ddof, 1)
        return np.asarray(np.maximum(variance, 0))

    def sd(self, ddof: int = 0) -> Floats:
        """Return the standard deviation of each element; ``ddof`` as for :meth:`variance`."""
        return np.asarray(np.sqrt(self.variance(ddof)))
