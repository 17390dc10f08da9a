"""Save, load and verify a model on disk, a bundle. Weights are safetensors, the rest is JSON and YAML; no pickle.

A bundle is self-contained. It holds the complete configuration, so that a new scan goes through the preprocessing
that the model was trained with. It holds the hash of each of its files, the hash of its metadata, and an id: a hash
of the metadata without when, where and by whom the model was made. A damaged or altered model is therefore refused.
In a model of format version 1 the id is a hash of the files alone.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anomaly.bundle.arrays import Array, read_arrays, write_arrays
from anomaly.bundle.config import ExperimentConfig, ModelConfig
from anomaly.bundle.shipped import shipped_models
from anomaly.bundle.training_subjects import TrainingSubjects
from anomaly.core.aliases import current_metadata, current_weights
from anomaly.core.audit_log import read_audit_log
from anomaly.core.config import dump_yaml, load_yaml
from anomaly.core.errors import BundleError
from anomaly.core.files import atomic_path, read_json, sha256_of_file, sha256_of_json, write_json, write_text
from anomaly.core.volume import Geometry
from anomaly.models.base import Detector
from anomaly.models.registry import create
from anomaly.scoring.reference import HealthyReference
from anomaly.scoring.retrieval import HealthyIndex
from anomaly.scoring.scorer import ScanScorer, Scorer

FORMAT_VERSION = 2
MODEL_ID_DIGITS = 12
MODEL_CARD = "MODEL_CARD.md"
METADATA = "metadata.json"
NOT_IN_MODEL_ID = frozenset({"model_id", "metadata_sha256", "created_at", "user_name", "training", "software"})
NOT_FACTS = frozenset({"format_version", "grid", "model_id", "hashes", "metadata_sha256"})
FORMAT_OF_FILES_ALONE = 1  # its model id does not cover the metadata
TRAINING_SUBJECTS = "training_subjects.json"
WEIGHTS = "weights.safetensors"
REFERENCE = "reference.safetensors"
HASHED_FILES = ("config.yaml", WEIGHTS, REFERENCE, TRAINING_SUBJECTS)
RETRIEVAL_INDEX = "retrieval.safetensors"  # only for families with a latent code, if scoring.retrieval is not 0
ENSEMBLE = "ensemble"  # the value of "family" in the metadata of an ensemble
MEMBERS = "members"


@dataclass(frozen=True, eq=False)
class Bundle:
    """A model ready to score, with its provenance: a trained model or an ensemble."""

    folder: Path
    config: ModelConfig
    scorer: ScanScorer[Any]
    metadata: Mapping[str, Any]

    @property
    def model_id(self) -> str:
        """Twelve hex digits that identify weights, healthy reference, settings and training scans."""
        return str(self.metadata["model_id"])

    @property
    def grid(self) -> Geometry:
        """The template grid the model works on."""
        return self.scorer.grid

    def training_subjects(self) -> TrainingSubjects:
        """Read the hashed subjects and the content hashes of the training and validation scans."""
        return TrainingSubjects.read(self.folder / TRAINING_SUBJECTS)


@dataclass(frozen=True, eq=False)
class TrainedBundle(Bundle):
    """A trained model: fitted detector, scoring settings and healthy reference."""

    config: ExperimentConfig
    scorer: Scorer


def save_bundle(
    folder: Path,
    config: ExperimentConfig,
    scorer: Scorer,
    seen: TrainingSubjects,
    facts: Mapping[str, Any],
    card: Callable[[str], str] | None = None,
    write: Callable[[Path, Mapping[str, Array]], None] = write_arrays,
) -> str:
    """Write a bundle and return its model id.

    Parameters
    ----------
    seen
        The subjects and scans that the model has seen: in training, validation and adaptation.
    facts
        Further entries of the metadata: the data and the training.
    card
        Returns the text of the model card for the model id.
    write
        Writes the arrays of weights and reference.

    Raises
    ------
    BundleError
        The folder already holds a model, or the scorer has no healthy reference.
    """
    refuse_to_overwrite(folder)
    if scorer.reference is None:
        raise BundleError("a model without a healthy reference cannot be saved; call learn_reference first")
    write_text(folder / "config.yaml", dump_yaml(config))
    state = scorer.detector.state_dict().items()
    write(folder / WEIGHTS, {name: value.detach().cpu().numpy() for name, value in state})
    write(folder / REFERENCE, scorer.reference.arrays())
    if scorer.index is not None:
        write_arrays(folder / RETRIEVAL_INDEX, scorer.index.arrays())
    seen.write(folder / TRAINING_SUBJECTS)
    reference = {
        "score_mean": dict(scorer.reference.score_mean),
        "score_std": dict(scorer.reference.score_std),
        "held_out_scores": {name: list(found) for name, found in scorer.reference.held_out_scores.items()},
        "background": scorer.reference.background,
    }
    hashed = HASHED_FILES if scorer.index is None else (*HASHED_FILES, RETRIEVAL_INDEX)
    return write_metadata(folder, hashed, scorer.grid, reference | dict(facts), card)


def write_metadata(
    folder: Path,
    hashed: Sequence[str],
    grid: Geometry,
    facts: Mapping[str, Any],
    card: Callable[[str], str] | None = None,
) -> str:
    """Write the model card, and last ``metadata.json``, without which a folder is no model; return the model id.

    Parameters
    ----------
    hashed
        Names of the files whose hashes identify the model.
    facts
        Further entries of the metadata.
    card
        Returns the text of the model card for the model id.
    """
    values = {
        "format_version": FORMAT_VERSION,
        "grid": {"shape": list(grid.shape), "affine": grid.affine.tolist()},
        **facts,
        "hashes": {name: sha256_of_file(folder / name) for name in hashed},
    }
    model_id = _model_id(values)
    if card is not None:
        write_text(folder / MODEL_CARD, card(model_id))
    values = {"model_id": model_id, **values}
    write_json(folder / METADATA, {**values, "metadata_sha256": sha256_of_json(values)})
    return model_id


def facts_of(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of the metadata of a model that :func:`write_metadata` was given as facts."""
    return {name: value for name, value in metadata.items() if name not in NOT_FACTS}


