"""Whether the fine grain of a planted scan betrays its lesion: energy above 0.7 voxels, and detectors of it alone.

Lesions of every kind of MR are planted in raw test scans of a benchmark, one for each scan and kind. They are
measured on the grid of the scan, resampled to the template grid, and after the whole preprocessing chain. Energy is
the variance of the voxels of the lesion minus their Gaussian smoothing with an SD of 0.7 voxels. No model is used::

    python -m pipelines.benchmark.studies.planting work/ixi
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from anomaly.cohort.fine_grain import fine_grain, grain_energy, smooth_part
from anomaly.cohort.lesion_shapes import LesionShapes, lesion_shapes
from anomaly.cohort.planted_lesions import LESION_KINDS, MR_LESION_KINDS, LesionKind, draw_strength, plant_in_scan
from anomaly.cohort.table import ScanRecord
from anomaly.cohort.volumes import CohortVolumes
from anomaly.core.files import read_json
from anomaly.core.volume import FloatArray, MaskArray, Modality
from anomaly.evaluation.bootstrap import bootstrap
from anomaly.evaluation.tables import cell, markdown
from anomaly.io.nifti import read_nifti
from anomaly.preprocessing.chain import Chain, ChainSettings
from anomaly.preprocessing.grid import resample_mask, to_target_grid
from pipelines.benchmark.planted_lesions import PlantedSettings, choose_lesion, healthy_test_scans
from pipelines.benchmark.studies.common import SEED, study_parser

N_SCANS = 12
LOCAL_SD_VOXELS = 2.0  # SD of the Gaussian over which a detector averages the energy around a voxel
STAGES = ("as received", "resampled", "after the chain")


@dataclass(frozen=True)
class GrainFeatures:
    """The energy of the fine grain of one scan, as a detector of it would see it.

    Parameters
    ----------
    energy
        In the lesion.
    asymmetry
        Logarithm of the energy in the lesion over that in the mirrored place.
    among_others
        AUROC of the local energy of the voxels of the lesion against the rest of the brain.
    highest
        Logarithm of the 99th percentile of the local energy in the brain over the median.
    """

    energy: float
    asymmetry: float
    among_others: float
    highest: float

    @classmethod
    def of(cls, voxels: FloatArray, mask: MaskArray, lesion: MaskArray, mirrored: MaskArray) -> GrainFeatures:
        """Measure voxels ``(I, J, K)`` inside a mask; the mirrored place is that of the lesion."""
        energy = grain_energy(voxels, mask, lesion)
        local = smooth_part(fine_grain(voxels, mask) ** 2, mask, LOCAL_SD_VOXELS)[mask]
        return cls(
            energy,
            float(np.log(energy / grain_energy(voxels, mask, mirrored))),
            float(roc_auc_score(lesion[mask], local)),
            float(np.log(np.percentile(local, 99) / np.median(local))),
        )


@dataclass(frozen=True)
class Pair:
    """The features of a scan with a lesion, and of the same places of the untouched scan."""

    kind: LesionKind
    scans: str
    subject: str
    planted: GrainFeatures
    untouched: GrainFeatures


def planting_table(
    cohort: Path, shapes: Path, n_scans: int = N_SCANS, kinds: Sequence[LesionKind] = MR_LESION_KINDS
) -> pd.DataFrame:
    """Measure planted scans against untouched ones.

    Parameters
    ----------
    cohort
        The healthy scans of a benchmark; their sources are read again.
    shapes
        Folder of lesion masks in MNI space.

    Returns
    -------
    pd.DataFrame
        A row for each kind of lesion and each of :data:`STAGES`.
    """
    records = healthy_test_scans(cohort)[:n_scans]
    volumes = CohortVolumes(cohort, records)
    pairs = list(measured_pairs(volumes, lesion_shapes(shapes, volumes.grid), kinds))
    return pd.DataFrame(
        [
            _row([pair for pair in pairs if (pair.kind, pair.scans) == (kind, scans)])
            for kind in kinds
            for scans in STAGES
        ]
    )


def measured_pairs(volumes: CohortVolumes, shapes: LesionShapes, kinds: Sequence[LesionKind]) -> Iterator[Pair]:
    """Plant one lesion of each kind in each scan; yield its features at each stage."""
    chain = Chain(ChainSettings.model_validate(read_json(volumes.folder / "cohort.json")["chain"]))
    for index, record in enumerate(volumes.records):
        for kind in kinds:
            rng = np.random.default_rng([SEED, LESION_KINDS.index(kind), index])
            yield from _pairs(volumes, record, chain, shapes, kind, rng)


def _pairs(
    volumes: CohortVolumes,
    record: ScanRecord,
    chain: Chain,
    shapes: LesionShapes,
    kind: LesionKind,
    rng: np.random.Generator,
) -> Iterator[Pair]:
    scan = read_nifti((volumes.folder / record.source).resolve(), modality=Modality(record.modality))
    matrix, (healthy, brain) = record.template_from_scan_matrix, volumes[volumes.records.index(record)]
    shape = choose_lesion(kind, brain, shapes, volumes.grid, PlantedSettings(), rng)
    planted, lesion = plant_in_scan(scan, matrix, shape, volumes.grid, kind, draw_strength(kind, rng), rng)
    opposite = resample_mask(shape[::-1], volumes.grid, scan.geometry, matrix, antialias=False)
    pair = _features((planted.voxels, scan.voxels), scan.voxels > 0, lesion, opposite)
    yield Pair(kind, STAGES[0], record.subject, *pair)
    lesion = resample_mask(lesion, scan.geometry, volumes.grid, np.linalg.inv(matrix), antialias=False)
    resampled = [to_target_grid(volume, volumes.grid, matrix) for volume in (planted, scan)]
    yield Pair(kind, STAGES[1], record.subject, *_features(resampled, brain, lesion, lesion[::-1]))
    prepared = chain.apply(planted)
    pair = _features((prepared.voxels, healthy), brain & prepared.mask, lesion, lesion[::-1])
    yield Pair(kind, STAGES[2], record.subject, *pair)


def _features(
    scans: Sequence[FloatArray], brain: MaskArray, lesion: MaskArray, opposite: MaskArray
) -> tuple[GrainFeatures, ...]:
    lesion, opposite = lesion & brain, opposite & brain & ~lesion
    return tuple(GrainFeatures.of(voxels, brain, lesion, opposite) for voxels in scans)


def _row(pairs: Sequence[Pair]) -> dict[str, str]:
    ratios = [pair.planted.energy / pair.untouched.energy for pair in pairs]
    among = [[getattr(pair, scan).among_others for pair in pairs] for scan in ("planted", "untouched")]
    return {
        "kind": pairs[0].kind,
        "scans": pairs[0].scans,
        "energy, planted over untouched": f"{np.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})",
        "AUROC, lesion against the mirrored place": _auroc(pairs, "asymmetry"),
        "AUROC, scan": _auroc(pairs, "highest"),
        "AUROC, voxels: planted, untouched": ", ".join(f"{np.mean(values):.2f}" for values in among),
    }


def _auroc(pairs: Sequence[Pair], feature: str) -> str:
    """Return the AUROC of a feature of the planted against the untouched scans, with its interval over subjects."""
    planted, untouched = (
        np.array([getattr(getattr(p, s), feature) for p in pairs]) for s in ("planted", "untouched")
    )
    wins = (planted[:, None] > untouched) + 0.5 * (planted[:, None] == untouched)
    estimate = bootstrap(lambda rows: float(wins[np.ix_(rows, rows)].mean()), [pair.subject for pair in pairs])
    return cell(estimate)


def main() -> None:
    """Print the table."""
    parser = study_parser(__doc__)
    parser.add_argument("--scans", type=int, default=N_SCANS, help="number of test scans")
    options = parser.parse_args()
    table = planting_table(options.output / "cohort", options.data / "lesion_shapes", options.scans)
    print(markdown(table))


if __name__ == "__main__":
    main()
