"""A compact copy of a trained model: its arrays in fewer bits, under a model id of its own."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from anomaly.bundle.arrays import VoxelBits, write_compact_arrays
from anomaly.bundle.card import model_card
from anomaly.bundle.store import facts_of, load_bundle, save_bundle
from anomaly.core.provenance import now, user_name


def compact_bundle(
    source: Path, target: Path, changes: Mapping[str, Any] | None = None, *, voxel_bits: VoxelBits = 16
) -> str:
    """Write a compact copy of a trained model, and return its model id.

    Its scores differ slightly from those of the source, so it is another model: calibrations are not copied.

    Parameters
    ----------
    changes
        Entries of the metadata that are added or replaced; ``name`` is the name of the copy in its config, too.
    voxel_bits
        Bits per number of an array of voxels; see :mod:`anomaly.bundle.arrays`.

    Raises
    ------
    BundleError
        The source holds no trained model, or was altered; or the target already holds a model.
    """
    bundle = load_bundle(source)
    facts = {
        **facts_of(bundle.metadata),
        "derived_from": bundle.model_id,
        "storage": {"arrays_of": bundle.model_id, "voxel_bits": voxel_bits},
        "created_at": now(),
        "user_name": user_name(),
        **(changes or {}),
    }
    config = bundle.config.model_copy(update={"name": facts["name"]})
    return save_bundle(
        target,
        config,
        bundle.scorer,
        bundle.training_subjects(),
        facts,
        lambda model_id: model_card(config, model_id, facts),
        partial(write_compact_arrays, grid_shape=bundle.grid.shape, voxel_bits=voxel_bits),
    )
