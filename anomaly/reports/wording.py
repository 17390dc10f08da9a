"""What the pages say in words: the same words in HTML and PDF, and no more than the numbers allow."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from anomaly.calibration.operating_point import beta_binomial_band
from anomaly.core.results import Region, ScanScore
from anomaly.runs.reader import RunInfo

HOW_TO_READ = (
    "Compare from left to right: what the scan shows, what the model expects of a healthy brain, and how far apart "
    "they are. The colour scale is the same for every scan of this run; colours are faint below the voxel "
    "threshold, and a thin line surrounds the regions of the table. R and L are the patient's right and left."
)
RESEARCH_USE = "Research use only. Not a medical device."
POLARITY = {"dark": "darker than expected", "bright": "brighter than expected", "either": "differs"}
_MIDLINE_MM = 5.0
_MOMENTS = ("created_at", "scored")


@dataclass(frozen=True)
class Verdict:
    """The verdict on one scan: a kind for styling, a symbol and words for people."""

    kind: str  # "flag", "clear" or "uncalibrated"
    symbol: str
    words: str
    sentence: str


def verdict(score: ScanScore) -> Verdict:
    """Return the verdict; a scan without a calibration gets none."""
    if score.flagged is None:
        return Verdict("uncalibrated", "◇", "Score only", "No calibration: nothing says how unusual it is.")
    if score.flagged:
        return Verdict(
            "flag", "▲", "Flagged", "Looks less like the healthy reference than the promised rate allows."
        )
    return Verdict(
        "clear", "○", "Not flagged", "Within what the healthy reference shows. This does not rule out disease."
    )


def meaning(score: ScanScore, run: RunInfo) -> str:
    """Return the two sentences that say what the numbers of a scan mean."""
    if score.p_value is None or run.calibration is None:
        return (
            f"The score {number(score.score)} has no scale yet, because this model has not been calibrated on "
            "healthy scans: it can rank scans of this run against each other, no more. "
            "Calibrate the model and score again to learn how unusual it is."
        )
    first = _unusual(score.p_value, len(run.reference))
    if score.flagged:
        return f"{first} A flag asks for a look and is no diagnosis: {_flagged_too(run)}."
    return f"{first} It is not among the most unusual {percent(run.alpha or 0)}, which does not rule out disease."


def _unusual(p_value: float, n_healthy: int) -> str:
    """Return what a p-value says; the smallest there is says only that no healthy scan was like this."""
    if p_value * (n_healthy + 1) < 1.5:
        return (
            f"None of the {n_healthy} healthy scans in the reference looks this unusual: at most "
            f"{percent(p_value)} of such scans would, on average; how many fewer, {n_healthy} scans cannot tell."
        )
    return (
        f"Of 100 healthy scans like the {n_healthy} in the reference, {_in_hundred(p_value)} would look at least "
        "this unusual."
    )


def _flagged_too(run: RunInfo) -> str:
    known = run.calibration or {}
    rate = f"{_in_hundred(known.get('expected_rate', run.alpha or 0))} of 100 healthy scans are flagged too"
    if "interval_low" not in known:
        return rate
    return f"{rate} (95 % interval {percent(known['interval_low'])} to {percent(known['interval_high'])})"


def place(region: Region) -> str:
    """Return a rough position read off the MNI coordinates: side, front to back, top to bottom.

    No lobe or structure is named: an affine registration is not exact enough for that.
    """
    x, y, z = region.mni_mm
    side = "midline" if abs(x) < _MIDLINE_MM else ("right" if x > 0 else "left")
    depth = "front" if y > 15 else ("back" if y < -45 else "middle")
    height = "upper" if z > 35 else ("lower" if z < -5 else "mid-height")
    return f"{side}, {depth}, {height}"


def about_regions(run: RunInfo) -> str:
    """Return the sentences that say what the numbers of a region mean."""
    unit = " in healthy standard deviations" if run.in_healthy_sd else ""
    return (
        "Volume is that of the voxels above the threshold. Smoothing widens it: what is there may be several "
        f"times smaller. Peak and mean are evidence{unit}. Voxels count from 0 in the scan as received. Where is "
        "read off the template coordinates; no lobe is named, because the registration is not exact enough for "
        "that."
    )


def neighbour_titles(score: ScanScore) -> list[str]:
    """Return what stands above the pictures of each similar healthy scan: number, age and similarity."""
    return [f"{n.label.capitalize()}\nsimilarity {n.similarity:.2f}".replace("-", "−") for n in score.neighbours]


def about_neighbours(run: RunInfo) -> str:
    """Return the sentences that say what the similarity of a healthy scan means."""
    known = run.retrieval
    chance = "0.5" if known.get("by") == "hash" else "0"
    found: list[float] = known.get("held_out_nearest", [])
    usual = (
        f" {len(found)} healthy scans that the model had not learnt from had their most similar one at "
        f"{min(found):.2f} to {max(found):.2f}."
        if found
        else ""
    )
    return (
        f"Of the {known.get('n_scans', '?')} healthy scans the model learnt from, the ones it finds most like this "
        "scan. Compare each row from left to right; a thin line surrounds the regions of the table. Alike means "
        "alike in what the model notices, which need not be what a reader notices. Similarity: 1 = alike in all of "
        f"it, {chance} = no more alike than two healthy scans taken at random.{usual}"
    )


def flag_share(scores: list[ScanScore], run: RunInfo) -> str:
    """Return how many scans were flagged, beside what the promise lets expect of healthy ones."""
    judged = [score for score in scores if score.flagged is not None]
    if not judged or run.alpha is None:
        return ""
    count, n = sum(bool(score.flagged) for score in judged), len(judged)
    band = beta_binomial_band(n, len(run.reference), run.alpha, confidence=0.95)
    low, high = int(band.low), int(band.high)
    seen = f"{count} of {n} scans flagged ({percent(count / n)})."
    expected = f"If all were healthy, {percent(run.alpha)} would be expected ({low} to {high} scans of {n})"
    if count > high:
        end = (
            "; there are more than chance explains, so some scans may differ from the reference, through disease "
            "or through the scanner."
        )
    elif count < low:
        end = "; there are fewer, so check that the reference fits these scans."
    else:
        end = ", which agrees with what is seen."
    return f"{seen} {expected}{end}"


def number(value: Any, digits: int = 3) -> str:
    """Return a number with a few significant digits, a dash where there is none, and text as it is."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or (float(value).is_integer() and abs(value) >= 100):
        return f"{int(value):,}".replace(",", " ")
    text = f"{value:.{digits}g}"
    return (f"{value:.0f}" if "e+" in text else text).replace("-", "−")


