"""Which trained models to merge, and with which weights: chosen on lesions that no test scan has a part in.

Models are added one at a time, any of them again if it helps, while the merged maps find more (forward selection
with replacement, Caruana et al. 2004, "Ensemble selection from libraries of models"); how often a model was added
is its weight. Lesions of real shape are planted in healthy subjects that the trainings held out::

    python -m pipelines.benchmark.studies.ensemble_selection work/ixi --models dae,restoration,vae,pca
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from anomaly.evaluation.bootstrap import Estimate, bootstrap_mean, paired_difference
from anomaly.evaluation.localisation import voxel_average_precision
from anomaly.evaluation.tables import cell, markdown
from anomaly.scoring.settings import EvidenceSettings
from pipelines.benchmark.studies.evidence import benchmark_parser, open_model, planted

ROUNDS = 8

Maps = npt.NDArray[np.float16]


@dataclass(frozen=True, eq=False)
class Case:
    """One planted scan as all models see it.

    Parameters
    ----------
    maps
        Model → signed map in healthy standard deviations, voxels of the brain ``(n,)``.
    lesion
        ``(n,)`` bool.
    """

    kind: str
    subject: int
    maps: Mapping[str, Maps]
    lesion: npt.NDArray[np.bool_]

    def precision(self, members: Mapping[str, int], reading: EvidenceSettings) -> float:
        """Return the voxel AP of the weighted mean of members' maps."""
        total = sum(members.values())
        signed = np.sum([self.maps[name] * np.float32(n / total) for name, n in members.items()], axis=0)
        evidence = np.maximum(-reading.dark_weight * signed, reading.bright_weight * signed)
        return voxel_average_precision(evidence, self.lesion, np.ones_like(self.lesion))


def selection_table(models: Mapping[str, Path], cohort: Path, shapes: Path) -> pd.DataFrame:
    """Return the steps of the selection: members with their weights, voxel AP, and what was gained over one model.

    In brackets: 95 % bootstrap intervals over subjects, of lesions that the selection has seen.

    Parameters
    ----------
    models
        Trained bundles by name, all trained on ``cohort``. The first says how dark and bright are weighed.
    shapes
        Folder of lesion masks in MNI space.
    """
    cases, reading = seen_by(models, cohort, shapes)
    subjects = [case.subject for case in cases]
    chosen = [Counter({name: 1}) for name in models]
    single = max(chosen, key=lambda members: float(np.mean(precisions(cases, members, reading))))
    alone = precisions(cases, single, reading)
    rows = []
    for members in selected(cases, single, tuple(models), reading):
        found = precisions(cases, members, reading)
        rows.append(
            {
                "members": ", ".join(f"{name} × {n}" for name, n in members.items()),
                **{
                    f"{kind}, AP": cell(_mean_of(kind, cases, found), 3)
                    for kind in dict.fromkeys(case.kind for case in cases)
                },
                f"minus {next(iter(single))}": cell(paired_difference(found, alone, subjects), 3),
            }
        )
    return pd.DataFrame(rows)


def seen_by(models: Mapping[str, Path], cohort: Path, shapes: Path) -> tuple[list[Case], EvidenceSettings]:
    """Return the planted scans as each model sees them, and how the first model's evidence is read."""
    opened = {name: open_model(path, cohort) for name, path in models.items()}
    first = next(iter(opened.values()))
    cases = []
    for kind, scans in planted(first, shapes).items():
        for number, scan in enumerate(scans):
            about = first.held_out.covariates(number % len(first.held_out))
            maps = {
                name: model.scorer.score(scan.voxels, scan.mask, about).signed[scan.mask].astype(np.float16)
                for name, model in opened.items()
            }
            cases.append(Case(kind, number % len(first.held_out), maps, scan.lesion[scan.mask]))
    return cases, first.scorer.settings


def selected(
    cases: Sequence[Case], start: Counter[str], names: Sequence[str], reading: EvidenceSettings
) -> list[Counter[str]]:
    """Return the members of each round, the first those to start with, while the mean voxel AP grows."""
    rounds = [start]
    best = float(np.mean(precisions(cases, start, reading)))
    while len(rounds) < ROUNDS:
        tried = [rounds[-1] + Counter({name: 1}) for name in names]
        scores = [float(np.mean(precisions(cases, members, reading))) for members in tried]
        if max(scores) <= best:
            break
        best = max(scores)
        rounds.append(tried[scores.index(best)])
    return rounds


def precisions(cases: Sequence[Case], members: Mapping[str, int], reading: EvidenceSettings) -> list[float]:
    """Return the voxel AP of each scan."""
    return [case.precision(members, reading) for case in cases]


def _mean_of(kind: str, cases: Sequence[Case], found: Sequence[float]) -> Estimate:
    kept = [n for n, case in enumerate(cases) if case.kind == kind]
    return bootstrap_mean([found[n] for n in kept], [cases[n].subject for n in kept])


def main() -> None:
    """Print the table."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--models", required=True, help="names, the first says how evidence is read")
    chosen = parser.parse_args()
    models = {name: chosen.output / "models" / name for name in chosen.models.split(",")}
    print(markdown(selection_table(models, chosen.output / "cohort", chosen.data / "lesion_shapes")))


if __name__ == "__main__":
    main()
