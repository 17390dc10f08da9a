"""Adapt a trained model to another scanner with a few local healthy scans: no training, a new healthy reference."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from anomaly.bundle.card import ensemble_card, model_card
from anomaly.bundle.display import display_scale
from anomaly.bundle.ensemble import EnsembleBundle, open_bundle, save_ensemble
from anomaly.bundle.shipped import find_model
from anomaly.bundle.store import (
    MEMBERS,
    TRAINING_SUBJECTS,
    Bundle,
    TrainedBundle,
    interrupted_model,
    load_bundle,
    model_files,
    refuse_to_overwrite,
    save_bundle,
)
from anomaly.bundle.training_subjects import TrainingSubjects
from anomaly.calibration.record import check_leakage
from anomaly.cohort.table import ScanRecord
from anomaly.core.errors import BundleError, CohortError, ConfigError, ScanRefusedError
from anomaly.core.progress import Progress, no_progress
from anomaly.core.provenance import now, user_name
from anomaly.core.versions import software_versions
from anomaly.core.volume import FloatArray, Geometry, MaskArray
from anomaly.models.device import choose_device
from anomaly.scoring.adaptation import MEAN_PRIOR_SCANS, SD_PRIOR_SCANS, adapt_scorer
from anomaly.scoring.scorer import Scorer
from pipelines.common import audit
from pipelines.scan_input import NotScored, PreparedScanRef, healthy_scans, open_scans

SPLIT = "train"
MIN_SUBJECTS = 5
WORK = "adaptation"  # folder of raw scans and of unfinished members in that of the model
NOT_OF_PARENT = frozenset({
    "model_id", "metadata_sha256", "format_version", "grid", "hashes", "score_mean", "score_std", "held_out_scores",
    "background", "created_at", "user_name", "software", "display", "members",
})  # fmt: skip
"""Keys of the metadata that an adapted model has of its own."""


@dataclass(frozen=True)
class LocalScans:
    """Healthy scans of another scanner; a :class:`~anomaly.core.image_views.VolumeSource`."""

    scans: Sequence[PreparedScanRef]
    grid: Geometry

    def __len__(self) -> int:
        return len(self.scans)

    def __getitem__(self, index: int) -> tuple[FloatArray, MaskArray]:
        """Return voxels and mask ``(I, J, K)`` of a scan."""
        scan = self.scans[index].load()
        return scan.voxels, scan.mask

    def covariates(self, index: int) -> FloatArray:
        """Return age and sex ``(2,)`` of a scan's subject, NaN where unknown."""
        return self.records[index].covariates

    @property
    def records(self) -> list[ScanRecord]:
        """The record of each scan."""
        return [scan.record for scan in self.scans]

    @property
    def subjects(self) -> list[str]:
        """The subject of each scan."""
        return [record.subject for record in self.records]


