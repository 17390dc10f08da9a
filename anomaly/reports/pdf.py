"""The page of a scan and the worklist as PDF, with the same content as in HTML.

The same input gives the same bytes: the file holds no date of creation and no random identifier.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
from reportlab.lib.colors import HexColor
from reportlab.lib.enums import TA_RIGHT
from reportlab.lib.pagesizes import A4, landscape
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.lib.utils import ImageReader
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import (  # fmt: skip
    BaseDocTemplate,
    Flowable,
    Frame,
    Image,
    KeepTogether,
    PageTemplate,
    Paragraph,
    Spacer,
    Table,
    TableStyle,
)

from anomaly.core.results import ScanScore
from anomaly.reports import case as cases
from anomaly.reports import wording
from anomaly.reports.case import Case, Rows
from anomaly.reports.worklist import Worklist

FONT, BOLD = "DejaVuSans", "DejaVuSans-Bold"
_MUTED, _LINE, _INK = HexColor("#56606b"), HexColor("#c9cdd2"), HexColor("#1c2127")
STATUS_COLOURS = {
    "flag": (HexColor("#b23a0a"), HexColor("#fdf1ea")),
    "clear": (HexColor("#33566f"), HexColor("#eef4f8")),
    "uncalibrated": (HexColor("#4b4f57"), HexColor("#f1f1ef")),
}
_MARGIN = 15 * mm


def write_case_pdf(case: Case, path: Path) -> None:
    """Write the page of one scan as PDF."""
    width = A4[0] - 2 * _MARGIN
    story: list[Flowable] = [
        _text(case.score.scan_id, "title"),
        _text(" · ".join(filter(None, (case.score.modality, case.score.subject, case.score.session))), "quiet"),
        *_flag_status_box(case, width),
        _text("What the numbers mean", "heading"),
        _text(case.meaning),
        *(_text(notice, "warning") for notice in case.run.notices),
        *([_text(case.compared_with)] if case.compared_with else []),
        *(_text(f"Warning. {warning}", "warning") for warning in case.score.warnings),
        *([_image(case.distribution, 0.66 * width)] if case.run.reference else []),
        *_regions(case, width),
        KeepTogether([_text("Overview", "heading"), _image(case.overview, width)]),
    ]
    story += [KeepTogether([_text(s.title, "heading"), _image(s.png, 0.76 * width)]) for s in case.locations]
    story += [
        _text(wording.how_to_read(case.run), "quiet"),
        *_similar(case, width),
        _text("All scores", "heading"),
        _table(["Score", "Value", "p-value", "Percentile"], [_score_row(row) for row in case.scores],
               [0.4, 0.2, 0.2, 0.2], width),
        *_pairs("This scan", case.provenance, width),
        *_pairs("Preprocessing", case.numbers, width),
        *_provenance(case.run, width),
    ]  # fmt: skip
    _build(story, path, A4, f"{case.score.scan_id} · {case.flag_status.words}")


def write_worklist_pdf(worklist: Worklist, path: Path) -> None:
    """Write the worklist as PDF."""
    page = landscape(A4)
    width = page[0] - 2 * _MARGIN
    story: list[Flowable] = [_text("Worklist", "title")]
    if not worklist.calibrated:
        story.append(_text("◇ Scores only, no flags. This model has no calibration.", "warning"))
    story += [_text(notice, "warning") for notice in worklist.run.notices]
    story += [
        _text(" · ".join(f"{count} {name}" for name, count in worklist.counts)),
        *([_text(worklist.share)] if worklist.share else []),
        _image(worklist.distribution, 0.8 * width),
        _worklist_table(worklist, width),
    ]
    if worklist.unscored:
        rows = [
            [s.scan_id, s.status.value, _with_warnings(s.reason, s), s.remedy, s.source] for s in worklist.unscored
        ]
        story += [_text("Not scored", "heading"),
                  _table(["Scan", "Status", "Reason", "What to do", "Source"], rows,
                         [0.18, 0.09, 0.3, 0.23, 0.2], width, right=False)]  # fmt: skip
    story += _provenance(worklist.run, width)
    _build(story, path, page, "Worklist")


def _worklist_table(worklist: Worklist, width: float) -> Table:
    rows = [
        [
            f"{row.flag_status.symbol} {row.flag_status.words}",
            _with_warnings(row.score.scan_id, row.score),
            wording.p_value(row.score.p_value),
            wording.percentile(row.score.percentile),
            wording.number(row.score.score),
            str(len(row.score.regions)),
            wording.number(row.region_ml) if row.score.regions else "–",
        ]
        for row in worklist.scored
    ]
    header = ["Result", "Scan", "p-value", "Percentile", "Score", "Regions", "Regions, ml"]
    return _table(header, rows, [0.15, 0.37, 0.1, 0.1, 0.1, 0.09, 0.09], width, left=2)


def _with_warnings(text: str, score: ScanScore) -> str:
    """Return a cell of the worklist with the warnings of its scan."""
    return ". ".join((text, *(f"Warning: {warning}" for warning in score.warnings)))


def _flag_status_box(case: Case, width: float) -> list[Flowable]:
    ink, paper = STATUS_COLOURS[case.flag_status.kind]
    large = ParagraphStyle("large", _style("body"), fontName=BOLD, fontSize=15, leading=19, textColor=ink)
    numbers = (
        ("p-value", wording.p_value(case.score.p_value)),
        ("percentile", wording.percentile(case.score.percentile)),
        ("score", wording.number(case.score.score)),
        ("threshold", wording.number(case.run.threshold)),
    )
    words = escape(f"{case.flag_status.symbol} {case.flag_status.words}")
    cells = [[[Paragraph(words, large), _text(case.flag_status.sentence)],
              *([_text(name, "quiet"), _text(value, "figure")] for name, value in numbers)]]  # fmt: skip
    table = Table(cells, colWidths=[0.44 * width, *[0.14 * width] * 4])
    table.setStyle(
        TableStyle([
            ("BACKGROUND", (0, 0), (-1, -1), paper), ("LINEBEFORE", (0, 0), (0, 0), 4, ink),
            ("VALIGN", (0, 0), (-1, -1), "MIDDLE"), ("LEFTPADDING", (0, 0), (0, 0), 10),
            ("TOPPADDING", (0, 0), (-1, -1), 7), ("BOTTOMPADDING", (0, 0), (-1, -1), 7),
        ])
    )  # fmt: skip
    return [Spacer(1, 6), table]


def _regions(case: Case, width: float) -> list[Flowable]:
    heading = _text(case.regions_title, "heading")
    if not case.score.regions:
        return [heading, _text("No region exceeds the voxel threshold.")]
    rows = [
        [
            str(region.label),
            wording.describe_position(region),
            wording.describe_polarity(region, case.score),
            wording.number(region.volume_ml),
            wording.number(region.peak),
            wording.number(region.mean),
            wording.millimetres(region.mni_mm),
            ", ".join(map(str, region.voxel)),
        ]
        for region in case.score.regions
    ]
    heading_of_polarity = wording.intensity_heading(case.score)
    header = ["", "Approximate position", heading_of_polarity, "ml", "Peak", "Mean", "MNI mm", "Voxel"]
    shares = [0.05, 0.2, 0.2, 0.09, 0.08, 0.08, 0.15, 0.15]
    note = _text(wording.explain_regions(case.run), "quiet")
    return [heading, _table(header, rows, shares, width, left=3), note]


def _similar(case: Case, width: float) -> list[Flowable]:
    if not case.similar:
        return []
    heading = _text("The most similar healthy scans", "heading")
    return [
        KeepTogether([heading, _image(case.similar, width), _text(wording.explain_neighbours(case.run), "quiet")])
    ]


def _provenance(run: Any, width: float) -> list[Flowable]:
    return [
        *_pairs("Model", cases.model_rows(run), width),
        *_pairs("Calibration", cases.calibration_rows(run), width),
        *_pairs("Software", cases.software_rows(run), width),
    ]


def _score_row(row: tuple[str, float, float | None, float | None, bool]) -> list[str]:
    name, value, p, percentile, declared = row
    return [name + (" (declared)" if declared else ""), wording.number(value), wording.p_value(p),
            wording.percentile(percentile)]  # fmt: skip


def _pairs(title: str, rows: Rows, width: float) -> list[Flowable]:
    if not rows:
        return []
    cells = [[_text(name, "small"), _text(value, "small")] for name, value in rows]
    table = Table(cells, colWidths=[0.3 * width, 0.7 * width])
    table.setStyle(TableStyle([*_GRID, ("LEFTPADDING", (0, 0), (-1, -1), 0)]))
    return [_text(title, "heading"), table]


_GRID = [
    ("LINEBELOW", (0, 0), (-1, -1), 0.4, _LINE), ("VALIGN", (0, 0), (-1, -1), "MIDDLE"),
    ("TOPPADDING", (0, 0), (-1, -1), 2.5), ("BOTTOMPADDING", (0, 0), (-1, -1), 3),
]  # fmt: skip


def _table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    shares: Sequence[float],
    width: float,
    left: int = 1,
    right: bool = True,
) -> Table:
    """Return a table whose first ``left`` columns are left-aligned text; the others are right-aligned numbers."""
    kinds = ["cell" if column < left or not right else "number" for column in range(len(header))]
    cells = [[_text(name, f"head-{kind}") for name, kind in zip(header, kinds, strict=True)]]
    cells += [[_text(value, kind) for value, kind in zip(row, kinds, strict=True)] for row in rows]
    table = Table(cells, colWidths=[share * width for share in shares], repeatRows=1)
    table.setStyle(TableStyle(_GRID))
    return table


def _image(png: bytes, width: float) -> Image:
    stream = BytesIO(png)
    columns, rows = ImageReader(stream).getSize()
    stream.seek(0)
    return Image(stream, width=width, height=width * rows / columns)


def _text(text: str, style: str = "body") -> Paragraph:
    return Paragraph(escape(text), _style(style))


@lru_cache(maxsize=32)
def _style(name: str) -> ParagraphStyle:
    _register_fonts()
    body = ParagraphStyle("body", fontName=FONT, fontSize=9.5, leading=13.5, textColor=_INK, spaceAfter=3)
    small = partial(ParagraphStyle, parent=body, fontSize=7.5, leading=10, spaceAfter=0, splitLongWords=1)
    styles = {
        "body": body,
        "title": ParagraphStyle("title", body, fontName=BOLD, fontSize=17, leading=22),
        "heading": ParagraphStyle("heading", body, fontName=BOLD, fontSize=11, leading=15, spaceBefore=10,
                                  keepWithNext=1),
        "quiet": ParagraphStyle("quiet", body, fontSize=8, leading=11, textColor=_MUTED),
        "figure": ParagraphStyle("figure", body, fontName=BOLD, fontSize=13, leading=16),
        "warning": ParagraphStyle("warning", body, textColor=HexColor("#7a5200"), backColor=HexColor("#fff6dd"),
                                  borderPadding=4,
                                  spaceBefore=6, spaceAfter=8),
        "small": small("small"),
        "cell": small("cell"),
        "number": small("number", alignment=TA_RIGHT),
        "head-cell": small("head-cell", textColor=_MUTED),
        "head-number": small("head-number", textColor=_MUTED, alignment=TA_RIGHT),
    }  # fmt: skip
    return styles[name]


@lru_cache(maxsize=1)
def _register_fonts() -> None:
    folder = Path(mpl.get_data_path()) / "fonts" / "ttf"  # the standard PDF fonts lack −, ≥ and ▲
    for name in (FONT, BOLD):
        pdfmetrics.registerFont(TTFont(name, str(folder / f"{name}.ttf")))


def _build(story: list[Flowable], path: Path, page: tuple[float, float], title: str) -> None:
    _register_fonts()
    document = BaseDocTemplate(str(path), pagesize=page, leftMargin=_MARGIN, rightMargin=_MARGIN, topMargin=18 * mm,
                               bottomMargin=16 * mm, title=title, author="anomaly", invariant=1)  # fmt: skip
    frame = Frame(_MARGIN, 16 * mm, page[0] - 2 * _MARGIN, page[1] - 34 * mm, 0, 0, 0, 0)
    document.addPageTemplates(PageTemplate("page", [frame], onPage=partial(_margins, title=title)))
    document.build(story)


def _margins(canvas: Canvas, document: BaseDocTemplate, title: str) -> None:
    width, height = document.pagesize
    canvas.saveState()
    canvas.setFont(BOLD, 8.5)
    canvas.setFillColor(HexColor("#7a5200"))
    canvas.drawCentredString(width / 2, height - 11 * mm, wording.RESEARCH_USE)
    canvas.setFont(FONT, 7)
    canvas.setFillColor(_MUTED)
    canvas.drawString(_MARGIN, 9 * mm, title)
    canvas.drawRightString(width - _MARGIN, 9 * mm, f"page {document.page}")
    canvas.restoreState()
