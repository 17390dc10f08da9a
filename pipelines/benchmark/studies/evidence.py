"""What each part of a model's evidence is worth, and what scans from elsewhere do to it: the figures of decision 3.

Lesions of real shape are planted in the healthy subjects that the training held out, so that weights and floors may
be chosen here: no test scan is touched. ``make benchmarks`` puts the tables into ``docs/benchmarks.md``;
``python -m pipelines.benchmark.studies.evidence work/ixi`` prints them.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage

from anomaly.bundle.store import load_bundle
from anomaly.cohort.synthetic import Kind, PlantedScan, lesion_shapes, planted_scans
from anomaly.cohort.volumes import CohortVolumes
from anomaly.core.image_views import Array
from anomaly.core.volume import FloatArray
from anomaly.evaluation.localisation import dice_curve, oracle_threshold, voxel_average_precision
from anomaly.evaluation.tables import markdown
from anomaly.scoring.postprocess import smooth_inside
from anomaly.scoring.scorer import ScoredVolume, Scorer
from anomaly.scoring.settings import ScoringSettings
from pipelines.scan_input import healthy_records
from pipelines.train import hold_out

KINDS: tuple[Kind, ...] = ("dark", "bright")
LESIONS = 3  # of each kind in every subject
SEED = 7  # not that of the lesions that chose the checkpoint

CHOICES: Mapping[str, Sequence[float | str]] = {
    "median_voxels": (0, 3, 5),
    "smoothing_mm": (0.0, 1.4, 3.0),
    "standardise": ("voxelwise", "none"),
    "sd_floor": (0.1, 0.3, 1.0),
    "dark_weight": (0.01,),
    "bright_weight": (0.01, 0.7, 1.0),
    "erode_mm": (0.0, 2.0, 4.0),
    "flip_average": (False, True),
}
"""Scoring settings and what they might be; 0.01 leaves one sign alone."""
LEARNT_WITH = ("median_voxels", "smoothing_mm", "sd_floor", "flip_average")  # what healthy statistics depend on

Change = Callable[[FloatArray, np.random.Generator], Array]


@dataclass(frozen=True)
class Benched:
    """A model with the scans its training learnt from and those it held out."""

    scorer: Scorer
    learnt: CohortVolumes
    held_out: CohortVolumes


def evidence_tables(models: Mapping[str, Path], cohort: Path, shapes: Path) -> dict[str, pd.DataFrame]:
    """Return both tables by name: ``parts`` of the first model's evidence, and all models on ``other_scans``.

    Parameters
    ----------
    models
        Trained bundles by name, all trained on ``cohort``.
    shapes
        Folder of lesion masks in MNI space.
    """
    benched = {name: open_model(path, cohort) for name, path in models.items()}
    first = next(iter(benched.values()))
    scans = planted(first, shapes)
    scorers = {name: model.scorer for name, model in benched.items()}
    return {"parts": parts(first, scans), "other_scans": other_scans(scorers, scans["dark"])}


def open_model(path: Path, cohort: Path) -> Benched:
    """Return a trained bundle with the scans of its cohort that it learnt from and held out. It refuses none."""
    bundle = load_bundle(path)
    settings = bundle.scorer.settings.model_copy(update={"min_similarity": -1.0})
    records = healthy_records(cohort, bundle.config, split="train")
    learnt, held_out = hold_out(records, bundle.config.validation_fraction)
    return Benched(
        replace(bundle.scorer, settings=settings), CohortVolumes(cohort, learnt), CohortVolumes(cohort, held_out)
    )


def parts(model: Benched, scans: Mapping[Kind, Sequence[PlantedScan]]) -> pd.DataFrame:
    """Return voxel AP and best Dice of the evidence as shipped, of each of its maps alone, and of other choices."""
    return found_by(dict(variants(model)), scans)


def found_by(scorers: Mapping[str, Scorer], scans: Mapping[Kind, Sequence[PlantedScan]]) -> pd.DataFrame:
    """Return voxel AP and best Dice of the evidence of each scorer; all have one detector, the first one's."""
    first = next(iter(scorers.values()))
    rows: dict[str, dict[str, float | str]] = {what: {"evidence": what} for what in scorers}
    for kind, some in scans.items():
        found: dict[str, list[tuple[float, Array]]] = {what: [] for what in scorers}
        for scan in some:
            raw = first.infer(scan.voxels, scan.mask)  # the network, once for all choices that share it
            for what, scorer in scorers.items():
                mirrored = scorer.settings.flip_average != first.settings.flip_average
                said = scorer.infer(scan.voxels, scan.mask) if mirrored else raw
                scored = scorer.postprocess(said, scan.voxels, scan.mask)
                found[what].append((_precision(scan, scored), dice_curve(scored.evidence, scan.lesion, scan.mask)))
        for what, row in rows.items():
            precisions, curves = zip(*found[what], strict=True)
            best = np.mean(curves, axis=0)[oracle_threshold(curves)[1]]
            row |= {f"{kind}, AP": float(np.mean(precisions)), f"{kind}, best Dice": float(best)}
    return pd.DataFrame(list(rows.values()))


