"""Adaptation to another scanner: detection and false-positive rate with the model as it is, and adapted.

The local healthy scans are split by subject into two halves, several times. The model is adapted to one half, and
the other half is scored, with and without planted lesions. The same lesions, by seed, are planted in as many test
scans of the scanner that the model was trained on::

    python -m pipelines.benchmark.studies.adaptation work/ixi --local work/oasis --models dae,pca,atlas
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from anomaly.bundle.store import load_bundle
from anomaly.calibration.conformal import p_values
from anomaly.calibration.operating_point import beta_binomial_band
from anomaly.cohort.lesion_shapes import lesion_shapes
from anomaly.cohort.planted_lesions import MR_LESION_KINDS, LesionKind, PlantedScan, planted_scans
from anomaly.cohort.volumes import CohortVolumes
from anomaly.evaluation.detection import auroc
from anomaly.scoring.adaptation import adapt_scorer
from anomaly.scoring.scorer import Scorer
from pipelines.benchmark.studies.common import (
    SEED,
    model_paths,
    refusing_nothing,
    study_parser,
    table_text,
    voxel_ap,
)
from pipelines.scan_input import healthy_records

ALPHAS = (0.05, 0.10)
N_REPEATS = 2  # random splits of the local subjects into two halves


@dataclass(frozen=True)
class Result:
    """Detection of lesions in some scans by one scorer, and the scores of the same scans without lesions.

    Parameters
    ----------
    precisions, areas
        By kind of lesion: voxel AP of each scan, and the AUROC of scans with against those without a lesion.
    healthy
        Declared scan score of each scan without a lesion.
    """

    precisions: Mapping[LesionKind, Sequence[float]]
    areas: Mapping[LesionKind, float]
    healthy: Sequence[float]


def adaptation_table(
    model: Path, cohort: Path, local_cohort: Path, shapes: Path, n_repeats: int = N_REPEATS
) -> pd.DataFrame:
    """Measure one model on its own scanner, and on another one before and after adaptation.

    Parameters
    ----------
    model
        A trained bundle.
    cohort
        The cohort it was trained on, whose splits ``calibration`` and ``test`` are used.
    local_cohort
        Healthy scans of another scanner, prepared by the same chain.
    shapes
        Folder of lesion masks in MNI space.

    Returns
    -------
    pd.DataFrame
        A row for each setting. ``FPR at …``: flagged healthy scans with the threshold of the calibration scans of
        the own scanner, of all, and the 99 % band for the target.
    """
    bundle = load_bundle(model)
    scorer = refusing_nothing(bundle.scorer)
    calibration, test = (
        CohortVolumes(cohort, healthy_records(cohort, bundle.config, s)) for s in ("calibration", "test")
    )
    local = CohortVolumes(local_cohort, healthy_records(local_cohort, bundle.config, "test"))
    masks = lesion_shapes(shapes, scorer.grid)
    test = test.select(test.records[: len(local)])
    planted = {kind: list(planted_scans(local, seed=SEED, kinds=(kind,), shapes=masks)) for kind in MR_LESION_KINDS}
    reference = _declared(scorer, calibration, range(len(calibration)))
    own = {kind: list(planted_scans(test, seed=SEED, kinds=(kind,), shapes=masks)) for kind in MR_LESION_KINDS}
    results = {
        "own scanner": [measure(scorer, test, own, range(len(test)))],
        "other scanner": [measure(scorer, local, planted, range(len(local)))],
        "adapted": [],
    }
    for adapt_to, score in halves([record.subject for record in local.records], n_repeats):
        subset = local.select([local.records[index] for index in adapt_to])
        adapted = adapt_scorer(scorer, subset, [record.subject for record in subset.records])
        results["adapted"].append(measure(adapted, local, planted, score))
    return pd.DataFrame([_row(model.name, name, found, reference) for name, found in results.items()])


def measure(
    scorer: Scorer,
    scans: CohortVolumes,
    planted: Mapping[LesionKind, Sequence[PlantedScan]],
    chosen: Sequence[int],
) -> Result:
    """Score some of the scans, without and with a lesion of each kind."""
    healthy = _declared(scorer, scans, chosen)
    precisions, areas = {}, {}
    for kind, found in planted.items():
        scored = [(found[i], scorer.score(found[i].voxels, found[i].mask, found[i].covariates)) for i in chosen]
        precisions[kind] = [voxel_ap(*pair) for pair in scored]
        scores = [result.scores[scorer.settings.scan_score] for _, result in scored]
        areas[kind] = auroc([0] * len(healthy) + [1] * len(scores), [*healthy, *scores])
    return Result(precisions, areas, healthy)


def halves(subjects: Sequence[str], n_repeats: int) -> Iterator[tuple[list[int], list[int]]]:
    """Yield indices of scans to adapt to and of scans to score: each half in turn, for random splits by subject."""
    names = sorted(set(subjects))
    for repeat in range(n_repeats):
        first = set(np.random.default_rng([SEED, repeat]).permutation(names)[: len(names) // 2])
        inside = [index for index, subject in enumerate(subjects) if subject in first]
        outside = [index for index, subject in enumerate(subjects) if subject not in first]
        yield inside, outside
        yield outside, inside


def _declared(scorer: Scorer, scans: CohortVolumes, chosen: Sequence[int]) -> list[float]:
    """Return the declared score of some healthy scans."""
    found = (scorer.score(*scans[index], scans.covariates(index)) for index in chosen)
    return [scored.scores[scorer.settings.scan_score] for scored in found]


def _row(model: str, name: str, results: Sequence[Result], reference: Sequence[float]) -> dict[str, float | str]:
    row: dict[str, float | str] = {"model": model, "scans": name}
    for kind in results[0].precisions:
        row[f"{kind}, AP"] = float(np.mean([value for result in results for value in result.precisions[kind]]))
    for kind in results[0].areas:
        row[f"{kind}, AUROC"] = float(np.mean([result.areas[kind] for result in results]))
    healthy = [score for result in results for score in result.healthy]
    found = p_values(healthy, reference)
    for alpha in ALPHAS:
        band = beta_binomial_band(len(healthy), len(reference), alpha)
        flagged = int((found <= alpha).sum())
        row[f"FPR at {alpha:.0%}"] = f"{flagged} of {len(healthy)} ({band.low:g} to {band.high:g})"
    return row


def main() -> None:
    """Print the table."""
    parser = study_parser(__doc__)
    parser.add_argument("--models", default="dae,pca,atlas", help="names of models of the benchmark")
    parser.add_argument("--local", type=Path, required=True, help="ingested healthy scans of another scanner")
    parser.add_argument("--repeats", type=int, default=N_REPEATS, help="random splits of the local subjects")
    options = parser.parse_args()
    shapes = options.data / "lesion_shapes"
    tables = [
        adaptation_table(path, options.output / "cohort", options.local, shapes, options.repeats)
        for path in model_paths(options.output, options.models).values()
    ]
    print(table_text(pd.concat(tables)))


if __name__ == "__main__":
    main()
