"""What a validation task examines, and the bars it must clear."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from anomaly.bundle.config import ModelSection
from anomaly.calibration.conformal import required_healthy
from anomaly.core.config import Settings
from anomaly.core.errors import unknown_name
from anomaly.models.base import ModelSettings
from anomaly.models.registry import parse_settings
from anomaly.scoring.ensemble import MergeSettings
from anomaly.scoring.settings import ScoringSettings
from anomaly.training.settings import AugmentationSettings, TrainingSettings
from pipelines.validation.baselines.sklearn_detectors import EstimatorTrial
from pipelines.validation.datasets.avatars.settings import AvatarSettings, NaiveBayesSettings
from pipelines.validation.reference_classifier import ClassifierSettings
from pipelines.validation.thresholds import ExaminedSettings

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


class TrialSettings(ExaminedSettings):
    """One model, how it is trained, what it is examined for, and the bars."""

    model: ModelSection = Field(description="family and its settings")
    training: PictureTraining = PictureTraining()
    scoring: PictureScoring = PictureScoring()
    draws: int = Field(
        0, ge=0, description="0, or how many draws of black and white pixels there are of each training picture"
    )

    def model_settings(self) -> ModelSettings:
        """Return the settings of the family."""
        return parse_settings(self.model, where="model")

    @property
    def family(self) -> str:
        """Name of the family."""
        return str(self.model["family"])


class ExamSettings(Settings):
    """How much is measured in the exams."""

    samples: int = Field(2000, ge=100, description="generated pictures that are measured")
    neighbours_of: int = Field(2000, ge=100, description="pictures among which neighbours are looked for")
    likelihood_of: int = Field(200, ge=1, description="test pictures whose likelihood is measured")
    importance: tuple[int, ...] = Field((1, 50, 500), description="k of the importance-weighted bounds")
    probed: int = Field(4000, ge=100, description="training pictures whose codes are probed")
    seed: int = Field(0, ge=0, description="seed of what is random in the exams")


class EnsembleTrial(ExaminedSettings):
    """Trials whose scores are merged."""

    members: tuple[str, ...] = Field(min_length=2, description="names of trials with the same exams")
    merge: MergeSettings = MergeSettings()

    @property
    def family(self) -> str:
        """What stands where others have the name of a family."""
        return "ensemble"


class NaiveBayesTrial(ExaminedSettings):
    """Naive Bayes of looks."""

    naive_bayes: NaiveBayesSettings
    scoring: PictureScoring = PictureScoring(maps={"surprise": 1.0}, standardise="none")

    @property
    def family(self) -> str:
        """Name of the model."""
        return f"naive Bayes of {self.naive_bayes.of}"


KINDS = {
    "model": TrialSettings,
    "estimator": EstimatorTrial,
    "members": EnsembleTrial,
    "naive_bayes": NaiveBayesTrial,
}
"""The key that tells which kind of trial it is."""


def _kind(values: Any) -> str | None:
    return next(
        (key for key in KINDS if (key in values if isinstance(values, dict) else hasattr(values, key))), None
    )


Trial = Annotated[
    Annotated[TrialSettings, Tag("model")]
    | Annotated[EstimatorTrial, Tag("estimator")]
    | Annotated[EnsembleTrial, Tag("members")]
    | Annotated[NaiveBayesTrial, Tag("naive_bayes")],
    Discriminator(
        _kind,
        custom_error_type="trial",
        custom_error_message="expected one of the keys model, estimator, members, naive_bayes",
    ),
]


class OneClassSettings(Settings):
    """Which classes, which parts, and what is promised."""

    protocol: Literal["one_normal", "one_abnormal"] = Field(
        "one_normal", description="one_normal: one digit is normal; one_abnormal: all digits but one are normal"
    )
    digits: tuple[int, ...] = Field(tuple(range(10)), min_length=1, description="which digits are the one, in turn")
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="seeds of parts and trainings")
    calibration: int = Field(600, ge=1, description="normal training pictures behind the p-values")
    held_out: int = Field(300, ge=3, description="normal training pictures that show what normal scores are")
    reference: int = Field(
        1000, ge=2, description="at most so many of the pictures learnt from give mean and SD of maps"
    )
    test: int = Field(0, ge=0, description="the first so many test pictures; 0 = all")
    alphas: tuple[float, ...] = Field((0.01, 0.05, 0.1), min_length=1, description="promised false-flag rates")
    rehearsal: bool = Field(False, description="some training pictures play the test: to choose settings by")
    paper: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="grey level that black becomes: models take 0 for being outside, and change nothing there",
    )

    @model_validator(mode="after")
    def _can_keep_its_promises(self) -> OneClassSettings:
        needed = required_healthy(min(self.alphas))
        if self.calibration < needed:
            raise ValueError(f"alpha {min(self.alphas):g} needs calibration {needed}, found {self.calibration}")
        return self


class ValidationSettings(Settings):
    """A validation task: its world, its models, its bars."""

    name: str
    world: Literal["mnist", "digits", "avatars"]
    description: str = Field(description="one sentence for people")
    classifier: ClassifierSettings = ClassifierSettings()
    exams: ExamSettings = ExamSettings()
    one_class: OneClassSettings = OneClassSettings()
    avatars: AvatarSettings = AvatarSettings()
    trials: dict[str, Trial] = Field(min_length=1, description="by name: what is examined")

    @model_validator(mode="after")
    def _members_are_trials(self) -> ValidationSettings:
        for name, trial in self.trials.items():
            for member in trial.members if isinstance(trial, EnsembleTrial) else ():
                if member not in self.trials or isinstance(self.trials[member], EnsembleTrial):
                    others = [n for n, t in self.trials.items() if not isinstance(t, EnsembleTrial)]
                    raise ValueError(f"trials.{name}.members: " + unknown_name("trial", member, others))
        return self
