"""Normalising flow: how probable is this tissue at this place? An exact likelihood, and the nearest typical image.

Idea. An invertible network maps an image to Gaussian noise, one number per voxel. By the change of variables, the
probability density of the image follows exactly from the noise and from how much the map stretches space:

    log p(x | m) = Σ_{v in m} −z_v²/2 − ½ log 2π + log|∂z/∂x|_v,        z = f_L ∘ … ∘ f_1 ((x − μ)/σ)
    f_l:  y_b ← y_b · exp(s_l) + t_l,   (s_l, t_l) = m_b · g_l(y_a, c),   y_a stays
    log|∂z/∂x|_v = Σ_l s_l,v − log σ_v,   s bounded by S: s = S tanh(ŝ/S)

Every f×f(×f) voxels are the channels of one location; a and b are halves of the channels, other halves in every
second layer and exchanged in the next. What the networks g_l are shown beside y_a is the condition c: where the
location lies (sines and cosines of its coordinates), the mask m in it, and how much of the image is in the mask,
which tells slices apart. Given that, locations are independent: networks that also saw the neighbours would find a
lesion normal beside a lesion. Voxels outside the mask stay 0 and count for nothing, so the density is that of the
tissue alone. Where f is as large as the image, the image is one location, and the flow is a Real NVP with dense
networks: the density of whole images, where they are small. μ and σ are the healthy mean and SD, voxel by voxel
where the images are volumes or one location, because only there a voxel knows its place; for other slices they are
two numbers.

In training, Gaussian noise of a small SD is added, without which a density of rounded intensities could grow
without bound. It smooths what is learnt: for −log p of images that were rounded to steps of w, and are spread
evenly over those steps to measure it, it should be no larger than the rounding, of SD w/√12.

Evidence. ``nll`` is −log p of a location, spread evenly over its voxels (nats per voxel). The signed residual is
taken against the nearest typical image: almost all of a Gaussian in n dimensions lies about √n from its centre, so
a location of n voxels whose z lies farther out is drawn back to that distance:

    ẑ = z · min(1, τ √n / |z|),    x̂ = f⁻¹(ẑ),    r = x − x̂

Source: Dinh, Sohl-Dickstein & Bengio 2017, "Density estimation using Real NVP" (affine coupling); Kingma & Dhariwal
2018, "Glow"; Gudovskiy, Ishizaka & Kozuka 2022, "CFLOW-AD" (local flows that are told their place).
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
from anomaly.models.base import Evidence, ModelSettings, either_foreground
from anomaly.models.components.network import NetworkDetector, apply_mask, crop, pad, padded_shape, residual
from anomaly.training.protocols import StepInfo

SCALE_BOUND = 2.0  # S
FREQUENCIES = 4  # of the sines and cosines, per axis
SD_FLOOR = 0.03  # added to σ in squares, intensity units
FEWEST = 3  # images that must cover a voxel for a mean and SD of its own
MOST_CHANNELS = 64**2  # voxels of a location; the networks grow with it
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
    def _each_voxel_is_explained_once_at_its_place(self) -> FlowSettings:
        if self.view.kind == "patch":
            raise ValueError("a flow must know where a voxel lies, which a patch does not say; use volume or slice")
        if self.view.neighbours:
            raise ValueError("a flow would explain neighbouring slices too; set view.neighbours to 0")
        channels = self.space_to_depth**self.view.spatial_dims
        if channels > MOST_CHANNELS:
            raise ValueError(
                f"space_to_depth {self.space_to_depth} makes locations of {channels} voxels; expected at most "
                f"{MOST_CHANNELS}; lower it, or look at slices"
            )
        return self


class Coupling(nn.Module):
    """One affine coupling layer: a half of the channels is scaled and shifted as the other half says.

    Parameters
    ----------
    channels, conditions
        Length of y, and of the condition.
    hidden
        Of the network that gives scale and shift; it starts by giving neither.
    number
        Of the layer: it decides on the halves.
    """

    stays: Tensor
    moves: Tensor
    order: Tensor

    def __init__(self, channels: int, conditions: int, hidden: int, number: int) -> None:
        super().__init__()
        shuffled = torch.randperm(channels, generator=torch.Generator().manual_seed(number // 2))
        halves = shuffled[: channels // 2].sort()[0], shuffled[channels // 2 :].sort()[0]
        stays, moves = halves if number % 2 else halves[::-1]
        self.register_buffer("stays", stays, persistent=False)
        self.register_buffer("moves", moves, persistent=False)
        self.register_buffer("order", torch.cat([stays, moves]).argsort(), persistent=False)
        last = nn.Linear(hidden, 2 * len(moves))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.network = nn.Sequential(
            nn.Linear(len(stays) + conditions, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), last
        )

    def forward(self, y: Tensor, inside: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Return y and the log of its stretch, both ``(N, C)``."""
        stays, scale, shift = self._affine(y, inside, condition)
        y = torch.cat([stays, y[:, self.moves] * scale.exp() + shift], dim=1)[:, self.order]
        return y, torch.cat([torch.zeros_like(stays), scale], dim=1)[:, self.order]

    def inverse(self, y: Tensor, inside: Tensor, condition: Tensor) -> Tensor:
        """Undo :meth:`forward`."""
        stays, scale, shift = self._affine(y, inside, condition)
        return torch.cat([stays, (y[:, self.moves] - shift) * (-scale).exp()], dim=1)[:, self.order]

    def _affine(self, y: Tensor, inside: Tensor, condition: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what stays, and scale s and shift t of what moves; both are 0 outside the mask."""
        stays, moving = y[:, self.stays], inside[:, self.moves]
        scale, shift = self.network(torch.cat([stays, condition], dim=1)).float().chunk(2, dim=1)
        return stays, SCALE_BOUND * torch.tanh(scale / SCALE_BOUND) * moving, shift * moving


class CouplingFlow(nn.Module):
    """Coupling layers in a row: voxels of locations ``(N, C)`` to noise and back.

    ``inside`` ``(N, C)`` is 1 for voxels in the mask, ``condition`` ``(N, ·)`` what is known of the locations.
    """

    def __init__(self, channels: int, conditions: int, settings: FlowSettings) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            Coupling(channels, conditions, settings.hidden, number) for number in range(settings.couplings)
        )

    def forward(self, y: Tensor, inside: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Return z and log|∂z/∂y| of every voxel."""
        stretch = torch.zeros_like(y)
        for layer in self.layers:
            y, log_scale = layer(y, inside, condition)
            stretch = stretch + log_scale
        return y, stretch

    def inverse(self, z: Tensor, inside: Tensor, condition: Tensor) -> Tensor:
        """Return y of z."""
        for layer in reversed(self.layers):
            z = layer.inverse(z, inside, condition)  # type: ignore[operator]
        return z


class Locations(NamedTuple):
    """The N locations of a batch that hold tissue.

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
        μ and σ ``(1, 1, *S)`` of images in which a voxel knows its place; ``(1, 1, 1, 1)`` of other slices.
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
        known = self.image_shape if self.knows_places else (1,) * dims
        self.register_buffer("mean", torch.zeros(1, 1, *known))
        self.register_buffer("sd", torch.ones(1, 1, *known))
        self.register_buffer("foreground", torch.zeros(self.grid.shape, dtype=torch.bool))
        channels = settings.space_to_depth**dims
        return CouplingFlow(channels, 2 * FREQUENCIES * dims + channels + 1, settings)

    @property
    def padded(self) -> tuple[int, ...]:
        """The spatial shape of images that can be folded."""
        return padded_shape(self.image_shape, self.settings.space_to_depth)

    @property
    def knows_places(self) -> bool:
        """Whether a voxel has a mean of its own: in volumes, and where the image is one location."""
        return self.view.kind == "volume" or max(self.image_shape) <= self.settings.space_to_depth

    def prepare(self, train: VolumeSource) -> None:
        """Learn the healthy mean and SD, voxel by voxel or as two numbers, and where there is tissue."""
        moments = RunningMoments(self.grid.shape)
        for index in range(len(train)):
            moments.add(*train[index])
        count, total, squares = map(torch.from_numpy, (moments.count, moments.total, moments.total_of_squares))
        self.foreground = count >= 0.5 * len(train)
        mean, variance = _moments(count.sum(), total.sum(), squares.sum())
        if self.knows_places:
            if self.view.kind == "slice":
                count, total, squares = (sums.sum(self.view.axis) for sums in (count, total, squares))
            own_mean, own_variance = _moments(count, total, squares)
            mean = torch.where(count >= FEWEST, own_mean, mean)
            variance = torch.where(count >= FEWEST, own_variance, variance)
        self.mean = mean.float().reshape(self.mean.shape)
        self.sd = (variance.clamp_min(0) + SD_FLOOR**2).sqrt().float().reshape(self.sd.shape)

    def loss(self, images: Tensor, mask: Tensor, at: StepInfo, *corrupted: Tensor) -> dict[str, Tensor]:
        """Return −log p per voxel of the images with a little noise added."""
        del corrupted
        noise = torch.randn(images.shape, generator=at.rng, device=images.device)
        nll = self.negative_log_likelihood(images + self.settings.noise_sd * noise, mask)
        return {"loss": nll.sum() / mask.sum().clamp_min(1)}

    def negative_log_likelihood(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return the share ``(B, 1, *S)`` of every voxel in −log p of its image, nats; 0 outside the mask.

        The voxels of a location have equal shares, because only their sum has a meaning of its own.
        """
        locations = self.locations(mask)
        return self._shares(*self.to_noise(images, mask, locations), locations)

    def locations(self, mask: Tensor) -> Locations:
        """Return the locations that hold voxels of a mask, and what the flow is told of them."""
        inside = self._folded(mask.float())
        where = inside.any(dim=-1)
        share = inside.flatten(1).mean(1).reshape(-1, *[1] * (inside.ndim - 1)).expand(*where.shape, 1)
        place = _place(where.shape[1:], mask.device).expand(*where.shape, -1)
        return Locations(where, inside[where], torch.cat([place, inside, share], dim=-1)[where])

    def to_noise(self, images: Tensor, mask: Tensor, locations: Locations) -> tuple[Tensor, Tensor]:
        """Return z and log|∂z/∂x| of every voxel, both ``(N, fᴰ)`` and 0 outside the mask."""
        where, inside, condition = locations
        y = self._folded(apply_mask((images - self.mean) / self.sd, mask))[where]
        z, stretch = self.network(y, inside, condition)
        return z, stretch - self._folded(apply_mask(self.sd.log().expand(mask.shape), mask))[where]

    def to_image(self, z: Tensor, mask: Tensor, locations: Locations) -> Tensor:
        """Return the images ``(B, 1, *S)`` of z ``(N, fᴰ)``: undo :meth:`to_noise`."""
        where, inside, condition = locations
        y = self._unfolded(self.network.inverse(z * inside, inside, condition), where)
        return apply_mask(y * self.sd + self.mean, mask)

    def typical(self, z: Tensor, locations: Locations) -> Tensor:
        """Return ẑ: z of every location no farther from 0 than τ √n."""
        radius = self.settings.typical_radius * locations.inside.sum(dim=1, keepdim=True).sqrt()
        length: Tensor = z.norm(dim=1, keepdim=True).clamp_min(1e-6)
        return z * (radius / length).clamp_max(1)

    def reconstruct(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return the nearest typical image."""
        locations = self.locations(mask)
        z, _ = self.to_noise(images, mask, locations)
        return self.to_image(self.typical(z, locations), mask, locations)

    def evidence(self, images: Tensor, mask: Tensor) -> Evidence:
        """Return the residual and the negative log-likelihood; see the module's docstring."""
        locations = self.locations(mask)
        z, stretch = self.to_noise(images, mask, locations)
        reconstruction = self.to_image(self.typical(z, locations), mask, locations)
        nll = self._shares(z, stretch, locations)
        per_voxel = nll.flatten(1).sum(1) / mask.flatten(1).sum(1).clamp_min(1)
        maps = {"residual": residual(images, reconstruction, mask), "nll": nll}
        return Evidence(maps, reconstruction, {"negative_log_likelihood": per_voxel})

    @torch.no_grad()
    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        """Return new images ``(n, 1, *S)`` of noise, in the shape of the average foreground at random places."""
        foreground, device = self.foreground.cpu().numpy(), self.mean.device
        places = self.view.locations(foreground)
        chosen = torch.randint(len(places), (n,), generator=rng, device=rng.device).tolist()
        masks = [torch.from_numpy(self.view.target_slice(foreground, places[place]).copy()) for place in chosen]
        mask = torch.stack(masks).to(device)
        locations = self.locations(mask)
        z = torch.randn(locations.inside.shape, generator=rng, device=rng.device)
        return self.to_image(z.to(device), mask, locations)

    @torch.no_grad()
    def interpolate(self, first: Tensor, second: Tensor, weight: float) -> Tensor:
        """Return the images ``(B, 1, *S)`` at ``weight``, 0 to 1, of the way from some ``(B, 1, *S)`` to others.

        It leads through z, as far from 0 as the two ends are: the mean of two typical z is not typical.
        """
        mask = either_foreground(first, second)
        locations = self.locations(mask)
        start, end = (self.to_noise(images, mask, locations)[0] for images in (first, second))
        radius = torch.lerp(start.norm(dim=1, keepdim=True), end.norm(dim=1, keepdim=True), weight)
        return self.to_image(radius * F.normalize(torch.lerp(start, end, weight), dim=1), mask, locations)

    def _shares(self, z: Tensor, stretch: Tensor, locations: Locations) -> Tensor:
        """Return −log p of every location, spread evenly over its voxels in the mask ``(B, 1, *S)``."""
        where, inside, _ = locations
        surprise = (0.5 * z**2 + HALF_LOG_2PI - stretch) * inside
        return self._unfolded(inside * surprise.sum(dim=1, keepdim=True) / inside.sum(dim=1, keepdim=True), where)

    def _folded(self, images: Tensor) -> Tensor:
        """Return images ``(B, 1, *S)`` as ``(B, *S/f, fᴰ)``."""
        folded = pixelunshuffle(pad(images, self.padded), self.view.spatial_dims, self.settings.space_to_depth)
        return torch.movedim(folded, 1, -1)

    def _unfolded(self, values: Tensor, where: Tensor) -> Tensor:
        """Return values ``(N, fᴰ)`` of the locations that are ``where`` as images, 0 elsewhere."""
        folded = values.new_zeros((*where.shape, values.shape[1]))
        folded[where] = values
        images = pixelshuffle(folded.movedim(-1, 1), self.view.spatial_dims, self.settings.space_to_depth)
        return crop(images, self.image_shape)


def _moments(count: Tensor, total: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance, given how many values there were, their sum and that of their squares."""
    mean = total / count.clamp_min(1)
    return mean, squares / count.clamp_min(1) - mean**2


def _place(shape: Sequence[int], device: torch.device) -> Tensor:
    """Return sines and cosines ``(*shape, ·)`` of the coordinates of locations, −1 to 1 along every axis."""
    axes = [torch.linspace(-1, 1, n, device=device) for n in shape]
    coordinates = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    angles = torch.cat([0.5 * math.pi * 2**k * coordinates for k in range(FREQUENCIES)], dim=-1)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
