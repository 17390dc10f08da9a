"""Normalising flow: how probable is this tissue at this place? An exact likelihood, and the nearest typical image.

Idea. An invertible network maps an image to Gaussian noise, one number per voxel. By the change of variables, the
probability density of the image follows exactly from the noise and from how much the map stretches space:

    log p(x | m) = Σ_{v in m} −z_v²/2 − ½ log 2π + log|∂z/∂x|_v,        z = f_L ∘ … ∘ f_1 ((x − μ)/σ)
    f_l:  y_b ← y_b · exp(s_l) + t_l,   (s_l, t_l) = m_b · g_l(y_a, c),   y_a stays
    log|∂z/∂x|_v = Σ_l s_l,v − log σ_v,   s bounded by S: s = S tanh(ŝ/S)

The image is folded: every f×f(×f) voxels become the channels of one location. a and b are halves of the channels,
other halves in every second layer and exchanged in the next. What the networks g_l are shown beside y_a is the
condition c: where the location lies (sines and cosines of its coordinates), the mask m in it, and how much of the
image is in the mask, which tells slices apart. Voxels outside the mask stay 0 and count for nothing, so the density
is that of the tissue alone. μ and σ are the healthy mean and SD, voxel by voxel where the images are volumes,
because only there a voxel knows its place; for slices they are two numbers. In training, Gaussian noise of a small
SD is added, without which a density of rounded intensities could grow without bound.

Evidence. ``nll`` is −log p of a location, spread evenly over its voxels (nats per voxel). The signed residual is
taken against the nearest typical image: almost all of a Gaussian in n dimensions lies about √n from its centre, so
a location of n voxels whose z lies farther out is drawn back to that distance:

    ẑ = z · min(1, τ √n / |z|),    x̂ = f⁻¹(ẑ),    r = x − x̂

Source: Dinh, Sohl-Dickstein & Bengio 2017, "Density estimation using Real NVP" (affine coupling); Kingma & Dhariwal
2018, "Glow"; Gudovskiy, Ishizaka & Kozuka 2022, "CFLOW-AD" (local flows that are told their place).
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from monai.networks.layers.factories import Conv
from monai.networks.utils import pixelshuffle, pixelunshuffle
from pydantic import Field, model_validator
from torch import Tensor, nn

from anomaly.core.views import View, VolumeSource
from anomaly.models.base import Evidence, ModelSettings
from anomaly.models.closed_form import volumes
from anomaly.models.network import NetworkDetector, crop, pad, padded_shape, residual, within
from anomaly.training.protocols import Moment

SCALE_BOUND = 2.0  # S
FREQUENCIES = 4  # of the sines and cosines, per axis
SD_FLOOR = 0.03  # added to σ in squares, intensity units
FEWEST = 3  # scans that must cover a voxel for a mean and SD of its own
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class FlowSettings(ModelSettings):
    """Settings of the normalising flow."""

    family: Literal["flow"] = "flow"
    view: View = View(kind="volume")
    space_to_depth: int = Field(2, ge=2, le=8, description="f: voxels along each axis that make one location")
    couplings: int = Field(8, ge=2, description="L: coupling layers; two transform every voxel once")
    hidden: int = Field(64, ge=1, description="channels inside the network of a coupling layer")
    kernel: Literal[1, 3] = Field(
        1, description="1: locations are independent given their place; 3: a layer also sees the neighbours' y_a"
    )
    noise_sd: float = Field(0.05, ge=0, description="SD of the noise added in training, intensity units")
    typical_radius: float = Field(0.8, ge=0, description="τ: radius of the typical set, as a share of √n")

    @model_validator(mode="after")
    def _each_voxel_is_explained_once_at_its_place(self) -> FlowSettings:
        if self.view.kind == "patch":
            raise ValueError("a flow must know where a voxel lies, which a patch does not say; use volume or slice")
        if self.view.neighbours:
            raise ValueError("a flow would explain neighbouring slices too; set view.neighbours to 0")
        return self


class Coupling(nn.Module):
    """One affine coupling layer: a half of the channels is scaled and shifted as the other half says.

    Parameters
    ----------
    dims
        Spatial dimensions.
    channels, conditions
        Of the folded image, and of the condition.
    hidden, kernel
        Of the network that gives scale and shift; it starts by giving neither.
    number
        Of the layer: it decides on the halves.
    """

    stays: Tensor
    moves: Tensor
    order: Tensor

    def __init__(self, dims: int, channels: int, conditions: int, hidden: int, kernel: int, number: int) -> None:
        super().__init__()
        shuffled = torch.randperm(channels, generator=torch.Generator().manual_seed(number // 2))
        halves = shuffled[: channels // 2].sort()[0], shuffled[channels // 2 :].sort()[0]
        stays, moves = halves if number % 2 else halves[::-1]
        self.register_buffer("stays", stays, persistent=False)
        self.register_buffer("moves", moves, persistent=False)
        self.register_buffer("order", torch.cat([stays, moves]).argsort(), persistent=False)
        convolution: Any = Conv[Conv.CONV, dims]
        last = convolution(hidden, 2 * len(moves), 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.network = nn.Sequential(
            convolution(len(stays) + conditions, hidden, kernel, padding=kernel // 2),
            nn.SiLU(),
            convolution(hidden, hidden, 1),
            nn.SiLU(),
            last,
        )

    def forward(self, y: Tensor, mask: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Return y and the log of its stretch, both ``(B, C, *S)``."""
        stays, scale, shift = self._affine(y, mask, condition)
        y = torch.cat([stays, y[:, self.moves] * scale.exp() + shift], dim=1)[:, self.order]
        return y, torch.cat([torch.zeros_like(stays), scale], dim=1)[:, self.order]

    def inverse(self, y: Tensor, mask: Tensor, condition: Tensor) -> Tensor:
        """Undo :meth:`forward`."""
        stays, scale, shift = self._affine(y, mask, condition)
        return torch.cat([stays, (y[:, self.moves] - shift) * (-scale).exp()], dim=1)[:, self.order]

    def _affine(self, y: Tensor, mask: Tensor, condition: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what stays, and scale s and shift t of what moves; both are 0 outside the mask."""
        stays, inside = y[:, self.stays], mask[:, self.moves]
        scale, shift = self.network(torch.cat([stays, condition], dim=1)).float().chunk(2, dim=1)
        return stays, SCALE_BOUND * torch.tanh(scale / SCALE_BOUND) * inside, shift * inside


class CouplingFlow(nn.Module):
    """Coupling layers in a row: folded images ``(B, C, *S)`` to noise and back, given masks and conditions."""

    def __init__(self, dims: int, channels: int, conditions: int, settings: FlowSettings) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            Coupling(dims, channels, conditions, settings.hidden, settings.kernel, number)
            for number in range(settings.couplings)
        )

    def forward(self, y: Tensor, mask: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Return z and log|∂z/∂y| of every element."""
        stretch = torch.zeros_like(y)
        for layer in self.layers:
            y, log_scale = layer(y, mask, condition)
            stretch = stretch + log_scale
        return y, stretch

    def inverse(self, z: Tensor, mask: Tensor, condition: Tensor) -> Tensor:
        """Return y of z."""
        for layer in reversed(self.layers):
            z = layer.inverse(z, mask, condition)  # type: ignore[operator]
        return z


class NormalisingFlow(NetworkDetector):
    """Negative log-likelihood of a conditional flow, and the residual against the nearest typical image.

    Attributes
    ----------
    mean, sd
        μ and σ ``(1, 1, *S)`` of volumes; ``(1, 1, 1, 1)`` where the images are slices.
    foreground
        ``(I, J, K)`` bool: voxels in the mask of at least half of the healthy scans; samples are of this shape.
    """

    family = "flow"
    Settings: ClassVar[type[ModelSettings]] = FlowSettings
    settings: FlowSettings
    network: CouplingFlow
    mean: Tensor
    sd: Tensor
    foreground: Tensor

    def build(self) -> nn.Module:
        """Return the coupling layers; they start as the identity."""
        settings, dims = self.settings, self.view.spatial_dims
        known = self.image_shape if self.view.kind == "volume" else (1,) * dims
        self.register_buffer("mean", torch.zeros(1, 1, *known))
        self.register_buffer("sd", torch.ones(1, 1, *known))
        self.register_buffer("foreground", torch.zeros(self.grid.shape, dtype=torch.bool))
        channels = settings.space_to_depth**dims
        conditions = 2 * FREQUENCIES * dims + channels + 1
        return CouplingFlow(dims, channels, conditions, settings)

    @property
    def padded(self) -> tuple[int, ...]:
        """The spatial shape of images that can be folded."""
        return padded_shape(self.image_shape, self.settings.space_to_depth)

    def prepare(self, train: VolumeSource) -> None:
        """Learn the healthy mean and SD, voxel by voxel or as two numbers, and where there is tissue."""
        count, total, squares = (torch.zeros(self.grid.shape, dtype=torch.float64) for _ in range(3))
        for voxels, mask in volumes(train):
            inside = torch.where(mask, voxels, 0.0).double()
            count += mask
            total += inside
            squares += inside**2
        voxels_seen = count.sum().clamp_min(1)
        mean = total.sum() / voxels_seen
        variance = squares.sum() / voxels_seen - mean**2
        if self.view.kind == "volume":
            own = total / count.clamp_min(1)
            own_variance = squares / count.clamp_min(1) - own**2
            mean = torch.where(count >= FEWEST, own, mean)
            variance = torch.where(count >= FEWEST, own_variance, variance)
        self.mean = mean.float().reshape(self.mean.shape)
        self.sd = (variance.clamp_min(0) + SD_FLOOR**2).sqrt().float().reshape(self.sd.shape)
        self.foreground = count >= 0.5 * len(train)

    def loss(self, images: Tensor, mask: Tensor, at: Moment, *corrupted: Tensor) -> dict[str, Tensor]:
        """Return −log p per voxel of the images with a little noise added."""
        del corrupted
        noise = torch.randn(images.shape, generator=at.rng, device=images.device)
        nll = self.negative_log_likelihood(images + self.settings.noise_sd * noise, mask)
        return {"loss": nll.sum() / mask.sum().clamp_min(1)}

    def negative_log_likelihood(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return the share ``(B, 1, *S)`` of every voxel in −log p of an image, nats; 0 outside the mask."""
        z, stretch = self.forward(images, mask)
        return self._unfolded(self._surprise(z, stretch, self._folded(mask.float())))

    def forward(self, images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return z and log|∂z/∂x| of every voxel, folded ``(B, fᴰ, *S/f)``; both are 0 outside the mask."""
        y = within((images - self.mean) / self.sd, mask)
        inside = self._folded(mask.float())
        z, stretch = self.network(self._folded(y), inside, self._condition(inside))
        return z, stretch - self._folded(within(self.sd.log().expand_as(y), mask))

    def inverse(self, z: Tensor, mask: Tensor) -> Tensor:
        """Return the images ``(B, 1, *S)`` of folded z: what :meth:`forward` undoes, 0 outside the mask."""
        inside = self._folded(mask.float())
        y = self._unfolded(self.network.inverse(z * inside, inside, self._condition(inside)))
        return within(y * self.sd + self.mean, mask)

    def typical(self, z: Tensor, mask: Tensor) -> Tensor:
        """Return ẑ: z of every location no farther from 0 than τ √n."""
        n = self._folded(mask.float()).sum(dim=1, keepdim=True)
        radius = self.settings.typical_radius * n.sqrt()
        drawn: Tensor = z * (radius / z.norm(dim=1, keepdim=True).clamp_min(1e-6)).clamp_max(1)
        return drawn

    def reconstruct(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return the nearest typical image."""
        return self.inverse(self.typical(self.forward(images, mask)[0], mask), mask)

    def evidence(self, images: Tensor, mask: Tensor) -> Evidence:
        """Return the residual and the negative log-likelihood; see the module's docstring."""
        z, stretch = self.forward(images, mask)
        inside = self._folded(mask.float())
        surprise = self._surprise(z, stretch, inside)
        reconstruction = self.inverse(self.typical(z, mask), mask)
        per_voxel = surprise.sum(dim=1, keepdim=True) / inside.sum(dim=1, keepdim=True).clamp_min(1)
        maps = {
            "residual": residual(images, reconstruction, mask),
            "nll": within(self._unfolded(per_voxel.expand_as(inside)), mask),
        }
        mean_nll = surprise.flatten(1).sum(1) / inside.flatten(1).sum(1).clamp_min(1)
        return Evidence(maps, reconstruction, {"negative_log_likelihood": mean_nll})

    @torch.no_grad()
    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        """Return new images ``(n, 1, *S)`` of noise, in the shape of the average foreground at random places."""
        foreground, device = self.foreground.cpu().numpy(), self.mean.device
        places = self.view.places(foreground)
        chosen = torch.randint(len(places), (n,), generator=rng, device=rng.device).tolist()
        masks = [torch.from_numpy(self.view.target(foreground, places[place]).copy()) for place in chosen]
        mask = torch.stack(masks).to(device)
        z = torch.randn(self._folded(mask.float()).shape, generator=rng, device=rng.device)
        return self.inverse(z.to(device), mask)

    def _surprise(self, z: Tensor, stretch: Tensor, inside: Tensor) -> Tensor:
        """Return −log p of every voxel, folded."""
        return (0.5 * z**2 + HALF_LOG_2PI - stretch) * inside

    def _condition(self, inside: Tensor) -> Tensor:
        """Return c ``(B, ·, *S/f)``: the place of every location, its mask, the share of the image in the mask."""
        share = inside.mean(dim=list(range(1, inside.ndim)), keepdim=True).expand_as(inside[:, :1])
        place = self._place(inside).expand(len(inside), *[-1] * (inside.ndim - 1))
        return torch.cat([place, inside, share], dim=1)

    def _place(self, like: Tensor) -> Tensor:
        """Return sines and cosines ``(1, ·, *S/f)`` of the coordinates, −1 to 1 along every axis."""
        axes = [torch.linspace(-1, 1, n, device=like.device) for n in like.shape[2:]]
        coordinates = torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]
        angles = torch.cat([0.5 * math.pi * 2**k * coordinates for k in range(FREQUENCIES)], dim=1)
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    def _folded(self, images: Tensor) -> Tensor:
        folded: Tensor = pixelunshuffle(
            pad(images, self.padded), self.view.spatial_dims, self.settings.space_to_depth
        )
        return folded

    def _unfolded(self, folded: Tensor) -> Tensor:
        images: Tensor = pixelshuffle(folded, self.view.spatial_dims, self.settings.space_to_depth)
        return crop(images, self.image_shape)
