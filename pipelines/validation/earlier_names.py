"""Names of earlier versions in validation tasks: old YAML files are read under the present names.

Keys were renamed at four places of a task: at its top, in ``checks`` (how much is measured), in ``one_class``,
``avatars`` and ``classifier``, and in each entry of ``models``. Checks and their measures were renamed too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TASK_KEYS = {"world": "dataset", "trials": "models", "exams": "checks"}
SECTION_KEYS: Mapping[str, Mapping[str, str]] = {
    "classifier": {"least_accuracy": "min_accuracy"},
    "checks": {
        "neighbours_of": "neighbour_images",
        "likelihood_of": "likelihood_images",
        "importance": "importance_samples",
        "probed": "code_images",
    },
    "one_class": {"rehearsal": "tuning_split", "paper": "background_level"},
    "avatars": {"classified": "classifier_train", "outside": "out_of_distribution"},
}
ENTRY_KEYS = {"exams": "checks", "bars": "thresholds", "draws": "binarisations"}
THRESHOLD_KEYS = {"least": "min", "most": "max"}
CHECKS = {
    "codes": "latent_codes",
    "looks": "avatar_samples",
    "requests": "avatar_conditional",
    "arithmetic": "latent_arithmetic",
    "outliers": "out_of_distribution",
    "independence": "pixel_dependence",
    "new_looks": "unobserved_combinations",
}
_ONE_CLASS = {"false_flags_kept": "fpr_not_exceeded", "false_flags_inside": "fpr_inside_band"}
MEASURES: Mapping[str, Mapping[str, str]] = {
    "generation": {
        "legible": "confident_fraction",
        "kinds_apart": "class_total_variation",
        "rarest_kind": "rarest_class_ratio",
        "copied": "memorised_fraction",
    },
    "conditional": {"as_asked": "condition_accuracy", "as_asked_lowest": "condition_accuracy_lowest"},
    "latent_codes": {"better_than_pca": "pca_error_ratio"},
    "one_normal": _ONE_CLASS,
    "one_abnormal": _ONE_CLASS,
    "avatar_samples": {
        "sure": "confident_fraction",
        "alike": "similar_fraction",
        "error": "mse_to_drawing",
        "apart": "total_variation",
        "impossible": "impossible_values",
        "novel_of_law": "novel_expected",
        "unseen_of_law": "unseen_expected",
        "differing": "attribute_difference",
        "differing_ratio": "attribute_difference_ratio",
    },
    "avatar_conditional": {
        "as_asked": "condition_accuracy",
        "as_asked_lowest": "condition_accuracy_lowest",
        "as_asked_all": "condition_accuracy_all",
        "change_lowest": "single_change_lowest",
        "spill": "off_target_change",
    },
    "latent_arithmetic": {
        "put_on": "added",
        "put_on_others_kept": "added_others_unchanged",
        "taken_off": "removed",
        "taken_off_others_kept": "removed_others_unchanged",
        "half_way_valid": "midpoint_valid",
        "half_way_of_either": "midpoint_of_either",
    },
    "out_of_distribution": {"promises_kept": "fpr_not_exceeded"},
    "pixel_dependence": {
        "together": "neighbour_correlation",
        "together_drawn": "neighbour_correlation_generated",
        "nats_of_law": "entropy_of_distribution",
        "nats_of_model": "entropy_of_model",
    },
    "unobserved_combinations": {
        "new": "unobserved_fraction",
        "different": "distinct_fraction",
        "least_probable": "lowest_probability",
    },
}
MEASURE_PREFIXES: Mapping[str, Mapping[str, str]] = {
    "avatar_samples": {"apart_": "total_variation_"},
    "avatar_conditional": {"change_": "single_change_", "others_stay_": "others_unchanged_"},
    "out_of_distribution": {"flagged_": "sensitivity_", "false_flags_": "fpr_"},
    "one_normal": {"false_flag_rate_": "fpr_"},
    "one_abnormal": {"false_flag_rate_": "fpr_"},
}


def with_current_names(task: Any) -> Any:
    """Return a validation task, as read from YAML, with the names of earlier versions replaced.

    What is no mapping is returned as it is: the settings class says what is wrong with it.
    """
    if not isinstance(task, dict):
        return task
    values = _renamed(task, TASK_KEYS)
    for section, keys in SECTION_KEYS.items():
        if section in values:
            values[section] = _renamed(values[section], keys)
    if isinstance(values.get("models"), dict):
        values["models"] = {name: _entry(entry) for name, entry in values["models"].items()}
    return values


def current_measure(name: str) -> str:
    """Return ``CHECK.MEASURE`` with the present names of both."""
    check, _, measure = name.partition(".")
    check = CHECKS.get(check, check)
    known = MEASURES.get(check, {})
    if measure in known:
        return f"{check}.{known[measure]}"
    for old, new in MEASURE_PREFIXES.get(check, {}).items():
        if measure.startswith(old):
            return f"{check}.{new}{measure.removeprefix(old)}"
    return f"{check}.{measure}"


def _entry(entry: Any) -> Any:
    values = _renamed(entry, ENTRY_KEYS)
    if not isinstance(values, dict):
        return values
    if isinstance(values.get("checks"), list):
        values["checks"] = [CHECKS.get(check, check) for check in values["checks"]]
    if isinstance(values.get("thresholds"), dict):
        values["thresholds"] = {
            current_measure(measure) if "." in measure else measure: _renamed(limits, THRESHOLD_KEYS)
            for measure, limits in values["thresholds"].items()
        }
    return values


def _renamed(values: Any, names: Mapping[str, str]) -> Any:
    return {names.get(key, key): value for key, value in values.items()} if isinstance(values, dict) else values