def model_files(folder: Path) -> list[Path]:
    """Return the paths of the files of a model: metadata, the files that they hold the hash of, and its card."""
    names = read_json(folder / METADATA)["hashes"]
    return [folder / METADATA, *(folder / name for name in names), folder / MODEL_CARD]


def copy_model(source: Path, target: Path) -> list[Path]:
    """Copy a model without its calibrations, and return the paths of the copied files.

    ``metadata.json``, without which a folder is no model, is copied last.
    """
    metadata = read_json(source / METADATA)
    names = (*metadata["hashes"], MODEL_CARD, METADATA)
    members = [f"{MEMBERS}/{name}" for name in metadata.get("members", ())]
    copied = [path for name in members for path in copy_model(source / name, target / name)]
    for name in names:
        if (source / name).is_file():  # a card may have been left out of a model that was passed on
            with atomic_path(target / name) as temporary:
                shutil.copyfile(source / name, temporary)
            copied.append(target / name)
    return copied


def refuse_to_overwrite(folder: Path) -> None:
    """Raise BundleError if a folder holds a model."""
    if (folder / METADATA).exists():
        raise BundleError(f"{folder} already holds a model; choose another output folder")


def interrupted_model(folder: Path, verb: str, config: ModelConfig) -> dict[str, Any] | None:
    """Return the metadata of a model that a call wrote completely, and was interrupted before it noted the end.

    None if there is none, or if it is of another config.

    Parameters
    ----------
    verb
        The command, as the audit log of the folder names it.

    Raises
    ------
    BundleError
        The model was altered.
    """
    if verb not in read_audit_log(folder).interrupted or not (folder / METADATA).exists():
        return None
    metadata = verified_metadata(folder)
    return metadata if (folder / "config.yaml").read_text(encoding="utf-8") == dump_yaml(config) else None


