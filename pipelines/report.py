"""Write the pages of a run: the worklist and one page per scored scan. They need neither the model nor internet."""

from __future__ import annotations

import logging
from collections.abc import Collection, Generator, Iterable, Iterator
from concurrent.futures import Future, as_completed
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from anomaly.core.audit_log import disagreements, hash_files, read_audit_log, read_list
from anomaly.core.errors import InputError, OutputError, unknown_name
from anomaly.core.files import (
    atomic_path,
    read_json_if_whole,
    sha256_of_file,
    sha256_of_json,
    write_json,
    write_text,
)
from anomaly.core.processes import worker_pool
from anomaly.core.progress import Progress, no_progress
from anomaly.core.results import ScanScore, ScanStatus
from anomaly.reports.software import drawing_software
from anomaly.runs.layout import PAGE_FILES, score_path, volumes_path
from anomaly.runs.reader import RunInfo, read_neighbours, read_run_info, read_score, read_scores, read_volumes
from anomaly.runs.seal import write_hashes
from pipelines.common import audit, cores

log = logging.getLogger(__name__)
PAGE_RECORD = "report.json"
PAGES_PER_PROCESS = 40  # then a new process, because libraries do not release all memory
MIN_PAGES_PER_PROCESS = 8  # the imports of a process take as long as about four pages


@dataclass(frozen=True)
class PageResult:
    """The result of making the page of one scan; stored next to the page, so that the worklist reads no volumes.

    Parameters
    ----------
    thumbnail
        Small image for the worklist, as a data URI; ``""`` without a page.
    problem
        The error, if the page could not be made.
    made
        Whether this call made the page; one that was up to date was not made again.
    """

    scan_id: str
    thumbnail: str = ""
    problem: str = ""
    made: bool = False


def report(
    run_dir: Path,
    pdf: bool = False,
    cases: Literal["all", "flagged"] = "all",
    jobs: int = 0,
    progress: Progress = no_progress,
) -> Path:
    """Write the worklist of a run and a page for each of its scored scans.

    Parameters
    ----------
    run_dir
        A folder that ``anomaly score`` wrote.
    pdf
        Also write ``index.pdf`` and a ``report.pdf`` per page.
    cases
        ``"all"`` scored scans get a page, or only the ``"flagged"`` ones.
    jobs
        Processes that draw pages; 0 = one per core.
    progress
        Called with the pages done, their total number, and the scan.

    Returns
    -------
    Path
        The worklist, ``index.html``.

    Raises
    ------
    InputError
        If the folder holds no run, or ``cases`` is unknown.
    OutputError
        If the run folder cannot be written.
    """
    if cases not in ("all", "flagged"):
        raise InputError(unknown_name("cases", cases, ["all", "flagged"]))
    run, scores = read_run_info(run_dir), read_scores(run_dir)
    scored = [score for score in scores if score.status == ScanStatus.SCORED]
    not_scored = [score for score in scores if score.status != ScanStatus.SCORED]
    scan_ids = [score.scan_id for score in scored if cases == "all" or score.flagged]
    _remove_altered(run_dir, scan_ids)
    pages: dict[str, PageResult] = {}
    with closing(_make_pages(run_dir, scan_ids, pdf, _n_processes(jobs, len(scan_ids)))) as made:
        for page in made:  # an interrupt ends the processes that draw
            pages[page.scan_id] = page
            progress(len(pages), len(scan_ids), f"drew {page.scan_id}")
    index = _write_worklist(run, scored, not_scored, pages, pdf)
    _seal(run_dir, pages.values())
    return index


def _remove_altered(run_dir: Path, scan_ids: Collection[str]) -> None:
    """Remove pages that are not as they were written, so that they are made again."""
    if read_audit_log(run_dir).sealed.get(PAGE_FILES) != hash_files(run_dir, [run_dir / PAGE_FILES]).get(
        PAGE_FILES
    ):
        for path in (run_dir / PAGE_FILES, *run_dir.glob("*/report.*")):  # the call that wrote them did not finish
            path.unlink(missing_ok=True)
    sealed = read_list(run_dir, PAGE_FILES)
    pages = {path.relative_to(run_dir).as_posix() for name in scan_ids for path in _page_files(run_dir, name)}
    for altered in disagreements(run_dir, {name: sealed[name] for name in pages & set(sealed)}):
        (run_dir / altered.file).unlink(missing_ok=True)


def _seal(run_dir: Path, pages: Collection[PageResult]) -> None:
    """Note the hashes of the pages in the audit log of the run."""
    made = hash_files(run_dir, (path for page in pages if page.made for path in _page_files(run_dir, page.scan_id)))
    write_hashes(run_dir, PAGE_FILES, made, [path for page in pages for path in _page_files(run_dir, page.scan_id)])
    files = [run_dir / name for name in ("index.html", "index.pdf", PAGE_FILES)]
    audit(run_dir, "report", files=files, lists=[PAGE_FILES])


