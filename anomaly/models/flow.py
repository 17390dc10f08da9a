"""Normalising flow: an exact likelihood of the tissue at each location, and the nearest typical image.

Idea. An invertible network maps an image to Gaussian noise, with one number per voxel. The change-of-variables
formula gives the exact probability density of the image, from the noise and the Jacobian determinant of the
mapping:

    log p(x | m) = Σ_{v in m} −z_v²/2 − ½ log 2π + log|∂z/∂x|_v,        z = f_L ∘ … ∘ f_1 ((x − μ)/σ)
    f_l:  y_b ← y_b · exp(s_l) + t_l,   (s_l, t_l) = m_b · g_l(y_a, c),   y_a is passed on unchanged
    log|∂z/∂x|_v = Σ_l s_l,v − log σ_v,   s bounded by S: s = S tanh(ŝ/S)

Every f×f(×f) voxels form the channels of one location. Each layer splits the channels into halves a and b; the
split changes every second layer, and the halves swap roles in between. The networks g_l also get the condition c of
the location: its coordinates (as sines and cosines), the mask m in it, and the share of the image that lies in the
mask, which distinguishes slices. Given c, locations are independent. Networks that also saw the neighbouring
locations would find a lesion normal next to a lesion. Voxels outside the mask stay 0 and contribute nothing, so the
density is that of the tissue alone. Where f is as large as the image, the whole image is one location. The flow is
then a Real NVP with dense networks and gives the density of whole (small) images. μ and σ are the healthy mean and
SD. They are voxelwise for volumes and for images of one location, where a voxel has a fixed position; for other
slices they are scalars.

Training adds Gaussian noise of a small SD. Without it, the density of rounded intensities could grow without bound.
The noise smooths the learnt density. To measure −log p of images that were rounded to steps of w and dequantised
uniformly over those steps, its SD should not exceed that of the rounding, w/√12.

Evidence. ``nll`` is −log p of a location, distributed evenly over its voxels (nats per voxel). The signed residual
compares the image with the nearest typical image. Almost all the mass of a Gaussian in n dimensions lies about √n
from the centre, so a location of n voxels whose z lies farther out is moved back to that distance:

    ẑ = z · min(1, τ √n / |z|),    x̂ = f⁻¹(ẑ),    r = x − x̂

Source: Dinh, Sohl-Dickstein & Bengio 2017, "Density estimation using Real NVP" (affine coupling); Kingma & Dhariwal
2018, "Glow"; Gudovskiy, Ishizaka & Kozuka 2022, "CFLOW-AD" (local flows conditioned on their position).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from monai.networks.utils import pixelshuffle, pixelunshuffle
from pydantic import Field, model_validator
from torch import Tensor, nn

from anomaly.core.image_views import ImageView, VolumeSource
from anomaly.core.running_moments import RunningMoments
from anomaly.models.base import (
    Evidence,
    ModelSettings,
    NetworkDetector,
    StepInfo,
    apply_mask,
    crop,
    either_foreground,
    pad,
    padded_shape,
    residual,
)

MAX_LOG_SCALE = 2.0  # S
N_FREQUENCIES = 4  # of the sines and cosines that encode a coordinate
SD_FLOOR = 0.03  # intensity units; σ² is the variance plus its square
MIN_SCANS_PER_VOXEL = 3  # training scans that must cover a voxel for a voxelwise mean and SD
MAX_VOXELS_PER_LOCATION = 64**2  # the networks grow with it
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class FlowSettings(ModelSettings):
    """Settings of the normalising flow."""

    family: Literal["flow"] = "flow"
    view: ImageView = ImageView(kind="volume")
    space_to_depth: int = Field(2, ge=2, le=64, description="f: voxels along each axis that make one location")
    couplings: int = Field(8, ge=2, description="L: coupling layers; two transform every voxel once")
    hidden: int = Field(64, ge=1, description="channels inside the network of a coupling layer")
    noise_sd: float = Field(0.05, ge=0, description="SD of the noise added in training, intensity units")
    typical_radius: float = Field(0.8, ge=0, description="τ: radius of the typical set, as a share of √n")

    @model_validator(mode="after")
    def _check_view_and_channels(self) -> FlowSettings:
        if self.view.kind == "patch":
            raise ValueError(
                "the flow needs voxel positions, which a patch does not have; set view.kind to volume or slice"
            )
        if self.view.neighbours:
            raise ValueError("the flow would model the neighbouring slices too; set view.neighbours to 0")
        channels = self.space_to_depth**self.view.spatial_dims
        if channels > MAX_VOXELS_PER_LOCATION:
            raise ValueError(
                f"space_to_depth {self.space_to_depth} makes locations of {channels} voxels; expected at most "
                f"{MAX_VOXELS_PER_LOCATION}; lower it, or use slices"
            )
        return self


class Coupling(nn.Module):
    """One affine coupling layer: one half of the channels is scaled and shifted by functions of the other half.

    Parameters
    ----------
    channels, conditions
        Length of y, and of the condition.
    hidden
        Channels of the network that computes scale and shift. It is initialised to the identity transform.
    number
        Index of the layer, which determines the halves.

    Attributes
    ----------
    identity, transformed
        Indices of the channels that the layer passes on unchanged, and of those that it transforms.
    order
        Permutation that puts both back in place.
    """

    identity: Tensor
    transformed: Tensor
    order: Tensor

    def __init__(self, channels: int, conditions: int, hidden: int, number: int) -> None:
        super().__init__()
        shuffled = torch.randperm(channels, generator=torch.Generator().manual_seed(number // 2))
        halves = shuffled[: channels // 2].sort()[0], shuffled[channels // 2 :].sort()[0]
        identity, transformed = halves if number % 2 else halves[::-1]
        self.register_buffer("identity", identity, persistent=False)
        self.register_buffer("transformed", transformed, persistent=False)
        self.register_buffer("order", torch.cat([identity, transformed]).argsort(), persistent=False)
        last = nn.Linear(hidden, 2 * len(transformed))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.network = nn.Sequential(
            nn.Linear(len(identity) + conditions, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), last
        )

    def forward(self, y: Tensor, inside: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Return the transformed y and the log-determinant per voxel, both ``(N, C)``."""
        identity, scale, shift = self._affine(y, inside, condition)
        y = torch.cat([identity, y[:, self.transformed] * scale.exp() + shift], dim=1)[:, self.order]
        return y, torch.cat([torch.zeros_like(identity), scale], dim=1)[:, self.order]

    def inverse(self, y: Tensor, inside: Tensor, condition: Tensor) -> Tensor:
        """Invert :meth:`forward`."""
        identity, scale, shift = self._affine(y, inside, condition)
        return torch.cat([identity, (y[:, self.transformed] - shift) * (-scale).exp()], dim=1)[:, self.order]

    def _affine(self, y: Tensor, inside: Tensor, condition: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the unchanged half, and scale s and shift t of the other half; both are 0 outside the mask."""
        identity, transformed_inside = y[:, self.identity], inside[:, self.transformed]
        scale, shift = self.network(torch.cat([identity, condition], dim=1)).float().chunk(2, dim=1)
        scale = MAX_LOG_SCALE * torch.tanh(scale / MAX_LOG_SCALE) * transformed_inside
        return identity, scale, shift * transformed_inside


class CouplingFlow(nn.Module):
    """A sequence of coupling layers that maps the voxels of locations ``(N, C)`` to noise and back.

    ``inside`` ``(N, C)`` is 1 for voxels in the mask; ``condition`` ``(N, ·)`` is c of each location.
    """

    def __init__(self, channels: int, conditions: int, settings: FlowSettings) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            Coupling(channels, conditions, settings.hidden, number) for number in range(settings.couplings)
        )

    def forward(self, y: Tensor, inside: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Return z and log|∂z/∂y| of every voxel."""
        log_det = torch.zeros_like(y)
        for layer in self.layers:
            y, layer_log_det = layer(y, inside, condition)
            log_det = log_det + layer_log_det
        return y, log_det

    def inverse(self, z: Tensor, inside: Tensor, condition: Tensor) -> Tensor:
        """Invert :meth:`forward`: return y of z."""
        for layer in reversed(self.layers):
            z = layer.inverse(z, inside, condition)  # type: ignore[operator]
        return z


class Locations(NamedTuple):
    """The N locations of a batch that contain tissue.

    Parameters
    ----------
    where
        ``(B, *S/f)`` bool.
    inside
        ``(N, fᴰ)``, 1 for voxels in the mask.
    condition
        ``(N, ·)``, c.
    """

    where: Tensor
    inside: Tensor
    condition: Tensor


class NormalisingFlow(NetworkDetector):
    """Negative log-likelihood of a conditional flow, and the residual against the nearest typical image.

    Attributes
    ----------
    mean, sd
        μ and σ: voxelwise ``(1, 1, *S)`` where a voxel has a fixed position, else ``(1, 1, 1, 1)``.
    foreground
        ``(I, J, K)`` bool: voxels in the mask of at least half of the healthy scans; samples have this shape.
    """

    family = "flow"
    Settings: ClassVar[type[ModelSettings]] = FlowSettings
    settings: FlowSettings
    network: CouplingFlow
    mean: Tensor
    sd: Tensor
    foreground: Tensor

    def build(self) -> nn.Module:
        """Return the coupling layers, initialised to the identity."""
        settings, dims = self.settings, self.view.spatial_dims
        shape = self.image_shape if self.is_voxelwise else (1,) * dims
        self.register_buffer("mean", torch.zeros(1, 1, *shape))
        self.register_buffer("sd", torch.ones(1, 1, *shape))
        self.register_buffer("foreground", torch.zeros(self.grid.shape, dtype=torch.bool))
        channels = settings.space_to_depth**dims
        return CouplingFlow(channels, 2 * N_FREQUENCIES * dims + channels + 1, settings)

    @property
    def padded(self) -> tuple[int, ...]:
        """The spatial shape of images, padded to a multiple of the location size."""
        return padded_shape(self.image_shape, self.settings.space_to_depth)

    @property
    def is_voxelwise(self) -> bool:
        """Whether mean and SD are voxelwise: for volumes, and where the image is one location."""
        return self.view.kind == "volume" or max(self.image_shape) <= self.settings.space_to_depth

    def prepare(self, train: VolumeSource) -> None:
        """Learn the healthy mean and SD, voxelwise or as scalars, and the average foreground."""
        moments = RunningMoments(self.grid.shape)
        for index in range(len(train)):
            moments.add(*train[index])
        count, total, squares = map(torch.from_numpy, (moments.count, moments.total, moments.total_of_squares))
        self.foreground = count >= 0.5 * len(train)
        mean, variance = _moments(count.sum(), total.sum(), squares.sum())
        if self.is_voxelwise:
            if self.view.kind == "slice":
                count, total, squares = (sums.sum(self.view.axis) for sums in (count, total, squares))
            own_mean, own_variance = _moments(count, total, squares)
            mean = torch.where(count >= MIN_SCANS_PER_VOXEL, own_mean, mean)
            variance = torch.where(count >= MIN_SCANS_PER_VOXEL, own_variance, variance)
        self.mean = mean.float().reshape(self.mean.shape)
        self.sd = (variance.clamp_min(0) + SD_FLOOR**2).sqrt().float().reshape(self.sd.shape)

    def loss(self, images: Tensor, mask: Tensor, step_info: StepInfo, *corrupted: Tensor) -> dict[str, Tensor]:
        """Return −log p per voxel of the images with added noise."""
        del corrupted
        noise = torch.randn(images.shape, generator=step_info.rng, device=images.device)
        nll = self.negative_log_likelihood(images + self.settings.noise_sd * noise, mask)
        return {"loss": nll.sum() / mask.sum().clamp_min(1)}

    def negative_log_likelihood(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return the share ``(B, 1, *S)`` of every voxel in −log p of its image, in nats; 0 outside the mask.

        The voxels of a location have equal shares, because only the sum over a location is meaningful.
        """
        locations = self.locations(mask)
        return self._nll_per_voxel(*self.forward(images, mask, locations), locations)

    def locations(self, mask: Tensor) -> Locations:
        """Return the locations that contain voxels of a mask, and their conditions."""
        inside = self._folded(mask.float())
        where = inside.any(dim=-1)
        share = inside.flatten(1).mean(1).reshape(-1, *[1] * (inside.ndim - 1)).expand(*where.shape, 1)
        position = _positional_encoding(where.shape[1:], mask.device).expand(*where.shape, -1)
        return Locations(where, inside[where], torch.cat([position, inside, share], dim=-1)[where])

    def forward(self, images: Tensor, mask: Tensor, locations: Locations) -> tuple[Tensor, Tensor]:
        """Return z and log|∂z/∂x| of every voxel, both ``(N, fᴰ)`` and 0 outside the mask."""
        where, inside, condition = locations
        y = self._folded(apply_mask((images - self.mean) / self.sd, mask))[where]
        z, log_det = self.network(y, inside, condition)
        return z, log_det - self._folded(apply_mask(self.sd.log().expand(mask.shape), mask))[where]

    def inverse(self, z: Tensor, mask: Tensor, locations: Locations) -> Tensor:
        """Return the images ``(B, 1, *S)`` of z ``(N, fᴰ)``: undo :meth:`forward`."""
        where, inside, condition = locations
        y = self._unfolded(self.network.inverse(z * inside, inside, condition), where)
        return apply_mask(y * self.sd + self.mean, mask)

    def typical(self, z: Tensor, locations: Locations) -> Tensor:
        """Return ẑ: z with the norm of every location limited to τ √n."""
        radius = self.settings.typical_radius * locations.inside.sum(dim=1, keepdim=True).sqrt()
        norm: Tensor = z.norm(dim=1, keepdim=True).clamp_min(1e-6)
        return z * (radius / norm).clamp_max(1)

    def reconstruct(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return the nearest typical image."""
        locations = self.locations(mask)
        z, _ = self.forward(images, mask, locations)
        return self.inverse(self.typical(z, locations), mask, locations)

    def evidence(self, images: Tensor, mask: Tensor, covariates: Tensor | None = None) -> Evidence:
        """Return the residual and the negative log-likelihood; see the module's docstring."""
        del covariates
        locations = self.locations(mask)
        z, log_det = self.forward(images, mask, locations)
        reconstruction = self.inverse(self.typical(z, locations), mask, locations)
        nll = self._nll_per_voxel(z, log_det, locations)
        per_voxel = nll.flatten(1).sum(1) / mask.flatten(1).sum(1).clamp_min(1)
        maps = {"residual": residual(images, reconstruction, mask), "nll": nll}
        return Evidence(maps, reconstruction, {"negative_log_likelihood": per_voxel})

    @torch.no_grad()
    def sample(self, n: int, rng: torch.Generator, covariates: Tensor | None = None) -> Tensor:
        """Return images ``(n, 1, *S)`` from noise, in the shape of the average foreground at random locations."""
        del covariates
        foreground, device = self.foreground.cpu().numpy(), self.mean.device
        view_locations = self.view.locations(foreground)
        chosen = torch.randint(len(view_locations), (n,), generator=rng, device=rng.device).tolist()
        masks = [
            torch.from_numpy(self.view.target_slice(foreground, view_locations[place]).copy()) for place in chosen
        ]
        mask = torch.stack(masks).to(device)
        locations = self.locations(mask)
        z = torch.randn(locations.inside.shape, generator=rng, device=rng.device)
        return self.inverse(z.to(device), mask, locations)

    @torch.no_grad()
    def interpolate(
        self, first: Tensor, second: Tensor, weight: float, covariates: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """Return images ``(B, 1, *S)`` interpolated between ``first`` (weight 0) and ``second`` (weight 1).

        The latents z are interpolated linearly and rescaled to the interpolated norm, because the mean of two
        typical z is not typical.
        """
        del covariates
        mask = either_foreground(first, second)
        locations = self.locations(mask)
        start, end = (self.forward(images, mask, locations)[0] for images in (first, second))
        radius = torch.lerp(start.norm(dim=1, keepdim=True), end.norm(dim=1, keepdim=True), weight)
        return self.inverse(radius * F.normalize(torch.lerp(start, end, weight), dim=1), mask, locations)

    def _nll_per_voxel(self, z: Tensor, log_det: Tensor, locations: Locations) -> Tensor:
        """Return −log p of every location, distributed evenly over its voxels in the mask, as ``(B, 1, *S)``."""
        where, inside, _ = locations
        nll = (0.5 * z**2 + HALF_LOG_2PI - log_det) * inside
        return self._unfolded(inside * nll.sum(dim=1, keepdim=True) / inside.sum(dim=1, keepdim=True), where)

    def _folded(self, images: Tensor) -> Tensor:
        """Return images ``(B, 1, *S)`` as ``(B, *S/f, fᴰ)``."""
        folded = pixelunshuffle(pad(images, self.padded), self.view.spatial_dims, self.settings.space_to_depth)
        return torch.movedim(folded, 1, -1)

    def _unfolded(self, values: Tensor, where: Tensor) -> Tensor:
        """Return the values ``(N, fᴰ)`` of locations as images that are 0 elsewhere."""
        folded = values.new_zeros((*where.shape, values.shape[1]))
        folded[where] = values
        images = pixelshuffle(folded.movedim(-1, 1), self.view.spatial_dims, self.settings.space_to_depth)
        return crop(images, self.image_shape)


def _moments(count: Tensor, total: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance, given how many values there were, their sum and that of their squares."""
    mean = total / count.clamp_min(1)
    return mean, squares / count.clamp_min(1) - mean**2


def _positional_encoding(shape: Sequence[int], device: torch.device) -> Tensor:
    """Return sines and cosines ``(*shape, ·)`` of the coordinates of locations, which run from −1 to 1."""
    axes = [torch.linspace(-1, 1, n, device=device) for n in shape]
    coordinates = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    angles = torch.cat([0.5 * math.pi * 2**k * coordinates for k in range(N_FREQUENCIES)], dim=-1)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
