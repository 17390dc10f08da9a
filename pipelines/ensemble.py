"""Merge trained models into one model, an ensemble."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anomaly.bundle.card import ensemble_card
from anomaly.bundle.ensemble import EnsembleConfig, refuse_unlike, save_ensemble
from anomaly.bundle.shipped import find_model
from anomaly.bundle.store import (
    MEMBERS,
    TrainedBundle,
    interrupted_model,
    load_bundle,
    model_files,
    refuse_to_overwrite,
)
from anomaly.core.errors import BundleError
from anomaly.core.provenance import now, user_name
from anomaly.core.versions import software_versions
from anomaly.scoring.ensemble import ENSEMBLE_SCORE, EnsembleScorer, MergeSettings
from anomaly.scoring.settings import EvidenceSettings
from pipelines.common import audit

SUMMED_TRAINING_FACTS = ("steps", "seconds", "n_parameters")


def ensemble(models: Sequence[Path], output: Path, merge: MergeSettings | None = None) -> dict[str, Any]:
    """Merge several models into one, which is calibrated, run and evaluated like any other model.

    Parameters
    ----------
    models
        Bundles of trained models; the names of their folders become the names of the members. The
        evidence settings (weights of dark and bright, eroded edge, smallest region, limits) and the reconstruction
        are those of the first one.
    output
        The bundle folder to make. It holds copies of the members.

    Raises
    ------
    BundleError
        A model is damaged, an ensemble, of an earlier version without held-out scores, or does not share the
        preprocessing of the others; or two have the same name.
    """
    members = {name: load_bundle(path) for name, path in _named([find_model(model) for model in models]).items()}
    config = _config(output.resolve().name, members, merge or MergeSettings())
    EnsembleScorer({name: m.scorer for name, m in members.items()}, config.merge, config.scoring)  # raises if unfit
    left = interrupted_model(output, "ensemble", config)
    if left and left["members"] == {name: member.model_id for name, member in members.items()}:
        return _finish(output, config, left)
    refuse_to_overwrite(output)
    refuse_unlike(members)
    audit(output, "ensemble", event="started")
    facts = _facts(config, list(members.values()))
    model_id = save_ensemble(
        output, config, members, facts, lambda model_id: ensemble_card(config, model_id, facts)
    )
    return _finish(output, config, facts | {"model_id": model_id})


def _finish(output: Path, config: EnsembleConfig, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Seal the files of an ensemble that is complete, and return the summary."""
    model_id = metadata["model_id"]
    folders = [output, *(output / MEMBERS / name for name in config.members)]
    files = [path for folder in folders for path in model_files(folder)]
    audit(output, "ensemble", files=files, event="finished", model_id=model_id)
    return {
        "model_id": model_id,
        "model": str(output),
        "members": ", ".join(config.members),
        "merged_by": config.merge.how,
        "p_values": config.merge.p_values,
        "parameters": metadata["training"]["n_parameters"],
    }


def _named(models: Sequence[Path]) -> dict[str, Path]:
    names = [path.resolve().name for path in models]
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice or ENSEMBLE_SCORE in names:
        raise BundleError(
            f"members are called by their folders: found {', '.join(names)}; expected names that differ, none of "
            f"them {ENSEMBLE_SCORE!r}; rename a folder"
        )
    if len(models) < 2:
        raise BundleError(f"found {len(models)} model, expected at least two to merge; name more model folders")
    return dict(zip(names, models, strict=True))


def _config(name: str, members: Mapping[str, TrainedBundle], merge: MergeSettings) -> EnsembleConfig:
    first = next(iter(members.values())).config
    shared = {key: getattr(first.scoring, key) for key in EvidenceSettings.model_fields}
    return EnsembleConfig(
        name=name,
        description=f"{', '.join(members)} as one model",
        preprocessing=first.preprocessing,
        scoring=EvidenceSettings(**shared | {"scan_score": ENSEMBLE_SCORE}),
        members=tuple(members),
        merge=merge,
    )


def _facts(config: EnsembleConfig, members: Sequence[TrainedBundle]) -> dict[str, Any]:
    """Collect the facts of the metadata and the card. Costs are sums over the members."""
    known = [member.metadata for member in members]
    seen = [member.training_subjects() for member in members]
    subjects = {one.content_hashes: one.n_subjects for one in seen}  # members with the same scans have the same
    return {
        "name": config.name,
        "modality": config.modality.value,
        "version": "0.1.0",
        "intended_use": known[0]["intended_use"],
        "created_at": now(),
        "user_name": user_name(),
        "data": {
            "n_scans": len(frozenset().union(*subjects)),
            "n_subjects": sum(subjects.values()),
            **_ages([facts["data"] for facts in known]),
        },
        "training": {key: sum(facts["training"][key] for facts in known) for key in SUMMED_TRAINING_FACTS},
        "display": {
            **known[0]["display"],
            "evidence_typical": sum(facts["display"]["evidence_typical"] for facts in known) / len(known),
        },
        "software": software_versions(),
        "changelog": {"0.1.0": "first version"},
    }


def _ages(data: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    known = [one for one in data if one.get("age_min") is not None]
    return {
        "age_min": min((one["age_min"] for one in known), default=None),
        "age_max": max((one["age_max"] for one in known), default=None),
    }
