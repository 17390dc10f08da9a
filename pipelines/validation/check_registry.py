"""The checks by name, and which settings each of them depends on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.validation.cache_keys import key_of_check
from pipelines.validation.checks.avatars.conditional_samples import check_conditional_samples
from pipelines.validation.checks.avatars.latent_arithmetic import check_latent_arithmetic
from pipelines.validation.checks.avatars.out_of_distribution import check_out_of_distribution
from pipelines.validation.checks.avatars.pixel_dependence import check_pixel_dependence
from pipelines.validation.checks.avatars.samples import check_samples
from pipelines.validation.checks.avatars.unobserved_combinations import check_unobserved_combinations
from pipelines.validation.checks.generation import check_conditional_generation, check_generation
from pipelines.validation.checks.latent_codes import check_latent_codes
from pipelines.validation.checks.likelihood import check_likelihood
from pipelines.validation.checks.one_class.detection import one_abnormal, one_normal
from pipelines.validation.model_under_test import CheckResult, ModelUnderTest
from pipelines.validation.settings import EnsembleEntry, FamilyEntry, ModelEntry


@dataclass(frozen=True)
class Check:
    """A check of a model under test.

    Parameters
    ----------
    run
        Measures the model.
    settings
        Names of the check settings it depends on.
    sections
        Other sections of the task it depends on: ``one_class``, ``avatars``.
    classifier
        Whether it depends on the reference classifier.
    scoring
        Whether it depends on how images are scored.
    """

    run: Callable[[ModelUnderTest], CheckResult]
    settings: tuple[str, ...] = ("seed",)
    sections: tuple[str, ...] = ()
    classifier: bool = False
    scoring: bool = False


_SAMPLES = ("samples", "seed")

CHECKS: Mapping[str, Check] = {
    "generation": Check(check_generation, (*_SAMPLES, "neighbour_images"), classifier=True),
    "conditional": Check(check_conditional_generation, _SAMPLES, classifier=True),
    "likelihood": Check(check_likelihood, ("likelihood_images", "importance_samples", "seed")),
    "latent_codes": Check(check_latent_codes, ("code_images", "seed")),
    "one_normal": Check(one_normal, sections=("one_class",), scoring=True),
    "one_abnormal": Check(one_abnormal, sections=("one_class",), scoring=True),
    "avatar_samples": Check(check_samples, _SAMPLES, ("avatars",), classifier=True),
    "avatar_conditional": Check(check_conditional_samples, _SAMPLES, ("avatars",), classifier=True),
    "latent_arithmetic": Check(check_latent_arithmetic, sections=("avatars",), classifier=True),
    "out_of_distribution": Check(check_out_of_distribution, sections=("avatars",), scoring=True),
    "unobserved_combinations": Check(check_unobserved_combinations, sections=("avatars",)),
    "pixel_dependence": Check(check_pixel_dependence, _SAMPLES, ("avatars",)),
}
"""Name of each check → the check."""


def cache_keys_of(model: ModelUnderTest) -> dict[str, str]:
    """Return the cache key of each check of a model: of everything that its measures depend on."""
    return {name: _cache_key(name, CHECKS[name], model) for name in model.entry.checks}


def _cache_key(name: str, check: Check, model: ModelUnderTest) -> str:
    task, dataset = model.task, model.dataset
    facts = [
        _entry_facts(model.entry, check.scoring),
        [_entry_facts(task.models[member], check.scoring) for member in _members(model.entry)],
        task.checks.model_dump(mode="json", include=set(check.settings)),
        task.model_dump(mode="json", include=set(check.sections)),
        task.classifier.model_dump(mode="json", exclude={"min_accuracy"}) if check.classifier else None,
        dataset.cache_key,
        "" if isinstance(model.entry, EnsembleEntry) else _training_version(model),
    ]
    return key_of_check(name, *facts)


def _training_version(model: ModelUnderTest) -> str:
    """Return the key of the training; of an estimator, which is fitted for each class, its settings are enough."""
    return model.training_key if isinstance(model.entry, FamilyEntry) else model.entry.family


def _entry_facts(entry: ModelEntry, scoring: bool) -> dict[str, Any]:
    unused = {"checks", "thresholds"} if scoring else {"checks", "thresholds", "scoring"}
    return entry.model_dump(mode="json", exclude=unused)


def _members(entry: ModelEntry) -> tuple[str, ...]:
    return entry.members if isinstance(entry, EnsembleEntry) else ()
