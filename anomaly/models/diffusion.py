"""Denoising diffusion model: noise a scan part-way, restore it, and see what did not come back.

Idea. A U-Net learns to undo noise of every strength on healthy images. A new scan is noised until a lesion has
drowned while the large anatomy has not; what the network then restores is what a healthy brain would look like
around what is left. With the chain of :mod:`anomaly.models.components.diffusion_process` (x standardised, ε noise
of SD 1, m the mask):

    x_t = √ᾱ_t x + √(1 − ᾱ_t) ε,    t ~ U{1 … T}
    L = Σ m (f_θ(x_t, t) − target)² / Σ m,    target = ε, x or v = √ᾱ_t ε − √(1 − ᾱ_t) x
    x̂ = mean over levels of DDIM(x_t → x_0),    r = x − x̂

Much noise hides large lesions and small anatomy alike, little noise hides small lesions only: hence several levels,
whose restorations are averaged. White noise drowns fine detail long before it drowns a lesion; coarse and simplex
noise have the size of lesions, so that the network takes a lesion for noise and removes both. Noise lies inside the
mask only. At scoring it is the same for every image, so that evidence repeats, and the imprint it leaves is part of
the healthy mean that is subtracted.

Two ways to keep more of the scan's own anatomy: ``masked: patch`` noises the patches of one colour of a
checkerboard at a time and restores them given the clean rest; ``context: true`` tells the network a short code of
the clean image, too short to describe a lesion. In training some images are noised as a whole, and some codes
withheld, so that whole images can be drawn from the model, too.

The weights that score are the running mean that the trainer keeps (``training.ema_decay``).

Evidence: the residual; per image ``denoising_loss``, the mean squared error of ε̂ at the levels' first steps, which
are terms of the variational bound on −log p(x), reweighted as in Ho et al.

Source: Ho, Jain & Abbeel 2020, "Denoising diffusion probabilistic models"; Wyatt et al. 2022, "AnoDDPM" (part-way,
simplex noise); Kascenas et al. 2023, "The role of noise in denoising models for anomaly detection in medical
images" (coarse noise); Behrendt et al. 2023, "Patched diffusion models for unsupervised anomaly detection in brain
MRI"; Behrendt et al. 2023, "Guided reconstruction with conditioned diffusion models" (the code).
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from anomaly.core.image_views import ImageView, VolumeSource
from anomaly.models.base import Evidence, ModelSettings, either_foreground
from anomaly.models.components.checkerboard import checkerboard
from anomaly.models.components.closed_form import volumes
from anomaly.models.components.corruption import slab_spacing
from anomaly.models.components.diffusion_process import DiffusionProcess, Noise, Prediction, Schedule, noise_field
from anomaly.models.components.diffusion_unet import GuidedUNet
from anomaly.models.components.network import (
    NetworkDetector,
    Width,
    apply_mask,
    masked_mean,
    refuse_large_latent,
    residual,
    target_slice,
)
from anomaly.models.components.random_fields import chance
from anomaly.training.protocols import StepInfo

SCORING_SEED = 0
SAMPLING_STEPS = 50
DROWNED = 0.7  # share of the chain after which little is left of what two images do not share
WITHOUT_CODE = 0.1  # share of training images whose code is withheld


class DiffusionSettings(ModelSettings):
    """Settings of the diffusion model."""

    family: Literal["diffusion"] = "diffusion"
    view: ImageView = ImageView(kind="slice", axis=2)
    channels: tuple[Width, ...] = Field(
        (32, 64, 96), min_length=2, description="channels of the U-Net's levels, multiples of 8"
    )
    space_to_depth: Literal[1, 2] = Field(
        2, description="2: every 2×2(×2) voxels become channels, four (eight) times fewer positions to compute"
    )
    prediction: Prediction = Field("v", description="what the network predicts: epsilon, sample (x_0) or v")
    timesteps: int = Field(1000, ge=50, description="T: length of the chain")
    schedule: Schedule = Field("cosine", description="how the noise grows along the chain: linear β, or cosine")
    noise: Noise = Field("coarse", description="gaussian (white), coarse or simplex")
    grain_mm: float = Field(
        14.0, gt=0, description="coarse: distance of its nodes; simplex: grain of the first octave, about 64"
    )
    octaves: int = Field(4, ge=1, description="simplex: how many octaves, each with half the grain")
    levels: tuple[float, ...] = Field(
        (0.15, 0.25, 0.35), min_length=1, description="how far scans are noised, shares of the chain"
    )
    evaluations: int = Field(
        3, ge=1, description="network evaluations per image at scoring; a multiple of levels × patch sets"
    )
    masked: Literal["none", "patch"] = Field(
        "none", description="patch: noise the patches of one colour of a checkerboard at a time"
    )
    patch_mm: float = Field(24.0, gt=0, description="edge of a patch")
    patch_sets: Literal[2, 4] = Field(2, description="colours of the checkerboard")
    context: bool = Field(False, description="tell the network a code of the clean image")
    context_size: int = Field(16, ge=1, description="length of the code; short, so that lesions do not pass")

    @model_validator(mode="after")
    def _evaluations_can_be_shared(self) -> DiffusionSettings:
        if not all(0 < level <= 1 for level in self.levels):
            raise ValueError("levels must lie above 0 and not above 1")
        if self.evaluations % (len(self.levels) * self.sets):
            raise ValueError(
                f"evaluations: found {self.evaluations}; expected a multiple of {len(self.levels) * self.sets}, "
                f"the number of levels ({len(self.levels)}) times that of patch sets ({self.sets})"
            )
        if self.steps > min(self.first_timesteps):
            raise ValueError(f"evaluations: {self.steps} steps do not fit below level {min(self.levels)}")
        return self

    @property
    def sets(self) -> int:
        """Number of sets of patches that are noised in turn: 1 where images are noised as a whole."""
        return self.patch_sets if self.masked == "patch" else 1

    @property
    def first_timesteps(self) -> list[int]:
        """Timestep that each level is noised to."""
        return [round(level * self.timesteps) for level in self.levels]

    @property
    def steps(self) -> int:
        """DDIM steps of every level and patch set."""
        return self.evaluations // (len(self.levels) * self.sets)


class Given(NamedTuple):
    """What is known of images beside their noised version.

    Parameters
    ----------
    clean
        x_0 ``(B, C, *S)``, standardised.
    mask, where
        Bool ``(B, 1, *S)``: foreground, and the part of it that is noised.
    code
        ``(B, context_size)``, or None where the network takes none.
    """

    clean: Tensor
    mask: Tensor
    where: Tensor
    code: Tensor | None


class DiffusionModel(NetworkDetector):
    """Residual of a part-way noised and restored scan.

    Attributes
    ----------
    mean, sd, lowest, highest
        Of healthy intensities inside the mask, scalars.
    foreground
        Bool ``(I, J, K)``: inside the mask of more than half of the healthy scans. New images are drawn there.
    scoring_noise
        ε of every level ``(L, C, *S)``, the same for all images; no part of the state.
    """

    family = "diffusion"
    Settings: ClassVar[type[ModelSettings]] = DiffusionSettings
    settings: DiffusionSettings
    network: GuidedUNet
    mean: Tensor
    sd: Tensor
    lowest: Tensor
    highest: Tensor
    foreground: Tensor
    scoring_noise: Tensor

    def build(self) -> nn.Module:
        """Return the U-Net; set up the chain and the noise that scoring uses."""
        settings = self.settings
        self.chain = DiffusionProcess(settings.timesteps, settings.schedule, settings.prediction)
        for name, value in {"mean": 0.0, "sd": 1.0, "lowest": -math.inf, "highest": math.inf}.items():
            self.register_buffer(name, torch.tensor(value))
        self.register_buffer("foreground", torch.ones(self.grid.shape, dtype=torch.bool))
        noise = self.noise(len(settings.levels), torch.Generator().manual_seed(SCORING_SEED))
        self.register_buffer("scoring_noise", noise, persistent=False)
        return GuidedUNet(
            self.image_shape,
            self.view.channels + 1,
            self.view.channels,
            settings.channels,
            settings.space_to_depth,
            settings.context_size if settings.context else 0,
        )

    def check(self, train: VolumeSource) -> None:
        """Refuse a code that could copy the image."""
        del train
        if self.settings.context:
            refuse_large_latent(self.settings.context_size, self.view.channels, self.image_shape)

    def prepare(self, train: VolumeSource) -> None:
        """Learn how bright healthy tissue is, and where it lies."""
        count, total, squares = 0, 0.0, 0.0
        extremes = []
        times_inside = torch.zeros(self.grid.shape)
        for voxels, mask in volumes(train):
            inside = voxels[mask].double()
            count, total = count + inside.numel(), total + float(inside.sum())
            squares += float((inside**2).sum())
            extremes += [inside.min(), inside.max()]
            times_inside += mask
        mean = total / count
        self.mean = torch.tensor(mean)
        self.sd = torch.tensor(math.sqrt(max(squares / count - mean**2, 1e-12)))
        self.lowest, self.highest = torch.stack(extremes).float().aminmax()
        self.foreground = times_inside > len(train) / 2

    def noise(self, batch: int, rng: torch.Generator) -> Tensor:
        """Return noise of SD 1 ``(batch, C, *S)``; it runs through neighbouring slices as through a volume."""
        shape = self.image_shape if self.view.channels == 1 else (self.view.channels, *self.image_shape)
        grain = self._in_voxels(self.settings.grain_mm, len(shape))
        field = noise_field(self.settings.noise, batch, shape, grain, self.settings.octaves, rng)
        return field.reshape(batch, self.view.channels, *self.image_shape)

    def corrupt(self, images: Tensor, mask: Tensor, rng: torch.Generator) -> tuple[Tensor, ...]:
        """Return noise ``(B, C, *S)``, timesteps ``(B,)`` and where the noise is added ``(B, 1, *S)``."""
        batch, device = len(images), images.device
        t = torch.randint(1, self.settings.timesteps + 1, (batch,), generator=rng, device=device)
        return self.noise(batch, rng), t, mask & self._random_patches(batch, rng)

    def loss(self, images: Tensor, mask: Tensor, at: StepInfo, *corrupted: Tensor) -> dict[str, Tensor]:
        """Return the mean squared error of the prediction where there is noise."""
        noise, t, where = corrupted
        clean = self._standardised(images, mask)
        code = self.network.code(clean)
        if code is not None:
            code = code * ~chance(code, WITHOUT_CODE, at.rng)
        noised = torch.where(where, self.chain.noised(clean, noise, t), clean)
        error = self.predict(noised, Given(clean, mask, where, code), t) - self.chain.target(clean, noise, t)
        return {"loss": masked_mean((error**2).mean(dim=1, keepdim=True), where)}

    def predict(self, noised: Tensor, given: Given, t: Tensor) -> Tensor:
        """Return f_θ(x_t, t) ``(B, C, *S)``."""
        guide = 0.5 * given.mask + 0.5 * given.where  # 0 outside, ½ clean, 1 noised
        predicted: Tensor = self.network(torch.cat([noised, guide], dim=1), t, given.code)
        return predicted

    def reconstruct(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return the mean of the levels' restorations."""
        return self.restore(images, mask)[0]

    def evidence(self, images: Tensor, mask: Tensor) -> Evidence:
        """Return the residual and the denoising loss; see the module's docstring."""
        reconstruction, loss = self.restore(images, mask)
        maps = {"residual": residual(images, reconstruction, mask)}
        return Evidence(maps, reconstruction, {"denoising_loss": loss})

    def restore(self, images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return x̂ ``(B, 1, *S)`` and the denoising loss ``(B,)``; all levels and patch sets are one batch."""
        settings, clean = self.settings, self._standardised(images, mask)
        chains = (len(settings.levels), settings.sets, len(images))

        def in_all_chains(values: Tensor) -> Tensor:
            return values.expand(*chains, *values.shape[1 - clean.ndim :]).flatten(0, 2)

        code = self.network.code(clean)
        given = Given(
            in_all_chains(clean),
            in_all_chains(mask),
            in_all_chains(mask & self.patches()),
            None if code is None else code.repeat(chains[0] * chains[1], 1),
        )
        noise = in_all_chains(self.scoring_noise[:, None, None])
        first = torch.tensor(settings.first_timesteps, device=images.device)
        restored, predicted = self.way_back(
            noise, given, first.repeat_interleave(chains[1] * chains[2]), settings.steps
        )
        restored, error = (
            (values * given.where).unflatten(0, chains).sum(dim=1).mean(dim=0)  # over sets, over levels
            for values in (restored, (predicted - noise) ** 2)
        )
        voxels = (self.view.channels * mask.flatten(1).sum(dim=1)).clamp_min(1)
        return self._in_intensity(target_slice(restored), mask), error.flatten(1).sum(dim=1) / voxels

    def way_back(self, noise: Tensor, given: Given, first: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Noise images up to timesteps ``first`` ``(B,)`` and restore them by DDIM.

        Returns
        -------
        restored
            x̂_0 ``(B, C, *S)`` where there was noise, else what was clean.
        predicted
            ε̂ of the first step ``(B, C, *S)``.
        """
        predicted = []
        lowest, highest = ((limit - self.mean) / self.sd for limit in (self.lowest, self.highest))
        noised = torch.where(given.where, self.chain.noised(given.clean, noise, first), given.clean)
        for t, earlier in pairwise(self.chain.timesteps_back(first, steps)):
            start, direction = self.chain.solved(self.predict(noised, given, t), noised, t)
            predicted.append(direction)
            back = self.chain.noised(start.clamp(lowest, highest), direction, earlier)
            noised = torch.where(given.where, back, given.clean)
        return noised, predicted[0]

    def patches(self) -> Tensor:
        """Return the sets of patches that scoring noises in turn, bool ``(sets, 1, 1, *S)``."""
        colour = self._colours(torch.zeros(1, self.view.spatial_dims, device=self.mean.device))
        return torch.stack([colour == n for n in range(self.settings.sets)])

    @torch.inference_mode()
    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        """Return new images ``(n, C, *S)`` of random places in the usual foreground, by DDIM from pure noise."""
        foreground = self.foreground.cpu().numpy()
        places = self.view.locations(foreground)
        drawn = torch.randint(len(places), (n,), generator=rng, device=rng.device).tolist()
        cut = np.stack([self.view.target_slice(foreground, places[place]) for place in drawn])
        mask = torch.from_numpy(cut).to(rng.device)
        noise, last = self.noise(n, rng), torch.full((n,), self.settings.timesteps, device=rng.device)
        code = noise.new_zeros(n, self.settings.context_size) if self.settings.context else None
        given = Given(torch.zeros_like(noise), mask, mask, code)
        restored, _ = self.way_back(noise, given, last, min(SAMPLING_STEPS, self.settings.timesteps))
        return self._in_intensity(restored, mask)

    @torch.inference_mode()
    def interpolate(self, first: Tensor, second: Tensor, weight: float) -> Tensor:
        """Return the images ``(B, C, *S)`` at ``weight``, 0 to 1, of the way from some ``(B, C, *S)`` to others.

        The weighted mean of two images is noised until what is in one of them only has drowned, and restored
        (Ho et al. 2020, section 4.3). The noise is the same all along the way.
        """
        mask = either_foreground(first, second)
        mean = self._standardised(torch.lerp(first, second, weight), mask)
        noise = self.noise(1, torch.Generator(mean.device).manual_seed(SCORING_SEED)).expand_as(mean)
        level = torch.full((len(mean),), round(DROWNED * self.settings.timesteps), device=mean.device)
        steps = min(round(DROWNED * SAMPLING_STEPS), int(level[0]))
        restored, _ = self.way_back(noise, Given(mean, mask, mask, self.network.code(mean)), level, steps)
        return self._in_intensity(restored, mask)

    def _standardised(self, images: Tensor, mask: Tensor) -> Tensor:
        return apply_mask((images - self.mean) / self.sd, mask)

    def _in_intensity(self, standardised: Tensor, mask: Tensor) -> Tensor:
        return apply_mask(standardised * self.sd + self.mean, mask)

    def _random_patches(self, batch: int, rng: torch.Generator) -> Tensor:
        """Return one set of patches per image, bool ``(B, 1, *S)``, of a checkerboard that begins anywhere.

        Some images are noised as a whole, as where they are drawn from the model.
        """
        dims, sets = self.view.spatial_dims, self.settings.sets
        shares = torch.rand((batch, dims), generator=rng, device=rng.device)
        colour = self._colours(shares * shares.new_tensor(self._patch))
        chosen = torch.randint(sets + 1, (batch, 1, *[1] * dims), generator=rng, device=rng.device)
        return (colour == chosen) | (chosen == sets)

    def _colours(self, origins: Tensor) -> Tensor:
        return checkerboard(self.image_shape, self._patch, self.settings.sets, origins)

    @property
    def _patch(self) -> list[float]:
        """Edges of a patch in voxels."""
        return self._in_voxels(self.settings.patch_mm, len(self.image_shape))

    def _in_voxels(self, length: float, axes: int) -> list[float]:
        """Return a length in mm as voxels along the last axes of a slab."""
        return [length / size for size in slab_spacing(self.view, self.grid)[-axes:]]