def _page_files(run_dir: Path, scan_id: str) -> list[Path]:
    return [run_dir / scan_id / name for name in ("report.html", "report.pdf", PAGE_RECORD)]


def make_page(run_dir: Path, scan_id: str, pdf: bool = False) -> PageResult:
    """Make the page of one scan unless it is up to date; an error is returned and not raised.

    Raises
    ------
    OutputError
        The page cannot be written: no other could.
    """
    try:
        run, path = read_run_info(run_dir), run_dir / scan_id / PAGE_RECORD
        fingerprint = _fingerprint(run, scan_id)
        if (thumbnail := _thumbnail_if_up_to_date(path, fingerprint, pdf)) is not None:
            return PageResult(scan_id, thumbnail)
        thumbnail = _write_page(run, scan_id, pdf)
        warnings = list(read_score(score_path(run_dir, scan_id)).warnings)
        record = {"notices": run.notices, "warnings": warnings, "thumbnail": thumbnail}
        write_json(path, {"fingerprint": fingerprint, **record})
        return PageResult(scan_id, thumbnail, made=True)
    except OutputError:
        raise
    except Exception as error:
        log.warning("no page for %s: %s", scan_id, error, exc_info=True)
        return PageResult(scan_id, problem=f"{type(error).__name__}: {error}")


def _n_processes(jobs: int, n_pages: int) -> int:
    return jobs or min(cores(), max(1, n_pages // MIN_PAGES_PER_PROCESS))


def _make_pages(run_dir: Path, scan_ids: list[str], pdf: bool, jobs: int) -> Generator[PageResult, None, None]:
    if jobs <= 1 or len(scan_ids) <= 1:
        yield from (make_page(run_dir, scan_id, pdf) for scan_id in scan_ids)
        return
    with worker_pool(min(jobs, len(scan_ids)), max_tasks_per_child=PAGES_PER_PROCESS) as pool:
        waiting = {pool.submit(make_page, run_dir, scan_id, pdf): scan_id for scan_id in scan_ids}
        yield from _results(as_completed(waiting), waiting)


def _results(done: Iterable[Future[PageResult]], scan_ids: dict[Future[PageResult], str]) -> Iterator[PageResult]:
    for future in done:
        error = future.exception()
        if error is None:
            yield future.result()
        elif isinstance(error, OutputError):
            raise error
        else:  # the process itself died, for example because memory ran out
            yield PageResult(scan_ids[future], problem=f"{type(error).__name__}: {error}")


def _write_page(run: RunInfo, scan_id: str, pdf: bool) -> str:
    from anomaly.reports.case import make_case, render_case, select_locations
    from anomaly.reports.figures import data_uri
    from anomaly.reports.viewer import viewer_html

    folder = run.folder / scan_id
    score, volumes = read_score(score_path(run.folder, scan_id)), read_volumes(run.folder, scan_id)
    case = make_case(run, score, volumes, read_neighbours(run.folder, scan_id))
    viewer = viewer_html(volumes, run.display, select_locations(score, volumes)[0][1])
    write_text(folder / "report.html", render_case(case, viewer))
    if pdf:
        from anomaly.reports.pdf import write_case_pdf

        with atomic_path(folder / "report.pdf") as temporary:
            write_case_pdf(case, temporary)
    return data_uri(case.thumbnail)


def _write_worklist(
    run: RunInfo, scored: list[ScanScore], not_scored: list[ScanScore], pages: dict[str, PageResult], pdf: bool
) -> Path:
    from anomaly.reports.worklist import WorklistRow, make_worklist, render_worklist

    rows = [
        WorklistRow(score, page.thumbnail, bool(page.thumbnail), page.problem)
        for score in scored
        for page in [pages.get(score.scan_id, PageResult(score.scan_id))]
    ]
    worklist = make_worklist(run, rows, not_scored)
    index = run.folder / "index.html"
    write_text(index, render_worklist(worklist))
    if pdf:
        from anomaly.reports.pdf import write_worklist_pdf

        with atomic_path(index.with_suffix(".pdf")) as temporary:
            write_worklist_pdf(worklist, temporary)
    return index


def _fingerprint(run: RunInfo, scan_id: str) -> str:
    files = (score_path(run.folder, scan_id), volumes_path(run.folder, scan_id))
    return sha256_of_json([drawing_software(), run.fingerprint, *(sha256_of_file(path) for path in files)])


def _thumbnail_if_up_to_date(record: Path, fingerprint: str, pdf: bool) -> str | None:
    """Return the thumbnail of a page that need not be made again; None if it must be."""
    files = [record.with_name("report.html"), *([record.with_name("report.pdf")] if pdf else [])]
    found = read_json_if_whole(record)
    if not found or found.get("fingerprint") != fingerprint or not all(path.is_file() for path in files):
        return None
    return str(found["thumbnail"])
