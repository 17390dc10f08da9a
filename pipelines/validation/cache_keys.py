"""Cache keys: hashes of what changes a result. A stored result is used again only under the same key.

A key is made of the settings that a result depends on, of the content of the images, of a version number of the
code, and of the versions (major.minor) of the libraries that compute the results. The source files themselves
are not part of it, so that a changed comment repeats no training. A change of results must increase a version:

    FAMILY_VERSIONS    a family learns or scores differently: its trainings and all their checks are repeated
    TRAINING_VERSION   training itself differs: all trainings are repeated
    CHECK_VERSIONS     a check measures differently: this check is repeated, with the existing trainings
    SCORING_VERSION    scoring differs: the checks of detectors are repeated
    CLASSIFIER_VERSION the reference classifier learns differently: it is trained again, its checks are repeated

Thresholds are part of no key: a stored result is compared with the present ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from anomaly.core.files import sha256_of_json
from anomaly.core.versions import versions
from pipelines.validation.labelled_dataset import LabelledImages

LIBRARIES = ("torch", "numpy", "scikit-learn")
NAME_LENGTH = 12  # hex digits of a key in the name of a folder or file

TRAINING_VERSION = 1
SCORING_VERSION = 1
CLASSIFIER_VERSION = 1
FAMILY_VERSIONS: Mapping[str, int] = {}
"""Family → its version; a family that is not listed has version 1."""
CHECK_VERSIONS: Mapping[str, int] = {}
"""Check → its version; a check that is not listed has version 1."""


def key_of(*facts: Any) -> str:
    """Return the hash of facts that can be written as JSON, and of the library versions."""
    return sha256_of_json([_library_versions(), *facts])


def key_of_images(*sources: LabelledImages) -> str:
    """Return the hash of images, of their labels, and of the number of binarisations."""
    digest = hashlib.sha256()
    for images in sources:
        for values in (images.pixels, images.labels):
            digest.update(repr((values.shape, images.binarisations)).encode())
            digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def key_of_training(family: str, settings: Any, images_key: str) -> str:
    """Return the key of a training: family, model and training settings, and images."""
    return key_of("training", TRAINING_VERSION, FAMILY_VERSIONS.get(family, 1), settings, images_key)


def key_of_check(check: str, *facts: Any) -> str:
    """Return the key of what a check measured; ``facts`` are all that it depends on."""
    return key_of(check, CHECK_VERSIONS.get(check, 1), SCORING_VERSION, *facts)


@lru_cache(maxsize=1)
def _library_versions() -> dict[str, str]:
    return {name: ".".join(version.split(".")[:2]) for name, version in versions(LIBRARIES).items()}