def adapt(
    model: Path,
    cohort: Path,
    output: Path,
    reason: str,
    *,
    jobs: int = 0,
    device: str = "auto",
    allow_command: bool = False,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Write a copy of a model whose healthy reference fits another scanner.

    Parameters
    ----------
    model
        The bundle of a trained model, or of an ensemble, whose members are adapted one by one.
    cohort
        Local healthy scans: an ingested cohort, or raw scans. Where scans name a split, only ``train`` is used;
        scans of another group than healthy never are.
    output
        The bundle folder to make. It has no calibration, and the scans used here count as seen in training. A call
        that was interrupted is repeated or finished by the same call.
    reason
        Why, and for which scanner and population.
    allow_command
        Whether the model may run the program that its config names to extract brains.

    Raises
    ------
    ConfigError
        The reason is empty, or the cohort was prepared by another chain than the model's.
    CohortError
        There are too few local subjects.
    LeakageError
        A scan, or another of the same subject, was seen in training.
    BundleError
        The model cannot be adapted, or the output holds a model.
    """
    if not reason.strip():
        raise ConfigError("an adaptation needs a reason (--reason): why, and for which scanner and population")
    parent = open_bundle(find_model(model), choose_device(device), allow_command=allow_command)
    if "adaptation" in parent.metadata:
        raise BundleError(
            f"{model} is itself adapted to another scanner; adapt the model it was made from, "
            f"{parent.metadata['adaptation']['parent']}"
        )
    left, work = interrupted_model(output, "adapt", parent.config), output / WORK
    if left is None:
        refuse_to_overwrite(output)
    with closing(open_scans([cohort], work / "ingested", parent.config, jobs, split=SPLIT)) as scans:
        accepted, not_accepted = healthy_scans(scans, parent.config, SPLIT)
    _refuse_seen_in_training(parent, [scan.record for scan in accepted])
    local, refused = _like_training(parent, LocalScans(accepted, parent.grid))
    facts = _facts(parent, local, reason)
    if left is None or not _is_complete(output, left, facts, local):
        refuse_to_overwrite(output)
        audit(output, "adapt", event="started", parent=parent.model_id)
        left = _save(output, parent, local, facts, progress)
    shutil.rmtree(work, ignore_errors=True)
    return _finish(output, left) | {
        "refused": len(not_accepted) + len(refused),
        "not_scored": [*not_accepted, *refused],
    }


def _refuse_seen_in_training(parent: Bundle, records: Sequence[ScanRecord]) -> None:
    seen = parent.training_subjects()
    names = {record.subject: seen.hash_subject(record.subject) for record in records}
    rows = [
        {"scan_id": r.scan_id, "subject_hash": names[r.subject], "content_hash": r.content_hash} for r in records
    ]
    known = [hashed for subject, hashed in names.items() if seen.contains(subject)]
    check_leakage(known, seen.content_hashes, pd.DataFrame(rows))


def _like_training(parent: TrainedBundle | EnsembleBundle, local: LocalScans) -> tuple[LocalScans, list[NotScored]]:
    """Return the scans that the model would score, and why it refuses the others.

    Raises
    ------
    CohortError
        Too few subjects are left.
    """
    accepted, refused = [], []
    for index, scan in enumerate(local.scans):
        try:
            for scorer in _scorers(parent):
                scorer.checked_similarity(*local[index])
        except ScanRefusedError as refusal:
            row = {"status": "refused", "reason": refusal.reason, "remedy": refusal.remedy}
            refused.append({"scan_id": scan.record.scan_id, **row})
        else:
            accepted.append(scan)
    n_subjects = len({scan.record.subject for scan in accepted})
    if n_subjects < MIN_SUBJECTS:
        why = "".join(f"; refused {scan['scan_id']}: {scan['reason']}" for scan in refused[:1])
        raise CohortError(
            f"found {n_subjects} healthy subject(s) to adapt to; expected at least {MIN_SUBJECTS}, better 8 to "
            f"20{why}; give more healthy scans of this scanner"
        )
    return LocalScans(accepted, local.grid), refused


def _scorers(bundle: TrainedBundle | EnsembleBundle) -> list[Scorer]:
    """Return the scorer of a trained model, or those of the members of an ensemble."""
    return [bundle.scorer] if isinstance(bundle, TrainedBundle) else list(bundle.scorer.members.values())


def _facts(parent: Bundle, local: LocalScans, reason: str) -> dict[str, Any]:
    """Return the metadata of the model: those of its parent, with what was adapted, by whom and why."""
    ages = [record.age for record in local.records if record.age is not None]
    inherited = {key: value for key, value in parent.metadata.items() if key not in NOT_OF_PARENT}
    return inherited | {
        "created_at": now(),
        "user_name": user_name(),
        "software": software_versions(),
        "adaptation": {
            "parent": parent.model_id,
            "reason": reason,
            "n_scans": len(local),
            "n_subjects": len(set(local.subjects)),
            "age_min": min(ages, default=None),
            "age_max": max(ages, default=None),
            "mean_prior_scans": MEAN_PRIOR_SCANS,
            "sd_prior_scans": SD_PRIOR_SCANS,
        },
    }


def _is_complete(output: Path, left: Mapping[str, Any], facts: Mapping[str, Any], local: LocalScans) -> bool:
    """Return whether the model in a folder is the one of this call."""
    seen = TrainingSubjects.read(output / TRAINING_SUBJECTS).content_hashes
    return left["adaptation"] == facts["adaptation"] and {r.content_hash for r in local.records} <= seen


def _save(
    output: Path,
    parent: TrainedBundle | EnsembleBundle,
    local: LocalScans,
    facts: Mapping[str, Any],
    progress: Progress,
) -> dict[str, Any]:
    """Adapt and save a trained model, or the members of an ensemble; return the metadata."""
    if isinstance(parent, TrainedBundle):
        return _save_trained(output, parent, parent.scorer, local, facts)
    members, work = {}, output / WORK / MEMBERS
    shutil.rmtree(work, ignore_errors=True)
    for done, (name, scorer) in enumerate(parent.scorer.members.items()):
        progress(done, len(parent.scorer.members), f"adapting {name}")
        member = load_bundle(parent.folder / MEMBERS / name)
        _save_trained(work / name, member, scorer, local, _facts(member, local, facts["adaptation"]["reason"]))
        members[name] = load_bundle(work / name)
    displays = [member.metadata["display"] for member in members.values()]
    typical = sum(display["evidence_typical"] for display in displays) / len(displays)
    all_facts = {**facts, "display": displays[0] | {"evidence_typical": typical}}
    config = parent.config
    model_id = save_ensemble(output, config, members, all_facts, lambda id_: ensemble_card(config, id_, all_facts))
    return all_facts | {"model_id": model_id}


def _save_trained(
    folder: Path, parent: TrainedBundle, scorer: Scorer, local: LocalScans, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Adapt and save one trained model; return its metadata."""
    adapted = adapt_scorer(scorer, local, local.subjects)
    all_facts = {**facts, "display": display_scale(adapted, parent.config.preprocessing.intensity)}
    of_local = TrainingSubjects.of((record.subject, record.content_hash) for record in local.records)
    seen = TrainingSubjects.merged([parent.training_subjects(), of_local])
    model_id = save_bundle(
        folder, parent.config, adapted, seen, all_facts, lambda id_: model_card(parent.config, id_, all_facts)
    )
    return all_facts | {"model_id": model_id}


def _finish(output: Path, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Seal the files of a model that is complete, and return the summary."""
    model_id, adaptation = metadata["model_id"], metadata["adaptation"]
    folders = [output, *sorted((output / MEMBERS).glob("*"))]
    files = [path for folder in folders for path in model_files(folder)]
    audit(output, "adapt", files=files, event="finished", model_id=model_id, parent=adaptation["parent"])
    return {
        "model_id": model_id,
        "model": str(output),
        "adapted_from": adaptation["parent"],
        "local_scans": adaptation["n_scans"],
        "local_subjects": adaptation["n_subjects"],
    }
