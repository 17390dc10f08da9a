"""``anomaly report``: a run folder becomes a worklist and one page per scan.

Pages that are up to date are left alone, so that a run that grew, or a report that was interrupted, only costs
what is new. A page that fails is named in the worklist; the others are made all the same.
"""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from anomaly.core.errors import InputError, unknown_name
from anomaly.core.files import atomic_path, read_json, sha256_of_file, sha256_of_json, write_json, write_text
from anomaly.core.progress import Progress, no_progress
from anomaly.core.results import ScanScore, ScanStatus
from anomaly.runs.layout import volumes_path
from anomaly.runs.reader import RunInfo, read_neighbours, read_run_info, read_score, read_scores, read_volumes
from pipelines.common import cores

_LOG = logging.getLogger(__name__)
_LAYOUT = 2  # raised when pages change, so that old ones are made again
_RECORD = "report.json"
_PAGES_PER_PROCESS = 40  # a fresh process then: what libraries keep does not pile up


@dataclass(frozen=True)
class PageMade:
    """What became of one scan's page; kept beside it, so that the worklist needs no volume."""

    scan_id: str
    thumbnail: str = ""
    problem: str = ""


def report(
    run_dir: Path,
    pdf: bool = False,
    cases: Literal["all", "flagged"] = "all",
    jobs: int = 0,
    progress: Progress = no_progress,
) -> Path:
    """Make the worklist of a run and a page for each of its scored scans.

    Parameters
    ----------
    run_dir
        A folder that ``anomaly score`` made.
    pdf
        Also write ``index.pdf`` and a ``report.pdf`` per page.
    cases
        ``"all"`` scored scans get a page, or only the ``"flagged"`` ones.
    jobs
        Processes that draw pages; 0 = one per core.
    progress
        Called with (pages done, pages in all, scan).

    Returns
    -------
    Path
        The worklist, ``index.html``.

    Raises
    ------
    InputError
        If the folder holds no run, or ``cases`` is not known.
    """
    if cases not in ("all", "flagged"):
        raise InputError(unknown_name("cases", cases, ["all", "flagged"]))
    run, scores = read_run_info(run_dir), read_scores(run_dir)
    scored = [score for score in scores if score.status == ScanStatus.SCORED]
    wanted = [score.scan_id for score in scored if cases == "all" or score.flagged]
    made: dict[str, PageMade] = {}
    for page in _make_pages(run_dir, wanted, pdf, _processes(jobs, len(wanted))):
        made[page.scan_id] = page
        progress(len(made), len(wanted), f"drew {page.scan_id}")
    unscored = [score for score in scores if score.status != ScanStatus.SCORED]
    return _write_worklist(run, scored, unscored, made, pdf)


def make_page(run_dir: Path, scan_id: str, pdf: bool = False) -> PageMade:
    """Make the page of one scan unless it is up to date; a failure is returned, not raised."""
    try:
        run, path = read_run_info(run_dir), run_dir / scan_id / _RECORD
        fingerprint = _fingerprint(run, scan_id)
        if _up_to_date(path, fingerprint, pdf):
            return PageMade(scan_id, read_json(path)["thumbnail"])
        thumbnail = _write_page(run, scan_id, pdf)
        write_json(path, {"fingerprint": fingerprint, "thumbnail": thumbnail})
        return PageMade(scan_id, thumbnail)
    except Exception as error:  # noqa: BLE001 (one scan's page must not stop the others; the worklist names it)
        _LOG.warning("no page for %s: %s", scan_id, error, exc_info=True)
        return PageMade(scan_id, problem=f"{type(error).__name__}: {error}")


def _processes(jobs: int, n_pages: int) -> int:
    """Return how many processes pay: each spends about as long on its imports as on four pages."""
    return jobs or min(cores(), max(1, n_pages // 8))


def _make_pages(run_dir: Path, scan_ids: list[str], pdf: bool, jobs: int) -> Iterator[PageMade]:
    if jobs <= 1 or len(scan_ids) <= 1:
        yield from (make_page(run_dir, scan_id, pdf) for scan_id in scan_ids)
        return
    spawn = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    with ProcessPoolExecutor(min(jobs, len(scan_ids)), spawn, max_tasks_per_child=_PAGES_PER_PROCESS) as pool:
        waiting = {pool.submit(make_page, run_dir, scan_id, pdf): scan_id for scan_id in scan_ids}
        yield from _collected(as_completed(waiting), waiting)


def _collected(done: Iterable[Future[PageMade]], names: dict[Future[PageMade], str]) -> Iterator[PageMade]:
    for future in done:
        error = future.exception()  # the process itself died, e.g. for want of memory
        yield (
            future.result()
            if error is None
            else PageMade(names[future], problem=f"{type(error).__name__}: {error}")
        )


def _write_page(run: RunInfo, scan_id: str, pdf: bool) -> str:
    from anomaly.reports.case import make_case, places, render_case
    from anomaly.reports.figures import data_uri
    from anomaly.reports.viewer import viewer_html

    folder = run.folder / scan_id
    score, volumes = read_score(folder / "score.json"), read_volumes(run.folder, scan_id)
    case = make_case(run, score, volumes, read_neighbours(run.folder, scan_id))
    viewer = viewer_html(volumes, run.display, places(score, volumes)[0][1])
    write_text(folder / "report.html", render_case(case, viewer))
    if pdf:
        from anomaly.reports.pdf import write_case_pdf

        with atomic_path(folder / "report.pdf") as temporary:
            write_case_pdf(case, temporary)
    return data_uri(case.thumbnail)


def _write_worklist(
    run: RunInfo, scored: list[ScanScore], unscored: list[ScanScore], made: dict[str, PageMade], pdf: bool
) -> Path:
    from anomaly.reports.worklist import WorklistRow, make_worklist, render_worklist

    rows = [
        WorklistRow(score, page.thumbnail, bool(page.thumbnail), page.problem)
        for score in scored
        for page in [made.get(score.scan_id, PageMade(score.scan_id))]
    ]
    worklist = make_worklist(run, rows, unscored)
    index = run.folder / "index.html"
    write_text(index, render_worklist(worklist))
    if pdf:
        from anomaly.reports.pdf import write_worklist_pdf

        with atomic_path(index.with_suffix(".pdf")) as temporary:
            write_worklist_pdf(worklist, temporary)
    return index


def _fingerprint(run: RunInfo, scan_id: str) -> str:
    files = (run.folder / scan_id / "score.json", volumes_path(run.folder, scan_id))
    return sha256_of_json([_LAYOUT, run.fingerprint, *(sha256_of_file(path) for path in files)])


def _up_to_date(record: Path, fingerprint: str, pdf: bool) -> bool:
    pages = [record.with_name("report.html"), *([record.with_name("report.pdf")] if pdf else [])]
    if not all(path.is_file() for path in (record, *pages)):
        return False
    return bool(read_json(record).get("fingerprint") == fingerprint)
