"""Names of earlier versions and what they are called now.

Files that an earlier version wrote (configurations, models, run folders) still load: whoever reads them passes
their names through these tables. Writers use the present names only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from anomaly.core.errors import ConfigError

FAMILIES = {"stacked": "stacked_ae", "recurrent": "conv_lstm_ae", "gan": "f_anogan"}
"""Model families: ``model.family`` of a configuration, ``family`` of ``metadata.json``, ``validate --family``."""

MAPS = {"severity": "change_logit", "departure": "mean_deviation"}
"""Evidence maps: keys of ``scoring.maps`` and ``scoring.sd_floor``, and of ``reference.safetensors``."""

MODEL_SETTINGS = {"severity_weight": "change_logit_weight", "evaluations": "n_function_evaluations"}
"""Keys of the ``model`` section of a configuration."""

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
    return renamed


def current_scoring_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``scoring`` section of a configuration with present names of the maps."""
    return {
        key: rename_keys(value, MAPS) if key in {"maps", "sd_floor"} and isinstance(value, Mapping) else value
        for key, value in values.items()
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
