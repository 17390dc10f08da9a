"""Train a model on healthy scans and write its bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from anomaly.bundle.card import model_card
from anomaly.bundle.config import ExperimentConfig, load_experiment, with_preprocessing
from anomaly.bundle.display import display_scale
from anomaly.bundle.store import TRAINING_SUBJECTS, interrupted_model, model_files, refuse_to_overwrite, save_bundle
from anomaly.bundle.training_subjects import TrainingSubjects
from anomaly.cohort.planted_lesions import PlantedScan, planted_scans
from anomaly.cohort.splits import split_by_subject
from anomaly.cohort.table import ScanRecord
from anomaly.cohort.volumes import CohortVolumes
from anomaly.core.covariates import OLDEST_REPORTED_AGE, reported_age
from anomaly.core.errors import CohortError
from anomaly.core.image_views import VolumeSource
from anomaly.core.progress import Progress, no_progress
from anomaly.core.provenance import now, user_name
from anomaly.core.versions import software_versions
from anomaly.models.registry import create
from anomaly.preprocessing.chain import load_chain_settings
from anomaly.scoring.scorer import Scorer
from anomaly.training.fit import fit
from anomaly.training.run import FitReport, FitRun
from anomaly.training.settings import TrainingSettings
from pipelines.common import audit, find_config, shipped_configs
from pipelines.scan_input import healthy_records

INTENDED_USE = (
    "Research on marking scans that do not look like the healthy scans the model has seen, for review by a "
    "radiologist. Not for diagnosis, not for ruling out disease."
)

CHECKPOINTS = "training"  # folder of logs and checkpoints in that of the model
MIN_SUBJECTS = 3  # two for training, one to choose the checkpoint


def train(
    config: str | Path,
    cohort: Path,
    output: Path,
    *,
    preprocessing: str | Path | None = None,
    seed: int | None = None,
    device: str = "auto",
    devices: int = 1,
    compiled: bool = False,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Train one model and write its bundle.

    Parameters
    ----------
    config
        A shipped name, or the path of a YAML file.
    preprocessing
        The preprocessing chain that replaces the one of the config: a shipped name, or the path of a YAML file.
    cohort
        An ingested cohort. Only healthy scans of the split ``train`` are used, or all healthy scans without splits.
    output
        The bundle folder. Logs and checkpoints are written to ``output/training``. An interrupted call continues
        from the checkpoints. They are removed when the model is complete. A call that was interrupted after that
        is finished, if config, seed and scans are the same.
    devices
        Number of devices that train together; each adds its own batch to every step.
    compiled
        Compile the network with torch. Compilation takes a minute or more.

    Returns
    -------
    dict
        Model id, folder, numbers of scans and steps, seconds.
    """
    experiment = _load(config, preprocessing)
    settings = experiment.training or TrainingSettings()
    seed = settings.seed if seed is None else seed
    left = interrupted_model(output, "train", experiment)
    records = healthy_records(cohort, experiment, split="train")
    if left and left["training"]["seed"] == seed and _was_trained_on(output, records):
        return _finish(output, left)
    refuse_to_overwrite(output)
    training, validation = hold_out(records, experiment.validation_fraction)
    volumes, held_out = CohortVolumes(cohort, training), CohortVolumes(cohort, validation)
    detector = create(experiment.model_settings(), volumes.grid)
    run = FitRun(
        folder=output / CHECKPOINTS, training=settings, seed=seed, device=device, devices=devices,
        compile=compiled, progress=progress,
    )  # fmt: skip
    report = fit(detector, volumes, _validation_scans(experiment, held_out), run)
    progress(0, len(volumes), "learning the healthy reference")
    scorer = Scorer(detector, experiment.scoring).learn_reference(volumes, held_out)
    display = display_scale(scorer, experiment.preprocessing.intensity)
    scorer = scorer.learn_index(volumes, display["intensity_max"])
    facts = _facts(experiment, training, validation, report, run)
    facts |= {"display": display, "retrieval": _retrieval(scorer, held_out), "normative": _normative(scorer)}
    seen = TrainingSubjects.of((record.subject, record.content_hash) for record in records)
    audit(output, "train", event="started")
    model_id = save_bundle(
        output, experiment, scorer, seen, facts, lambda model_id: model_card(experiment, model_id, facts)
    )
    return _finish(output, facts | {"model_id": model_id})


def _validation_scans(experiment: ExperimentConfig, held_out: CohortVolumes) -> list[PlantedScan]:
    """Plant the lesions that choose the checkpoint, as the modality shows them."""
    no_signal, hounsfield = experiment.preprocessing.intensity.hounsfield_scale()
    return list(
        planted_scans(
            held_out, seed=0, kinds=experiment.lesion_kinds,
            modality=experiment.modality, no_signal=no_signal, hounsfield=hounsfield,
        )
    )  # fmt: skip


