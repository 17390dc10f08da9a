"""Names of earlier versions and what they are called now.

Files that an earlier version wrote (configurations, models, run folders, validation tasks) still load: whoever
reads them passes their names through these tables. Writers use the present names only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from anomaly.core.errors import ConfigError

FAMILIES = {"stacked": "stacked_ae", "recurrent": "conv_lstm_ae", "gan": "f_anogan"}
"""Model families: ``model.family`` of a configuration, ``family`` of ``metadata.json``, ``validate --family``."""

MAPS = {"severity": "change_logit", "departure": "mean_deviation", "surprise": "nll"}
"""Evidence maps: keys of ``scoring.maps`` and ``scoring.sd_floor``, and of ``reference.safetensors``."""

SCORING_SETTINGS = {"min_similarity": "min_block_correlation"}
"""Keys of the ``scoring`` section of a configuration."""

BLOCK_CORRELATION_PER_CORRELATION = 0.8  # healthy scans: lowest ratio of block correlation to correlation over all

MODEL_SETTINGS = {
    "severity_weight": "change_logit_weight",
    "evaluations": "n_function_evaluations",
    "drop": "condition_dropout",
    "memory": "hidden_size",
    "codes": "num_embeddings",
    "patch": "patch_size",
    "colours": "patch_sets",
    "unconditional": "unconditional_share",
    "grain_mm": "noise_spacing_mm",
}
"""Keys of the ``model`` section of a configuration."""

CORRUPTION_SETTINGS = {
    "blobs": "max_blobs",
    "dark": "dark_share",
    "flat": "flat_share",
    "foreign": "foreign_share",
    "masked": "mask_probability",
}
"""Keys of ``model.corruption`` of a configuration."""

WEIGHTS: Mapping[str, Mapping[str, str]] = {
    "conv_lstm_ae": {"walk": "recurrent", "shorten": "to_code"},
    "cvae": {"taught": "seen_in_training"},
    "f_anogan": {"steady": "ema_generator", "expected": "projection", "taught": "seen_in_training"},
    "hvae": {
        "code": "to_z1",
        "start": "from_z1",
        "rungs": "levels",
        "look": "combine",
        "ups": "decoder_stages",
        "out": "to_image",
    },
}
"""Family → parts of the dotted names of its weights, in ``weights.safetensors``."""

METADATA = {"who": "user_name", "score_centre": "score_mean", "score_spread": "score_std"}
"""Keys of the ``metadata.json`` of a model."""

CALIBRATION = {"who": "user_name"}
"""Keys of the calibration records of a model, and of ``calibration`` in ``run.json``."""

PER_SCAN_TABLE = {"ill": "is_abnormal"}
"""Columns of ``per_scan.parquet`` of an evaluation."""

EVALUATION = {"promises": "fpr_checks", "protocol": "settings"}
"""Keys of ``metrics.json`` of an evaluation."""

FPR_CHECK = {"kept": "within_target", "verdict": "position"}
"""Keys of each FPR check in ``metrics.json``."""

SCAN_RECORD = {"made_from": "input_hash"}
"""Keys of the files in the ``records`` folder of a cohort."""

SCORE_OUTPUTS = {"map_path": "anomaly_map", "mask_path": "flagged_mask"}
"""Keys of ``score.json`` → names in its ``outputs``."""

SCORE_PROVENANCE = {"look_seconds": "inference_seconds"}
"""Keys of ``provenance`` in ``score.json``."""

VALIDATION_TASK = {"world": "dataset", "trials": "models", "exams": "checks"}
"""Keys of a validation task."""

VALIDATION_SECTIONS: Mapping[str, Mapping[str, str]] = {
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
"""Keys of the sections of a validation task."""

VALIDATION_MODEL = {"exams": "checks", "bars": "thresholds", "draws": "binarisations"}
"""Keys of each entry in ``models`` of a validation task."""

VALIDATION_THRESHOLD = {"least": "min", "most": "max"}
"""Keys of a threshold of a validation task."""

VALIDATION_CHECKS = {
    "codes": "latent_codes",
    "looks": "avatar_samples",
    "requests": "avatar_conditional",
    "arithmetic": "latent_arithmetic",
    "outliers": "out_of_distribution",
    "independence": "pixel_dependence",
    "new_looks": "unobserved_combinations",
}
"""Validation checks."""

_ONE_CLASS = {"false_flags_kept": "fpr_not_exceeded", "false_flags_inside": "fpr_inside_band"}
VALIDATION_MEASURES: Mapping[str, Mapping[str, str]] = {
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
"""Present name of a check → names of its measures."""

VALIDATION_MEASURE_PREFIXES: Mapping[str, Mapping[str, str]] = {
    "avatar_samples": {"apart_": "total_variation_"},
    "avatar_conditional": {"change_": "single_change_", "others_stay_": "others_unchanged_"},
    "out_of_distribution": {"flagged_": "sensitivity_", "false_flags_": "fpr_"},
    "one_normal": {"false_flag_rate_": "fpr_"},
    "one_abnormal": {"false_flag_rate_": "fpr_"},
}
"""Present name of a check → beginnings of the names of its measures."""

Value = TypeVar("Value")


def current_name(name: str, renamed: Mapping[str, str]) -> str:
    """Return the present name of what may have an earlier one; other names are returned unchanged."""
    return renamed.get(name, name)


def current_config_name(name: str) -> str:
    """Return the present name of a shipped model configuration, e.g. ``f_anogan-small`` for ``gan-small``."""
    family, dash, variant = name.partition("-")
    return current_name(family, FAMILIES) + dash + variant


def rename_keys(values: Mapping[str, Value], renamed: Mapping[str, str]) -> dict[str, Value]:
    """Return a mapping with present names as keys, in the same order.

    Raises
    ------
    ConfigError
        The earlier and the present name of one key are both there.
    """
    for old, new in renamed.items():
        if old in values and new in values:
            raise ConfigError(f"found both {old!r} and {new!r}, which is the present name of {old!r}; delete one")
    return {current_name(key, renamed): value for key, value in values.items()}


def current_model_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``model`` section of a configuration with present names of the family and the keys."""
    renamed = rename_keys(values, MODEL_SETTINGS)
    if isinstance(renamed.get("family"), str):
        renamed["family"] = current_name(renamed["family"], FAMILIES)
    if isinstance(renamed.get("corruption"), Mapping):
        renamed["corruption"] = rename_keys(renamed["corruption"], CORRUPTION_SETTINGS)
    return renamed


