from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from anomaly.core.results import Neighbour, ScanScore
from anomaly.core.scan_result import TemplateVolumes
from anomaly.reports.case import make_case, render_case, select_locations
from anomaly.reports.pdf import write_case_pdf
from anomaly.reports.viewer import viewer_html
from anomaly.reports.wording import explain_neighbours
from anomaly.runs.reader import RunInfo, read_run_info, read_score
from anomaly.scoring.retrieval import middle_slices
from tests.reports.factory import HOSTILE
from tests.reports.pages import Page, external_addresses

pytestmark = pytest.mark.slow  # draws pages

NEIGHBOURS = (Neighbour("healthy scan 17, 54 years", 0.61, 16), Neighbour("healthy scan 2", -0.04, 1))


def _page(run: RunInfo, score: ScanScore, volumes: TemplateVolumes) -> str:
    return render_case(make_case(run, score, volumes), viewer_html(volumes, run.display, volumes.peak_mm))


@pytest.fixture(scope="module")
def html(run: RunInfo, score: ScanScore, volumes: TemplateVolumes) -> str:
    return _page(run, score, volumes)


def test_a_page_loads_nothing_from_outside(html: str) -> None:
    assert external_addresses(html) == []
    assert "default-src 'none'" in html


def test_a_page_stays_small(html: str) -> None:
    assert len(html) < 2_500_000


def test_a_page_shows_result_numbers_regions_and_research_use_as_text(html: str, run: RunInfo) -> None:
    text = " ".join(Page(html).text.split())
    for words in ("Research use only. Not a medical device.", "▲ Flagged", "0.016",
                  "None of the 60 healthy reference scans scores",
                  "darker than expected", "brighter than expected", "+30, +34, +12", "Flagged regions",
                  "3f9c2a7d41b0", "c0ffee01", "registration overlap", "top 1 percent declared"):  # fmt: skip
        assert words in text


def test_a_page_can_be_read_by_a_screen_reader(html: str) -> None:
    page = Page(html)
    assert page.tags.count("h1") == 1
    assert 'lang="en"' in html
    assert not re.findall(r"<img(?![^>]*\balt=)", html)
    assert html.count("<th scope=") == len(re.findall(r"<th\b", html))


def test_a_long_table_of_regions_is_folded_after_its_first_rows(
    html: str, run: RunInfo, score: ScanScore, volumes: TemplateVolumes
) -> None:
    many = replace(score, regions=tuple(replace(score.regions[0], label=label) for label in range(1, 21)))
    before, fold, after = _page(run, many, volumes).partition("<details><summary>12 more regions")
    assert fold
    for label, part in ((8, before), (9, after), (20, after)):
        assert f'<th scope="row">{label}</th>' in part
    assert "more regions" not in html


def test_the_same_scan_gives_the_same_page(
    html: str, run: RunInfo, score: ScanScore, volumes: TemplateVolumes
) -> None:
    assert _page(run, score, volumes) == html


def test_a_scan_without_regions_shows_its_peak(run: RunInfo, score: ScanScore, volumes: TemplateVolumes) -> None:
    (title, point), *others = select_locations(replace(score, regions=()), volumes)
    assert point == volumes.peak_mm
    assert title.startswith("Highest evidence")
    assert not others


def test_at_most_three_locations_are_drawn_sorted_by_peak(score: ScanScore, volumes: TemplateVolumes) -> None:
    many = replace(score, regions=(*reversed(score.regions), *score.regions))
    assert [title[:9] for title, _ in select_locations(many, volumes)] == ["Region 1:", "Region 1:", "Region 2:"]


def test_an_uncalibrated_page_never_says_flagged(uncalibrated_dir: Path, volumes: TemplateVolumes) -> None:
    score = read_score(uncalibrated_dir / "sub-02_T1w" / "score.json")
    text = Page(_page(read_run_info(uncalibrated_dir), score, volumes)).text
    assert "flagged" not in text.lower()
    assert "Score only" in text


def test_a_hostile_scan_id_is_escaped(run: RunInfo, score: ScanScore, volumes: TemplateVolumes) -> None:
    html = _page(run, replace(score, scan_id=HOSTILE, warnings=("<script>alert(2)</script>",)), volumes)
    assert "<img src=x" not in html
    assert "<script>alert(2)" not in html
    assert HOSTILE in Page(html).text


def _slices(volumes: TemplateVolumes) -> dict[str, np.ndarray]:
    own = middle_slices(volumes.scan, 1.0)
    return {plane: np.stack([cut] * len(NEIGHBOURS)) for plane, cut in own.items()}


@pytest.mark.slow
def test_a_page_shows_the_most_similar_healthy_scans_and_what_similar_means(
    run: RunInfo, score: ScanScore, volumes: TemplateVolumes, tmp_path: Path
) -> None:
    known = replace(run, retrieval={"by": "cosine", "n_scans": 100, "held_out_nearest": [0.3, 0.5]})
    case = make_case(known, replace(score, neighbours=NEIGHBOURS), volumes, _slices(volumes))
    html = render_case(case, viewer_html(volumes, run.display, volumes.peak_mm))
    text = " ".join(Page(html).text.split())
    for words in ("The most similar healthy scans", "The most similar of the 100 healthy training scans",
                  "0 = as similar as two random",
                  "For 2 healthy scans held out from training", "0.30 to 0.50"):  # fmt: skip
        assert words in text
    assert (
        'this scan, healthy scan 17, 54 years with similarity 0.61, healthy scan 2 with similarity -0.04"' in html
    )
    assert len(html) < 2_500_000
    write_case_pdf(case, tmp_path / "with.pdf")
    write_case_pdf(replace(case, similar=b""), tmp_path / "without.pdf")
    assert (tmp_path / "with.pdf").stat().st_size > (tmp_path / "without.pdf").stat().st_size + 10_000


def test_the_page_explains_the_similarity_of_hashes(run: RunInfo) -> None:
    assert "0.5 = as similar as two" in explain_neighbours(replace(run, retrieval={"by": "hash", "n_scans": 3}))


def test_a_page_of_a_model_without_an_index_has_no_such_section(html: str) -> None:
    assert "similar healthy scans" not in html