def load_bundle(folder: Path, device: str = "cpu") -> TrainedBundle:
    """Read a trained model; refuse one whose files have changed since it was saved.

    Parameters
    ----------
    device
        Device of the detector, e.g. ``"cpu"`` or ``"cuda"``.
    """
    metadata = verified_metadata(folder)
    if metadata.get("family") == ENSEMBLE:
        members = ", ".join(str(folder / MEMBERS / name) for name in metadata["members"])
        raise BundleError(f"{folder} is an ensemble, expected a trained model; give its members: {members}")
    return trained_bundle(folder, metadata, device)


def trained_bundle(folder: Path, metadata: Mapping[str, Any], device: str) -> TrainedBundle:
    """Read a trained model whose metadata are verified."""
    config = ExperimentConfig.parse(load_yaml(folder / "config.yaml"), where=str(folder / "config.yaml"))
    grid = Geometry(tuple(metadata["grid"]["shape"]), np.array(metadata["grid"]["affine"]))
    detector = _detector(folder, config, grid).to(torch.device(device)).eval()
    reference = HealthyReference.from_arrays(
        read_arrays(folder / REFERENCE),
        metadata["score_mean"],
        metadata["score_std"],
        metadata.get("held_out_scores", {}),
        metadata.get("background"),
    )
    index = None
    if RETRIEVAL_INDEX in metadata["hashes"]:
        index = HealthyIndex.from_arrays(read_arrays(folder / RETRIEVAL_INDEX), config.scoring.retrieval_by)
    return TrainedBundle(folder, config, Scorer(detector, config.scoring, reference, index), metadata)


def _detector(folder: Path, config: ExperimentConfig, grid: Geometry) -> Detector:
    detector = create(config.model_settings(), grid)
    try:
        weights = {name: torch.from_numpy(values) for name, values in read_arrays(folder / WEIGHTS).items()}
        detector.load_state_dict(current_weights(weights, detector.family))
    except RuntimeError as error:
        raise BundleError(f"{folder}: the weights do not fit the model of config.yaml: {error}") from error
    return detector


def verified_metadata(folder: Path) -> dict[str, Any]:
    """Read the metadata of a model; raise BundleError if they or its files have changed since it was saved."""
    path = folder / METADATA
    if not path.is_file():
        known = ", ".join(shipped_models())
        raise BundleError(
            f"{folder} holds no model (no metadata.json); give the folder that `anomaly train` wrote"
            f"{f', or the name of a model that comes with anomaly: {known}' if known else ''}"
        )
    metadata = _read_metadata(path)
    for name, expected in _own_hashes(metadata).items():
        if metadata.get(name) != expected:
            raise BundleError(_altered(path, f"{name} {metadata.get(name)}", expected))
    for name, expected in metadata["hashes"].items():
        file = folder / name
        found = sha256_of_file(file) if file.is_file() else "no such file"
        if found != expected:
            raise BundleError(_altered(file, found[:12], expected))
    return current_metadata(metadata)


def _read_metadata(path: Path) -> dict[str, Any]:
    metadata = read_json(path, "restore the model from a copy, or train it again in another folder")
    version = metadata.get("format_version")
    if version not in (FORMAT_OF_FILES_ALONE, FORMAT_VERSION):
        raise BundleError(
            f"{path}: found format version {version!r}, expected {FORMAT_VERSION} (or {FORMAT_OF_FILES_ALONE}); "
            "train the model again or use the version of anomaly that made it"
        )
    return metadata


def _own_hashes(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Return the hashes that metadata must hold of themselves."""
    if metadata["format_version"] == FORMAT_OF_FILES_ALONE:
        files = "".join(metadata["hashes"].values())
        return {"model_id": hashlib.sha256(files.encode()).hexdigest()[:MODEL_ID_DIGITS]}
    values = {name: value for name, value in metadata.items() if name != "metadata_sha256"}
    return {"metadata_sha256": sha256_of_json(values), "model_id": _model_id(metadata)}


def _model_id(metadata: Mapping[str, Any]) -> str:
    values = {name: value for name, value in metadata.items() if name not in NOT_IN_MODEL_ID}
    return sha256_of_json(values)[:MODEL_ID_DIGITS]


def _altered(file: Path, found: str, expected: str) -> str:
    return (
        f"{file}: found {found[:40]}, expected {expected[:12]}; the model was altered or damaged after it was "
        "saved; restore it from its source"
    )