def _load(config: str | Path, preprocessing: str | Path | None) -> ExperimentConfig:
    """Load a config, with another preprocessing chain if one is named."""
    chains = shipped_configs("preprocessing")
    experiment = load_experiment(find_config(config, "models"), chains, shipped_configs("models"))
    if preprocessing is None:
        return experiment
    return with_preprocessing(experiment, load_chain_settings(find_config(preprocessing, "preprocessing"), chains))


def _was_trained_on(output: Path, records: Sequence[ScanRecord]) -> bool:
    """Return whether the model in a folder has seen these scans and no others."""
    seen = TrainingSubjects.read(output / TRAINING_SUBJECTS)
    return seen.content_hashes == {record.content_hash for record in records}


def _finish(output: Path, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Remove the checkpoints of a model that is complete, seal its files, and return the summary."""
    folder, model_id = output / CHECKPOINTS, metadata["model_id"]
    for checkpoint in (*folder.glob("*.ckpt"), *folder.glob("*.safetensors")):
        checkpoint.unlink()
    audit(output, "train", files=model_files(output), event="finished", model_id=model_id)
    data, training = metadata["data"], metadata["training"]
    return {
        "model_id": model_id,
        "model": str(output),
        "family": metadata["family"],
        "train_scans": data["n_train"],
        "validation_scans": data["n_validation"],
        "steps": training["steps"],
        "seconds": round(training["seconds"], 1),
        "parameters": training["n_parameters"],
    }


def hold_out(records: Sequence[ScanRecord], fraction: float) -> tuple[list[ScanRecord], list[ScanRecord]]:
    """Split scans by subject into training and validation. The split does not depend on the training seed.

    Raises
    ------
    CohortError
        There are too few subjects.
    """
    subjects = len({record.subject for record in records})
    if subjects < MIN_SUBJECTS:
        raise CohortError(
            f"found {subjects} healthy subject(s) to train on; expected at least {MIN_SUBJECTS}, one of them to "
            "choose the checkpoint; ingest more, or put more into the split 'train'"
        )
    unsplit = [replace(record, split="") for record in records]
    parts = split_by_subject(unsplit, {"train": 1 - fraction, "validation": fraction})
    return parts["train"], parts["validation"]


def _facts(
    experiment: ExperimentConfig,
    training: Sequence[ScanRecord],
    validation: Sequence[ScanRecord],
    report: FitReport,
    run: FitRun,
) -> dict[str, Any]:
    return {
        "name": experiment.name,
        "family": experiment.model["family"],
        "modality": experiment.modality.value,
        "version": "0.1.0",
        "intended_use": INTENDED_USE,
        "created_at": now(),
        "user_name": user_name(),
        "data": {
            "n_train": len(training),
            "n_train_subjects": len({r.subject for r in training}),
            "n_validation": len(validation),
            "n_validation_subjects": len({r.subject for r in validation}),
            **_age_facts([min(r.age, OLDEST_REPORTED_AGE) for r in (*training, *validation) if r.age is not None]),
        },
        "training": {
            "steps": report.steps,
            "seconds": report.seconds,
            "seed": run.seed,
            "device": run.device,
            "devices": run.devices,
            "n_parameters": report.n_parameters,
            "validation": dict(report.validation),
            "notes": list(report.notes),
        },
        "software": software_versions(),
        "changelog": {"0.1.0": "first training"},
    }


def _retrieval(scorer: Scorer, held_out: VolumeSource) -> dict[str, Any] | None:
    """Compute the nearest-neighbour similarities of held-out scans; None without an index of healthy scans."""
    if scorer.index is None:
        return None
    nearest = sorted(round(similarity, 4) for similarity in scorer.nearest_similarities(held_out))
    return {"by": scorer.index.metric, "n_scans": len(scorer.index), "held_out_nearest": nearest}


def _normative(scorer: Scorer) -> dict[str, Any] | None:
    """Return the ages for which the healthy reference is known; None if it is the same at all ages."""
    if scorer.reference is None or scorer.reference.normative is None:
        return None
    model = scorer.reference.normative
    youngest, oldest = (reported_age(age) for age in model.age_range)
    return {"age_min": youngest, "age_max": oldest, "sd_growth_per_decade": model.sd_growth}


def _age_facts(ages: Sequence[float]) -> dict[str, float | None]:
    if not ages:
        return {"age_mean": None, "age_min": None, "age_max": None}
    return {"age_mean": sum(ages) / len(ages), "age_min": min(ages), "age_max": max(ages)}
