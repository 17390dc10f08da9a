"""Every family by name. Listing them imports no deep-learning library; asking for one imports its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from anomaly.core.aliases import current_model_settings
from anomaly.core.errors import ConfigError, unknown_name
from anomaly.core.volume import Geometry

if TYPE_CHECKING:
    from anomaly.models.base import Detector, ModelSettings


@dataclass(frozen=True)
class Family:
    """Where a family lives, and one line on what it does."""

    location: str
    description: str


FAMILIES: dict[str, Family] = {
    "dae": Family(
        "anomaly.models.dae:DenoisingAutoencoder",
        "denoising autoencoder: a U-Net that undoes synthetic changes, so what it undoes in a scan is abnormal",
    ),
    "restoration": Family(
        "anomaly.models.restoration:RestorationNetwork",
        "restoration: a U-Net that undoes synthetic changes of many grades, step by step (DISYRE)",
    ),
    "ae": Family(
        "anomaly.models.ae:Autoencoder",
        "autoencoder: a narrow latent can only rebuild normal anatomy; the residual is what it could not",
    ),
    "stacked_ae": Family(
        "anomaly.models.stacked_ae:StackedAutoencoder",
        "stacked autoencoder: layers learn one after another to rebuild their input, then together; residual",
    ),
    "conv_lstm_ae": Family(
        "anomaly.models.conv_lstm_ae:RecurrentAutoencoder",
        "recurrent autoencoder: a (convolutional) LSTM walks along neighbouring slices to rebuild the middle one",
    ),
    "vae": Family(
        "anomaly.models.vae:VariationalAutoencoder",
        "variational autoencoder: residual, and how surprising a scan's latent code is (KL, ELBO)",
    ),
    "cvae": Family(
        "anomaly.models.cvae:ConditionalVariationalAutoencoder",
        "conditional variational autoencoder: the same, given the subject's age and sex, or other covariates",
    ),
    "hvae": Family(
        "anomaly.models.hvae:HierarchicalVariationalAutoencoder",
        "hierarchical variational autoencoder: residual, and maps of how surprising each level of detail is (KL)",
    ),
    "diffusion": Family(
        "anomaly.models.diffusion:DiffusionModel",
        "diffusion model: a scan is noised part-way and restored; what does not come back is abnormal",
    ),
    "latent_diffusion": Family(
        "anomaly.models.latent_diffusion:LatentDiffusion",
        "latent diffusion: an autoencoder's latent is noised and restored patch by patch from its surroundings",
    ),
    "flow": Family(
        "anomaly.models.flow:NormalisingFlow",
        "normalising flow: exact log-likelihood of tissue at its place, and the nearest typical image",
    ),
    "f_anogan": Family(
        "anomaly.models.f_anogan:FAnoGAN",
        "f-AnoGAN: a generator of healthy images, and an encoder that finds the one nearest to a scan",
    ),
    "vaegan": Family(
        "anomaly.models.vaegan:VAEGAN",
        "VAE-GAN: a variational autoencoder that also rebuilds what a critic sees, so that it blurs less",
    ),
    "atlas": Family(
        "anomaly.models.atlas:Atlas",
        "baseline: z-score of every voxel against the healthy mean and SD at its place",
    ),
    "pca": Family(
        "anomaly.models.pca:PrincipalComponents",
        "baseline: residual after projection on the principal components of healthy scans",
    ),
    "intensity": Family(
        "anomaly.models.intensity:IntensityThreshold",
        "baseline: distance of a voxel's intensity from the healthy median",
    ),
}


def detector_class(family: str) -> type[Detector]:
    """Return the class of a family.

    Raises
    ------
    ConfigError
        If there is no such family; the message lists those there are.
    """
    if family not in FAMILIES:
        raise ConfigError(unknown_name("family", family, list(FAMILIES)))
    module, name = FAMILIES[family].location.split(":")
    found: type[Detector] = getattr(import_module(module), name)
    return found


def settings_class(family: str) -> type[ModelSettings]:
    """Return the settings class of a family."""
    return detector_class(family).Settings


def parse_settings(values: Mapping[str, Any], where: str) -> ModelSettings:
    """Check the ``model`` section of a configuration against the family it names.

    Names of earlier versions are accepted (see :mod:`anomaly.core.aliases`).
    """
    values = current_model_settings(values)
    family = values.get("family")
    if not isinstance(family, str):
        raise ConfigError(f"{where}: missing key 'family'; valid: {', '.join(sorted(FAMILIES))}")
    return settings_class(family).parse(values, where)


def create(settings: ModelSettings, grid: Geometry) -> Detector:
    """Return an untrained detector.

    Parameters
    ----------
    settings
        Of the family named in ``settings.family``.
    grid
        The template grid of the cohort it will learn from.
    """
    return detector_class(settings.family)(settings, grid)
