"""Versions of this package and of the libraries that results depend on."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib import metadata

import anomaly

LIBRARIES = ("torch", "monai", "lightning", "nibabel", "simpleitk", "pydicom", "nilearn", "scikit-learn", "numpy")


def software_versions() -> dict[str, str]:
    """Return the versions of this package, of Python and of the :data:`LIBRARIES`."""
    return {"anomaly": anomaly.__version__, "python": platform.python_version(), **versions(LIBRARIES)}


def versions(libraries: Iterable[str]) -> dict[str, str]:
    """Return the installed version of each library, or ``"not installed"``."""
    return {library: _version(library) for library in libraries}


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "not installed"
