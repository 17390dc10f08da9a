"""Make a model that comes with the package, from healthy scans to its folder.

``python -m pipelines.shipped_models.make default --data DATA`` follows ``configs/shipped_models/default.yaml``. A
repeated call continues where an earlier one stopped.

::

    work/cohort/    the healthy scans, prepared, with their split
    work/model/     the trained model
    work/compact/   its compact copy, calibrated
    output/         the files of the copy that are shipped

The shipped files name no person: not the account that made them, and no subject or scan.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from anomaly.bundle.compact import compact_bundle
from anomaly.bundle.config import ExperimentConfig, load_experiment
from anomaly.bundle.shipped import PRETRAINED
from anomaly.bundle.store import METADATA, load_bundle
from anomaly.cohort.splits import split_by_subject
from anomaly.cohort.table import ScanRecord, accepted, read_records, write_manifest
from anomaly.core.audit_log import append_entry, hash_files
from anomaly.core.config import dump_yaml
from anomaly.core.errors import BundleError, CohortError
from anomaly.core.files import read_json, write_text
from anomaly.core.progress import Progress, no_progress
from anomaly.core.provenance import now
from anomaly.inference.model import Model
from pipelines.audit import RESULTS, verify
from pipelines.calibrate import calibrate
from pipelines.common import find_config, shipped_configs
from pipelines.ingest import ingest
from pipelines.scan_input import PreparedScanRef, healthy_records
from pipelines.shipped_models.settings import ShippedModelSettings, load_settings
from pipelines.train import train

TRAIN, CALIBRATION = "train", "calibration"
ACCOUNT = "anomaly"  # what the records of a shipped model say instead of the account that made them
MB = 1e6  # bytes


def make_shipped_model(
    config: str | Path,
    data: Path,
    work: Path,
    output: Path | None = None,
    *,
    cohort: Path | None = None,
    jobs: int = 0,
    device: str = "auto",
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Train, compact, calibrate and write a shipped model.

    Parameters
    ----------
    config
        Name of a shipped model, or the path of its YAML file. The model is called like the file.
    data
        The folder that the path of the healthy scans is relative to.
    work
        Folder of what is made on the way.
    output
        The folder to write; by default that of the model in the package. What it held is replaced.
    cohort
        An ingested cohort of the healthy scans, which is not changed; by default they are ingested.

    Returns
    -------
    dict
        Model id, folder, sizes of its files in MB, difference of scores that compact storage makes.

    Raises
    ------
    BundleError
        The model is larger than the settings allow, or its compact copy scores differently; or ``work`` holds a
        model of another config.
    CohortError
        There are too few subjects.
    """
    path = find_config(config, "shipped_models")
    settings, target = load_settings(path), output or PRETRAINED / path.stem
    experiment = _experiment(settings, path)
    prepared = _prepare(settings, experiment, data, work, cohort, jobs, progress)
    _train(experiment, prepared, work / "model", device, progress)
    compact = work / "compact"
    shutil.rmtree(compact, ignore_errors=True)
    compact_bundle(work / "model", compact, settings.facts(path.stem), voxel_bits=settings.voxel_bits)
    difference = _check_scores(settings, experiment, prepared, work / "model", compact)
    calibrate(compact, prepared, settings.alphas, settings.reference, jobs=jobs, device=device, progress=progress)
    sizes = _check_size(settings, compact)
    _publish(compact, target)
    return {
        "model_id": read_json(target / METADATA)["model_id"],
        "model": str(target),
        "verified": verify(target)["verified"],
        "score_difference": difference,
        "megabytes": sum(sizes.values()),
        "megabytes_of_files": sizes,
    }


def _experiment(settings: ShippedModelSettings, path: Path) -> ExperimentConfig:
    """Load the config of the model; the path of a YAML file is relative to the file that names it."""
    named = path.parent / settings.config if Path(settings.config).suffix else settings.config
    return load_experiment(
        find_config(named, "models"), shipped_configs("preprocessing"), shipped_configs("models")
    )


def _prepare(
    settings: ShippedModelSettings,
    experiment: ExperimentConfig,
    data: Path,
    work: Path,
    cohort: Path | None,
    jobs: int,
    progress: Progress,
) -> Path:
    """Ingest the healthy scans, or link to those that were ingested, and write their split into the manifest."""
    prepared = work / "cohort"
    if cohort is None:
        chain = work / "preprocessing.yaml"
        write_text(chain, dump_yaml(experiment.preprocessing))
        ingest([data / settings.healthy], prepared, preprocessing=chain, jobs=jobs, progress=progress)
    else:
        _link(cohort, prepared)
    write_manifest(prepared, _split(settings, accepted(read_records(prepared))))
    return prepared


