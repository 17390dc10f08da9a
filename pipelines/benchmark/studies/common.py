"""Shared by the studies: a trained model of a finished benchmark, and lesions planted in its held-out scans."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from anomaly.bundle.store import load_bundle
from anomaly.cohort.lesion_shapes import lesion_shapes
from anomaly.cohort.planted_lesions import LesionKind, PlantedScan, planted_scans
from anomaly.cohort.volumes import CohortVolumes
from anomaly.evaluation.localisation import voxel_average_precision
from anomaly.evaluation.tables import markdown
from anomaly.scoring.scorer import ScoredVolume, Scorer
from pipelines.scan_input import healthy_records
from pipelines.train import hold_out

LESION_KINDS: tuple[LesionKind, ...] = ("dark", "bright")
LESIONS_PER_SCAN = 3  # of each kind
SEED = 7  # differs from the seed of the lesions that choose the checkpoint in training


@dataclass(frozen=True)
class BenchmarkModel:
    """A trained model with its training scans and the scans that its training held out."""

    scorer: Scorer
    training_scans: CohortVolumes
    held_out: CohortVolumes


def load_benchmark_model(path: Path, cohort: Path) -> BenchmarkModel:
    """Load a trained bundle and the training and held-out scans of its cohort. It refuses no scan as dissimilar."""
    bundle = load_bundle(path)
    records = healthy_records(cohort, bundle.config, split="train")
    training, held_out = hold_out(records, bundle.config.validation_fraction)
    return BenchmarkModel(
        refusing_nothing(bundle.scorer), CohortVolumes(cohort, training), CohortVolumes(cohort, held_out)
    )


def refusing_nothing(scorer: Scorer) -> Scorer:
    """Return a scorer that refuses no scan as unlike the training scans."""
    return replace(scorer, settings=scorer.settings.model_copy(update={"min_block_correlation": -1.0}))


def plant_held_out_scans(model: BenchmarkModel, shapes: Path) -> dict[LesionKind, list[PlantedScan]]:
    """Plant lesions of each kind in the held-out scans, as often as :data:`LESIONS_PER_SCAN` says.

    Parameters
    ----------
    shapes
        Folder of lesion masks in MNI space.

    Returns
    -------
    dict
        By kind, the scans in the order of the held-out scans, one round after another.
    """
    masks = lesion_shapes(shapes, model.held_out.grid)
    seeds = range(SEED, SEED + LESIONS_PER_SCAN)
    return {
        kind: [
            scan for seed in seeds for scan in planted_scans(model.held_out, seed=seed, kinds=(kind,), shapes=masks)
        ]
        for kind in LESION_KINDS
    }


def voxel_ap(scan: PlantedScan, scored: ScoredVolume) -> float:
    """Return the voxel AP in the whole brain, so that eroding the evidence costs the lesions at the edge."""
    return voxel_average_precision(scored.evidence, scan.lesion, scan.mask)


def model_paths(benchmark: Path, names: str) -> Mapping[str, Path]:
    """Return the bundles of a benchmark by name; ``names`` is separated by commas."""
    return {name: benchmark / "models" / name for name in names.split(",")}


def table_text(table: pd.DataFrame) -> str:
    """Return a table in Markdown; numbers have three decimals."""
    return markdown(table.map(lambda cell: f"{cell:.3f}" if isinstance(cell, float) else cell))


def study_parser(doc: str) -> argparse.ArgumentParser:
    """Return a parser for ``output``, a finished benchmark, and ``--data``, the folder with the lesion shapes."""
    known = os.environ.get("ANOMALY_DATA")
    parser = argparse.ArgumentParser(description=doc.partition("\n")[0])
    parser.add_argument("output", type=Path, help="folder of a finished benchmark")
    parser.add_argument(
        "--data", type=Path, default=known, required=known is None,
        help="the folder that holds lesion_shapes/; default: the variable ANOMALY_DATA",
    )  # fmt: skip
    return parser
