"""Select the members of an ensemble and their weights, without any test scan.

Forward selection with replacement (Caruana et al. 2004, "Ensemble selection from libraries of models"): models are
added one at a time, each as often as it helps, while the voxel AP of the merged maps grows. How often a model was
added is its weight. Lesions of real shape are planted in healthy subjects that the trainings held out::

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
from pipelines.benchmark.studies.common import (
    load_benchmark_model,
    model_paths,
    plant_held_out_scans,
    study_parser,
)

MAX_ROUNDS = 8

Maps = npt.NDArray[np.float16]


@dataclass(frozen=True, eq=False)
class ScoredLesion:
    """One planted scan with the maps of all models.

    Parameters
    ----------
    maps
        By model: signed map in healthy standard deviations, of the voxels of the brain ``(n,)``.
    lesion
        Which of these voxels are in the lesion, ``(n,)`` bool.
    """

    kind: str
    subject: int
    maps: Mapping[str, Maps]
    lesion: npt.NDArray[np.bool_]

    def voxel_ap(self, members: Mapping[str, int], settings: EvidenceSettings) -> float:
        """Return the voxel AP of the weighted mean of the members' maps."""
        total = sum(members.values())
        signed = np.sum([self.maps[name] * np.float32(n / total) for name, n in members.items()], axis=0)
        evidence = np.maximum(-settings.dark_weight * signed, settings.bright_weight * signed)
        return voxel_average_precision(evidence, self.lesion, np.ones_like(self.lesion))


def selection_table(models: Mapping[str, Path], cohort: Path, shapes: Path) -> pd.DataFrame:
    """Return the rounds of the selection: members, weights, voxel AP, and its gain over the best single model.

    In brackets: 95 % bootstrap intervals over subjects. They are optimistic: the selection used the same lesions.

    Parameters
    ----------
    models
        Trained bundles by name, all trained on ``cohort``. The first gives the weights of dark and bright.
    shapes
        Folder of lesion masks in MNI space.
    """
    lesions, settings = score_planted_scans(models, cohort, shapes)
    subjects = [lesion.subject for lesion in lesions]
    candidates = [Counter({name: 1}) for name in models]
    single = max(candidates, key=lambda members: float(np.mean(voxel_aps(lesions, members, settings))))
    single_aps = voxel_aps(lesions, single, settings)
    rows = []
    for members in forward_selection(lesions, single, tuple(models), settings):
        aps = voxel_aps(lesions, members, settings)
        rows.append(
            {
                "members": ", ".join(f"{name} × {n}" for name, n in members.items()),
                **{
                    f"{kind}, AP": cell(_mean_ap(kind, lesions, aps), 3)
                    for kind in dict.fromkeys(lesion.kind for lesion in lesions)
                },
                f"minus {next(iter(single))}": cell(paired_difference(aps, single_aps, subjects), 3),
            }
        )
    return pd.DataFrame(rows)


def score_planted_scans(
    models: Mapping[str, Path], cohort: Path, shapes: Path
) -> tuple[list[ScoredLesion], EvidenceSettings]:
    """Return the planted scans with the maps of each model, and the evidence settings of the first model."""
    loaded = {name: load_benchmark_model(path, cohort) for name, path in models.items()}
    first = next(iter(loaded.values()))
    lesions = []
    for kind, scans in plant_held_out_scans(first, shapes).items():
        for number, scan in enumerate(scans):
            subject = number % len(first.held_out)
            covariates = first.held_out.covariates(subject)
            maps = {
                name: model.scorer.score(scan.voxels, scan.mask, covariates).signed[scan.mask].astype(np.float16)
                for name, model in loaded.items()
            }
            lesions.append(ScoredLesion(kind, subject, maps, scan.lesion[scan.mask]))
    return lesions, first.scorer.settings


def forward_selection(
    lesions: Sequence[ScoredLesion], start: Counter[str], names: Sequence[str], settings: EvidenceSettings
) -> list[Counter[str]]:
    """Return the members after each round, from ``start`` until the mean voxel AP no longer grows."""
    rounds = [start]
    best = float(np.mean(voxel_aps(lesions, start, settings)))
    while len(rounds) < MAX_ROUNDS:
        tried = [rounds[-1] + Counter({name: 1}) for name in names]
        scores = [float(np.mean(voxel_aps(lesions, members, settings))) for members in tried]
        if max(scores) <= best:
            break
        best = max(scores)
        rounds.append(tried[scores.index(best)])
    return rounds


def voxel_aps(
    lesions: Sequence[ScoredLesion], members: Mapping[str, int], settings: EvidenceSettings
) -> list[float]:
    """Return the voxel AP of the merged members for each scan."""
    return [lesion.voxel_ap(members, settings) for lesion in lesions]


def _mean_ap(kind: str, lesions: Sequence[ScoredLesion], aps: Sequence[float]) -> Estimate:
    chosen = [(ap, lesion.subject) for ap, lesion in zip(aps, lesions, strict=True) if lesion.kind == kind]
    return bootstrap_mean([ap for ap, _ in chosen], [subject for _, subject in chosen])


def main() -> None:
    """Print the table."""
    parser = study_parser(__doc__)
    parser.add_argument("--models", required=True, help="names; the first gives the weights of dark and bright")
    options = parser.parse_args()
    models = model_paths(options.output, options.models)
    print(markdown(selection_table(models, options.output / "cohort", options.data / "lesion_shapes")))


if __name__ == "__main__":
    main()
