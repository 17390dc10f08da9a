"""Which versions of which libraries a result depends on."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata


def versions(libraries: Iterable[str]) -> dict[str, str]:
    """Return library → installed version, ``"not installed"`` where it is not."""
    return {library: _version(library) for library in libraries}


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "not installed"
