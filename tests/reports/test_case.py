from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from anomaly.core.results import ScanScore
from anomaly.reports.case import make_case, places, render_case
from anomaly.reports.run_folder import Run, ScanVolumes, read_run, read_score
from anomaly.reports.viewer import viewer_html
from tests.reports.factory import HOSTILE
from tests.reports.pages import Page, external_addresses


def _page(run: Run, score: ScanScore, volumes: ScanVolumes) -> str:
    return render_case(make_case(run, score, volumes), viewer_html(volumes, run.display, volumes.peak_mm))


@pytest.fixture(scope="module")
def html(run: Run, score: ScanScore, volumes: ScanVolumes) -> str:
    return _page(run, score, volumes)


def test_a_page_loads_nothing_from_outside(html: str) -> None:
    assert external_addresses(html) == []
    assert "default-src 'none'" in html


def test_a_page_stays_small(html: str) -> None:
    assert len(html) < 2_500_000


def test_a_page_says_verdict_numbers_regions_and_research_use_in_words(html: str, run: Run) -> None:
    text = " ".join(Page(html).text.split())
    for words in ("Research use only. Not a medical device.", "▲ Flagged", "0.016", "about 1.6 would look at least",
                  "darker than expected", "brighter than expected", "+30, +34, +12", "Flagged regions",
                  "3f9c2a7d41b0", "c0ffee01", "registration overlap", "top 1 percent declared"):  # fmt: skip
        assert words in text


def test_a_page_is_a_document_a_screen_reader_can_walk(html: str) -> None:
    page = Page(html)
    assert page.tags.count("h1") == 1
    assert 'lang="en"' in html
    assert not re.findall(r"<img(?![^>]*\balt=)", html)
    assert html.count("<th scope=") == len(re.findall(r"<th\b", html))


def test_the_same_scan_gives_the_same_page(html: str, run: Run, score: ScanScore, volumes: ScanVolumes) -> None:
    assert _page(run, score, volumes) == html


def test_a_scan_without_regions_shows_its_peak(run: Run, score: ScanScore, volumes: ScanVolumes) -> None:
    (title, point), *others = places(replace(score, regions=()), volumes)
    assert point == volumes.peak_mm
    assert title.startswith("Highest evidence")
    assert not others


def test_at_most_three_places_are_drawn_the_highest_peak_first(score: ScanScore, volumes: ScanVolumes) -> None:
    many = replace(score, regions=(*reversed(score.regions), *score.regions))
    assert [title[:9] for title, _ in places(many, volumes)] == ["Region 1:", "Region 1:", "Region 2:"]


def test_an_uncalibrated_page_never_says_flagged(uncalibrated_dir: Path, volumes: ScanVolumes) -> None:
    score = read_score(uncalibrated_dir / "sub-02_T1w" / "score.json")
    text = Page(_page(read_run(uncalibrated_dir), score, volumes)).text
    assert "flagged" not in text.lower()
    assert "Score only" in text


def test_a_hostile_scan_id_is_text_and_nothing_else(run: Run, score: ScanScore, volumes: ScanVolumes) -> None:
    html = _page(run, replace(score, scan_id=HOSTILE, warnings=("<script>alert(2)</script>",)), volumes)
    assert "<img src=x" not in html
    assert "<script>alert(2)" not in html
    assert HOSTILE in Page(html).text
