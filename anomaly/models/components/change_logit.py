"""How sure a network is that a voxel was changed: a second output beside the correction. A building block.

    s = (max(−d, 0), max(d, 0)) / 0.1, at most 1     too dark and too bright; d the change of intensity, where made
    L = Σ m BCE(log-odds, s) / Σ m                   m the mask
    change_logit = log-odds of too bright − log-odds of too dark

Source: Tan, Hou, Batten, Qiu & Kainz 2022, "Detecting Outliers with Foreign Patch Interpolation" (a network that
predicts how much each voxel was changed).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

LARGE_CHANGE = 0.1  # a change of this size, in intensity units, is as severe as it gets
LEAST_SHARE = 0.05  # of a change; less is the soft edge of one
RARE = 3.0  # log-odds against a change, so that an untrained network says that nothing was changed


def change_target(moved: Tensor, changed: Tensor) -> Tensor:
    """Return s ``(B, 2, *S)``, 0 to 1, of having turned too dark and of having turned too bright.

    Parameters
    ----------
    moved
        ``(B, 1, *S)`` the change of intensity.
    changed
        ``(B, 1, *S)`` the share of a local change, 0 to 1.
    """
    brighter = moved * (changed > LEAST_SHARE) / LARGE_CHANGE
    return torch.cat([-brighter, brighter], dim=1).clamp_(0, 1)


def change_logit_loss(log_odds: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return the cross-entropy of log-odds and target, both ``(B, 2, *S)``, per voxel inside the mask."""
    inside = mask.float()
    entropy = F.binary_cross_entropy_with_logits(log_odds, target, weight=inside, reduction="sum")
    return entropy / inside.sum().clamp_min(1)


def signed_change_logit(log_odds: Tensor) -> Tensor:
    """Return the signed change logit ``(B, 1, *S)`` of log-odds ``(B, 2, *S)``, negative where too dark."""
    return log_odds[:, 1:] - log_odds[:, :1]
