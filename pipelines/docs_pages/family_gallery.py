"""Draw the figures of docs/families.md: planted lesions, pseudo-healthy scans and samples of each model.

``python -m pipelines.docs_pages.family_gallery work/families`` draws every model of a finished benchmark. The scans
are healthy scans that training held out. The lesions are synthetic and outlined.
"""

from __future__ import annotations

import argparse
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from anomaly.cohort.lesion_shapes import lesion_shapes
from anomaly.cohort.planted_lesions import LesionKind, PlantedScan, planted_scans
from anomaly.core.files import atomic_path
from anomaly.core.image_views import Array
from anomaly.models.base import Detector
from anomaly.models.generation import Generator
from anomaly.scoring.scorer import Scorer
from pipelines.benchmark.studies.common import BenchmarkModel, load_benchmark_model

IMAGE_FOLDER = Path(__file__).resolve().parents[2] / "docs" / "images" / "families"
KINDS: tuple[LesionKind, ...] = ("dark", "bright")
HELD_OUT_SCAN = {"dark": 1, "bright": 7}  # index of the held-out scan for each kind of lesion
N_SAMPLES = 6
SEED = 11
PANEL_INCHES, DPI, PALETTE_COLOURS = 1.6, 110, 128
TITLES = ("scan, lesion outlined", "pseudo-healthy", "residual", "evidence")
EVIDENCE_MAX = 8.0  # healthy standard deviations


def gallery(models: Sequence[Path], cohort: Path, shapes: Path | None, output: Path = IMAGE_FOLDER) -> list[Path]:
    """Draw one figure for each model and return their paths.

    Parameters
    ----------
    models
        Bundles, all trained on ``cohort``.
    shapes
        Folder of lesion masks in MNI space; None = random blobs.
    """
    drawn = []
    for path in models:
        model = load_benchmark_model(path, cohort)
        figure = output / f"{path.name}.png"
        with atomic_path(figure) as temporary:
            temporary.write_bytes(draw(model, shapes))
        drawn.append(figure)
    return drawn


def draw(model: BenchmarkModel, shapes: Path | None) -> bytes:
    """Return the figure of one model as PNG."""
    rows = [_restored(model.scorer, scan) for scan in _lesions(model, shapes)]
    detector = model.scorer.detector
    samples = samples_of(detector) if isinstance(detector, Generator) else []
    columns = max(len(TITLES), len(samples))
    figure = Figure(
        figsize=(columns * PANEL_INCHES, (len(rows) + bool(samples)) * PANEL_INCHES * 1.25), facecolor="black"
    )
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(len(rows) + bool(samples), columns, wspace=0.03, hspace=0.12,
                               left=0.01, right=0.99, bottom=0.01, top=0.93)  # fmt: skip
    highest = max(float(scan.max()) for scan, *_ in rows)
    for number, (scan, lesion, healthy, residual, evidence) in enumerate(rows):
        axes = [figure.add_subplot(grid[number, column]) for column in range(len(TITLES))]
        _grey(axes[0], scan, highest)
        axes[0].contour(lesion.astype(float), levels=[0.5], colors=["#4de1ff"], linewidths=0.8)
        _grey(axes[1], healthy, highest)
        axes[2].imshow(
            np.where(residual == 0, np.nan, residual),
            cmap="berlin",
            vmin=-0.5 * highest,
            vmax=0.5 * highest,
            origin="lower",
        )
        axes[3].imshow(evidence, cmap=mpl.colormaps["inferno"], vmin=0, vmax=EVIDENCE_MAX, origin="lower")
        for ax, title in zip(axes, TITLES, strict=True):
            ax.set_axis_off()
            ax.set_title(title if number == 0 else "", color="#e8e6e3", fontsize=7, pad=3)
    for column, sample in enumerate(samples):
        ax = figure.add_subplot(grid[len(rows), column])
        _grey(ax, sample, highest)
        ax.set_axis_off()
        ax.set_title("samples" if column == 0 else "", color="#e8e6e3", fontsize=7, pad=3)
    return _png(figure)


def samples_of(detector: Generator) -> list[Array]:
    """Sample a few images and return their middle planes, oriented for display."""
    with torch.inference_mode():
        images = detector.sample(N_SAMPLES, torch.Generator().manual_seed(SEED)).cpu().numpy()
    middle = images[:, images.shape[1] // 2]
    assert isinstance(detector, Detector)  # noqa: S101 - a Protocol cannot say so
    axis = detector.view.axis if middle.ndim == 4 else None
    planes = middle if axis is None else np.take(middle, middle.shape[1 + axis] // 2, axis=1 + axis)
    return [_upright(plane) for plane in planes]


def _lesions(model: BenchmarkModel, shapes: Path | None) -> list[PlantedScan]:
    masks = None if shapes is None else lesion_shapes(shapes, model.held_out.grid)
    found = []
    for kind in KINDS:
        scans = list(planted_scans(model.held_out, seed=SEED, kinds=(kind,), shapes=masks))
        found.append(scans[HELD_OUT_SCAN[kind] % len(scans)])
    return found


def _restored(scorer: Scorer, scan: PlantedScan) -> tuple[Array, Array, Array, Array, Array]:
    """Return scan, lesion, pseudo-healthy scan, residual and evidence in the slice with the largest lesion area."""
    raw = scorer.infer(scan.voxels, scan.mask)
    scored = scorer.postprocess(raw, scan.voxels, scan.mask)
    k = int(scan.lesion.sum(axis=(0, 1)).argmax())
    volumes = (scan.voxels, scan.lesion, raw.reconstruction, raw.maps["residual"], scored.evidence)
    scan_, lesion, healthy, residual, evidence = (_upright(np.asarray(volume)[:, :, k]) for volume in volumes)
    return scan_, lesion, healthy, residual, evidence


def _upright(plane: Array) -> Array:
    """Return an axial plane ``(I, J)`` as rows from posterior to anterior, the patient's right on the left."""
    return np.asarray(plane)[::-1].T


def _grey(axes: Any, plane: Array, highest: float) -> None:
    axes.imshow(plane, cmap="gray", vmin=0, vmax=highest, origin="lower", interpolation="bilinear")


def _png(figure: Figure) -> bytes:
    """Return a figure as PNG with a small palette, to keep the files small."""
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, dpi=DPI, format="png", facecolor="black")
    Image.open(drawn).convert("RGB").quantize(PALETTE_COLOURS).save(small, format="png", optimize=True)
    return small.getvalue()


def main() -> None:
    """Draw the models of a benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("benchmark", type=Path, help="folder of a finished benchmark")
    parser.add_argument("--data", type=Path, default=os.environ.get("ANOMALY_DATA"), help="holds lesion_shapes/")
    parser.add_argument("--models", default="", help="names, comma-separated; default all of the benchmark")
    parser.add_argument("--output", "-o", type=Path, default=IMAGE_FOLDER)
    options = parser.parse_args()
    folder = options.benchmark / "models"
    single = [path for path in sorted(folder.iterdir()) if not (path / "members").is_dir()]  # no ensembles
    models = [folder / name for name in options.models.split(",")] if options.models else single
    shapes = None if options.data is None else Path(options.data) / "lesion_shapes"
    for path in gallery(models, options.benchmark / "cohort", shapes, options.output):
        print(path)


if __name__ == "__main__":
    main()
