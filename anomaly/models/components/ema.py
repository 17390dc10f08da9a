"""Exponential moving average of weights. A building block, not a family.

    w̄ ← d w̄ + (1 − d) w,    d = min(decay, (1 + n) / (10 + n)),    n the number of updates

The effective decay d rises with the number of updates, so that the average soon forgets the initial weights.

Source: Karras et al. 2018, "Progressive Growing of GANs", section 6 (averaged generator weights).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


@torch.no_grad()
def ema_update(average: nn.Module, current: nn.Module, decay: float, n_updates: int) -> None:
    """Update the parameters of ``average`` in place towards those of ``current``.

    Parameters
    ----------
    average, current
        Two modules of the same architecture.
    decay
        Largest decay.
    n_updates
        n, the number of this update or of the training step.
    """
    effective = min(decay, (1 + n_updates) / (10 + n_updates))
    get_ema_multi_avg_fn(effective)(list(average.parameters()), list(current.parameters()), 0)
