"""Sentences and number formats of the pages, the same in HTML and PDF."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from anomaly.calibration.operating_point import beta_binomial_band
from anomaly.core.covariates import reported_age, years_text
from anomaly.core.results import Region, ScanScore
from anomaly.core.volume import Modality
from anomaly.runs.reader import RunInfo

_HOW_TO_READ = (
    "From left to right: the scan, the healthy brain that the model expects, and the evidence: how far they differ "
    "and, for models that measure it, how unlike healthy anatomy shape and structure are. All scans of this run "
    "share one colour scale. Colours are faint below the voxel threshold; a thin line outlines the regions of the "
    "table. R and L are the patient's right and left."
)
RESEARCH_USE = "Research use only. Not a medical device."
_POLARITY = {
    "dark": "darker than expected",
    "bright": "brighter than expected",
    "structure": "shape or structure",
    "either": "differs",
}
_POLARITY_CT = {**_POLARITY, "dark": "hypodense", "bright": "hyperdense"}
_MIDLINE_MM = 5.0
DATE_KEYS = ("created_at", "scored")


@dataclass(frozen=True)
class FlagStatus:
    """Whether a scan is flagged: a kind for the style sheet, a symbol and words."""

    kind: str  # "flag", "clear" or "uncalibrated"
    symbol: str
    words: str
    sentence: str


def flag_status(score: ScanScore) -> FlagStatus:
    """Return the flag status of a scan; it is unknown without a calibration."""
    if score.flagged is None:
        return FlagStatus(
            "uncalibrated", "◇", "Score only", "Without a calibration, the score has no p-value and no threshold."
        )
    if score.flagged:
        return FlagStatus(
            "flag", "▲", "Flagged", "The score is above the threshold for the target false-positive rate."
        )
    return FlagStatus(
        "clear",
        "○",
        "Not flagged",
        "The score is within the range of the healthy reference. This does not rule out disease.",
    )


def explain_score(score: ScanScore, run: RunInfo) -> str:
    """Explain the score of a scan in two sentences."""
    if score.p_value is None or run.calibration is None:
        return (
            f"The score is {number(score.score)}. The model is not calibrated on healthy scans, so the score only "
            "ranks the scans of this run. Calibrate the model and score again to obtain p-values."
        )
    first = _unusual(score.p_value, len(run.reference))
    if score.flagged:
        return f"{first} A flag is a request for review, not a diagnosis: {_expected_flags(run)}."
    return f"{first} It is not among the most unusual {percent(run.alpha or 0)}, which does not rule out disease."


def _unusual(p_value: float, n_healthy: int) -> str:
    """Explain a p-value; the smallest possible one is only an upper bound."""
    if p_value * (n_healthy + 1) < 1.5:
        return (
            f"None of the {n_healthy} healthy reference scans scores this high. On average at most "
            f"{percent(p_value)} of such healthy scans do; {n_healthy} scans cannot give a smaller p-value."
        )
    return (
        f"Of 100 healthy scans like the {n_healthy} of the reference, {_in_hundred(p_value)} would score at least "
        "this high."
    )


def _expected_flags(run: RunInfo) -> str:
    known = run.calibration or {}
    rate = f"{_in_hundred(known.get('expected_rate', run.alpha or 0))} of 100 healthy scans are flagged as well"
    if "interval_low" not in known:
        return rate
    return f"{rate} (95 % interval {percent(known['interval_low'])} to {percent(known['interval_high'])})"


def compared_with(score: ScanScore, run: RunInfo) -> str:
    """Say with which healthy subjects a scan was compared; ``""`` where that is not known."""
    group = score.compared_with
    if group is None:
        return _compared_with_all(run)
    if group.age is None:
        return (
            "The age of the subject is unknown: the scan was compared with healthy subjects of all ages "
            f"({group.ages_text})."
        )
    return f"Compared with healthy subjects of {years_text(group.age)}, {group.sex or 'male and female'}."


def _compared_with_all(run: RunInfo) -> str:
    trained_on = run.model.get("trained_on") or {}
    youngest, oldest = (reported_age(trained_on.get(key)) for key in ("age_min", "age_max"))
    if youngest is None or oldest is None:
        return ""
    return f"Compared with healthy subjects of all ages ({youngest:.0f} to {years_text(oldest)})."


def how_to_read(run: RunInfo) -> str:
    """Explain the figures, for CT with the densities that are drawn black and white."""
    display = run.display
    if display.hu_min is None or display.hu_max is None:
        return _HOW_TO_READ
    return f"{_HOW_TO_READ} Black is {number(display.hu_min)} HU and white is {number(display.hu_max)} HU."


def intensity_heading(score: ScanScore) -> str:
    """Return the heading of the column that :func:`describe_polarity` fills."""
    return "Density" if score.modality == Modality.CT else "Intensity"


def describe_polarity(region: Region, score: ScanScore) -> str:
    """Say whether a region is darker or brighter than expected, for CT in the words for density."""
    words = _POLARITY_CT if score.modality == Modality.CT else _POLARITY
    return words.get(region.polarity, region.polarity)


def describe_position(region: Region) -> str:
    """Describe the rough position of a region from its MNI coordinates: side, front to back, top to bottom.

    No lobe or structure is named, because an affine registration is not accurate enough.
    """
    x, y, z = region.mni_mm
    side = "midline" if abs(x) < _MIDLINE_MM else ("right" if x > 0 else "left")
    depth = "front" if y > 15 else ("back" if y < -45 else "middle")
    height = "upper" if z > 35 else ("lower" if z < -5 else "mid-height")
    return f"{side}, {depth}, {height}"


def explain_regions(run: RunInfo) -> str:
    """Explain the columns of the table of regions."""
    unit = " in healthy standard deviations" if run.in_healthy_sd else ""
    return (
        "Volume: voxels above the threshold. The evidence is smoothed, so a lesion may be several times smaller. "
        f"Peak and mean: evidence{unit}. Voxel: index in the scan as received, counted from 0. Position: from the "
        "template coordinates; no lobe is named, because the registration is not accurate enough."
    )


def neighbour_titles(score: ScanScore) -> list[str]:
    """Return the title of each similar healthy scan: number, age and similarity."""
    return [f"{n.label.capitalize()}\nsimilarity {n.similarity:.2f}".replace("-", "−") for n in score.neighbours]


def explain_neighbours(run: RunInfo) -> str:
    """Explain the similarity of a healthy scan."""
    known = run.retrieval
    chance = "0.5" if known.get("by") == "hash" else "0"
    found: list[float] = known.get("held_out_nearest", [])
    usual = (
        f" For {len(found)} healthy scans held out from training, the highest similarity was {min(found):.2f} to "
        f"{max(found):.2f}."
        if found
        else ""
    )
    return (
        f"The most similar of the {known.get('n_scans', '?')} healthy training scans. Compare each row from left "
        "to right; a thin line outlines the regions of the table. Similarity refers to the features of the model, "
        f"which may differ from what a reader sees: 1 = identical, {chance} = as similar as two random healthy "
        f"scans.{usual}"
    )


def summarise_flags(scores: list[ScanScore], run: RunInfo) -> str:
    """State how many scans are flagged, and how many are expected if all are healthy."""
    calibrated = [score for score in scores if score.flagged is not None]
    if not calibrated or run.alpha is None:
        return ""
    count, n = sum(bool(score.flagged) for score in calibrated), len(calibrated)
    band = beta_binomial_band(n, len(run.reference), run.alpha, confidence=0.95)
    low, high = int(band.low), int(band.high)
    observed = f"{count} of {n} scans are flagged ({percent(count / n)})."
    expected = f"If all are healthy, {percent(run.alpha)} are expected ({low} to {high} of {n} scans, 95 % band)"
    if count > high:
        end = "; there are more, so some scans may differ from the healthy reference, by disease or by scanner."
    elif count < low:
        end = "; there are fewer, so check that the healthy reference fits these scans."
    else:
        end = ", which agrees with the observation."
    return f"{observed} {expected}{end}"


def number(value: Any, digits: int = 3) -> str:
    """Format a number with a few significant digits; a missing value becomes a dash and text stays as it is."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or (float(value).is_integer() and abs(value) >= 100):
        return f"{int(value):,}".replace(",", " ")
    text = f"{value:.{digits}g}"
    return (f"{value:.0f}" if "e+" in text else text).replace("-", "−")


