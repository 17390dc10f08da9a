"""What more network evaluations are worth to a diffusion model: its DDIM may take few steps or many.

Lesions of real shape are planted in healthy subjects that the training held out; no test scan is touched. Each
number of evaluations learns its own healthy reference, all of them from the same few training scans, because fifty
evaluations of every scan take long::

    python -m pipelines.benchmark.studies.function_evaluations work/ixi
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd

from anomaly.core.errors import ConfigError
from anomaly.evaluation.bootstrap import bootstrap_mean, paired_difference
from anomaly.evaluation.localisation import voxel_average_precision
from anomaly.evaluation.tables import cell, markdown
from anomaly.models.diffusion import DiffusionModel, DiffusionSettings
from anomaly.scoring.scorer import Scorer
from pipelines.benchmark.studies.evidence import Benched, benchmark_parser, open_model, planted

MANY = 50  # evaluations, at least, that the others are compared with
FEW = 10  # at most
LEARNT_FROM = 24  # scans behind each healthy reference
MODEL = "diffusion"


def evaluations_table(model: Benched, shapes: Path) -> pd.DataFrame:
    """Return voxel AP by number of evaluations, and how far it is from that of the largest number.

    In brackets: 95 % bootstrap intervals over subjects, one lesion of each kind in each.

    Parameters
    ----------
    model
        A trained diffusion model.
    shapes
        Folder of lesion masks in MNI space.

    Raises
    ------
    ConfigError
        If the model is of another family.
    """
    settings = diffusion_settings(model.scorer)
    subjects = range(len(model.held_out))
    scans = {kind: some[: len(subjects)] for kind, some in planted(model, shapes).items()}
    found: dict[int, dict[str, list[float]]] = {}
    seconds: dict[int, float] = {}
    for number in numbers(settings):
        scorer = with_evaluations(model, number)
        started = time.perf_counter()
        found[number] = {
            kind: [voxel_average_precision(scorer.score(s.voxels, s.mask).evidence, s.lesion, s.mask) for s in some]
            for kind, some in scans.items()
        }
        seconds[number] = (time.perf_counter() - started) / sum(map(len, scans.values()))
    most = found[max(found)]
    return pd.DataFrame(
        [
            {
                "evaluations": number,
                **{f"{kind}, AP": cell(bootstrap_mean(values[kind], subjects), 3) for kind in scans},
                **{
                    f"{kind}, minus {max(found)}": cell(paired_difference(values[kind], most[kind], subjects), 3)
                    for kind in scans
                },
                "time per scan": f"{seconds[number] / seconds[min(found)]:.1f} ×",
            }
            for number, values in found.items()
        ]
    )


def numbers(settings: DiffusionSettings) -> list[int]:
    """Return the numbers of evaluations to compare: the fewest, the most below ten, and fifty or a few more."""
    each = len(settings.levels) * settings.n_patch_sets
    return sorted({each, max(each, each * (FEW // each)), each * math.ceil(MANY / each)})


def with_evaluations(model: Benched, number: int) -> Scorer:
    """Return the scorer of a model that asks its network so often, with a healthy reference of its own."""
    settings = diffusion_settings(model.scorer).model_copy(update={"evaluations": number})
    detector = copy.copy(model.scorer.detector)
    detector.settings = DiffusionSettings.model_validate(settings.model_dump())
    few = model.learnt.select(model.learnt.records[:LEARNT_FROM])
    return replace(model.scorer, detector=detector).learn_reference(few)


def diffusion_settings(scorer: Scorer) -> DiffusionSettings:
    """Return the settings of a diffusion model, refusing others."""
    if not isinstance(scorer.detector, DiffusionModel):
        raise ConfigError(f"found a model of family {scorer.detector.family!r}; expected 'diffusion'")
    return scorer.detector.settings


def main() -> None:
    """Print the table."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--model", default=MODEL, help="name of a diffusion model of the benchmark")
    chosen = parser.parse_args()
    model = open_model(chosen.output / "models" / chosen.model, chosen.output / "cohort")
    print(markdown(evaluations_table(model, chosen.data / "lesion_shapes")))


if __name__ == "__main__":
    main()
