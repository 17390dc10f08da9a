"""What a reconstruction x̂ may be compared with its image x by, inside the mask m. A building block, not a family.

    l2          Σ m (x̂ − x)² / Σ m
    l1          Σ m |x̂ − x| / Σ m
    ssim        Σ m (1 − SSIM(x̂, x)) / Σ m
    multiscale  ¼ Σ_k Σ |A_k m (x̂ − x)| / Σ A_k m,    A_k the mean over blocks of 2ᵏ voxels, k = 0 … 3

SSIM compares mean, contrast and pattern within a Gaussian window about each voxel, where μ, σ² and σ_x̂x are the
local means, variances and covariance of both images, 0 outside the mask:

    SSIM = (2 μ_x̂ μ_x + c₁)(2 σ_x̂x + c₂) / ((μ_x̂² + μ_x² + c₁)(σ_x̂² + σ_x² + c₂)),    c₁ = 0.01², c₂ = 0.03²

The constants are meant for intensities of about 0 to 1. The terms of ``multiscale`` are the l1 of ever coarser
images, whose blocks are averaged over their voxels inside the mask and weighted by the number of these: fine detail
that a narrow latent cannot hold drops out at the coarse scales, an extended shift of intensity counts at all four.

Source: Wang, Bovik, Sheikh & Simoncelli 2004, "Image quality assessment: from error visibility to structural
similarity"; Bergmann et al. 2019, "Improving unsupervised defect segmentation by applying structural similarity to
autoencoders".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from monai.metrics.regression import compute_ssim_and_cs
from torch import Tensor

from anomaly.models.components.network import apply_mask, masked_mean, pad, padded_shape

LossName = Literal["l2", "l1", "ssim", "multiscale"]
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]

WINDOW = {2: 11, 3: 7}  # voxels; smaller in volumes, where the cost grows with its cube
WINDOW_SD = 1.5
SCALES = 4


def l2(reconstruction: Tensor, image: Tensor, mask: Tensor) -> Tensor:
    """Return the mean squared error inside the mask, a scalar; all three are ``(B, 1, *S)``."""
    return masked_mean((reconstruction - image).float() ** 2, mask)


def l1(reconstruction: Tensor, image: Tensor, mask: Tensor) -> Tensor:
    """Return the mean absolute error inside the mask."""
    return masked_mean((reconstruction - image).float().abs(), mask)


def ssim(reconstruction: Tensor, image: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of 1 − SSIM inside the mask."""
    return masked_mean(dissimilarity(reconstruction, image, mask), mask)


def multiscale(reconstruction: Tensor, image: Tensor, mask: Tensor) -> Tensor:
    """Return the l1 of images 1, 2, 4 and 8 times coarser, averaged."""
    shape = padded_shape(image.shape[2:], 2 ** (SCALES - 1))
    error, weight = pad(apply_mask(reconstruction - image, mask), shape), pad(mask.float(), shape)
    average = F.avg_pool2d if image.ndim == 4 else F.avg_pool3d
    terms = []
    for _ in range(SCALES):
        terms.append(error.abs().sum() / weight.sum().clamp_min(1e-6))
        error, weight = average(error, 2), average(weight, 2)
    return torch.stack(terms).mean()


def dissimilarity(reconstruction: Tensor, image: Tensor, mask: Tensor) -> Tensor:
    """Return 1 − SSIM about each voxel ``(B, 1, *S)``, 0 to 2; 0 outside the mask."""
    dims = image.ndim - 2
    margin = [WINDOW[dims] // 2] * (2 * dims)
    with torch.autocast(image.device.type, enabled=False):  # variances are differences of nearly equal numbers
        first, second = (F.pad(apply_mask(values, mask), margin) for values in (reconstruction, image))
        similarity, _ = compute_ssim_and_cs(
            first, second, dims, kernel_size=[WINDOW[dims]] * dims, kernel_sigma=[WINDOW_SD] * dims
        )
        return apply_mask(1 - similarity, mask)


LOSSES: dict[LossName, Loss] = {"l2": l2, "l1": l1, "ssim": ssim, "multiscale": multiscale}
