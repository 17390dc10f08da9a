"""What a validation task examines, and the bars it must clear."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from anomaly.core.config import Settings
from anomaly.models.base import ModelSettings
from anomaly.models.registry import parse_settings
from anomaly.scoring.settings import ScoringSettings
from anomaly.training.settings import AugmentationSettings, TrainingSettings
from pipelines.validation.classifier import ClassifierSettings

AS_THEY_ARE = AugmentationSettings(flip=0, deform=0, gamma=0, brightness=0, bias_field=0, noise=0, blur=0)


class PictureTraining(TrainingSettings):
    """How networks learn pictures: these are not varied, because a mirrored digit is another sign."""

    batch_size: int = Field(128, ge=1, description="pictures per batch")
    augmentation: AugmentationSettings = AS_THEY_ARE


class PictureScoring(ScoringSettings):
    """How pictures are scored: as scans, without what speaks of brains and scanners."""

    smoothing_mm: float = Field(default=0.0, ge=0)
    sd_smoothing_mm: float = Field(default=0.0, ge=0)
    top_fraction: float = Field(default=1.0, gt=0, le=1)
    min_similarity: float = Field(default=-1.0, ge=-1, le=1)
    acquisition_alpha: float = Field(default=0.0, ge=0, lt=1)
    retrieval: int = Field(default=0, ge=0, le=8)


class Bar(Settings):
    """What a measured number must reach."""

    least: float | None = None
    most: float | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Bar:
        if self.least is None and self.most is None:
            raise ValueError("expected least, most, or both")
        return self

    def met_by(self, value: float) -> bool:
        """Return whether a number reaches the bar; NaN reaches none."""
        above = self.least is None or value >= self.least
        return above and (self.most is None or value <= self.most) and value == value

    def __str__(self) -> str:
        sides = [f"≥ {self.least:g}"] if self.least is not None else []
        return " and ".join(sides + ([f"≤ {self.most:g}"] if self.most is not None else []))


class TrialSettings(Settings):
    """One model, how it is trained, what it is examined for, and the bars."""

    model: dict[str, Any] = Field(description="family and its settings")
    training: PictureTraining = PictureTraining()
    scoring: PictureScoring = PictureScoring()
    draws: int = Field(
        0, ge=0, description="0, or how many draws of black and white pixels there are of each training picture"
    )
    exams: tuple[str, ...] = Field(min_length=1, description="what is measured")
    bars: dict[str, Bar] = Field(default_factory=dict, description="by measure: what it must reach")

    @field_validator("model")
    @classmethod
    def _checked_by_its_family(cls, values: dict[str, Any]) -> dict[str, Any]:
        return parse_settings(values, where="model").model_dump(mode="json")

    def model_settings(self) -> ModelSettings:
        """Return the settings of the family."""
        return parse_settings(self.model, where="model")

    @property
    def family(self) -> str:
        """Name of the family."""
        return str(self.model["family"])


class NaiveBayesSettings(Settings):
    """What naive Bayes is naive about."""

    of: Literal["features", "pixels"] = Field(description="what it takes as independent")
    alpha: float = Field(0.0, ge=0, description="added to each count; 0 = maximum likelihood")
    levels: int = Field(16, ge=2, le=256, description="pixels: grey levels that are told apart")


class NaiveBayesTrial(Settings):
    """Naive Bayes, what it is examined for, and the bars."""

    naive_bayes: NaiveBayesSettings
    scoring: PictureScoring = PictureScoring(maps={"surprise": 1.0}, standardise="none")
    exams: tuple[str, ...] = Field(min_length=1, description="what is measured")
    bars: dict[str, Bar] = Field(default_factory=dict, description="by measure: what it must reach")
    draws: ClassVar[int] = 0

    @property
    def family(self) -> str:
        """Name of the model."""
        return f"naive Bayes of {self.naive_bayes.of}"


def _kind_of_trial(values: Any) -> str:
    found = values if isinstance(values, dict) else vars(values)
    return "naive_bayes" if "naive_bayes" in found else "model"


Trial = Annotated[
    Annotated[TrialSettings, Tag("model")] | Annotated[NaiveBayesTrial, Tag("naive_bayes")],
    Discriminator(_kind_of_trial),
]
"""A model of a family, or naive Bayes."""


class AvatarSettings(Settings):
    """The looks of the world of avatars, all drawn from the law of the fifty observed."""

    size: Literal[32, 64, 128] = Field(32, description="pixels along the edge of a picture, before it is a mosaic")
    train: int = Field(2000, ge=100, description="looks that models learn from")
    test: int = Field(1000, ge=100, description="other looks")
    classified: int = Field(6000, ge=100, description="looks that the classifier learns from; it is tested on test")
    reference: int = Field(500, ge=2, description="training looks that give mean and SD of maps")
    held_out: int = Field(200, ge=3, description="looks that show what normal scores are")
    calibration: int = Field(500, ge=1, description="looks behind the p-values")
    outside: int = Field(300, ge=3, description="looks from outside the law")
    alphas: tuple[float, ...] = Field((0.05, 0.1), min_length=1, description="promised false-flag rates")
    seed: int = Field(0, ge=0, description="seed of what is drawn")


class ExamSettings(Settings):
    """How much is measured in the exams."""

    samples: int = Field(2000, ge=100, description="generated pictures that are measured")
    neighbours_of: int = Field(2000, ge=100, description="pictures among which neighbours are looked for")
    likelihood_of: int = Field(200, ge=1, description="test pictures whose likelihood is measured")
    importance: tuple[int, ...] = Field((1, 50, 500), description="k of the importance-weighted bounds")
    probed: int = Field(4000, ge=100, description="training pictures whose codes are probed")
    seed: int = Field(0, ge=0, description="seed of what is random in the exams")


class ValidationSettings(Settings):
    """A validation task: its world, its models, its bars."""

    name: str
    world: Literal["mnist", "avatars"]
    description: str = Field(description="one sentence for people")
    classifier: ClassifierSettings = ClassifierSettings()
    exams: ExamSettings = ExamSettings()
    avatars: AvatarSettings = AvatarSettings()
    trials: dict[str, Trial] = Field(min_length=1, description="by name: what is examined")

    @model_validator(mode="after")
    def _each_trial_can_fail(self) -> ValidationSettings:
        for name, trial in self.trials.items():
            if not trial.bars:
                raise ValueError(f"trials.{name} has no bars; expected one at least, or it could not fail")
        return self
