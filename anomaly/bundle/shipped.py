"""The models that come with the package. They are found by their names, and never changed."""

from __future__ import annotations

from pathlib import Path

from anomaly.core.errors import BundleError

PRETRAINED = Path(__file__).resolve().parents[1] / "pretrained"
"""Folder of the shipped models: ``<name>/metadata.json`` and the other files of each."""


def shipped_models() -> dict[str, Path]:
    """Return name → folder of the shipped models."""
    return {path.parent.name: path.parent for path in sorted(PRETRAINED.glob("*/metadata.json"))}


def is_shipped(folder: Path) -> bool:
    """Return whether a folder is that of a shipped model."""
    return folder.resolve().parent == PRETRAINED.resolve()


def find_model(name_or_path: str | Path) -> Path:
    """Return the folder of a model.

    Parameters
    ----------
    name_or_path
        The name of a shipped model, or a path, which is returned as it is.

    Raises
    ------
    BundleError
        The name is that of a shipped model and of something in the current folder.
    """
    path = Path(name_or_path)
    shipped = shipped_models().get(str(name_or_path))
    if shipped is None:
        return path
    if path.exists():
        raise BundleError(
            f"found two models called {path}: {path.resolve()} and the one that comes with anomaly, {shipped}; "
            "expected a name that fits one; give the full path of the one that you mean"
        )
    return shipped


def refuse_to_change(folder: Path) -> None:
    """Raise BundleError for the folder of a shipped model."""
    if is_shipped(folder):
        raise BundleError(
            f"found the model {folder.name!r}, which comes with anomaly and is never changed; expected a model of "
            "your own; calibrate a copy with --output my_model/, or fit it to your scanner with `anomaly adapt`"
        )
