"""The page of one scan: result, p-value, regions, figures, interactive viewer and provenance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from anomaly.core.results import ScanScore
from anomaly.core.scan_result import TemplateVolumes
from anomaly.reports import figures, pages, wording
from anomaly.reports.panels import Array
from anomaly.runs.reader import RunInfo

MAX_LOCATIONS = 3  # locations with a figure of their own

Rows = list[tuple[str, str]]


@dataclass(frozen=True)
class LocationFigure:
    """A location in the brain and its figure."""

    title: str
    png: bytes


@dataclass(frozen=True)
class Case:
    """The content of the page of one scan, for HTML and PDF alike.

    ``similar`` is empty if the model has no index of healthy scans.
    """

    run: RunInfo
    score: ScanScore
    flag_status: wording.FlagStatus
    meaning: str
    compared_with: str
    locations: tuple[LocationFigure, ...]
    overview: bytes
    distribution: bytes
    thumbnail: bytes
    similar: bytes
    scores: tuple[tuple[str, float, float | None, float | None, bool], ...]
    numbers: Rows
    provenance: Rows

    @property
    def regions_title(self) -> str:
        """Return the heading of the regions; they are called flagged only if the scan is."""
        return "Flagged regions" if self.score.flagged else "Regions above the voxel threshold"


def make_case(
    run: RunInfo, score: ScanScore, volumes: TemplateVolumes, neighbours: Mapping[str, Array] | None = None
) -> Case:
    """Draw the figures of one scan and collect its numbers.

    ``neighbours`` are the slices of similar healthy scans that :func:`anomaly.runs.reader.read_neighbours` returns.
    """
    marked = volumes.marked(score.regions, run.display.voxel_threshold)
    found = select_locations(score, volumes)
    marks = ((score.score, score.flagged),) if score.score is not None else ()
    return Case(
        run=run,
        score=score,
        flag_status=wording.flag_status(score),
        meaning=wording.explain_score(score, run),
        compared_with=wording.compared_with(score, run),
        locations=tuple(
            LocationFigure(title, figures.location_figure(volumes, run.display, point, marked))
            for title, point in found
        ),
        overview=figures.mosaic(volumes, run.display, marked),
        distribution=figures.score_distribution(run.reference, run.threshold, marks, run.score_name),
        thumbnail=figures.thumbnail(volumes, run.display, found[0][1]),
        similar=figures.similar_figure(volumes, run.display, marked, wording.neighbour_titles(score), neighbours)
        if neighbours
        else b"",
        scores=_all_scores(score, run.score_name),
        numbers=[(name.replace("_", " "), wording.number(value)) for name, value in score.numbers.items()],
        provenance=_provenance(score),
    )


def select_locations(score: ScanScore, volumes: TemplateVolumes) -> list[tuple[str, tuple[float, float, float]]]:
    """Return titles and MNI positions of the regions with the highest peaks, or of the highest evidence if none."""
    ordered = sorted(score.regions, key=lambda region: -region.peak)[:MAX_LOCATIONS]
    if not ordered:
        return [(f"Highest evidence at MNI {wording.millimetres(volumes.peak_mm)} mm", volumes.peak_mm)]
    return [
        (f"Region {r.label}: {wording.describe_position(r)}, MNI {wording.millimetres(r.mni_mm)} mm", r.mni_mm)
        for r in ordered
    ]


def render_case(case: Case, viewer: tuple[str, int]) -> str:
    """Render the page of one scan as HTML.

    Parameters
    ----------
    case
        The content of the page.
    viewer
        HTML document of the interactive viewer, and its height in pixels.
    """
    return pages.render("case.html.j2", case=case, score=case.score, run=case.run,
                        viewer_document=viewer[0], viewer_height=viewer[1],
                        model=model_rows(case.run), calibration=calibration_rows(case.run),
                        software=software_rows(case.run))  # fmt: skip


def model_rows(run: RunInfo) -> Rows:
    """Return the provenance of the model."""
    return wording.flatten(run.model)


def calibration_rows(run: RunInfo) -> Rows:
    """Return the provenance of the calibration, or a single row if there is none."""
    values = {k: v for k, v in (run.calibration or {}).items() if not isinstance(v, list | dict)}
    return wording.flatten(values) if values else [("calibration", "none: scores only")]


def software_rows(run: RunInfo) -> Rows:
    """Return the provenance of the run: date, command and software versions."""
    values: dict[str, Any] = {"scored": run.created_at, "command": run.command, "version": run.version}
    return wording.flatten(values | {"software": run.software})


def _provenance(score: ScanScore) -> Rows:
    values = {
        "source": score.source,
        "content hash (SHA-256)": score.content_hash,
        "model": score.model_id,
        "calibration": score.calibration_id,
        "map in the scan's space": score.map_path,
        "mask in the scan's space": score.mask_path,
    }
    return wording.flatten({k: v for k, v in values.items() if v} | score.provenance)


def _all_scores(score: ScanScore, declared: str) -> tuple[tuple[str, float, float | None, float | None, bool], ...]:
    return tuple(
        (name.replace("_", " "), value, score.p_values.get(name), score.percentiles.get(name), name == declared)
        for name, value in score.scores.items()
    )
