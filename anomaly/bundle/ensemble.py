"""Save and load an ensemble: complete copies of its members, and how they are merged.

::

    ensemble/metadata.json  config.yaml  training_subjects.json  MODEL_CARD.md      as of a trained model
    ensemble/members/<name>/                                                        bundles, without calibrations
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from anomaly.bundle.config import ExperimentConfig, ModelConfig
from anomaly.bundle.store import (
    ENSEMBLE,
    MEMBERS,
    TRAINING_SUBJECTS,
    Bundle,
    TrainedBundle,
    copy_model,
    load_bundle,
    refuse_to_overwrite,
    trained_bundle,
    verified_metadata,
    write_metadata,
)
from anomaly.bundle.training_subjects import TrainingSubjects
from anomaly.core.config import dump_yaml, load_yaml
from anomaly.core.errors import BundleError, CommandRefusedError
from anomaly.core.files import write_text
from anomaly.scoring.ensemble import EnsembleScorer, MergeSettings


class EnsembleConfig(ModelConfig):
    """Everything needed to score with an ensemble, except its members."""

    members: tuple[str, ...] = Field(
        min_length=2, description="names of the members; the first gives the reconstruction"
    )
    merge: MergeSettings = Field(description="how scores and maps of the members are merged")


@dataclass(frozen=True, eq=False)
class EnsembleBundle(Bundle):
    """An ensemble ready to score, with its provenance."""

    config: EnsembleConfig
    scorer: EnsembleScorer


def save_ensemble(
    folder: Path,
    config: EnsembleConfig,
    members: Mapping[str, TrainedBundle],
    facts: Mapping[str, Any],
    card: Callable[[str], str] | None = None,
) -> str:
    """Write an ensemble with copies of its members, and return its model id.

    Parameters
    ----------
    members
        Name → trained model, in the order of the config.
    facts
        Further entries of the metadata.
    card
        Returns the text of the model card for the model id.

    Raises
    ------
    BundleError
        The folder already holds a model, or the members differ in preprocessing or grid.
    """
    refuse_to_overwrite(folder)
    refuse_unlike(members)
    write_text(folder / "config.yaml", dump_yaml(config))
    seen = [member.training_subjects() for member in members.values()]
    TrainingSubjects.merged(seen).write(folder / TRAINING_SUBJECTS)
    for name, member in members.items():
        copy_model(member.folder, folder / MEMBERS / name)
    hashed = ("config.yaml", TRAINING_SUBJECTS, *(f"{MEMBERS}/{name}/metadata.json" for name in members))
    known = {"family": ENSEMBLE, "members": {name: member.model_id for name, member in members.items()}}
    return write_metadata(folder, hashed, next(iter(members.values())).grid, known | dict(facts), card)


def open_bundle(
    folder: Path, device: str = "cpu", *, allow_command: bool = False
) -> TrainedBundle | EnsembleBundle:
    """Read a trained model or an ensemble; refuse one whose files have changed since it was saved.

    Parameters
    ----------
    device
        Device of the networks, e.g. ``"cpu"`` or ``"cuda"``.
    allow_command
        Whether the preprocessing of the model may run the program that its config names.

    Raises
    ------
    BundleError
        The folder holds no model, or its files have changed.
    CommandRefusedError
        The model would run a program, and ``allow_command`` is false.
    """
    metadata = verified_metadata(folder)
    if metadata.get("family") != ENSEMBLE:
        trained = trained_bundle(folder, metadata, device)
        refuse_command(folder, trained.config, allow_command)
        return trained
    config = EnsembleConfig.parse(load_yaml(folder / "config.yaml"), where=str(folder / "config.yaml"))
    refuse_command(folder, config, allow_command)
    members = {name: load_bundle(folder / MEMBERS / name, device) for name in config.members}
    for name, member in members.items():
        refuse_command(folder / MEMBERS / name, member.config, allow_command)
    scorers = {name: member.scorer for name, member in members.items()}
    return EnsembleBundle(folder, config, EnsembleScorer(scorers, config.merge, config.scoring), metadata)


def refuse_command(folder: Path, config: ModelConfig, allowed: bool) -> None:
    """Raise CommandRefusedError if a model would run a program that the user did not allow."""
    command = config.preprocessing.brain_mask.external_command
    if command and not allowed:
        raise CommandRefusedError(
            f"{folder} would run a program on this machine for every scan (brain_mask.command): {command!r}; if "
            "you trust it, allow it with --allow-command (allow_command=True in Python)"
        )


def stored_config(folder: Path) -> ModelConfig:
    """Read the complete config of a trained model or an ensemble, without its weights.

    Raises
    ------
    BundleError
        The folder holds no model, or its files have changed since it was saved.
    """
    is_ensemble = verified_metadata(folder).get("family") == ENSEMBLE
    path = folder / "config.yaml"
    return (EnsembleConfig if is_ensemble else ExperimentConfig).parse(load_yaml(path), where=str(path))


def refuse_unlike(members: Mapping[str, TrainedBundle]) -> None:
    """Raise BundleError, which names what differs, unless all members share preprocessing and grid."""
    (first_name, first), *others = members.items()
    for name, other in others:
        chains = (
            first.config.preprocessing.model_dump(mode="json"),
            other.config.preprocessing.model_dump(mode="json"),
        )
        grids = [{"shape": m.grid.shape, "affine": m.grid.affine.tolist()} for m in (first, other)]
        found = [*_differences("preprocessing", *chains), *_differences("grid", *grids)]
        if found:
            raise BundleError(
                f"the members of an ensemble must share preprocessing and grid; {first_name} and {name} differ: "
                f"{'; '.join(found)}; train them with the same preprocessing, on one cohort"
            )


def _differences(where: str, one: Any, other: Any) -> Iterator[str]:
    """Yield where two nested values differ, with both values."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(one.keys() | other.keys()):
            yield from _differences(f"{where}.{key}", one.get(key), other.get(key))
    elif one != other:
        yield f"{where} {one} and {other}"
