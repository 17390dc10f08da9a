"""Effect of other scanners: voxel AP on planted scans whose contrast, noise, sharpness or bias field is changed.

The lesions are planted in healthy subjects that the training held out; no test scan is used::

    python -m pipelines.benchmark.studies.acquisition_shift work/ixi --models dae,pca,atlas
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage

from anomaly.cohort.planted_lesions import PlantedScan
from anomaly.core.image_views import Array
from anomaly.core.smoothing import smooth_inside
from anomaly.core.volume import FloatArray
from anomaly.scoring.scorer import Scorer
from pipelines.benchmark.studies.common import (
    SEED,
    load_benchmark_model,
    model_paths,
    plant_held_out_scans,
    study_parser,
    table_text,
    voxel_ap,
)

Change = Callable[[FloatArray, np.random.Generator], Array]


def acquisition_shift_table(models: Mapping[str, Path], cohort: Path, shapes: Path) -> pd.DataFrame:
    """Measure the voxel AP of models on the same dark lesions, with the scans unchanged and changed.

    Parameters
    ----------
    models
        Trained bundles by name, all trained on ``cohort``.
    shapes
        Folder of lesion masks in MNI space.

    Returns
    -------
    pd.DataFrame
        A row for each of :data:`CHANGES`, a column for each model.
    """
    loaded = {name: load_benchmark_model(path, cohort) for name, path in models.items()}
    scans = plant_held_out_scans(next(iter(loaded.values())), shapes)["dark"]
    return voxel_ap_by_change({name: model.scorer for name, model in loaded.items()}, scans)


def voxel_ap_by_change(scorers: Mapping[str, Scorer], planted: Sequence[PlantedScan]) -> pd.DataFrame:
    """Return the mean voxel AP of each scorer after each change of the planted scans."""
    rows = []
    for name, change in CHANGES.items():
        voxels = [apply_change(scan, change, number) for number, scan in enumerate(planted)]
        row: dict[str, float | str] = {"scans": name}
        for model, scorer in scorers.items():
            pairs = zip(planted, voxels, strict=True)
            row[model] = float(np.mean([voxel_ap(scan, scorer.score(v, scan.mask)) for scan, v in pairs]))
        rows.append(row)
    return pd.DataFrame(rows)


def apply_change(scan: PlantedScan, change: Change, number: int) -> FloatArray:
    """Return the voxels of a scan, changed inside the brain; ``number`` seeds the random numbers."""
    voxels = change(scan.voxels, np.random.default_rng([SEED, number]))
    return np.where(scan.mask, voxels, scan.voxels).astype(np.float32)


def gamma(exponent: float) -> Change:
    """Bend the contrast curve."""
    return lambda voxels, _: np.maximum(voxels, 0) ** exponent


def noise(sd: float) -> Change:
    """Add Gaussian noise; ``sd`` is in intensity units."""
    return lambda voxels, rng: voxels + rng.normal(0, sd, voxels.shape)


def blur(sigma_voxels: float) -> Change:
    """Smooth inside the brain."""
    return lambda voxels, _: smooth_inside(voxels, voxels != 0, (sigma_voxels,) * 3)


def bias_field(max_log: float) -> Change:
    """Multiply by a smooth random field whose largest absolute logarithm is ``max_log``."""

    def change(voxels: FloatArray, rng: np.random.Generator) -> Array:
        field = ndimage.zoom(rng.normal(size=(3, 3, 3)), np.array(voxels.shape) / 3, order=1)
        factor: Array = np.exp(max_log * field / np.abs(field).max())
        return voxels * factor

    return change


CHANGES: Mapping[str, Change] = {
    "unchanged": lambda voxels, _: voxels,
    "contrast curve, γ = 0.8": gamma(0.8),
    "contrast curve, γ = 1.25": gamma(1.25),
    "noise, SD 0.05": noise(0.05),
    "blur, σ 0.6 voxels": blur(0.6),
    "bias field, ± 10 %": bias_field(0.1),
}


def main() -> None:
    """Print the table."""
    parser = study_parser(__doc__)
    parser.add_argument("--models", default="dae,pca,atlas", help="names of models of the benchmark")
    options = parser.parse_args()
    models = model_paths(options.output, options.models)
    table = acquisition_shift_table(models, options.output / "cohort", options.data / "lesion_shapes")
    print(table_text(table))


if __name__ == "__main__":
    main()
