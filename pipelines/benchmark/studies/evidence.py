"""Contribution of each part of a model's evidence: single maps, and scoring settings changed one at a time.

The lesions are planted in healthy subjects that the training held out, so that weights and floors may be chosen by
these figures: no test scan is used. Decision 3 is based on them::

    python -m pipelines.benchmark.studies.evidence work/ixi --model dae
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from anomaly.cohort.planted_lesions import LesionKind, PlantedScan
from anomaly.core.image_views import Array
from anomaly.evaluation.localisation import dice_curve, oracle_threshold
from anomaly.scoring.scorer import Scorer
from anomaly.scoring.settings import ScoringSettings
from pipelines.benchmark.studies.common import (
    BenchmarkModel,
    load_benchmark_model,
    plant_held_out_scans,
    study_parser,
    table_text,
    voxel_ap,
)

ALTERNATIVES: Mapping[str, Sequence[float | str]] = {
    "median_voxels": (0, 3, 5),
    "smoothing_mm": (0.0, 1.4, 3.0),
    "standardise": ("voxelwise", "none"),
    "sd_floor": (0.1, 0.3, 1.0),
    "dark_weight": (0.01,),
    "bright_weight": (0.01, 0.7, 1.0),
    "erode_mm": (0.0, 2.0, 4.0),
    "flip_average": (False, True),
}
"""Values tried for each scoring setting; a weight of 0.01 practically leaves one sign of the residual out."""
REFERENCE_SETTINGS = ("median_voxels", "smoothing_mm", "sd_floor", "flip_average")
"""Settings that the healthy reference depends on; it is computed again where one of them changes."""

DiceCurve = Array


def evidence_table(model: BenchmarkModel, scans: Mapping[LesionKind, Sequence[PlantedScan]]) -> pd.DataFrame:
    """Return voxel AP and best Dice of the evidence as shipped, of single maps, and of alternative settings."""
    return detection_table(dict(scorer_variants(model)), scans)


def detection_table(
    scorers: Mapping[str, Scorer], scans: Mapping[LesionKind, Sequence[PlantedScan]]
) -> pd.DataFrame:
    """Return voxel AP and best Dice of each scorer on planted scans.

    Parameters
    ----------
    scorers
        By the name of their row; all have the same detector.
    scans
        Planted scans by kind of lesion.

    Returns
    -------
    pd.DataFrame
        Columns ``evidence`` and, for each kind, ``<kind>, AP`` and ``<kind>, best Dice`` (at one threshold for
        all scans).
    """
    rows: dict[str, dict[str, float | str]] = {name: {"evidence": name} for name in scorers}
    for kind, planted in scans.items():
        for name, results in _results(scorers, planted).items():
            precisions, curves = zip(*results, strict=True)
            best_dice = np.mean(curves, axis=0)[oracle_threshold(curves)[1]]
            rows[name] |= {f"{kind}, AP": float(np.mean(precisions)), f"{kind}, best Dice": float(best_dice)}
    return pd.DataFrame(list(rows.values()))


def _results(
    scorers: Mapping[str, Scorer], planted: Sequence[PlantedScan]
) -> dict[str, list[tuple[float, DiceCurve]]]:
    """Return voxel AP and Dice curve of each scan by scorer; the network runs once for settings that allow it."""
    first = next(iter(scorers.values()))
    results: dict[str, list[tuple[float, DiceCurve]]] = {name: [] for name in scorers}
    for scan in planted:
        shared = first.infer(scan.voxels, scan.mask, scan.covariates)
        for name, scorer in scorers.items():
            same_passes = scorer.settings.flip_average == first.settings.flip_average
            inference = shared if same_passes else scorer.infer(scan.voxels, scan.mask, scan.covariates)
            scored = scorer.postprocess(inference, scan.voxels, scan.mask)
            results[name].append((voxel_ap(scan, scored), dice_curve(scored.evidence, scan.lesion, scan.mask)))
    return results


def scorer_variants(model: BenchmarkModel) -> Iterator[tuple[str, Scorer]]:
    """Yield the shipped scorer, then others that differ in one setting, with the name of their row."""
    shipped = model.scorer.settings

    def variant(**changed: object) -> Scorer:
        return replace(model.scorer, settings=ScoringSettings.model_validate(shipped.model_dump() | changed))

    yield "as shipped", model.scorer
    for name in shipped.maps if len(shipped.maps) > 1 else ():
        yield f"`{name}` alone", variant(maps={name: 1.0}, sd_floor=shipped.floor_of(name))
    for setting, values in ALTERNATIVES.items():
        for value in values:
            if value != getattr(shipped, setting):
                scorer, name = variant(**{setting: value}), f"`{setting}: {str(value).lower()}`"
                needs_reference = setting in REFERENCE_SETTINGS
                yield name, scorer.learn_reference(model.training_scans) if needs_reference else scorer


def main() -> None:
    """Print the table."""
    parser = study_parser(__doc__)
    parser.add_argument("--model", default="dae", help="name of a model of the benchmark")
    options = parser.parse_args()
    model = load_benchmark_model(options.output / "models" / options.model, options.output / "cohort")
    print(table_text(evidence_table(model, plant_held_out_scans(model, options.data / "lesion_shapes"))))


if __name__ == "__main__":
    main()