def _link(cohort: Path, folder: Path) -> None:
    """Make a cohort folder of its own whose volumes and masks are those of another one."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in cohort.iterdir():
        if path.is_dir():
            (folder / path.name).symlink_to(path.resolve())
        elif not path.name.startswith("."):
            shutil.copyfile(path, folder / path.name)


def _split(settings: ShippedModelSettings, records: Sequence[ScanRecord]) -> list[ScanRecord]:
    """Return scans with their split; those that calibrate get names that tell nothing of the subject."""
    subjects, wanted = len({record.subject for record in records}), settings.calibration_subjects
    if subjects <= wanted:
        raise CohortError(
            f"found {subjects} healthy subjects; expected more than {wanted}, which calibrate; give more or lower "
            "calibration_subjects"
        )
    share = wanted / subjects
    unsplit = [replace(record, split="") for record in records]
    parts = split_by_subject(unsplit, {TRAIN: 1 - share, CALIBRATION: share}, settings.seed)
    numbered = enumerate(parts[CALIBRATION], start=1)
    return [
        *(replace(record, split=TRAIN) for record in parts[TRAIN]),
        *(replace(record, split=CALIBRATION, scan_id=f"healthy-{number:03d}") for number, record in numbered),
    ]


def _train(experiment: ExperimentConfig, cohort: Path, model: Path, device: str, progress: Progress) -> None:
    """Train the model unless an earlier call did."""
    if (model / METADATA).exists():
        if load_bundle(model).config != experiment:
            raise BundleError(
                f"{model} holds a model of another config than {experiment.name}; remove that folder, or choose "
                "another work folder"
            )
        return
    config = model.parent / "config.yaml"
    write_text(config, dump_yaml(experiment))
    train(config, cohort, model, device=device, progress=progress)


def _check_scores(
    settings: ShippedModelSettings, experiment: ExperimentConfig, cohort: Path, model: Path, compact: Path
) -> float:
    """Return the largest relative difference of the declared score of the calibration scans; refuse a large one."""
    name, records = experiment.scoring.scan_score, healthy_records(cohort, experiment, split=CALIBRATION)
    scans = [PreparedScanRef(record, cohort).load() for record in records]
    original, copy = (Model(load_bundle(folder)) for folder in (model, compact))
    scores = [[one.postprocess(one.infer(scan)).scores[name] for scan in scans] for one in (original, copy)]
    largest: float = max(abs(b - a) / abs(a) for a, b in zip(*scores, strict=True))
    if largest > settings.max_score_difference:
        raise BundleError(
            f"compact storage changes the score {name} by up to {largest:.2g} of its value; expected at most "
            f"{settings.max_score_difference:g}; set voxel_bits to 16, or allow a larger max_score_difference"
        )
    return largest


def _shipped_files(folder: Path) -> list[Path]:
    """Return the files of a model that are shipped: those that an audit log must seal."""
    found = (path for pattern in RESULTS["model"] for path in folder.glob(pattern))
    return sorted(path for path in found if path.is_file() and not path.name.startswith("."))


def _check_size(settings: ShippedModelSettings, model: Path) -> dict[str, float]:
    """Return the sizes of the shipped files in MB; refuse a model that is too large."""
    sizes = {path.relative_to(model).as_posix(): path.stat().st_size / MB for path in _shipped_files(model)}
    if sum(sizes.values()) > settings.max_mb:
        largest = ", ".join(f"{name} {size:.1f}" for name, size in sizes.items() if size > settings.max_mb / 20)
        raise BundleError(
            f"the compact model has {sum(sizes.values()):.1f} MB ({largest}); expected up to {settings.max_mb:g}; "
            "use a config with fewer principal components or features, or set voxel_bits to 8"
        )
    return sizes


def _publish(model: Path, target: Path) -> None:
    """Replace a shipped model by the files of another one, with an audit log that seals them."""
    new = target.with_name(f".{target.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    for path in _shipped_files(model):
        copy = new / path.relative_to(model)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    entry = {"at": now(), "user_name": ACCOUNT, "verb": "ship", "model_id": read_json(new / METADATA)["model_id"]}
    append_entry(new, {**entry, "files": hash_files(new, _shipped_files(new))})
    shutil.rmtree(target, ignore_errors=True)
    new.rename(target)


def main() -> None:
    """Make a shipped model; called by ``make shipped-model``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="default", help="name of a shipped model, or its YAML file")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the healthy scans")
    parser.add_argument("--work", type=Path, default=Path("work/shipped_model"))
    parser.add_argument("--output", type=Path, help="default: the folder of the model in the package")
    parser.add_argument("--cohort", type=Path, help="an ingested cohort of the healthy scans")
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    os.environ["LOGNAME"] = ACCOUNT  # what user_name() returns
    made = make_shipped_model(
        given.config, given.data, given.work, given.output, cohort=given.cohort, device=given.device
    )
    print(json.dumps(made, indent=2))


if __name__ == "__main__":
    main()