def p_value(value: float | None) -> str:
    """Return a p-value as it is read aloud."""
    if value is None:
        return "–"
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def percentile(value: float | None) -> str:
    """Return a percentile with one digit where it matters."""
    return "–" if value is None else f"{value:.1f}".removesuffix(".0")


def percent(share: float) -> str:
    """Return a share between 0 and 1 as per cent."""
    return f"{100 * share:.1f}".removesuffix(".0") + " %"


def millimetres(point: tuple[float, float, float]) -> str:
    """Return a position as signed whole millimetres."""
    return ", ".join(f"{round(value):+d}".replace("-", "−") if round(value) else "0" for value in point)


def moment(text: str) -> str:
    """Return an ISO date and time to the minute, or the text as it is."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{found:%Y-%m-%d %H:%M}" + (f" {found.tzname()}" if found.tzinfo else "")


def flatten(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested provenance as rows of name and text, in the order given."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{str(key).replace('_', ' ')}"
        if isinstance(value, dict):
            rows += flatten(value, f"{name} · ")
        elif isinstance(value, list | tuple):
            rows.append((name, ", ".join(number(item) for item in value) or "–"))
        else:
            rows.append((name, moment(value) if str(key) in _MOMENTS else number(value)))
    return rows


def _in_hundred(rate: float) -> str:
    hundred = 100 * rate
    if hundred < 1:
        return "fewer than 1"
    return f"about {hundred:.1f}".removesuffix(".0") if hundred < 10 else f"about {round(hundred)}"
