"""Settings of a validation task: its dataset, the models under test, their checks and thresholds."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from anomaly.bundle.config import ModelSection
from anomaly.calibration.conformal import required_healthy
from anomaly.core.aliases import current_validation_task
from anomaly.core.config import Settings
from anomaly.core.errors import unknown_name
from anomaly.models.base import ModelSettings
from anomaly.models.registry import parse_settings
from anomaly.scoring.ensemble import MergeSettings
from anomaly.scoring.settings import ScoringSettings
from anomaly.training.settings import AugmentationSettings, TrainingSettings
from pipelines.validation.baselines.sklearn_detectors import EstimatorEntry
from pipelines.validation.datasets.avatars.settings import AvatarSettings, NaiveBayesSettings
from pipelines.validation.reference_classifier import ClassifierSettings
from pipelines.validation.thresholds import CheckedEntry

NO_AUGMENTATION = AugmentationSettings(flip=0, deform=0, gamma=0, brightness=0, bias_field=0, noise=0, blur=0)


class ImageTraining(TrainingSettings):
    """Training on images, without augmentation: a mirrored digit is no digit."""

    batch_size: int = Field(128, ge=1, description="images per batch")
    augmentation: AugmentationSettings = NO_AUGMENTATION


class ImageScoring(ScoringSettings):
    """Scoring of images: as for scans, without the steps that concern brains and scanners."""

    smoothing_mm: float = Field(default=0.0, ge=0)
    sd_smoothing_mm: float = Field(default=0.0, ge=0)
    top_fraction: float = Field(default=1.0, gt=0, le=1)
    min_block_correlation: float = Field(default=-1.0, ge=-1, le=1)
    acquisition_alpha: float = Field(default=0.0, ge=0, lt=1)
    retrieval: int = Field(default=0, ge=0, le=8)


class FamilyEntry(CheckedEntry):
    """A model family under test: its settings, training, scoring, checks and thresholds."""

    model: ModelSection = Field(description="family and its settings")
    training: ImageTraining = ImageTraining()
    scoring: ImageScoring = ImageScoring()
    binarisations: int = Field(
        0, ge=0, description="random black-and-white versions of each training image; 0 = train on grey levels"
    )

    def model_settings(self) -> ModelSettings:
        """Return the settings of the family."""
        return parse_settings(self.model, where="model")

    @property
    def family(self) -> str:
        """Name of the family."""
        return str(self.model["family"])


class CheckSettings(Settings):
    """How many images the checks use."""

    samples: int = Field(2000, ge=100, description="generated images that are measured")
    neighbour_images: int = Field(2000, ge=100, description="images in which nearest neighbours are searched")
    likelihood_images: int = Field(200, ge=1, description="test images whose likelihood is measured")
    importance_samples: tuple[int, ...] = Field(
        (1, 50, 500), description="numbers k of latent samples of the importance-weighted bounds"
    )
    code_images: int = Field(4000, ge=100, description="training images whose codes the linear probe learns from")
    seed: int = Field(0, ge=0, description="seed of the checks' random numbers")


class EnsembleEntry(CheckedEntry):
    """An ensemble under test: other entries of the task, whose scores are merged."""

    members: tuple[str, ...] = Field(min_length=2, description="names of other entries, with the same checks")
    merge: MergeSettings = MergeSettings()

    @property
    def family(self) -> str:
        """Name that stands in place of a family."""
        return "ensemble"


class NaiveBayesEntry(CheckedEntry):
    """Naive Bayes of avatars under test."""

    naive_bayes: NaiveBayesSettings
    scoring: ImageScoring = ImageScoring(maps={"nll": 1.0}, standardise="none")

    @property
    def family(self) -> str:
        """Name of the model."""
        return f"naive Bayes of {self.naive_bayes.of}"


ENTRY_KINDS = {
    "model": FamilyEntry,
    "estimator": EstimatorEntry,
    "members": EnsembleEntry,
    "naive_bayes": NaiveBayesEntry,
}
"""Key that an entry has → its class."""


def _entry_kind(values: Any) -> str | None:
    return next(
        (key for key in ENTRY_KINDS if (key in values if isinstance(values, dict) else hasattr(values, key))), None
    )


ModelEntry = Annotated[
    Annotated[FamilyEntry, Tag("model")]
    | Annotated[EstimatorEntry, Tag("estimator")]
    | Annotated[EnsembleEntry, Tag("members")]
    | Annotated[NaiveBayesEntry, Tag("naive_bayes")],
    Discriminator(
        _entry_kind,
        custom_error_type="entry",
        custom_error_message="expected one of the keys model, estimator, members, naive_bayes",
    ),
]


class OneClassSettings(Settings):
    """One-class detection: which classes are normal, how the images are split, and the target FPRs."""

    protocol: Literal["one_normal", "one_abnormal"] = Field(
        "one_normal", description="one_normal: one digit is normal; one_abnormal: all digits but one are normal"
    )
    digits: tuple[int, ...] = Field(
        tuple(range(10)), min_length=1, description="the digit that is (ab)normal, in turn"
    )
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="seeds of the splits and trainings")
    calibration: int = Field(600, ge=1, description="normal training images that the p-values are computed from")
    held_out: int = Field(
        300, ge=3, description="normal training images that give the distribution of normal scores"
    )
    reference: int = Field(
        1000, ge=2, description="at most this many of the images trained on give mean and SD of the maps"
    )
    test: int = Field(0, ge=0, description="number of test images, taken from the start; 0 = all")
    alphas: tuple[float, ...] = Field((0.01, 0.05, 0.1), min_length=1, description="target false-positive rates")
    tuning_split: bool = Field(
        False, description="test on some of the training images instead, so that settings can be chosen on them"
    )
    background_level: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="grey level that black becomes: models treat 0 as outside the head and do not change it",
    )

    @model_validator(mode="after")
    def _has_enough_calibration_images(self) -> OneClassSettings:
        needed = required_healthy(min(self.alphas))
        if self.calibration < needed:
            raise ValueError(f"alpha {min(self.alphas):g} needs calibration {needed}, found {self.calibration}")
        return self


class ValidationSettings(Settings):
    """A validation task: a dataset, the models under test, their checks and thresholds."""

    name: str
    dataset: Literal["mnist", "digits", "avatars"]
    description: str = Field(description="one sentence for the report")
    classifier: ClassifierSettings = ClassifierSettings()
    checks: CheckSettings = CheckSettings()
    one_class: OneClassSettings = OneClassSettings()
    avatars: AvatarSettings = AvatarSettings()
    models: dict[str, ModelEntry] = Field(min_length=1, description="name → model under test")

    @model_validator(mode="before")
    @classmethod
    def _reads_earlier_names(cls, values: Any) -> Any:
        return current_validation_task(values)

    @model_validator(mode="after")
    def _members_are_entries(self) -> ValidationSettings:
        for name, entry in self.models.items():
            for member in entry.members if isinstance(entry, EnsembleEntry) else ():
                if member not in self.models or isinstance(self.models[member], EnsembleEntry):
                    others = [n for n, e in self.models.items() if not isinstance(e, EnsembleEntry)]
                    raise ValueError(f"models.{name}.members: " + unknown_name("model", member, others))
        return self
