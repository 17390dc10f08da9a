from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from anomaly.core.results import ScanScore
from anomaly.core.scan_result import TemplateVolumes
from anomaly.reports import figures
from anomaly.runs.reader import RunInfo
from anomaly.scoring.retrieval import middle_slices


def _pixels(png: bytes) -> np.ndarray:
    with Image.open(BytesIO(png)) as picture:
        return np.asarray(picture.convert("RGBA").convert("RGB"), dtype=int)


@pytest.mark.slow
def test_the_same_scan_gives_the_same_bytes(run: RunInfo, score: ScanScore, volumes: TemplateVolumes) -> None:
    marked = volumes.marked(score.regions, run.display.voxel_threshold)
    point = score.regions[0].mni_mm
    slices = [figures.location_figure(volumes, run.display, point, marked, 520) for _ in range(2)]
    assert slices[0] == slices[1]


@pytest.mark.slow
def test_evidence_and_outline_stand_on_the_evidence_column_only(
    run: RunInfo, score: ScanScore, volumes: TemplateVolumes
) -> None:
    marked = volumes.marked(score.regions, run.display.voxel_threshold)
    pixels = _pixels(figures.location_figure(volumes, run.display, score.regions[0].mni_mm, marked))
    coloured = np.ptp(pixels, axis=2) > 60
    width = pixels.shape[1]
    assert not coloured[:, : int(0.6 * width)].any()
    assert coloured[:, int(0.6 * width) : int(0.9 * width)].any()


def test_a_finding_on_the_patients_right_is_drawn_on_the_left(
    run: RunInfo, score: ScanScore, volumes: TemplateVolumes
) -> None:
    pixels = _pixels(figures.thumbnail(volumes, run.display, score.regions[0].mni_mm))
    rows, columns = np.nonzero(np.ptp(pixels, axis=2) > 120)
    assert columns.mean() < 0.45 * pixels.shape[1]
    assert rows.mean() < 0.45 * pixels.shape[0]  # and it lies to the front, which is up


def test_a_mosaic_and_a_thumbnail_are_small(run: RunInfo, volumes: TemplateVolumes) -> None:
    assert len(figures.mosaic(volumes, run.display, volumes.mask)) < 400_000
    assert len(figures.thumbnail(volumes, run.display, (0.0, 0.0, 0.0))) < 8_000


@pytest.mark.slow
def test_similar_scans_stand_beside_the_scan_and_only_the_scan_is_outlined(
    run: RunInfo, volumes: TemplateVolumes
) -> None:
    own = middle_slices(volumes.scan, run.display.intensity_max)
    slices = {plane: np.stack([cut, cut]) for plane, cut in own.items()}
    marked = volumes.mask & (volumes.evidence > np.percentile(volumes.evidence, 99))
    plain, outlined = (
        _pixels(figures.similar_figure(volumes, run.display, outline, ["first", "second"], slices, 900))
        for outline in (np.zeros_like(marked), marked)
    )
    third = plain.shape[1] // 3
    assert not (np.ptp(plain, axis=2) > 60).any()
    columns = np.nonzero(np.ptp(outlined, axis=2) > 60)[1]
    assert columns.size
    assert columns.max() < third
    scan, first, second = (plain[60:, n * third : (n + 1) * third, 0] for n in range(3))
    assert np.corrcoef(scan.ravel(), first.ravel())[0, 1] > 0.9
    assert np.corrcoef(scan.ravel(), second.ravel())[0, 1] > 0.9


def test_the_right_of_a_similar_scan_is_drawn_on_the_left_and_its_front_up(
    run: RunInfo, volumes: TemplateVolumes
) -> None:
    slices = {
        plane: np.zeros((1, *cut.shape), dtype=np.uint8) for plane, cut in middle_slices(volumes.scan, 1).items()
    }
    i, j = slices["axial"].shape[1:]
    slices["axial"][0, 3 * i // 4 : 3 * i // 4 + 4, 3 * j // 4 : 3 * j // 4 + 4] = 255
    figure = figures.similar_figure(volumes, run.display, np.zeros_like(volumes.mask), [""], slices)
    beside = _pixels(figure)[40:, 520:, 0]
    rows, columns = np.nonzero(beside > 240)
    letters_aside = np.abs(columns - np.median(columns)) < 40
    assert columns[letters_aside].mean() < 0.5 * beside.shape[1]
    assert rows[letters_aside].mean() < beside.shape[0] / 6  # the upper half of the first of three rows


@pytest.mark.slow
def test_a_distribution_is_drawn_with_and_without_reference_and_with_extreme_scores() -> None:
    for reference, threshold, scores in (
        ([1.0, 1.2, 1.4], 1.4, [(1.1, False), (2.0, True)]),
        ([], None, [(1.1, None)]),
        ([], None, []),
        ([1.0, 1.2, 1.4], 1.4, [(900.0, True)]),
        ([1.0, 1.0], 1.0, [(1.0, False)]),
    ):
        assert _pixels(figures.score_distribution(reference, threshold, scores, "top_1_percent")).size
