from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image

from anomaly.core.results import ScanScore
from anomaly.reports import figures
from anomaly.reports.run_folder import Run, ScanVolumes


def _pixels(png: bytes) -> np.ndarray:
    with Image.open(BytesIO(png)) as picture:
        return np.asarray(picture.convert("RGBA").convert("RGB"), dtype=int)


def test_the_same_scan_gives_the_same_bytes(run: Run, score: ScanScore, volumes: ScanVolumes) -> None:
    marked = volumes.marked(score.regions, run.display.voxel_threshold)
    point = score.regions[0].mni_mm
    pictures = [figures.place_figure(volumes, run.display, point, marked, 520) for _ in range(2)]
    assert pictures[0] == pictures[1]


def test_evidence_and_outline_stand_on_the_evidence_column_only(
    run: Run, score: ScanScore, volumes: ScanVolumes
) -> None:
    marked = volumes.marked(score.regions, run.display.voxel_threshold)
    pixels = _pixels(figures.place_figure(volumes, run.display, score.regions[0].mni_mm, marked))
    coloured = np.ptp(pixels, axis=2) > 60
    width = pixels.shape[1]
    assert not coloured[:, : int(0.6 * width)].any()
    assert coloured[:, int(0.6 * width) : int(0.9 * width)].any()


def test_a_finding_on_the_patients_right_is_drawn_on_the_left(
    run: Run, score: ScanScore, volumes: ScanVolumes
) -> None:
    pixels = _pixels(figures.thumbnail(volumes, run.display, score.regions[0].mni_mm))
    rows, columns = np.nonzero(np.ptp(pixels, axis=2) > 120)
    assert columns.mean() < 0.45 * pixels.shape[1]
    assert rows.mean() < 0.45 * pixels.shape[0]  # and it lies to the front, which is up


def test_a_mosaic_and_a_thumbnail_are_small(run: Run, volumes: ScanVolumes) -> None:
    assert len(figures.mosaic(volumes, run.display, volumes.mask)) < 400_000
    assert len(figures.thumbnail(volumes, run.display, (0.0, 0.0, 0.0))) < 8_000


def test_a_distribution_is_drawn_with_and_without_reference_and_with_extreme_scores() -> None:
    for reference, threshold, scores in (
        ([1.0, 1.2, 1.4], 1.4, [(1.1, False), (2.0, True)]),
        ([], None, [(1.1, None)]),
        ([], None, []),
        ([1.0, 1.2, 1.4], 1.4, [(900.0, True)]),
        ([1.0, 1.0], 1.0, [(1.0, False)]),
    ):
        assert _pixels(figures.score_distribution(reference, threshold, scores, "top_1_percent")).size
