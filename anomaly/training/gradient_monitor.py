"""Check losses and gradients: refuse what is not finite, and notice exploding gradients.

Clipping bounds each step, so an explosion is not visible in the weights at once. But a clipped huge gradient is a
step of full length in a random direction, and a series of them destroys what was learnt.
"""

from __future__ import annotations

import logging
import statistics
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from anomaly.core.errors import TrainingError
from anomaly.training.settings import TrainingSettings

NORM_WINDOW = 100  # gradient norms whose median is the usual norm
MIN_NORMS = 20  # gradient norms before there is a usual norm
EXPLOSION_FACTOR = 1000.0  # times the usual norm
EXPLOSION_SERIES = 5  # huge norms in a row; a single one is a rare batch
MAX_OVERFLOWS = 3  # overflowing gradients in a row that mixed precision may have
GPU_CHECK_EVERY_STEPS = 10  # steps of a part; reading a number from a GPU waits until it is computed

_log = logging.getLogger(__name__)


@dataclass
class GradientHistory:
    """The gradients of one part of a detector."""

    steps: int = 0
    overflows: int = 0  # in a row
    huge_norms: int = 0  # in a row
    usual_norms: deque[float] = field(default_factory=lambda: deque(maxlen=NORM_WINDOW))

    @property
    def median_norm(self) -> float:
        """The median of the latest norms that were not huge; infinite before there are enough."""
        return statistics.median(self.usual_norms) if len(self.usual_norms) >= MIN_NORMS else float("inf")

    def explodes(self, norm: float) -> bool:
        """Record a gradient norm; return whether it completes a series of huge ones."""
        if 0 < EXPLOSION_FACTOR * self.median_norm < norm:
            self.huge_norms += 1
        else:
            self.huge_norms = 0
            self.usual_norms.append(norm)
        return self.huge_norms == EXPLOSION_SERIES


class GradientMonitor:
    """Checks the numbers of each trainable part of a detector: on a GPU, those of some steps only.

    In mixed precision a rare overflow of the gradient is normal.
    """

    def __init__(self, settings: TrainingSettings, gpu: bool, mixed_precision: bool) -> None:
        self.settings = settings
        self.check_every = GPU_CHECK_EVERY_STEPS if gpu else 1
        self.max_overflows = MAX_OVERFLOWS if mixed_precision else 0
        self.histories: defaultdict[nn.Module, GradientHistory] = defaultdict(GradientHistory)

    def checks(self, part: nn.Module) -> bool:
        """Return whether the numbers of this step are checked."""
        return self.histories[part].steps % self.check_every == 0

    def check_losses(self, part: nn.Module, losses: Mapping[str, Tensor], step: int) -> None:
        """Raise TrainingError if a loss is not finite."""
        if self.checks(part):
            self._refuse_non_finite(losses, step)

    def explodes(self, part: nn.Module, norm: Tensor, step: int) -> bool:
        """Check the gradient norm of a step; return whether it completes a series of huge ones.

        Raises
        ------
        TrainingError
            If it is not finite; in mixed precision only after several overflows of one part in a row.
        """
        history, checked = self.histories[part], self.checks(part)
        history.steps += 1
        if not checked:
            return False
        history.overflows = 0 if norm.isfinite() else history.overflows + 1
        if history.overflows > self.max_overflows:
            self._refuse_non_finite({"gradient norm": norm}, step)
        if history.overflows or not history.explodes(float(norm)):
            return False
        message = "step %d: the gradient explodes: norm %.3g, usually %.3g; lower training.learning_rate"
        _log.warning(message, step, norm, history.median_norm)
        return True

    def _refuse_non_finite(self, values: Mapping[str, Tensor], step: int) -> None:
        wrong = [f"{name} = {float(value)}" for name, value in values.items() if not value.isfinite()]
        if wrong:
            raise TrainingError(
                f"training went wrong at step {step}: {', '.join(wrong)}; expected finite numbers. Lower "
                f"training.learning_rate (now {self.settings.learning_rate:g}) or training.gradient_clip (now "
                f"{self.settings.gradient_clip:g}), and check the intensities of the cohort. The last good "
                "weights and checkpoint are kept in the working folder"
            )
