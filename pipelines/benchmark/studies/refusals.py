"""What is scored and what is refused: real scans, and scans changed as by disease or by a wrong acquisition.

Each scan goes through the whole preprocessing and the similarity test of a model, as in ``anomaly score``::

    python -m pipelines.benchmark.studies.refusals work/ixi --model pca

The folder ``--data`` holds ``ixi/``, ``pathology/``, ``multicontrast/`` and ``lesion_shapes/``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage

from anomaly.bundle.store import TrainedBundle, load_bundle
from anomaly.cohort.lesion_shapes import lesion_shapes
from anomaly.cohort.planted_lesions import LesionKind, plant_in_scan
from anomaly.core.errors import ScanRefusedError
from anomaly.core.image_views import Array
from anomaly.core.volume import AffineArray, FloatArray, MaskArray, Volume
from anomaly.inference.template_scan import prepare_volume
from anomaly.io.nifti import read_nifti
from anomaly.preprocessing.chain import Chain
from pipelines.benchmark.studies.common import SEED, study_parser, table_text

LOBE_MM, TWO_LOBES_MM = 20.0, -20.0  # how far back a resection of the left frontal lobe reaches, in MNI space
Change = Callable[[Volume, Array], Array]


def refusals_table(model: Path, data: Path) -> pd.DataFrame:
    """Prepare and test all scans.

    Parameters
    ----------
    model
        A trained bundle of a T1w model.
    data
        The folder of the scans.

    Returns
    -------
    pd.DataFrame
        A row for each scan: what should happen, what happened, and the measures that decide.
    """
    bundle = load_bundle(model)
    rows = [result_row(bundle, name, expected, volume) for name, expected, volume in scans(bundle, data)]
    return pd.DataFrame(rows)


def scans(bundle: TrainedBundle, data: Path) -> Iterator[tuple[str, str, Volume]]:
    """Yield name, what should happen, and scan."""
    modality = bundle.config.modality
    for path in sorted((data / "pathology").glob("sub-*/anat/*_T1w.nii.gz")):
        yield f"real: {_subject(path)}", "scored", replace(read_nifti(path), modality=modality)
    for path in sorted((data / "multicontrast").glob("sub-*/anat/*.nii.gz")):
        if path.name.endswith(("_T2w.nii.gz", "_FLAIR.nii.gz")):
            yield (
                f"real: {path.name.removesuffix('.nii.gz')} given as {modality}",
                "refused",
                replace(read_nifti(path), modality=modality),
            )
    healthy = replace(read_nifti(sorted((data / "ixi").glob("sub-*/anat/*_T1w.nii.gz"))[0]), modality=modality)
    matrix = prepare_volume(healthy, Chain(bundle.config.preprocessing)).template_from_scan
    yield "healthy", "scored", healthy
    yield from lesions(healthy, matrix, bundle, data / "lesion_shapes")
    position = healthy.geometry.to_world(np.moveaxis(np.indices(healthy.voxels.shape), 0, -1).reshape(-1, 3))
    in_template = (position @ matrix[:3, :3].T + matrix[:3, 3]).reshape(*healthy.voxels.shape, 3)
    for expected, changes in (("scored", DISEASE), ("refused", WRONG)):
        for name, change in changes.items():
            yield name, expected, healthy.with_voxels(change(healthy, in_template).astype(np.float32))


def lesions(
    healthy: Volume, matrix: AffineArray, bundle: TrainedBundle, shapes: Path
) -> Iterator[tuple[str, str, Volume]]:
    """Yield a healthy scan with the largest of the real lesion shapes, planted with growing strength."""
    masks = lesion_shapes(shapes, bundle.grid)
    largest: MaskArray = max((masks[index] for index in range(len(masks))), key=lambda mask: int(mask.sum()))
    size = f"{largest.sum() * bundle.grid.voxel_ml:.0f} ml"
    strengths: list[tuple[LesionKind, float]] = [
        ("dark", 0.5), ("dark", 0.95), ("bright", 1.0), ("bright", 3.0), ("texture", 3.0), ("mass_effect", 0.6)
    ]  # fmt: skip
    for kind, strength in strengths:
        rng = np.random.default_rng(SEED)
        volume, _ = plant_in_scan(healthy, matrix, largest, bundle.grid, kind, strength, rng)
        yield f"lesion of {size}, {kind}, strength {strength:g}", "scored", volume


def _left(factor: float) -> Change:
    return lambda scan, mm: np.where(mm[..., 0] < 0, scan.voxels * factor, scan.voxels)


def _without(region: Callable[[Array], Array]) -> Change:
    return lambda scan, mm: np.where(region(mm), 0, scan.voxels)


def _in_brain(values: Callable[[FloatArray, np.random.Generator], Array]) -> Change:
    def change(scan: Volume, mm: Array) -> Array:
        del mm
        found = values(scan.voxels, np.random.default_rng(SEED))
        return np.where(scan.voxels > 0, np.maximum(found, 1), 0)

    return change


def _frontal(back_mm: float) -> Callable[[Array], Array]:
    return lambda mm: (mm[..., 0] < 0) & (mm[..., 1] > back_mm) & (mm[..., 2] > 0)


def _smooth_noise(voxels: FloatArray, rng: np.random.Generator) -> Array:
    noise = ndimage.gaussian_filter(rng.standard_normal(voxels.shape), 3)
    return np.asarray(100 + 20 * noise / noise.std())


DISEASE: Mapping[str, Change] = {
    "left hemisphere at 70 % of the intensity": _left(0.7),
    "left hemisphere at 50 %": _left(0.5),
    "left frontal pole removed": _without(_frontal(LOBE_MM)),
    "left frontal lobe and more removed": _without(_frontal(TWO_LOBES_MM)),
}
"""Changes as by disease; the last removes a fifth of the brain."""

WRONG: Mapping[str, Change] = {
    "inverted contrast": _in_brain(lambda voxels, _: voxels.max() - voxels),
    "white noise in a brain mask": _in_brain(lambda voxels, rng: 100 + 20 * rng.standard_normal(voxels.shape)),
    "smooth noise in a brain mask": _in_brain(_smooth_noise),
    "noise, SD 20 % of white matter": _in_brain(
        lambda voxels, rng: voxels + 0.2 * np.percentile(voxels[voxels > 0], 90) * rng.standard_normal(voxels.shape)
    ),
    "left hemisphere at 30 %, as with a failed coil": _left(0.3),
    "left half missing": _without(lambda mm: mm[..., 0] < 0),
    "upper half missing": _without(lambda mm: mm[..., 2] > 0),
    "lower half missing": _without(lambda mm: mm[..., 2] < 0),
    "turned by half a turn about the left-right axis": lambda scan, _: half_turn(scan),
}
"""Changes of acquisition, alignment or contrast."""


def half_turn(scan: Volume) -> Array:
    """Rotate the voxels by 180° about the axis that is nearest to left-right."""
    across = int(np.abs(scan.geometry.affine[0, :3]).argmax())
    return np.flip(scan.voxels, [axis for axis in range(3) if axis != across])


def result_row(bundle: TrainedBundle, name: str, expected: str, volume: Volume) -> dict[str, float | str]:
    """Prepare and test one scan."""
    row: dict[str, float | str] = {"scan": name, "should be": expected}
    try:
        scan = prepare_volume(volume, Chain(bundle.config.preprocessing))
        row |= {
            "overlap": scan.numbers["registration_overlap"],
            "correlation with the template": scan.numbers["registration_correlation"],
            "similarity": bundle.scorer.similarity(scan.voxels, scan.mask),
        }
        bundle.scorer.checked_similarity(scan.voxels, scan.mask)
    except ScanRefusedError as refusal:
        return row | {"result": f"refused: {refusal.found}"}
    return row | {"result": "scored"}


def _subject(path: Path) -> str:
    return path.name.partition("_")[0]


def main() -> None:
    """Print the table."""
    parser = study_parser(__doc__)
    parser.add_argument("--model", default="pca", help="name of a T1w model of the benchmark")
    options = parser.parse_args()
    table = refusals_table(options.output / "models" / options.model, options.data)
    print(table_text(table.astype(object).fillna("")))


if __name__ == "__main__":
    main()
