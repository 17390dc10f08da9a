"""All model families by name. Listing them imports no deep-learning library; getting one imports its module."""

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
    """Location of a family, ``module:class``, and a description of one line."""

    location: str
    description: str


FAMILIES: dict[str, Family] = {
    "dae": Family(
        "anomaly.models.dae:DenoisingAutoencoder",
        "denoising autoencoder: a U-Net learns to undo synthetic changes; evidence is what it corrects in a scan",
    ),
    "restoration": Family(
        "anomaly.models.restoration:RestorationNetwork",
        "restoration: a U-Net undoes synthetic changes of many grades, step by step (DISYRE)",
    ),
    "ae": Family(
        "anomaly.models.ae:Autoencoder",
        "autoencoder: reconstruction from a small latent that represents normal anatomy; residual",
    ),
    "stacked_ae": Family(
        "anomaly.models.stacked_ae:StackedAutoencoder",
        "stacked autoencoder: layers are trained one after another, then together; residual",
    ),
    "conv_lstm_ae": Family(
        "anomaly.models.conv_lstm_ae:RecurrentAutoencoder",
        "recurrent autoencoder: a (convolutional) LSTM over neighbouring slices reconstructs the middle one",
    ),
    "vae": Family(
        "anomaly.models.vae:VariationalAutoencoder",
        "variational autoencoder: residual, KL of the latent code and negative ELBO",
    ),
    "cvae": Family(
        "anomaly.models.cvae:ConditionalVariationalAutoencoder",
        "conditional variational autoencoder: the same, conditioned on age and sex or other covariates",
    ),
    "hvae": Family(
        "anomaly.models.hvae:HierarchicalVariationalAutoencoder",
        "hierarchical variational autoencoder: residual, and a KL map for each level of detail",
    ),
    "diffusion": Family(
        "anomaly.models.diffusion:DiffusionModel",
        "diffusion model: noise is added to a scan and removed again; residual",
    ),
    "latent_diffusion": Family(
        "anomaly.models.latent_diffusion:LatentDiffusion",
        "latent diffusion: patches of an autoencoder's latent are restored from their surroundings by diffusion",
    ),
    "flow": Family(
        "anomaly.models.flow:NormalisingFlow",
        "normalising flow: exact log-likelihood of the tissue at each position, and the nearest typical image",
    ),
    "f_anogan": Family(
        "anomaly.models.f_anogan:FAnoGAN",
        "f-AnoGAN: a generator of healthy images, and an encoder that finds the nearest one to a scan",
    ),
    "vaegan": Family(
        "anomaly.models.vaegan:VAEGAN",
        "VAE-GAN: a variational autoencoder that also reconstructs the features of a critic, for sharper images",
    ),
    "atlas": Family(
        "anomaly.models.atlas:Atlas",
        "baseline: z-score of every voxel against the healthy mean and SD at its position",
    ),
    "pca": Family(
        "anomaly.models.pca:PrincipalComponents",
        "baseline: residual after projection on the principal components of healthy scans",
    ),
    "intensity": Family(
        "anomaly.models.intensity:IntensityThreshold",
        "baseline: difference between a voxel's intensity and the healthy median",
    ),
}


def detector_class(family: str) -> type[Detector]:
    """Return the class of a family.

    Raises
    ------
    ConfigError
        If there is no such family; the message lists all families.
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
        Settings of the family ``settings.family``.
    grid
        Template grid of the training cohort.
    """
    return detector_class(settings.family)(settings, grid)
