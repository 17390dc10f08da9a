"""The model card: data, training, scoring and limits of a model (Mitchell et al. 2019, "Model Cards")."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from anomaly import RESEARCH_USE_ONLY
from anomaly.bundle.config import ExperimentConfig, ModelConfig
from anomaly.bundle.ensemble import EnsembleConfig

LIMITS = (
    "## Limits",
    "",
    "- Flags need a calibration on held-out healthy scans of the same scanner and population; when either "
    "changes, the target false-positive rate no longer holds.",
    "- A flag means that a scan differs from the healthy training scans. It does not name a finding.",
    "- Checkpoints are chosen on synthetic lesions; measure the sensitivity to real disease where it is used.",
)


def model_card(config: ExperimentConfig, model_id: str, facts: Mapping[str, Any]) -> str:
    """Write the card of a trained model as Markdown."""
    data, training, scoring = facts["data"], facts["training"], config.scoring
    lines = [
        *_head(config, config.model["family"], model_id, facts),
        "## Trained on",
        "",
        f"{data['n_train']} healthy scans of {data['n_train_subjects']} subjects; {data['n_validation']} scans of "
        f"{data['n_validation_subjects']} other healthy subjects, with synthetic lesions, chose the checkpoint.",
        _ages(data),
        *_privacy_note(facts["retrieval"]),
        *_storage_note(facts),
        "",
        *_adapted(facts.get("adaptation")),
        "## Training",
        "",
        f"{training['steps']} steps in {training['seconds']:.0f} s on {training['device']}"
        f"{_device_note(training.get('devices', 1))}, seed {training['seed']}.",
        *(f"- {name}: {value:.4g}" for name, value in training["validation"].items()),
        *(f"- {note}" for note in training["notes"]),
        "",
        "## How it scores",
        "",
        f"The declared scan score is `{scoring.scan_score}`. The evidence combines the signed maps "
        f"{_join_names(scoring.maps)}, smoothed ({scoring.smoothing_mm:g} mm) and "
        f"standardised ({scoring.standardise}) against healthy scans. A scan whose median block correlation "
        f"with the mean healthy scan is below {scoring.min_block_correlation:g} is refused; one whose intensities "
        f"and texture are less probable than {scoring.acquisition_alpha:g} among the training scans gets a "
        "warning of another scanner or protocol.",
        *_normative_note(scoring.standardise, facts.get("normative")),
        "",
        *LIMITS,
        *(f"- {limit}" for limit in facts.get("limits", ())),
        *_source_and_licence(facts.get("shipped")),
    ]
    return "\n".join(lines)


def _normative_note(standardise: str, normative: Mapping[str, Any] | None) -> list[str]:
    """Return with which healthy subjects a scan is compared, if that may depend on age and sex."""
    if standardise != "normative":
        return []
    if normative is None:
        return [
            "",
            "Too few training scans are of known age, so scans are compared with healthy subjects of all ages.",
        ]
    return [
        "",
        "A scan is compared with healthy subjects of the age and sex of its subject, "
        f"{normative['age_min']:.0f} to {normative['age_max']:.0f} years; other ages count as the nearest of these "
        "and get a warning. A subject of unknown age is compared with healthy subjects of all ages.",
    ]


def _device_note(devices: int) -> str:
    return f" ({devices} devices)" if devices > 1 else ""


def ensemble_card(config: EnsembleConfig, model_id: str, facts: Mapping[str, Any]) -> str:
    """Write the card of an ensemble as Markdown; the cards of its members are in their folders."""
    data, merge, scoring = facts["data"], config.merge, config.scoring
    lines = [
        *_head(config, f"ensemble of {_join_names(config.members)}", model_id, facts),
        "## Trained on",
        "",
        f"{data['n_scans']} healthy scans of {data['n_subjects']} subjects, in all members; the cards in "
        "`members/` list the scans of each member.",
        _ages(data),
        "",
        *_adapted(facts.get("adaptation")),
        "## How it scores",
        "",
        f"The declared scan score is `{scoring.scan_score}`: the p-values of the members' own declared scores "
        f"against the healthy scans each held out ({merge.p_values}), merged ({merge.how}). The evidence is the "
        f"mean of the members' signed maps in healthy standard deviations{_weighted(merge.weights)}; the "
        f"reconstruction is that of `{config.members[0]}`. A scan that a member refuses is refused; one "
        f"whose intensities and texture are less probable than {scoring.acquisition_alpha:g} among the training "
        "scans of a member gets a warning of another scanner or protocol.",
        "",
        *LIMITS,
        "",
    ]
    return "\n".join(lines)


def _head(config: ModelConfig, family: str, model_id: str, facts: Mapping[str, Any]) -> list[str]:
    return [
        f"# {config.name}",
        "",
        f"**{RESEARCH_USE_ONLY}**",
        "",
        config.description,
        "",
        "| | |",
        "|---|---|",
        f"| Model id | `{model_id}` |",
        f"| Family | {family} |",
        f"| Trainable parameters | {facts['training']['n_parameters']:,} |",
        f"| Modality | {config.modality.value} |",
        f"| Created | {facts['created_at']} by {facts['user_name']} |",
        "",
        "## Intended use",
        "",
        str(facts["intended_use"]),
        "",
    ]


def _weighted(weights: Mapping[str, float]) -> str:
    listed = ", ".join(f"{name} {weight:g}" for name, weight in weights.items())
    return f" (weights: {listed}; 1 for others)" if listed else ""


def _ages(data: Mapping[str, Any]) -> str:
    if data.get("age_min") is None:
        return "Their ages are not known."
    span = f"{data['age_min']:.0f} to {data['age_max']:.0f}"
    return f"Age {data['age_mean']:.0f} years on average ({span})." if "age_mean" in data else f"Age {span} years."


def _adapted(adaptation: Mapping[str, Any] | None) -> list[str]:
    """Return the section on the scanner that a model was adapted to; nothing for a model as it was trained."""
    if adaptation is None:
        return []
    return [
        "## Adapted to another scanner",
        "",
        f"Made from the model `{adaptation['parent']}` with {adaptation['n_scans']} healthy scans of "
        f"{adaptation['n_subjects']} subjects, without training: {adaptation['reason']}. The healthy mean and SD "
        "of every map, the mean healthy image and the acquisition features were moved towards "
        "those of the local scans; the mean of the training scans counts as "
        f"{adaptation['mean_prior_scans']:g} local scans, their SD as {adaptation['sd_prior_scans']:g}.",
        f"Local scans: {_ages(adaptation)}",
        "",
    ]


def _privacy_note(retrieval: Mapping[str, Any] | None) -> list[str]:
    """Return the note on slices of training scans that a model with retrieval contains."""
    if retrieval is None:
        return []
    return [
        "",
        f"`retrieval.safetensors` holds three grey slices and the age of each of {retrieval['n_scans']} training "
        "scans, without names, so that reports can show the most similar healthy scans. Share the model and its "
        "reports only with people who may see these slices, or train with `scoring.retrieval: 0`.",
    ]


def _storage_note(facts: Mapping[str, Any]) -> list[str]:
    if "storage" not in facts:
        return []
    return ["", f"The arrays are those of the model `{facts['storage']['arrays_of']}`, stored in fewer bits."]


def _source_and_licence(shipped: Mapping[str, Any] | None) -> list[str]:
    """Return the section of a model that comes with the package."""
    if shipped is None:
        return []
    return [
        "",
        "## Source and licence",
        "",
        f"{shipped['attribution']} Licence of this model: {shipped['licence']}.",
        "",
    ]


def _join_names(names: Iterable[str]) -> str:
    """Return names in a sentence: `` `a`, `b` and `c` ``."""
    *first, last = (f"`{name}`" for name in names)
    return f"{', '.join(first)} and {last}" if first else last
