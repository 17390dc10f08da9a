"""Effect of the number of network evaluations on a diffusion model: few or many DDIM steps.

Lesions of real shape are planted in healthy subjects that the training held out; no test scan is used. Each number
of evaluations gets its own healthy reference, all from the same few training scans, because fifty evaluations of
every training scan take long::

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
from anomaly.evaluation.tables import cell, markdown
from anomaly.models.diffusion import DiffusionModel, DiffusionSettings
from anomaly.scoring.scorer import Scorer
from pipelines.benchmark.studies.common import (
    BenchmarkModel,
    load_benchmark_model,
    plant_held_out_scans,
    study_parser,
    voxel_ap,
)

MANY_EVALUATIONS = 50  # at least; the smaller numbers are compared with these
FEW_EVALUATIONS = 10  # at most
REFERENCE_SCANS = 24  # behind each healthy reference


def evaluations_table(model: BenchmarkModel, shapes: Path) -> pd.DataFrame:
    """Measure the voxel AP for each number of evaluations, and its difference from that of the largest number.

    In brackets: 95 % bootstrap intervals over subjects, with one lesion of each kind in each subject.

    Parameters
    ----------
    model
        A trained diffusion model.
    shapes
        Folder of lesion masks in MNI space.

    Raises
    ------
    ConfigError
        The model is of another family.
    """
    settings = diffusion_settings(model.scorer)
    subjects = range(len(model.held_out))
    scans = {kind: planted[: len(subjects)] for kind, planted in plant_held_out_scans(model, shapes).items()}
    precisions: dict[int, dict[str, list[float]]] = {}
    seconds: dict[int, float] = {}
    for number in evaluation_numbers(settings):
        scorer = with_evaluations(model, number)
        started = time.perf_counter()
        precisions[number] = {
            kind: [voxel_ap(scan, scorer.score(scan.voxels, scan.mask)) for scan in planted]
            for kind, planted in scans.items()
        }
        seconds[number] = (time.perf_counter() - started) / sum(map(len, scans.values()))
    largest = max(precisions)
    return pd.DataFrame(
        [
            {
                "evaluations": number,
                **{f"{kind}, AP": cell(bootstrap_mean(values[kind], subjects), 3) for kind in scans},
                **{
                    f"{kind}, minus {largest}": cell(
                        paired_difference(values[kind], precisions[largest][kind], subjects), 3
                    )
                    for kind in scans
                },
                "time per scan": f"{seconds[number] / seconds[min(precisions)]:.1f} ×",
            }
            for number, values in precisions.items()
        ]
    )


def evaluation_numbers(settings: DiffusionSettings) -> list[int]:
    """Return the numbers of evaluations to compare: the smallest, the largest up to ten, and fifty or a few more.

    Each is a multiple of the smallest, one evaluation for every noise level and set of patches.
    """
    step = len(settings.levels) * settings.n_patch_sets
    few, many = step * (FEW_EVALUATIONS // step), step * math.ceil(MANY_EVALUATIONS / step)
    return sorted({step, max(step, few), many})


def with_evaluations(model: BenchmarkModel, number: int) -> Scorer:
    """Return the scorer of a model with this number of network evaluations and a healthy reference made with it."""
    settings = diffusion_settings(model.scorer).model_copy(update={"n_function_evaluations": number})
    detector = copy.copy(model.scorer.detector)
    detector.settings = DiffusionSettings.model_validate(settings.model_dump())
    few = model.training_scans.select(model.training_scans.records[:REFERENCE_SCANS])
    return replace(model.scorer, detector=detector).learn_reference(few)


def diffusion_settings(scorer: Scorer) -> DiffusionSettings:
    """Return the settings of a diffusion model; raise :class:`ConfigError` for another family."""
    if not isinstance(scorer.detector, DiffusionModel):
        raise ConfigError(f"found a model of family {scorer.detector.family!r}; expected 'diffusion'")
    return scorer.detector.settings


def main() -> None:
    """Print the table."""
    parser = study_parser(__doc__)
    parser.add_argument("--model", default="diffusion", help="name of a diffusion model of the benchmark")
    options = parser.parse_args()
    model = load_benchmark_model(options.output / "models" / options.model, options.output / "cohort")
    print(markdown(evaluations_table(model, options.data / "lesion_shapes")))


if __name__ == "__main__":
    main()
