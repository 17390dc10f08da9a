"""What maps of shape and structure, and the background of a scan, add to the evidence of a model.

Lesions are planted in healthy subjects that the training held out: weights were chosen by these figures, on no test
scan. The real cases of the benchmark are beside them, and were not used to choose::

    python -m pipelines.benchmark.studies.structure work/ixi --model dae
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

from anomaly.cohort.lesion_shapes import lesion_shapes
from anomaly.cohort.planted_lesions import MR_LESION_KINDS, LesionKind, planted_scans
from anomaly.cohort.table import ScanRecord, accepted, read_records
from anomaly.cohort.volumes import CohortVolumes
from anomaly.core.image_views import VolumeSource
from anomaly.core.volume import FloatArray, Geometry, MaskArray
from anomaly.evaluation.detection import auroc
from anomaly.evaluation.localisation import oracle_dice, voxel_average_precision
from anomaly.preprocessing.grid import resample_mask
from anomaly.scoring.scorer import Inference, Scorer
from anomaly.scoring.settings import ScoringSettings
from pipelines.benchmark.studies.common import (
    SEED,
    BenchmarkModel,
    load_benchmark_model,
    study_parser,
    table_text,
)


@dataclass(frozen=True, eq=False)
class LabelledInference:
    """The raw evidence of a scan, with its lesion ``(I, J, K)`` on the template grid."""

    inference: Inference
    lesion: MaskArray


def structure_table(model: BenchmarkModel, shapes: Path, cases: Path | None) -> pd.DataFrame:
    """Return voxel AP and scan AUROC of each kind of planted lesion, and the best Dice of each real case.

    Parameters
    ----------
    model
        A model with maps of structure.
    shapes
        Folder of lesion masks in MNI space.
    cases
        The ingested cohort of real cases with lesion masks; None = none.
    """
    training = _infer(model.scorer, model.training_scans)
    held_out = _infer(model.scorer, model.held_out)
    planted = {kind: list(_planted(model, shapes, kind)) for kind in MR_LESION_KINDS}
    real = {} if cases is None else dict(_cases(model.scorer, cases))
    rows = []
    for name, settings in variants(model.scorer.settings):
        scorer = replace(model.scorer, settings=settings, reference=None).learn_from(training, held_out)
        rows.append({"evidence": name, **_row(scorer, held_out, planted, real)})
    return pd.DataFrame(rows)


def variants(shipped: ScoringSettings) -> Iterator[tuple[str, ScoringSettings]]:
    """Yield the settings without structure and background, with one of them, and as shipped."""

    def changed(**values: Any) -> ScoringSettings:
        return ScoringSettings.model_validate(shipped.model_dump() | values)

    yield "maps of the model alone", changed(structure_maps={}, background_percentile=0)
    yield "with the background", changed(structure_maps={})
    for name, weight in shipped.structure_maps.items():
        yield f"with the background and `{name}`", changed(structure_maps={name: weight})
    yield "as shipped", shipped
    other = "voxelwise" if shipped.standardise == "normative" else "normative"
    yield f"`standardise: {other}`", changed(standardise=other)


def _infer(scorer: Scorer, scans: VolumeSource) -> list[Inference]:
    return [(scorer.infer(*scans[index], scans.covariates(index)), *scans[index]) for index in range(len(scans))]


def _planted(model: BenchmarkModel, shapes: Path, kind: LesionKind) -> Iterator[LabelledInference]:
    masks = lesion_shapes(shapes, model.held_out.grid)
    for scan in planted_scans(model.held_out, seed=SEED, kinds=(kind,), shapes=masks):
        raw = model.scorer.infer(scan.voxels, scan.mask, scan.covariates)
        yield LabelledInference((raw, scan.voxels, scan.mask), scan.lesion)


def _cases(scorer: Scorer, cohort: Path) -> Iterator[tuple[str, LabelledInference]]:
    records = [record for record in accepted(read_records(cohort)) if record.lesion_mask]
    scans = CohortVolumes(cohort, records)
    for record, inference in zip(records, _infer(scorer, scans), strict=True):
        yield record.subject, LabelledInference(inference, _lesion_on_template(cohort, record, scans.grid))


def _lesion_on_template(cohort: Path, record: ScanRecord, grid: Geometry) -> MaskArray:
    image: Any = nib.load((cohort / record.lesion_mask).resolve())
    mask = np.asarray(image.dataobj) > 0
    scan = Geometry((mask.shape[0], mask.shape[1], mask.shape[2]), image.affine)
    return resample_mask(mask, scan, grid, np.linalg.inv(record.template_from_scan_matrix))


def _row(
    scorer: Scorer,
    healthy: Sequence[Inference],
    planted: Mapping[LesionKind, Sequence[LabelledInference]],
    cases: Mapping[str, LabelledInference],
) -> dict[str, float]:
    score, row = scorer.settings.scan_score, {}
    negatives = [scorer.postprocess(*inference).scores[score] for inference in healthy]
    for kind, scans in planted.items():
        found = [scorer.postprocess(*scan.inference) for scan in scans]
        row[f"{kind}, AP"] = float(
            np.mean([_precision(scored.evidence, scan) for scored, scan in zip(found, scans, strict=True)])
        )
        positives = [scored.scores[score] for scored in found]
        labels = np.array([0] * len(negatives) + [1] * len(positives))
        row[f"{kind}, AUROC"] = auroc(labels, np.array(negatives + positives))
    for name, case in cases.items():
        evidence = scorer.postprocess(*case.inference).evidence
        row[f"{name}, best Dice"] = oracle_dice(evidence, case.lesion, case.inference[2])
    return row


def _precision(evidence: FloatArray, scan: LabelledInference) -> float:
    return voxel_average_precision(evidence, scan.lesion, scan.inference[2])


def main() -> None:
    """Print the table."""
    parser = study_parser(__doc__)
    parser.add_argument("--model", default="dae", help="name of a model of the benchmark")
    options = parser.parse_args()
    model = load_benchmark_model(options.output / "models" / options.model, options.output / "cohort")
    cases = options.output / "cases"
    table = structure_table(model, options.data / "lesion_shapes", cases if cases.is_dir() else None)
    print(table_text(table))


if __name__ == "__main__":
    main()