def variants(model: Benched) -> Iterator[tuple[str, Scorer]]:
    """Yield the shipped scorer, then others with one choice changed; a reference is learnt anew where need be."""
    shipped = model.scorer.settings

    def choice(**changed: object) -> Scorer:
        return replace(model.scorer, settings=ScoringSettings.model_validate(shipped.model_dump() | changed))

    yield "as shipped", model.scorer
    for name in shipped.maps if len(shipped.maps) > 1 else ():
        yield f"`{name}` alone", choice(maps={name: 1.0}, sd_floor=shipped.floor_of(name))
    for setting, values in CHOICES.items():
        for value in values:
            if value != getattr(shipped, setting):
                other = choice(**{setting: value})
                what = f"`{setting}: {str(value).lower()}`"
                yield what, other.learn_reference(model.learnt) if setting in LEARNT_WITH else other


def other_scans(scorers: Mapping[str, Scorer], planted: Sequence[PlantedScan]) -> pd.DataFrame:
    """Return the voxel AP of each model on the same planted scans, changed as other scanners would have them."""
    rows = []
    for what, change in CHANGES.items():
        voxels = [changed(scan, change, number) for number, scan in enumerate(planted)]
        row: dict[str, float | str] = {"scans": what}
        for name, scorer in scorers.items():
            pairs = zip(planted, voxels, strict=True)
            row[name] = float(np.mean([_precision(scan, scorer.score(v, scan.mask)) for scan, v in pairs]))
        rows.append(row)
    return pd.DataFrame(rows)


def gamma(exponent: float) -> Change:
    """Bend the contrast curve."""
    return lambda voxels, _: np.maximum(voxels, 0) ** exponent


def noise(sd: float) -> Change:
    """Add Gaussian noise of an SD in intensity units."""
    return lambda voxels, rng: voxels + rng.normal(0, sd, voxels.shape)


def blur(sigma_voxels: float) -> Change:
    """Smooth inside the brain."""
    return lambda voxels, _: smooth_inside(voxels, voxels != 0, (sigma_voxels,) * 3)


def drift(size: float) -> Change:
    """Multiply by a smooth field whose largest |log| is ``size``: a bias field that was left over."""

    def change(voxels: FloatArray, rng: np.random.Generator) -> Array:
        field = ndimage.zoom(rng.normal(size=(3, 3, 3)), np.array(voxels.shape) / 3, order=1)
        factor: Array = np.exp(size * field / np.abs(field).max())
        return voxels * factor

    return change


CHANGES: Mapping[str, Change] = {
    "as they are": lambda voxels, _: voxels,
    "contrast curve, γ = 0.8": gamma(0.8),
    "contrast curve, γ = 1.25": gamma(1.25),
    "noise, SD 0.05": noise(0.05),
    "blur, σ 0.6 voxels": blur(0.6),
    "bias field, ± 10 %": drift(0.1),
}


def changed(scan: PlantedScan, change: Change, number: int) -> FloatArray:
    """Return the voxels of a scan as changed inside the brain; random numbers are those of the scan's number."""
    voxels = change(scan.voxels, np.random.default_rng([SEED, number]))
    return np.where(scan.mask, voxels, scan.voxels).astype(np.float32)


def planted(model: Benched, shapes: Path) -> dict[Kind, list[PlantedScan]]:
    """Return scans that a training held out, with lesions of each kind."""
    masks = lesion_shapes(shapes, model.held_out.grid)
    seeds = range(SEED, SEED + LESIONS)
    return {
        kind: [
            scan for seed in seeds for scan in planted_scans(model.held_out, seed=seed, kinds=(kind,), shapes=masks)
        ]
        for kind in KINDS
    }


def _precision(scan: PlantedScan, found: ScoredVolume) -> float:
    """Return the voxel AP in the whole brain: an edge that was left out of the evidence holds lesions, too."""
    return voxel_average_precision(found.evidence, scan.lesion, scan.mask)


def shown(table: pd.DataFrame) -> str:
    """Return a table as it stands in the docs, figures with three decimals."""
    return markdown(table.map(lambda cell: f"{cell:.3f}" if isinstance(cell, float) else cell))


def benchmark_parser(doc: str) -> argparse.ArgumentParser:
    """Return a parser that asks for a finished benchmark, ``output``, and for ``data``, which holds the lesions."""
    known = os.environ.get("ANOMALY_DATA")
    parser = argparse.ArgumentParser(description=doc.partition("\n")[0])
    parser.add_argument("output", type=Path, help="folder of a finished benchmark")
    parser.add_argument(
        "--data", type=Path, default=known, required=known is None,
        help="the folder that holds lesion_shapes/; default: the variable ANOMALY_DATA",
    )  # fmt: skip
    return parser


def main() -> None:
    """Print the tables."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--models", default="dae,pca,atlas", help="names, the first is taken apart")
    chosen = parser.parse_args()
    models = {name: chosen.output / "models" / name for name in chosen.models.split(",")}
    for table in evidence_tables(models, chosen.output / "cohort", chosen.data / "lesion_shapes").values():
        print(shown(table), end="\n\n")


if __name__ == "__main__":
    main()
