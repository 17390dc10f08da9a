"""Check losses and gradients: refuse what is not finite, and notice exploding gradients.

Clipping bounds each step, so an explosion is not visible in the weights at once. But a clipped huge gradient is a
step of full length in a random direction, and a series of them destroys what was learnt.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections import Counter, deque
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from anomaly.core.errors import TrainingError
from anomaly.training.settings import TrainingSettings

NORM_WINDOW = 100  # gradient norms whose median is the usual norm
MIN_NORMS = 20  # gradient norms before there is a usual norm
EXPLOSION_FACTOR = 1000.0  # times the usual norm
EXPLOSION_SERIES = 5  # huge norms in a row; a single one is a rare batch
MAX_OVERFLOWS = 3  # overflowing gradients in a row that mixed precision may have
GPU_CHECK_EVERY = 10  # steps of a part; to read a number from a GPU is to wait for it

_log = logging.getLogger(__name__)


class ExplosionDetector:
    """Tracks the usual gradient norm of one part of a model."""

    def __init__(self) -> None:
        self.norms: deque[float] = deque(maxlen=NORM_WINDOW)
        self.series = 0

    @property
    def usual_norm(self) -> float:
        """The median of the latest norms that were not huge; infinite before there are enough."""
        return statistics.median(self.norms) if len(self.norms) >= MIN_NORMS else float("inf")

    def explodes(self, norm: float) -> bool:
        """Record a gradient norm; return whether it completes a series of huge ones."""
        if 0 < EXPLOSION_FACTOR * self.usual_norm < norm:
            self.series += 1
        else:
            self.series = 0
            self.norms.append(norm)
        return self.series == EXPLOSION_SERIES


class GradientMonitor:
    """Checks the numbers of each trainable part of a detector.

    Parameters
    ----------
    settings
        The recipe, which error messages refer to.
    device
        Where the detector is; on a GPU only some steps are checked.
    mixed_precision
        Whether a rare overflow is normal.
    """

    def __init__(self, settings: TrainingSettings, device: torch.device, mixed_precision: bool) -> None:
        self.settings, self.device, self.mixed_precision = settings, device, mixed_precision
        self.explosions: list[int] = []
        self._steps: Counter[nn.Module] = Counter()  # of each part
        self._overflows: Counter[nn.Module] = Counter()  # of each part, in a row
        self._detectors: dict[nn.Module, ExplosionDetector] = {}

    def checks(self, part: nn.Module) -> bool:
        """Return whether the numbers of this step are checked."""
        return self.device.type == "cpu" or self._steps[part] % GPU_CHECK_EVERY == 0

    def check_losses(self, part: nn.Module, losses: Mapping[str, Tensor], step: int) -> None:
        """Raise TrainingError if a loss is not finite."""
        if self.checks(part):
            self._refuse_non_finite(losses, step)

    def check_norm(self, part: nn.Module, norm: Tensor, step: int) -> None:
        """Check the gradient norm of a step.

        Raises
        ------
        TrainingError
            If it is not finite; in mixed precision only after several overflows of one part in a row.
        """
        if self.checks(part):
            self._check_norm(part, norm, step)
        self._steps[part] += 1

    def _check_norm(self, part: nn.Module, norm: Tensor, step: int) -> None:
        self._overflows[part] = 0 if norm.isfinite() else self._overflows[part] + 1
        if self._overflows[part]:
            if self._overflows[part] > MAX_OVERFLOWS or not self.mixed_precision:
                self._refuse_non_finite({"gradient norm": norm}, step)
            return
        detector = self._detectors.setdefault(part, ExplosionDetector())
        if detector.explodes(float(norm)):
            self.explosions.append(step)
            _log.warning(
                "step %d: the gradient explodes: norm %.3g, usually %.3g; lower training.learning_rate",
                step,
                norm,
                detector.usual_norm,
            )

    def _refuse_non_finite(self, values: Mapping[str, Tensor], step: int) -> None:
        wrong = {name: float(value) for name, value in values.items() if not math.isfinite(float(value))}
        if wrong:
            found = ", ".join(f"{name} = {value}" for name, value in wrong.items())
            raise TrainingError(
                f"training went wrong at step {step}: {found}; expected finite numbers. Lower "
                f"training.learning_rate (now {self.settings.learning_rate:g}) or training.gradient_clip (now "
                f"{self.settings.gradient_clip:g}), and check the intensities of the cohort. The last good "
                "weights and checkpoint are kept in the working folder"
            )