def current_weights(weights: Mapping[str, Value], family: str) -> dict[str, Value]:
    """Return the weights of a family, dotted name → value, with present names."""
    renamed = WEIGHTS.get(family, {})
    return {".".join(current_name(part, renamed) for part in name.split(".")): v for name, v in weights.items()}


def current_scoring_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``scoring`` section of a configuration with present names of the maps and keys.

    A limit of earlier versions on the correlation over the whole brain becomes the limit on the median correlation
    of blocks that refuses no more healthy scans: a positive one is multiplied by
    :data:`BLOCK_CORRELATION_PER_CORRELATION`.
    """
    renamed = rename_keys(values, SCORING_SETTINGS)
    limit = values.get("min_similarity")
    if isinstance(limit, int | float) and limit > 0:
        renamed["min_block_correlation"] = limit * BLOCK_CORRELATION_PER_CORRELATION
    return {
        key: rename_keys(value, MAPS) if key in {"maps", "sd_floor"} and isinstance(value, Mapping) else value
        for key, value in renamed.items()
    }


def current_metadata(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a model's ``metadata.json`` with present names."""
    renamed = rename_keys(values, METADATA)
    if "family" in renamed:
        renamed["family"] = current_name(renamed["family"], FAMILIES)
    return renamed


def current_calibration(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a calibration record with present names."""
    return rename_keys(values, CALIBRATION)


def current_evaluation(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of ``metrics.json`` of an evaluation with present names."""
    renamed = rename_keys(values, EVALUATION)
    renamed["fpr_checks"] = [rename_keys(check, FPR_CHECK) for check in renamed.get("fpr_checks", ())]
    return renamed


def current_scan_score(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a scan's ``score.json`` with present names."""
    renamed = {key: value for key, value in values.items() if key not in SCORE_OUTPUTS}
    renamed["provenance"] = rename_keys(values.get("provenance", {}), SCORE_PROVENANCE)
    if "outputs" not in values:
        renamed["outputs"] = {new: values[old] for old, new in SCORE_OUTPUTS.items() if values.get(old)}
    return renamed


def current_validation_task(task: Any) -> Any:
    """Return a validation task, as read from YAML, with the names of earlier versions replaced.

    Anything but a mapping is returned as it is: the settings class says what is wrong with it.
    """
    if not isinstance(task, dict):
        return task
    values = _renamed(task, VALIDATION_TASK)
    for section, keys in VALIDATION_SECTIONS.items():
        if section in values:
            values[section] = _renamed(values[section], keys)
    if isinstance(values.get("models"), dict):
        values["models"] = {name: _current_validation_model(entry) for name, entry in values["models"].items()}
    return values


def current_validation_measure(name: str) -> str:
    """Return ``CHECK.MEASURE`` with the present names of both."""
    check, _, measure = name.partition(".")
    check = VALIDATION_CHECKS.get(check, check)
    known = VALIDATION_MEASURES.get(check, {})
    if measure in known:
        return f"{check}.{known[measure]}"
    for old, new in VALIDATION_MEASURE_PREFIXES.get(check, {}).items():
        if measure.startswith(old):
            return f"{check}.{new}{measure.removeprefix(old)}"
    return f"{check}.{measure}"


def _current_validation_model(entry: Any) -> Any:
    values = _renamed(entry, VALIDATION_MODEL)
    if not isinstance(values, dict):
        return values
    if isinstance(values.get("checks"), list):
        values["checks"] = [VALIDATION_CHECKS.get(check, check) for check in values["checks"]]
    if isinstance(values.get("thresholds"), dict):
        values["thresholds"] = {
            current_validation_measure(measure) if "." in measure else measure: _renamed(
                limits, VALIDATION_THRESHOLD
            )
            for measure, limits in values["thresholds"].items()
        }
    return values


def _renamed(values: Any, names: Mapping[str, str]) -> Any:
    return {names.get(key, key): value for key, value in values.items()} if isinstance(values, dict) else values
