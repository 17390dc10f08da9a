"""Configuration of an experiment: preprocessing, model, training and scoring, in one YAML file.

The family named in ``model`` checks that section. ``preprocessing`` is a chain, or the name of a shipped one; the
resolved config contains the complete chain.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from anomaly.cohort.planted_lesions import LesionKind
from anomaly.core.config import Settings, annotated_yaml, load_extended_yaml, resolve_extends
from anomaly.core.errors import ConfigError, unknown_name
from anomaly.core.volume import Modality
from anomaly.models.base import ModelSettings
from anomaly.models.registry import parse_settings
from anomaly.preprocessing.chain import ChainSettings
from anomaly.scoring.settings import EvidenceSettings, ScoringSettings
from anomaly.training.settings import TrainingSettings


def _checked_by_its_family(values: dict[str, Any]) -> dict[str, Any]:
    return parse_settings(values, where="model").model_dump(mode="json")


ModelSection = Annotated[dict[str, Any], AfterValidator(_checked_by_its_family)]
"""The family of a model and its settings, checked by the family and complete."""


class ModelConfig(Settings):
    """Settings that trained models and ensembles share."""

    name: str = Field(description="name of the model in reports")
    description: str = Field(default="", description="one sentence on the model, for its card")
    preprocessing: ChainSettings = Field(description="preprocessing of every scan")
    scoring: EvidenceSettings = Field(description="how the evidence map and the scan score are computed")

    @property
    def modality(self) -> Modality:
        """The modality of the scans that the model accepts."""
        return self.preprocessing.modality


TYPICAL_LESIONS: dict[Modality, tuple[LesionKind, ...]] = {
    Modality.T1W: ("dark", "dark", "bright", "texture"),  # most lesions are dark on T1w
    Modality.T2W: ("bright", "bright", "dark", "texture"),  # oedema, gliosis and demyelination are bright
    Modality.FLAIR: ("bright", "bright", "dark", "texture"),
    Modality.CT: ("haemorrhage", "dark", "subdural", "dark"),  # infarction is dark
}


MIN_BLOCK_CORRELATION: dict[Modality, float] = {Modality.CT: 0.0}
"""Smallest correlation with the mean healthy scan, by modality. In CT it says little, because contrast is low."""


class ExperimentConfig(ModelConfig):
    """All settings needed to train a model and to score with it."""

    model: ModelSection = Field(description="family and its settings")
    training: TrainingSettings | None = Field(
        default=None, description="how a network is trained; null for families without a network"
    )
    scoring: ScoringSettings = Field(
        default_factory=ScoringSettings, description="how maps become one evidence map and a scan score"
    )
    validation_fraction: float = Field(
        default=0.12,
        gt=0,
        lt=1,
        description="share of the training subjects that are held out to choose the checkpoint",
    )

    validation_lesions: tuple[LesionKind, ...] | None = Field(
        default=None,
        min_length=1,
        description="kinds of synthetic lesions in the validation scans, used in turn to choose the checkpoint: "
        "dark, bright, texture, mass_effect, multifocal, tumour, in CT also haemorrhage, subdural; null = typical "
        "of the modality, because most lesions are dark on T1w (oedema, infarction), bright on T2w and FLAIR "
        "(oedema, gliosis, demyelination), and on CT dark (infarction) or haemorrhages",
    )

    @property
    def lesion_kinds(self) -> tuple[LesionKind, ...]:
        """Kinds of lesions that choose the checkpoint: the setting, or those typical of the modality."""
        return self.validation_lesions or TYPICAL_LESIONS.get(self.modality, TYPICAL_LESIONS[Modality.T1W])

    def model_settings(self) -> ModelSettings:
        """Return the settings of the family."""
        return parse_settings(self.model, where="model")


def load_experiment(path: Path, chains: Mapping[str, Path], models: Mapping[str, Path]) -> ExperimentConfig:
    """Read an experiment config with everything that it extends.

    ``preprocessing: <name>`` is replaced by that shipped chain.

    Parameters
    ----------
    path
        The YAML file.
    chains
        Shipped chains by name.
    models
        Shipped experiment configs by name, which ``extends`` may name.

    Raises
    ------
    ConfigError
        Naming the file, the wrong key and the valid ones.
    """
    values = load_extended_yaml(path, models)
    if isinstance(values, dict) and "preprocessing" in values:
        values = {**values, "preprocessing": _chain(values["preprocessing"], path, chains)}
    return ExperimentConfig.parse(values, where=str(path))


def with_preprocessing(config: ExperimentConfig, chain: ChainSettings) -> ExperimentConfig:
    """Return the experiment with another preprocessing chain.

    With a chain for another modality, the description says so, and the smallest similarity is that of the modality.
    """
    changed = config.model_copy(update={"preprocessing": chain})
    if chain.modality is config.modality:
        return changed
    least = MIN_BLOCK_CORRELATION.get(
        chain.modality, EvidenceSettings.model_fields["min_block_correlation"].default
    )
    described = f"{config.description} (settings of {config.modality.value}), trained on {chain.modality.value}"
    return changed.model_copy(
        update={
            "description": described if config.description else "",
            "scoring": config.scoring.model_copy(update={"min_block_correlation": least}),
        }
    )


def annotated_config(config: ModelConfig) -> str:
    """Return a complete config as YAML text, with the description of every key as its comment."""
    sections = {"model": config.model_settings()} if isinstance(config, ExperimentConfig) else {}
    return annotated_yaml(config, sections)


def _chain(found: Any, path: Path, chains: Mapping[str, Path]) -> Any:
    if not isinstance(found, str):
        return resolve_extends(found, path, chains)
    if found not in chains:
        raise ConfigError(f"{path}: " + unknown_name("preprocessing", found, list(chains)))
    return load_extended_yaml(chains[found], chains)
