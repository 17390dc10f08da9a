"""What pages are drawn with, so that they are drawn again after it has changed."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from anomaly import __version__
from anomaly.core.files import sha256_of_file
from anomaly.core.versions import versions

LIBRARIES = ("jinja2", "matplotlib", "nibabel", "nilearn", "numpy", "pillow", "reportlab")
_PACKAGE = Path(__file__).resolve().parent


@cache
def drawing_software() -> dict[str, str]:
    """Return the versions of this package and of the libraries that draw, and the hash of each file of reports."""
    files = sorted(path for path in _PACKAGE.rglob("*") if path.is_file() and path.suffix != ".pyc")
    hashes = {path.relative_to(_PACKAGE).as_posix(): sha256_of_file(path) for path in files}
    return {"anomaly": __version__, **versions(LIBRARIES), **hashes}
