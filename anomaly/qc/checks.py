"""Numbers of a scan → findings: a level, what was found, and what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from pydantic import Field

from anomaly.core.config import Settings
from anomaly.core.errors import ScanRefusedError
from anomaly.core.volume import Modality, Volume


class Level(StrEnum):
    """What a finding means for the scan."""

    WARNING = "warning"  # scored, and marked
    REFUSAL = "refusal"  # must not be scored


class QcSettings(Settings):
    """What a scan must be to be scored. The defaults fit brains, extracted or not, from 1 to 5 mm."""

    min_extent_mm: float = Field(
        100.0, ge=0, description="shortest side of the field of view; adult brains are 125 mm high"
    )
    min_slices: int = Field(16, ge=2, description="fewest voxels along any axis")
    max_spacing_mm: float = Field(8.0, gt=0, description="thickest slices")
    min_foreground_share: float = Field(0.01, ge=0, le=1, description="smallest share of voxels that show tissue")
    min_foreground_ml: float = Field(
        300.0, ge=0, description="smallest volume of tissue; newborn brains are 350 ml"
    )
    min_values: int = Field(16, ge=2, description="fewer different values are a label map, not a scan")
    coarse_values: int = Field(40, ge=2, description="fewer different values are marked as coarsely quantised")
    max_share_of_air_in_mr: float = Field(
        0.05, ge=0, le=1, description="voxels below -200 that make an MR look like CT"
    )
    ct_range_hu: tuple[float, float] = Field((-5000.0, 40000.0), description="values a CT may hold, metal included")


@dataclass(frozen=True)
class Finding:
    """One thing a check found.

    Parameters
    ----------
    level
        Whether the scan is marked or refused.
    code
        Stable machine-readable name.
    message
        What was found, and what was expected.
    remedy
        What the user can do.
    """

    level: Level
    code: str
    found: str
    expected: str
    remedy: str

    @property
    def message(self) -> str:
        """What was found and what was expected, in one line."""
        return f"found {self.found}; expected {self.expected}"


def check(
    volume: Volume, numbers: Mapping[str, float], expected: Modality, settings: QcSettings | None = None
) -> list[Finding]:
    """Return the findings on a scan, refusals first.

    Parameters
    ----------
    volume
        The scan as it was received.
    numbers
        What ``metrics.measure`` says of it.
    expected
        The modality that the preprocessing chain and model are for; UNKNOWN accepts any.
    settings
        The thresholds.
    """
    settings = settings or QcSettings()
    findings = [
        *check_modality(volume.modality, expected),
        *_header(volume),
        *_field_of_view(numbers, settings),
        *_content(numbers, settings),
        *(_hounsfield(numbers, settings) if volume.modality.is_ct else _not_hounsfield(numbers, settings)),
    ]
    return sorted(findings, key=lambda f: f.level is not Level.REFUSAL)


def check_modality(found: Modality, expected: Modality) -> Iterator[Finding]:
    """Refuse a scan that is of another modality, as far as name, header or manifest say."""
    if Modality.UNKNOWN not in {found, expected} and found is not expected:
        yield Finding(Level.REFUSAL, "wrong_modality", f"a {found.value} scan", f"a {expected.value} scan",
                      f"give {expected.value} scans, or a configuration and model for {found.value}")  # fmt: skip


def refuse(findings: list[Finding]) -> None:
    """Raise the first refusal among findings.

    Raises
    ------
    ScanRefusedError
        With the finding's code.
    """
    for finding in findings:
        if finding.level is Level.REFUSAL:
            raise ScanRefusedError(finding.code, finding.found, finding.expected, finding.remedy)


_HEAD_WORDS = ("HEAD", "BRAIN", "SKULL", "CEREB", "NEURO", "CRANI", "KOPF", "TETE", "CABEZA", "HIRN")


def _header(volume: Volume) -> Iterator[Finding]:
    part = str(volume.meta.get("body_part", ""))
    if part and not any(word in part for word in _HEAD_WORDS):
        yield Finding(Level.WARNING, "body_part", f"body part {part.title()!r} in the header", "a head",
                      "check that the scan shows a head")  # fmt: skip
    assumed = volume.meta.get("assumed", "")
    if assumed:
        yield Finding(Level.WARNING, "modality_assumed", "no word on what kind of image this is",
                      f"{assumed}, and it is taken for that", "name the modality in a manifest.csv")  # fmt: skip


def _field_of_view(numbers: Mapping[str, float], settings: QcSettings) -> Iterator[Finding]:
    remedy = "give a scan that covers the whole brain"
    if numbers["min_slices"] < settings.min_slices:
        yield Finding(Level.REFUSAL, "too_few_slices", f"{numbers['min_slices']:.0f} slices along one axis",
                      f"at least {settings.min_slices}", remedy)  # fmt: skip
    if numbers["min_extent_mm"] < settings.min_extent_mm:
        yield Finding(Level.REFUSAL, "field_of_view", f"a field of view of {numbers['min_extent_mm']:.0f} mm",
                      f"at least {settings.min_extent_mm:.0f} mm along every axis", remedy)  # fmt: skip
    if numbers["max_spacing_mm"] > settings.max_spacing_mm:
        yield Finding(Level.REFUSAL, "thick_slices", f"voxels of up to {numbers['max_spacing_mm']:.1f} mm",
                      f"at most {settings.max_spacing_mm:.1f} mm", "give a series with thinner slices")  # fmt: skip


def _content(numbers: Mapping[str, float], settings: QcSettings) -> Iterator[Finding]:
    n_values = numbers["n_values"]
    if n_values < settings.min_values:
        yield Finding(Level.REFUSAL, "label_map", f"{n_values:.0f} different values", "a scan, not a label map",
                      "give the scan that the mask or segmentation belongs to")  # fmt: skip
    elif n_values < settings.coarse_values:
        yield Finding(Level.WARNING, "coarse_values", f"{n_values:.0f} different values",
                      f"at least {settings.coarse_values}", "export the full range of values")  # fmt: skip
    share, volume = numbers["foreground_share"], numbers["foreground_ml"]
    if share < settings.min_foreground_share or volume < settings.min_foreground_ml:
        wanted = f"at least {100 * settings.min_foreground_share:.0f} % and {settings.min_foreground_ml:.0f} ml"
        yield Finding(Level.REFUSAL, "mostly_empty", f"tissue in {100 * share:.1f} % of voxels, {volume:.0f} ml",
                      wanted, "give a scan that covers the whole brain")  # fmt: skip


def _hounsfield(numbers: Mapping[str, float], settings: QcSettings) -> Iterator[Finding]:
    low, high = settings.ct_range_hu
    found = f"values from {numbers['minimum']:.0f} to {numbers['maximum']:.0f}"
    remedy = "convert the CT again with its rescale slope and intercept"
    if numbers["minimum"] < low or numbers["maximum"] > high:
        yield Finding(Level.REFUSAL, "not_hounsfield", found, f"Hounsfield units, {low:.0f} to {high:.0f}", remedy)
    elif numbers["maximum"] < 30:
        yield Finding(Level.REFUSAL, "not_hounsfield", found, "brain, at 20 to 45 HU, and bone", remedy)
    elif not -150 < numbers["tissue_median"] < 300:
        yield Finding(Level.REFUSAL, "not_hounsfield", f"tissue at a median of {numbers['tissue_median']:.0f}",
                      "tissue near 40 HU", remedy)  # fmt: skip


def _not_hounsfield(numbers: Mapping[str, float], settings: QcSettings) -> Iterator[Finding]:
    share = numbers["below_minus_200"]
    if share > settings.max_share_of_air_in_mr and -1100 < numbers["p01"] < -800:
        yield Finding(Level.REFUSAL, "wrong_modality", f"{100 * share:.0f} % of voxels near -1000, as in CT",
                      "an MR image", "give the scan as CT, or check its intensities")  # fmt: skip
