"""The worklist: all scans of a run on one page, sorted by p-value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from anomaly.core.results import ScanScore, ScanStatus
from anomaly.reports import case, figures, pages, wording
from anomaly.runs.reader import RunInfo


@dataclass(frozen=True)
class WorklistRow:
    """One scan of the worklist.

    Parameters
    ----------
    score
        The result of the scan.
    thumbnail
        Axial slice through the highest evidence, as a data URI; ``""`` without a page.
    page
        Whether the scan has a page of its own.
    problem
        The error, if the page could not be made.
    """

    score: ScanScore
    thumbnail: str = ""
    page: bool = False
    problem: str = ""

    @property
    def flag_status(self) -> wording.FlagStatus:
        """Return whether the scan is flagged, as symbol and words."""
        return wording.flag_status(self.score)

    @property
    def link(self) -> str:
        """Return the relative address of the scan's page, safe for any scan id."""
        return f"{quote(self.score.scan_id, safe='')}/report.html"

    @property
    def region_ml(self) -> float:
        """Return the total volume of its regions in millilitres."""
        return sum(region.volume_ml for region in self.score.regions)

    @property
    def search(self) -> str:
        """Return the text that the search field is matched against, in lower case."""
        return " ".join((self.score.scan_id, self.score.subject, self.score.session, self.score.modality)).lower()


@dataclass(frozen=True)
class Worklist:
    """The content of the worklist, for HTML and PDF alike."""

    run: RunInfo
    scored: tuple[WorklistRow, ...]
    unscored: tuple[ScanScore, ...]
    counts: tuple[tuple[str, str], ...]
    share: str
    distribution: bytes

    @property
    def calibrated(self) -> bool:
        """Whether the model had a calibration, so that scans could be flagged."""
        return self.run.calibration is not None

    @property
    def modalities(self) -> list[str]:
        """Return the modalities of the scored scans."""
        return sorted({row.score.modality for row in self.scored if row.score.modality})


def make_worklist(run: RunInfo, rows: Sequence[WorklistRow], unscored: Sequence[ScanScore]) -> Worklist:
    """Sort the scans by p-value, then by score, and draw their distribution."""
    scored = tuple(sorted(rows, key=_sort_key))
    marks = [(row.score.score, row.score.flagged) for row in scored if row.score.score is not None]
    return Worklist(
        run=run,
        scored=scored,
        unscored=tuple(sorted(unscored, key=lambda score: (score.status, score.scan_id))),
        counts=_counts(run, scored, unscored),
        share=wording.summarise_flags([row.score for row in scored], run),
        distribution=figures.score_distribution(
            run.reference, run.threshold, marks, run.score_name, (1120, 210 if run.reference else 90)
        ),
    )


def render_worklist(worklist: Worklist) -> str:
    """Render the worklist as HTML."""
    return pages.render(
        "worklist.html.j2",
        worklist=worklist,
        run=worklist.run,
        model=case.model_rows(worklist.run),
        calibration=case.calibration_rows(worklist.run),
        software=case.software_rows(worklist.run),
    )


def _sort_key(row: WorklistRow) -> tuple[float, float, str]:
    p = 2.0 if row.score.p_value is None else row.score.p_value
    return p, -(row.score.score or 0.0), row.score.scan_id


def _counts(
    run: RunInfo, rows: Sequence[WorklistRow], unscored: Sequence[ScanScore]
) -> tuple[tuple[str, str], ...]:
    by_status = {status: sum(score.status == status for score in unscored) for status in ScanStatus}
    counts = [("scans", len(rows) + len(unscored)), ("scored", len(rows))]
    if run.calibration is not None:
        counts.append(("flagged", sum(bool(row.score.flagged) for row in rows)))
    warned = sum(bool(row.score.warnings) for row in rows)
    counts += [("with warnings", warned)] if warned else []
    counts += [("refused", by_status[ScanStatus.REFUSED]), ("failed", by_status[ScanStatus.FAILED])]
    others = len(unscored) - by_status[ScanStatus.REFUSED] - by_status[ScanStatus.FAILED]
    counts += [("duplicate or waiting", others)] if others else []
    return tuple((name, str(count)) for name, count in counts)
