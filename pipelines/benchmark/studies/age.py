"""Effect of age: scores of healthy subjects against a healthy reference of all ages or of their age and sex.

Each model is scored with three healthy references of the same training scans: that of all ages; mean and SD given
age and sex; and the same with an SD that grows with age (``scoring.standardise: normative``, see
:mod:`anomaly.scoring.normative`). The healthy scans are those of the splits ``calibration`` and ``test``. Lesions
are planted in the test scans::

    python -m pipelines.benchmark.studies.age work/ixi --models atlas,pca,dae --other-scanner work/oasis
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from anomaly.calibration.conformal import p_values
from anomaly.cohort.lesion_shapes import lesion_shapes
from anomaly.cohort.planted_lesions import PlantedScan, planted_scans
from anomaly.cohort.table import accepted, read_records
from anomaly.cohort.volumes import CohortVolumes
from anomaly.core.errors import CohortError
from anomaly.core.volume import FloatArray, MaskArray
from anomaly.evaluation.bootstrap import Estimate, bootstrap, paired_difference
from anomaly.evaluation.detection import METRICS
from anomaly.evaluation.subgroups import AGE_BANDS, subgroups
from anomaly.evaluation.tables import cell, markdown
from anomaly.scoring.scan_scores import TOP_EVIDENCE
from anomaly.scoring.scorer import ScoredVolume, Scorer
from pipelines.benchmark.studies.common import (
    LESION_KINDS,
    SEED,
    BenchmarkModel,
    load_benchmark_model,
    model_paths,
    study_parser,
    voxel_ap,
)

ALL_AGES = "all ages"
ALPHAS = (0.05, 0.10)
HELD_OUT_SPLITS = ("calibration", "test")

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class HealthyScores:
    """Scan scores of healthy subjects.

    Parameters
    ----------
    ages
        ``(n,)`` years, NaN where unknown.
    scores
        Name of the reference → ``(n,)`` scores.
    """

    ages: Floats
    scores: Mapping[str, Floats]

    def correlation(self, reference: str) -> float:
        """Return the Spearman correlation of score and age."""
        known = np.isfinite(self.ages)
        return float(stats.spearmanr(self.ages[known], self.scores[reference][known]).statistic)

    def flagged_by_band(self, reference: str, alpha: float) -> str:
        """Return the flagged scans of each age band."""
        return ", ".join(f"{(p <= alpha).sum()} of {len(p)}" for p in self._p_values_by_band(reference))

    def mean_p_by_band(self, reference: str) -> str:
        """Return the mean p-value of each age band; 0.5 is expected in each."""
        return ", ".join(f"{p.mean():.2f}" if p.size else "–" for p in self._p_values_by_band(reference))

    def _p_values_by_band(self, reference: str) -> list[Floats]:
        """Return the p-values of the scans of each age band; each scan is compared with all others."""
        scores = self.scores[reference]
        p = np.array([float(p_values(score, np.delete(scores, n))) for n, score in enumerate(scores)])
        inside = subgroups(self.ages, [""] * len(scores))
        return [p[inside[band]] for band in AGE_BANDS]


@dataclass(frozen=True, eq=False)
class LesionScores:
    """Voxel APs and scan scores of planted lesions, and the scores of the same scans without them, by reference.

    Parameters
    ----------
    aps, scores
        ``(k · n,)``: k lesions in each of n scans, one round of the scans after another.
    healthy
        ``(n,)``.
    subjects
        ``(k · n,)``.
    """

    aps: Mapping[str, Floats]
    scores: Mapping[str, Floats]
    healthy: Mapping[str, Floats]
    subjects: Sequence[str]

    def auroc(self, reference: str) -> float:
        """Return the AUROC of scans with a lesion against the same scans without it."""
        return METRICS["auroc"](self._is_abnormal, self._all_scores(reference))

    def auroc_minus_all_ages(self, reference: str) -> Estimate:
        """Return the difference of the AUROC from that of the reference of all ages."""
        is_abnormal, given, before = self._is_abnormal, self._all_scores(reference), self._all_scores(ALL_AGES)
        return bootstrap(
            lambda rows: (
                METRICS["auroc"](is_abnormal[rows], given[rows]) - METRICS["auroc"](is_abnormal[rows], before[rows])
            ),
            [*self.subjects[: len(self.healthy[reference])], *self.subjects],
        )

    @property
    def _is_abnormal(self) -> npt.NDArray[np.bool_]:
        return np.repeat([False, True], [len(self.healthy[ALL_AGES]), len(self.scores[ALL_AGES])])

    def _all_scores(self, reference: str) -> Floats:
        return np.concatenate([self.healthy[reference], self.scores[reference]])


def age_table(models: Mapping[str, Path], cohort: Path, shapes: Path, other_scanner: Path | None) -> pd.DataFrame:
    """Return one row per model and healthy reference.

    Parameters
    ----------
    models
        Trained bundles by name, all trained on ``cohort``, with the reference of all ages.
    shapes
        Folder of lesion masks in MNI space.
    other_scanner
        A cohort of healthy subjects of another scanner, prepared by the same chain.
    """
    rows = []
    for name, path in models.items():
        model = load_benchmark_model(path, cohort)
        rows += [{"model": name, **row} for row in model_rows(model, shapes, other_scanner)]
    return pd.DataFrame(rows)


def model_rows(model: BenchmarkModel, shapes: Path, other_scanner: Path | None) -> list[dict[str, str]]:
    """Return one row per healthy reference of one model; parameters as for :func:`age_table`."""
    scorers = with_references(model)
    records = accepted(read_records(model.training_scans.folder))
    held_out = model.training_scans.select([r for r in records if r.split in HELD_OUT_SPLITS])
    is_test = np.array([record.split == "test" for record in held_out.records])
    test = held_out.select([record for record in held_out.records if record.split == "test"])
    healthy = score_healthy(scorers, held_out)
    others = None if other_scanner is None else score_healthy(scorers, CohortVolumes(other_scanner))
    without = {name: scores[is_test] for name, scores in healthy.scores.items()}
    lesions = score_lesions(scorers, test, shapes, without)
    return [_row(reference, healthy, others, lesions) for reference in scorers]


def with_references(model: BenchmarkModel) -> dict[str, Scorer]:
    """Return the model with each healthy reference.

    Raises
    ------
    CohortError
        Too few training scans are of known age.
    """
    settings = model.scorer.settings.model_copy(update={"standardise": "normative"})
    grown = model.scorer
    if grown.reference is None or grown.reference.normative is None:
        grown = replace(grown, settings=settings).learn_reference(model.training_scans, model.held_out)
    if grown.reference is None or grown.reference.normative is None:
        raise CohortError(
            f"{model.training_scans.folder}: too few training scans of known age for a reference by age"
        )
    steady = replace(grown.reference, normative=replace(grown.reference.normative, sd_growth=0.0))
    return {
        ALL_AGES: replace(grown, reference=replace(grown.reference, normative=None)),
        "of that age and sex": replace(grown, reference=steady),
        "and SD growing with age": grown,
    }


def score_healthy(scorers: Mapping[str, Scorer], scans: CohortVolumes) -> HealthyScores:
    """Score healthy scans with each reference."""
    covariates = [scans.covariates(n) for n in range(len(scans))]
    found = [_declared(_score(scorers, *scans[n], known)) for n, known in enumerate(covariates)]
    return HealthyScores(np.array([float(known[0]) for known in covariates]), _by_reference(found))


def score_lesions(
    scorers: Mapping[str, Scorer], test: CohortVolumes, shapes: Path, healthy: Mapping[str, Floats]
) -> LesionScores:
    """Score lesions of each kind planted in test scans; ``healthy`` are the scores of these scans without them."""
    aps, scores = [], []
    for scan in _planted(test, shapes):
        scored = _score(scorers, scan.voxels, scan.mask, scan.covariates)
        aps.append({name: voxel_ap(scan, volume) for name, volume in scored.items()})
        scores.append(_declared(scored))
    return LesionScores(
        aps=_by_reference(aps),
        scores=_by_reference(scores),
        healthy=healthy,
        subjects=[record.subject for record in test.records] * len(LESION_KINDS),
    )


def _planted(test: CohortVolumes, shapes: Path) -> Iterator[PlantedScan]:
    masks = lesion_shapes(shapes, test.grid)
    for kind in LESION_KINDS:
        yield from planted_scans(test, seed=SEED, kinds=(kind,), shapes=masks)


def _score(
    scorers: Mapping[str, Scorer], voxels: FloatArray, mask: MaskArray, covariates: FloatArray
) -> dict[str, ScoredVolume]:
    """Run the network once and score the scan with each reference."""
    raw = scorers[ALL_AGES].infer(voxels, mask, covariates)
    return {name: scorer.postprocess(raw, voxels, mask) for name, scorer in scorers.items()}


def _declared(scored: Mapping[str, ScoredVolume]) -> dict[str, float]:
    return {name: volume.scores[TOP_EVIDENCE] for name, volume in scored.items()}


def _by_reference(found: Sequence[Mapping[str, float]]) -> dict[str, Floats]:
    return {name: np.array([values[name] for values in found]) for name in found[0]}


def _row(
    reference: str, healthy: HealthyScores, others: HealthyScores | None, lesions: LesionScores
) -> dict[str, str]:
    aps, before = lesions.aps[reference], lesions.aps[ALL_AGES]
    return {
        "healthy reference": reference,
        "correlation of score and age": f"{healthy.correlation(reference):.2f}",
        **({} if others is None else {"other scanner": f"{others.correlation(reference):.2f}"}),
        "mean p-value, by age": healthy.mean_p_by_band(reference),
        **{f"flagged at {alpha:g}, by age": healthy.flagged_by_band(reference, alpha) for alpha in ALPHAS},
        "voxel AP": f"{aps.mean():.3f}",
        "AP minus all ages": cell(paired_difference(aps, before, lesions.subjects), 3),
        "scan AUROC": f"{lesions.auroc(reference):.3f}",
        "AUROC minus all ages": cell(lesions.auroc_minus_all_ages(reference), 3),
    }


def main() -> None:
    """Print the table."""
    parser = study_parser(__doc__)
    parser.add_argument("--models", default="atlas,pca,dae", help="names of models of the benchmark")
    parser.add_argument("--other-scanner", type=Path, help="a cohort of healthy subjects of another scanner")
    options = parser.parse_args()
    models = model_paths(options.output, options.models)
    table = age_table(models, options.output / "cohort", options.data / "lesion_shapes", options.other_scanner)
    print(markdown(table))


if __name__ == "__main__":
    main()
