"""Denoising diffusion model: add noise to a scan part-way, denoise it, and compare.

Idea. A U-Net learns on healthy images to remove noise of every strength. Noise is added to a new scan until a
lesion is no longer visible while the large anatomy still is. The network then restores what a healthy brain would
look like around the remaining structure. With the process of :mod:`anomaly.models.components.diffusion_process` (x
standardised, ε noise of SD 1, m the mask):

    x_t = √ᾱ_t x + √(1 − ᾱ_t) ε,    t ~ U{1 … T}
    L = Σ m (f_θ(x_t, t) − target)² / Σ m,    target = ε, x or v = √ᾱ_t ε − √(1 − ᾱ_t) x
    x̂ = mean over levels of DDIM(x_t → x_0),    r = x − x̂

Strong noise hides large lesions but also small anatomy; weak noise hides small lesions only. The restorations of
several noise levels are therefore averaged. White noise destroys fine detail long before it hides a lesion. Coarse
and simplex noise have the size of lesions, so the network takes a lesion for noise and removes both. Noise is added
inside the mask only. Scoring adds the same noise to every image, so evidence is reproducible, and the pattern that
the noise leaves in the evidence is part of the healthy mean that scoring subtracts.

Two options preserve more of the anatomy of the scan. ``masked: patch`` adds noise to the patches of one
checkerboard colour at a time and restores them given the clean rest. ``context: true`` conditions the network on a
short code of the clean image, too short to describe a lesion. In training, some images get noise as a whole and
some codes are dropped, so that whole images can also be sampled from the model.

The weights for scoring are the exponential moving average of the training (``training.ema_decay``).

Evidence: the residual; per image ``denoising_loss``, the mean squared error of ε̂ at the first step of each level.
These errors are terms of the variational bound on −log p(x), reweighted as in Ho et al.

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
from anomaly.models.base import (
    Evidence,
    ModelSettings,
    NetworkDetector,
    StepInfo,
    Width,
    apply_mask,
    either_foreground,
    masked_mean,
    refuse_large_latent,
    residual,
    target_slice,
    volumes,
)
from anomaly.models.components.diffusion_process import (
    DiffusionProcess,
    GuidedUNet,
    Noise,
    Prediction,
    Schedule,
    checkerboard,
    noise_field,
)

SCORING_SEED = 0
SAMPLING_STEPS = 50  # DDIM steps of a new image
INTERPOLATION_NOISE_LEVEL = 0.7  # share of the process that hides what two images do not share
CONTEXT_DROPOUT = 0.1  # probability in training that the context code of an image is replaced by 0


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
    timesteps: int = Field(1000, ge=50, description="T: number of timesteps")
    schedule: Schedule = Field("cosine", description="noise schedule: linear β, or cosine")
    noise: Noise = Field("coarse", description="gaussian (white), coarse or simplex")
    noise_spacing_mm: float = Field(
        14.0, gt=0, description="coarse: distance between nodes; simplex: grain of the first octave, about 64"
    )
    octaves: int = Field(4, ge=1, description="simplex: number of octaves, each with half the grain")
    levels: tuple[float, ...] = Field(
        (0.15, 0.25, 0.35), min_length=1, description="noise levels of scoring, as shares of the process"
    )
    n_function_evaluations: int = Field(
        3, ge=1, description="network evaluations per image at scoring; a multiple of levels × patch sets"
    )
    masked: Literal["none", "patch"] = Field(
        "none", description="patch: add noise to the patches of one checkerboard colour at a time"
    )
    patch_mm: float = Field(24.0, gt=0, description="edge of a patch, millimetres")
    patch_sets: Literal[2, 4] = Field(2, description="colours of the checkerboard")
    context: bool = Field(False, description="condition the network on a code of the clean image")
    context_size: int = Field(16, ge=1, description="length of the code; short, so that it cannot describe lesions")

    @model_validator(mode="after")
    def _check_levels_and_evaluations(self) -> DiffusionSettings:
        if not all(0 < level <= 1 for level in self.levels):
            raise ValueError("levels must lie above 0 and not above 1")
        if self.n_function_evaluations % (len(self.levels) * self.n_patch_sets):
            raise ValueError(
                f"n_function_evaluations: found {self.n_function_evaluations}; expected a multiple of "
                f"{len(self.levels) * self.n_patch_sets}, "
                f"the number of levels ({len(self.levels)}) times that of patch "
                f"sets ({self.n_patch_sets})"
            )
        if self.steps > min(self.first_timesteps):
            raise ValueError(
                f"n_function_evaluations: {self.steps} steps do not fit below level {min(self.levels)}"
            )
        return self

    @property
    def n_patch_sets(self) -> int:
        """Number of patch sets that get noise in turn; 1 where whole images do."""
        return self.patch_sets if self.masked == "patch" else 1

    @property
    def first_timesteps(self) -> list[int]:
        """Timestep of each noise level."""
        return [round(level * self.timesteps) for level in self.levels]

    @property
    def steps(self) -> int:
        """DDIM steps per level and patch set."""
        return self.n_function_evaluations // (len(self.levels) * self.n_patch_sets)


class DenoisingInputs(NamedTuple):
    """What denoising needs besides the noisy images.

    Parameters
    ----------
    clean
        x_0 ``(B, C, *S)``, standardised.
    mask, where
        Bool ``(B, 1, *S)``: the foreground, and the part of it that gets noise.
    code
        ``(B, context_size)`` context code, or None where the network has none.
    """

    clean: Tensor
    mask: Tensor
    where: Tensor
    code: Tensor | None


class DiffusionModel(NetworkDetector):
    """Residual of a scan after part-way noise and denoising.

    Attributes
    ----------
    mean, sd, lowest, highest
        Statistics of healthy intensities inside the mask, scalars.
    foreground
        Bool ``(I, J, K)``: inside the mask of more than half of the healthy scans. Samples have this foreground.
    scoring_noise
        ε of every level ``(L, C, *S)``, the same for all images. A non-persistent buffer.
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
        """Return the U-Net; set up the diffusion process and the noise for scoring."""
        settings = self.settings
        self.process = DiffusionProcess(settings.timesteps, settings.schedule, settings.prediction)
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
        """Refuse a context code that could copy the image."""
        del train
        if self.settings.context:
            refuse_large_latent(self.settings.context_size, self.view.channels, self.image_shape)

    def prepare(self, train: VolumeSource) -> None:
        """Learn the statistics of healthy intensities and the average foreground."""
        count, total, squares = 0, 0.0, 0.0
        extremes = []
        n_inside = torch.zeros(self.grid.shape)
        for voxels, mask in volumes(train):
            inside = voxels[mask].double()
            count, total = count + inside.numel(), total + float(inside.sum())
            squares += float((inside**2).sum())
            extremes += [inside.min(), inside.max()]
            n_inside += mask
        mean = total / count
        self.mean = torch.tensor(mean)
        self.sd = torch.tensor(math.sqrt(max(squares / count - mean**2, 1e-12)))
        self.lowest, self.highest = torch.stack(extremes).float().aminmax()
        self.foreground = n_inside > len(train) / 2

    def noise(self, batch: int, rng: torch.Generator) -> Tensor:
        """Return noise of SD 1 ``(batch, C, *S)``, which is continuous across neighbouring slices."""
        shape = self.image_shape if self.view.channels == 1 else (self.view.channels, *self.image_shape)
        grain = self._in_voxels(self.settings.noise_spacing_mm, len(shape))
        field = noise_field(self.settings.noise, batch, shape, grain, self.settings.octaves, rng)
        return field.reshape(batch, self.view.channels, *self.image_shape)

    def corrupt(self, images: Tensor, mask: Tensor, rng: torch.Generator) -> tuple[Tensor, ...]:
        """Return noise ``(B, C, *S)``, timesteps ``(B,)`` and where to add the noise, bool ``(B, 1, *S)``."""
        batch, device = len(images), images.device
        t = torch.randint(1, self.settings.timesteps + 1, (batch,), generator=rng, device=device)
        return self.noise(batch, rng), t, mask & self._random_patches(batch, rng)

    def loss(self, images: Tensor, mask: Tensor, step_info: StepInfo, *corrupted: Tensor) -> dict[str, Tensor]:
        """Return the mean squared error of the prediction where noise was added."""
        noise, t, where = corrupted
        clean = self._standardise(images, mask)
        code = self.network.encode_context(clean)
        if code is not None:
            dropped = torch.rand((len(code), 1), generator=step_info.rng, device=code.device) < CONTEXT_DROPOUT
            code = code * ~dropped
        noisy = torch.where(where, self.process.add_noise(clean, noise, t), clean)
        prediction = self.predict(noisy, DenoisingInputs(clean, mask, where, code), t)
        error = prediction - self.process.target(clean, noise, t)
        return {"loss": masked_mean((error**2).mean(dim=1, keepdim=True), where)}

    def predict(self, noisy: Tensor, inputs: DenoisingInputs, t: Tensor) -> Tensor:
        """Return f_θ(x_t, t) ``(B, C, *S)``."""
        region = 0.5 * inputs.mask + 0.5 * inputs.where  # 0: background, ½: clean, 1: noisy
        predicted: Tensor = self.network(torch.cat([noisy, region], dim=1), t, inputs.code)
        return predicted

    def reconstruct(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return the mean of the levels' restorations."""
        return self.restore(images, mask)[0]

    def evidence(self, images: Tensor, mask: Tensor, covariates: Tensor | None = None) -> Evidence:
        """Return the residual and the denoising loss; see the module's docstring."""
        del covariates
        reconstruction, loss = self.restore(images, mask)
        maps = {"residual": residual(images, reconstruction, mask)}
        return Evidence(maps, reconstruction, {"denoising_loss": loss})

    def restore(self, images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return x̂ ``(B, 1, *S)`` and the denoising loss ``(B,)``; all levels and patch sets form one batch."""
        settings, clean = self.settings, self._standardise(images, mask)
        runs = (len(settings.levels), settings.n_patch_sets, len(images))

        def expand(values: Tensor) -> Tensor:
            """Repeat values of images for every level and patch set."""
            return values.expand(*runs, *values.shape[1 - clean.ndim :]).flatten(0, 2)

        code = self.network.encode_context(clean)
        inputs = DenoisingInputs(
            expand(clean),
            expand(mask),
            expand(mask & self.patches()),
            None if code is None else code.repeat(runs[0] * runs[1], 1),
        )
        noise = expand(self.scoring_noise[:, None, None])
        first = torch.tensor(settings.first_timesteps, device=images.device).repeat_interleave(runs[1] * runs[2])
        restored, predicted = self.ddim_restore(noise, inputs, first, settings.steps)
        restored, error = (
            (values * inputs.where).unflatten(0, runs).sum(dim=1).mean(dim=0)  # over patch sets, over levels
            for values in (restored, (predicted - noise) ** 2)
        )
        voxels = (self.view.channels * mask.flatten(1).sum(dim=1)).clamp_min(1)
        return self._to_intensity(target_slice(restored), mask), error.flatten(1).sum(dim=1) / voxels

    def ddim_restore(
        self, noise: Tensor, inputs: DenoisingInputs, first: Tensor, steps: int
    ) -> tuple[Tensor, Tensor]:
        """Add noise to images up to timesteps ``first`` ``(B,)`` and denoise them by DDIM.

        Returns
        -------
        restored
            ``(B, C, *S)``: x̂_0 where noise was added, else the clean image.
        predicted
            ε̂ of the first step ``(B, C, *S)``.
        """
        predicted = []
        lowest, highest = ((limit - self.mean) / self.sd for limit in (self.lowest, self.highest))
        noisy = torch.where(inputs.where, self.process.add_noise(inputs.clean, noise, first), inputs.clean)
        for t, earlier in pairwise(self.process.ddim_timesteps(first, steps)):
            x0, epsilon = self.process.predict_x0_and_noise(self.predict(noisy, inputs, t), noisy, t)
            predicted.append(epsilon)
            less_noisy = self.process.add_noise(x0.clamp(lowest, highest), epsilon, earlier)
            noisy = torch.where(inputs.where, less_noisy, inputs.clean)
        return noisy, predicted[0]

    def patches(self) -> Tensor:
        """Return the patch sets that get noise in turn during scoring, bool ``(sets, 1, 1, *S)``."""
        colour = self._colours(torch.zeros(1, self.view.spatial_dims, device=self.mean.device))
        return torch.stack([colour == n for n in range(self.settings.n_patch_sets)])

    @torch.inference_mode()
    def sample(self, n: int, rng: torch.Generator, covariates: Tensor | None = None) -> Tensor:
        """Return images ``(n, C, *S)`` from pure noise by DDIM, at random locations of the average foreground."""
        del covariates
        foreground = self.foreground.cpu().numpy()
        locations = self.view.locations(foreground)
        chosen = torch.randint(len(locations), (n,), generator=rng, device=rng.device).tolist()
        masks = np.stack([self.view.target_slice(foreground, locations[index]) for index in chosen])
        mask = torch.from_numpy(masks).to(rng.device)
        noise, last = self.noise(n, rng), torch.full((n,), self.settings.timesteps, device=rng.device)
        code = noise.new_zeros(n, self.settings.context_size) if self.settings.context else None
        inputs = DenoisingInputs(torch.zeros_like(noise), mask, mask, code)
        restored, _ = self.ddim_restore(noise, inputs, last, min(SAMPLING_STEPS, self.settings.timesteps))
        return self._to_intensity(restored, mask)

    @torch.inference_mode()
    def interpolate(
        self, first: Tensor, second: Tensor, weight: float, covariates: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """Return images ``(B, C, *S)`` interpolated between ``first`` (weight 0) and ``second`` (weight 1).

        Noise is added to the weighted mean of the two images until what they do not share is no longer visible;
        then it is denoised (Ho et al. 2020, section 4.3). The noise is the same for all weights.
        """
        del covariates
        mask = either_foreground(first, second)
        mean = self._standardise(torch.lerp(first, second, weight), mask)
        noise = self.noise(1, torch.Generator(mean.device).manual_seed(SCORING_SEED)).expand_as(mean)
        level = round(INTERPOLATION_NOISE_LEVEL * self.settings.timesteps)
        steps = min(round(INTERPOLATION_NOISE_LEVEL * SAMPLING_STEPS), level)
        inputs = DenoisingInputs(mean, mask, mask, self.network.encode_context(mean))
        restored, _ = self.ddim_restore(noise, inputs, torch.full((len(mean),), level, device=mean.device), steps)
        return self._to_intensity(restored, mask)

    def _standardise(self, images: Tensor, mask: Tensor) -> Tensor:
        return apply_mask((images - self.mean) / self.sd, mask)

    def _to_intensity(self, standardised: Tensor, mask: Tensor) -> Tensor:
        return apply_mask(standardised * self.sd + self.mean, mask)

    def _random_patches(self, batch: int, rng: torch.Generator) -> Tensor:
        """Return one patch set per image, bool ``(B, 1, *S)``, of a randomly placed checkerboard.

        Some images are chosen as a whole, as in sampling.
        """
        dims, sets = self.view.spatial_dims, self.settings.n_patch_sets
        shares = torch.rand((batch, dims), generator=rng, device=rng.device)
        colour = self._colours(shares * shares.new_tensor(self._patch))
        chosen = torch.randint(sets + 1, (batch, 1, *[1] * dims), generator=rng, device=rng.device)
        return (colour == chosen) | (chosen == sets)

    def _colours(self, origins: Tensor) -> Tensor:
        return checkerboard(self.image_shape, self._patch, self.settings.n_patch_sets, origins)

    @property
    def _patch(self) -> list[float]:
        """Edges of a patch in voxels."""
        return self._in_voxels(self.settings.patch_mm, len(self.image_shape))

    def _in_voxels(self, length: float, axes: int) -> list[float]:
        """Return a length in mm as numbers of voxels along the last axes of a slab."""
        return [length / size for size in self.slab_spacing[-axes:]]
