"""What a result depends on, as hashes: it is used again only while nothing of that has changed.

It depends on the code of the library and of the exams, on the libraries beneath, on the pictures, and on the
settings, but not on the bars.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from anomaly.core.files import sha256_of_file, sha256_of_json
from anomaly.core.versions import software_versions
from pipelines.validation.labelled_dataset import Pictures

ROOT = Path(__file__).resolve().parents[2]
CODE = ("anomaly", "pipelines/validation")


@lru_cache(maxsize=1)
def of_code() -> str:
    """Return the hash of every source file that has a part in a result, and of the versions of the libraries."""
    files = sorted(path for folder in CODE for path in (ROOT / folder).rglob("*.py"))
    return sha256_of_json(
        [software_versions(), *((str(path.relative_to(ROOT)), sha256_of_file(path)) for path in files)]
    )


def of_pictures(*some: Pictures) -> str:
    """Return the hash of pictures, of their labels, and of how often they are drawn."""
    digest = hashlib.sha256()
    for pictures in some:
        for values in (pictures.pixels, pictures.labels):
            digest.update(repr((values.shape, pictures.draws)).encode())
            digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def of(*facts: Any) -> str:
    """Return the hash of facts that are JSON, and of the code."""
    return sha256_of_json([of_code(), *facts])