def p_value(value: float | None) -> str:
    """Format a p-value with three decimals."""
    if value is None:
        return "–"
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def percentile(value: float | None) -> str:
    """Format a percentile with at most one decimal."""
    return "–" if value is None else f"{value:.1f}".removesuffix(".0")


def percent(share: float) -> str:
    """Format a fraction between 0 and 1 as a percentage."""
    return f"{100 * share:.1f}".removesuffix(".0") + " %"


def millimetres(point: tuple[float, float, float]) -> str:
    """Format a position as whole millimetres with signs."""
    return ", ".join(f"{round(value):+d}".replace("-", "−") if round(value) else "0" for value in point)


def date_time(text: str) -> str:
    """Format an ISO date and time to the minute; other text stays as it is."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{found:%Y-%m-%d %H:%M}" + (f" {found.tzname()}" if found.tzinfo else "")


def flatten(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Flatten nested provenance to rows of name and text, in the given order."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{str(key).replace('_', ' ')}"
        if isinstance(value, dict):
            rows += flatten(value, f"{name} · ")
        elif isinstance(value, list | tuple):
            rows.append((name, ", ".join(number(item) for item in value) or "–"))
        else:
            rows.append((name, date_time(value) if str(key) in DATE_KEYS else number(value)))
    return rows


def _in_hundred(rate: float) -> str:
    hundred = 100 * rate
    if hundred < 1:
        return "fewer than 1"
    return f"about {hundred:.1f}".removesuffix(".0") if hundred < 10 else f"about {round(hundred)}"
