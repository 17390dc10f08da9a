from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from anomaly.core.errors import InputError, OutputError
from anomaly.core.files import read_json, write_json
from anomaly.runs.layout import volumes_path
from pipelines.report import make_page, report
from tests.reports.factory import HOSTILE, write_run
from tests.reports.pages import Page

SCORED = ("sub-01_T1w", "sub-02_T1w", HOSTILE, "sub-10_T1w")


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", healthy=1)


@pytest.mark.slow
def test_every_scored_scan_gets_a_page_and_the_others_a_row(run_dir: Path) -> None:
    seen: list[tuple[int, int]] = []
    index = report(run_dir, progress=lambda done, total, _: seen.append((done, total)))
    assert index == run_dir / "index.html"
    assert all((run_dir / scan_id / "report.html").is_file() for scan_id in SCORED)
    assert not (run_dir / "sub-91_T1w" / "report.html").exists()
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert index.read_text(encoding="utf-8").count('<img src="data:image/png;base64,') == 4 + 1


@pytest.mark.slow
def test_the_warnings_of_a_scan_are_on_its_page_and_in_its_record(run_dir: Path) -> None:
    assert make_page(run_dir, "sub-01_T1w").problem == ""
    (warning,) = read_json(run_dir / "sub-01_T1w" / "report.json")["warnings"]
    assert warning.startswith("contrast-to-noise 1.2")
    assert warning in Page((run_dir / "sub-01_T1w" / "report.html").read_text(encoding="utf-8")).text


@pytest.mark.slow
def test_pages_that_are_up_to_date_are_not_made_again(run_dir: Path) -> None:
    first = report(run_dir).read_bytes()
    pages = [run_dir / scan_id / "report.html" for scan_id in SCORED]
    before = [page.stat().st_mtime_ns for page in pages]
    os.truncate(volumes_path(run_dir, "sub-10_T1w"), 200)
    pages[1].unlink()
    index = report(run_dir)
    after = [page.stat().st_mtime_ns for page in pages]
    assert [new == old for new, old in zip(after, before, strict=True)] == [True, False, True, True]
    assert "page not made" in index.read_text(encoding="utf-8")
    assert b"page not made" not in first


@pytest.mark.slow
def test_a_page_is_made_again_if_the_software_changed_or_its_record_is_damaged(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, record = (run_dir / "sub-01_T1w" / name for name in ("report.html", "report.json"))

    def is_made_again() -> bool:
        before = page.stat().st_mtime_ns
        assert make_page(run_dir, "sub-01_T1w").problem == ""
        return page.stat().st_mtime_ns != before

    make_page(run_dir, "sub-01_T1w")
    assert not is_made_again()
    for content in ("", "{", "null", "{}"):
        record.write_text(content)
        assert is_made_again()
    assert not is_made_again()
    monkeypatch.setattr("pipelines.report.drawing_software", lambda: {"anomaly": "99.0"})
    assert is_made_again()


@pytest.mark.slow
def test_a_page_that_cannot_be_written_stops_the_report(run_dir: Path) -> None:
    (run_dir / "sub-01_T1w" / "report.html").mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*report.html"):
        report(run_dir, cases="flagged")


@pytest.mark.slow
def test_one_page_that_fails_does_not_stop_the_others(run_dir: Path) -> None:
    volumes_path(run_dir, "sub-02_T1w").write_bytes(b"not an archive")
    text = Page(report(run_dir).read_text(encoding="utf-8")).text
    assert "page not made" in text
    assert (run_dir / "sub-01_T1w" / "report.html").is_file()
    assert not (run_dir / "sub-02_T1w" / "report.html").exists()


@pytest.mark.slow
def test_only_flagged_scans_get_a_page_if_asked_for(run_dir: Path) -> None:
    report(run_dir, cases="flagged")
    assert (run_dir / "sub-01_T1w" / "report.html").is_file()
    assert not (run_dir / "sub-10_T1w" / "report.html").exists()


@pytest.mark.slow
def test_a_pdf_is_added_to_a_page_that_was_made_without_one(run_dir: Path) -> None:
    report(run_dir, cases="flagged")
    report(run_dir, pdf=True, cases="flagged")
    assert (run_dir / "index.pdf").read_bytes()[:5] == b"%PDF-"
    assert (run_dir / "sub-01_T1w" / "report.pdf").read_bytes()[:5] == b"%PDF-"


@pytest.mark.slow
def test_several_processes_make_the_same_pages_as_one(run_dir: Path) -> None:
    report(run_dir, cases="flagged", jobs=2)
    page = run_dir / "sub-02_T1w" / "report.html"
    several = page.read_bytes()
    page.unlink()
    assert make_page(run_dir, "sub-02_T1w").problem == ""
    assert page.read_bytes() == several


def test_wrong_arguments_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="valid: all, flagged"):
        report(tmp_path, cases="some")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no run at"):
        report(tmp_path)


@pytest.mark.slow
def test_importing_the_pipeline_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'matplotlib', 'nilearn', 'pandas'}"
    code = f"import sys, pipelines.report; print(*sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.slow
def test_the_notices_of_a_run_are_on_every_page_and_in_its_records(run_dir: Path) -> None:
    notice = "The target holds for one scanner only. Use `anomaly calibrate`."
    write_json(run_dir / "run.json", read_json(run_dir / "run.json") | {"notices": [notice]})
    index = report(run_dir, pdf=True, jobs=1)
    for page in (index, run_dir / "sub-01_T1w" / "report.html"):
        html = page.read_text(encoding="utf-8")
        assert notice.replace("`", "") in Page(html).text
        assert "<code>anomaly calibrate</code>" in html
    assert read_json(run_dir / "sub-01_T1w" / "report.json")["notices"] == [notice]
