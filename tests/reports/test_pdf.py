from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from anomaly.core.results import ScanScore
from anomaly.core.scan_result import TemplateVolumes
from anomaly.reports.case import make_case
from anomaly.reports.pdf import write_case_pdf, write_worklist_pdf
from anomaly.reports.worklist import WorklistRow, make_worklist
from anomaly.runs.reader import RunInfo, read_run_info
from tests.reports.factory import HOSTILE, scan_score


@pytest.mark.slow
def test_a_case_is_a_pdf_and_the_same_bytes_twice(
    run: RunInfo, score: ScanScore, volumes: TemplateVolumes, tmp_path: Path
) -> None:
    case = make_case(run, score, volumes)
    first, second = tmp_path / "a.pdf", tmp_path / "b.pdf"
    write_case_pdf(case, first)
    write_case_pdf(case, second)
    assert first.read_bytes()[:5] == b"%PDF-"
    assert first.read_bytes() == second.read_bytes()
    assert first.stat().st_size < 5_000_000


@pytest.mark.slow
def test_a_worklist_is_a_pdf_whatever_its_scans_are_called(run: RunInfo, tmp_path: Path) -> None:
    rows = [WorklistRow(scan_score(HOSTILE, 3.0)), *(WorklistRow(scan_score(f"s{i}", 2.0)) for i in range(60))]
    path = tmp_path / "index.pdf"
    write_worklist_pdf(make_worklist(run, rows, [scan_score("<b>", 1.0)]), path)
    assert path.read_bytes()[:5] == b"%PDF-"


def test_an_uncalibrated_worklist_is_a_pdf_too(uncalibrated_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "index.pdf"
    write_worklist_pdf(make_worklist(read_run_info(uncalibrated_dir), [], []), path)
    assert path.stat().st_size > 1000


def test_the_warnings_of_a_scan_are_in_its_row_of_the_worklist(run: RunInfo, tmp_path: Path) -> None:
    with_warning, without = scan_score("s1", 5.0), scan_score("s1", 2.0)
    sizes = []
    for score in (with_warning, replace(with_warning, warnings=without.warnings)):
        write_worklist_pdf(make_worklist(run, [WorklistRow(score)], []), tmp_path / "index.pdf")
        sizes.append((tmp_path / "index.pdf").stat().st_size)
    assert sizes[0] > sizes[1]


@pytest.mark.slow
def test_the_notices_of_a_run_are_in_its_pdfs(
    run: RunInfo, score: ScanScore, volumes: TemplateVolumes, tmp_path: Path
) -> None:
    noticed, sizes = replace(run, notices=["The target FPR holds for one scanner only."]), []
    for number, of_run in enumerate((run, noticed)):
        write_worklist_pdf(make_worklist(of_run, [], []), tmp_path / f"{number}.pdf")
        write_case_pdf(make_case(of_run, score, volumes), tmp_path / f"case{number}.pdf")
        sizes.append([(tmp_path / f"{name}{number}.pdf").stat().st_size for name in ("", "case")])
    assert sizes[1][0] > sizes[0][0]
    assert sizes[1][1] > sizes[0][1]
