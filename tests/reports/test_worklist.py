from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

import pytest

from anomaly.core.results import ScanScore, ScanStatus
from anomaly.reports.worklist import Worklist, WorklistRow, make_worklist, render_worklist
from anomaly.runs.reader import RunInfo, read_run_info, read_scores
from tests.reports.factory import HOSTILE, scan_score
from tests.reports.pages import Page, external_addresses


def _worklist(folder: Path) -> Worklist:
    scores = read_scores(folder)
    rows = [WorklistRow(score, page=True) for score in scores if score.status == ScanStatus.SCORED]
    return make_worklist(read_run_info(folder), rows, [s for s in scores if s.status != ScanStatus.SCORED])


@pytest.fixture(scope="module")
def html(run_dir: Path) -> str:
    return render_worklist(_worklist(run_dir))


def test_the_most_unusual_scan_comes_first(run_dir: Path) -> None:
    rows = _worklist(run_dir).scored
    assert [row.score.p_value for row in rows] == sorted(row.score.p_value or 0 for row in rows)
    assert [row.score.scan_id for row in rows][:2] == ["sub-01_T1w", "sub-02_T1w"]  # equal p-values: by score


def test_refused_and_failed_scans_are_listed_with_reason_and_remedy(html: str) -> None:
    text = Page(html).text
    for words in (
        "found 41 mm of head",
        "export the whole head",
        "registration did not converge",
        "use a model for CT",
    ):
        assert words in text


def test_the_worklist_loads_nothing_from_outside_but_its_own_pages(html: str) -> None:
    assert external_addresses(html) == []
    links = [unquote(link) for link in Page(html).links if link.endswith("report.html")]
    assert f"{HOSTILE}/report.html" in links


def test_a_hostile_scan_id_is_escaped(html: str) -> None:
    assert "<img src=x" not in html
    assert HOSTILE in Page(html).text


def test_an_uncalibrated_worklist_never_says_flagged_and_says_why(uncalibrated_dir: Path) -> None:
    html = render_worklist(_worklist(uncalibrated_dir))
    assert "flagged" not in html.lower()
    assert "Scores only, no flags." in html


def test_results_are_written_as_words_and_not_as_colours_alone(html: str) -> None:
    text = " ".join(Page(html).text.split())
    assert "▲ Flagged" in text
    assert "○ Not flagged" in text


def test_the_target_rate_is_shown_with_the_share_of_flags(html: str) -> None:
    text = " ".join(Page(html).text.split())
    assert "target false-positive rate 5 %" in text
    assert "3 of 5 scans are flagged (60 %)" in text


def test_a_page_that_could_not_be_made_is_named(run: RunInfo) -> None:
    row = WorklistRow(scan_score("sub-07_T1w", 2.0), problem="ValueError: no mask")
    html = render_worklist(make_worklist(run, [row], []))
    assert "page not made: ValueError: no mask" in html
    assert "sub-07_T1w/report.html" not in html


def test_an_empty_run_has_a_worklist_too(run: RunInfo) -> None:
    assert "0 scored scans" in render_worklist(make_worklist(run, [], []))


def test_five_hundred_scans_fit_in_a_small_page(run: RunInfo) -> None:
    rows = [
        WorklistRow(scan_score(f"sub-{i:03d}_T1w", 1 + i / 100), "data:," + "x" * 4000, True) for i in range(500)
    ]
    assert len(render_worklist(make_worklist(run, rows, []))) < 3_000_000


def test_the_warnings_of_scored_and_refused_scans_are_written_out(run: RunInfo) -> None:
    scored = scan_score("sub-01_T1w", 5.0)
    refused = ScanScore("sub-02_T1w", ScanStatus.REFUSED, reason="found 9 ml", warnings=("27 different values",))
    text = Page(render_worklist(make_worklist(run, [WorklistRow(scored)], [refused]))).text
    assert f"⚠ {scored.warnings[0]}" in text
    assert "⚠ 27 different values" in text
