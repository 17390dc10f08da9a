"""Check the image quality metrics of a scan. Each finding has a level, says what was found, and what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from pydantic import Field

from anomaly.core.config import Settings
from anomaly.core.errors import ScanRefusedError
from anomaly.core.volume import Modality, Volume


class Level(StrEnum):
    """The severity of a finding."""

    WARNING = "warning"  # the scan is scored and marked
    REFUSAL = "refusal"  # the scan must not be scored


class QcSettings(Settings):
    """Requirements on a scan to be scored. The defaults suit heads and extracted brains, voxels of 1 to 5 mm."""

    min_extent_mm: float = Field(
        100.0, ge=0, description="shortest side of the field of view; adult brains are 125 mm high"
    )
    min_slices: int = Field(16, ge=2, description="smallest number of voxels along an axis")
    max_spacing_mm: float = Field(8.0, gt=0, description="largest voxel size, for example slice thickness")
    min_foreground_share: float = Field(0.01, ge=0, le=1, description="smallest share of voxels with tissue")
    min_foreground_ml: float = Field(
        300.0, ge=0, description="smallest volume of tissue; newborn brains are 350 ml"
    )
    min_values: int = Field(16, ge=2, description="an image with fewer different values is a label map, not a scan")
    coarse_values: int = Field(
        40, ge=2, description="with fewer different values the scan is marked as coarsely quantised"
    )
    max_share_of_air_in_mr: float = Field(
        0.05, ge=0, le=1, description="largest share of voxels below -200 in MR; more looks like CT"
    )
    ct_range_hu: tuple[float, float] = Field((-5000.0, 40000.0), description="range of CT values, metal included")


@dataclass(frozen=True)
class Finding:
    """One problem that a check found.

    Parameters
    ----------
    level
        Whether the scan is marked or refused.
    code
        Stable machine-readable name.
    found, expected
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
    volume: Volume, metrics: Mapping[str, float], expected: Modality, settings: QcSettings | None = None
) -> list[Finding]:
    """Return the findings on a scan, refusals first.

    Parameters
    ----------
    volume
        The scan as received.
    metrics
        Its image quality metrics.
    expected
        The modality that the preprocessing chain and model are for; UNKNOWN accepts any.
    settings
        The thresholds.
    """
    settings = settings or QcSettings()
    findings = [
        *check_modality(volume.modality, expected),
        *_check_header(volume),
        *_check_field_of_view(metrics, settings),
        *_check_content(metrics, settings),
        *(_check_ct_values(metrics, settings) if volume.modality.is_ct else _check_mr_values(metrics, settings)),
    ]
    return sorted(findings, key=lambda f: f.level is not Level.REFUSAL)


def check_modality(found: Modality, expected: Modality) -> Iterator[Finding]:
    """Yield a refusal if name, header or manifest give another modality than the expected one.

    T1w after contrast agent is accepted as T1w with a warning, because only vessels, meninges and some lesions look
    different; T1w is refused where a model expects contrast agent.
    """
    if found is expected or Modality.UNKNOWN in {found, expected}:
        return
    if found.without_agent is expected:
        yield Finding(Level.WARNING, "contrast_agent", f"a {expected.value} scan after contrast agent",
                      f"a {expected.value} scan without",
                      f"give the scan before contrast agent, or a model for {found.value}")  # fmt: skip
    else:
        yield Finding(Level.REFUSAL, "wrong_modality", f"a {found.value} scan", f"a {expected.value} scan",
                      f"give {expected.value} scans, or a configuration and model for {found.value}")  # fmt: skip


def raise_first_refusal(findings: list[Finding]) -> None:
    """Raise the first refusal among findings.

    Raises
    ------
    ScanRefusedError
        With the finding's code.
    """
    for finding in findings:
        if finding.level is Level.REFUSAL:
            raise ScanRefusedError(finding.code, finding.found, finding.expected, finding.remedy)


_HEAD_KEYWORDS = ("HEAD", "BRAIN", "SKULL", "CEREB", "NEURO", "CRANI", "KOPF", "TETE", "CABEZA", "HIRN")


def _check_header(volume: Volume) -> Iterator[Finding]:
    for warning in volume.warnings:
        yield Finding(Level.WARNING, warning.code, warning.found, warning.expected, warning.remedy)
    part = str(volume.meta.get("body_part", ""))
    if part and not any(word in part for word in _HEAD_KEYWORDS):
        yield Finding(Level.WARNING, "body_part", f"body part {part.title()!r} in the header", "a head",
                      "check that the scan shows a head")  # fmt: skip
    assumed = volume.meta.get("assumed", "")
    if assumed:
        yield Finding(Level.WARNING, "modality_assumed", "no modality in name or header",
                      f"{assumed}, which is assumed", "give the modality in a manifest.csv")  # fmt: skip


def _check_field_of_view(metrics: Mapping[str, float], settings: QcSettings) -> Iterator[Finding]:
    remedy = "give a scan that covers the whole brain"
    if metrics["min_slices"] < settings.min_slices:
        yield Finding(Level.REFUSAL, "too_few_slices", f"{metrics['min_slices']:.0f} slices along one axis",
                      f"at least {settings.min_slices}", remedy)  # fmt: skip
    if metrics["min_extent_mm"] < settings.min_extent_mm:
        yield Finding(Level.REFUSAL, "field_of_view", f"a field of view of {metrics['min_extent_mm']:.0f} mm",
                      f"at least {settings.min_extent_mm:.0f} mm along every axis", remedy)  # fmt: skip
    if metrics["max_spacing_mm"] > settings.max_spacing_mm:
        yield Finding(Level.REFUSAL, "thick_slices", f"voxels of up to {metrics['max_spacing_mm']:.1f} mm",
                      f"at most {settings.max_spacing_mm:.1f} mm", "give a series with thinner slices")  # fmt: skip


def _check_content(metrics: Mapping[str, float], settings: QcSettings) -> Iterator[Finding]:
    n_values = metrics["n_values"]
    if n_values < settings.min_values:
        yield Finding(Level.REFUSAL, "label_map", f"{n_values:.0f} different values", "a scan, not a label map",
                      "give the scan that the mask or segmentation belongs to")  # fmt: skip
    elif n_values < settings.coarse_values:
        yield Finding(Level.WARNING, "coarse_values", f"{n_values:.0f} different values",
                      f"at least {settings.coarse_values}", "export the full range of values")  # fmt: skip
    share, volume = metrics["foreground_share"], metrics["foreground_ml"]
    if share < settings.min_foreground_share or volume < settings.min_foreground_ml:
        required = f"at least {100 * settings.min_foreground_share:.0f} % and {settings.min_foreground_ml:.0f} ml"
        yield Finding(Level.REFUSAL, "mostly_empty", f"tissue in {100 * share:.1f} % of voxels, {volume:.0f} ml",
                      required, "give a scan that covers the whole brain")  # fmt: skip


def _check_ct_values(metrics: Mapping[str, float], settings: QcSettings) -> Iterator[Finding]:
    low, high = settings.ct_range_hu
    found = f"values from {metrics['minimum']:.0f} to {metrics['maximum']:.0f}"
    remedy = "convert the CT again with its rescale slope and intercept"
    if metrics["minimum"] < low or metrics["maximum"] > high:
        yield Finding(Level.REFUSAL, "not_hounsfield", found, f"Hounsfield units, {low:.0f} to {high:.0f}", remedy)
    elif metrics["maximum"] < 30:
        yield Finding(Level.REFUSAL, "not_hounsfield", found, "brain, at 20 to 45 HU, and bone", remedy)
    elif not -150 < metrics["tissue_median"] < 300:
        yield Finding(Level.REFUSAL, "not_hounsfield", f"tissue at a median of {metrics['tissue_median']:.0f}",
                      "tissue near 40 HU", remedy)  # fmt: skip


def _check_mr_values(metrics: Mapping[str, float], settings: QcSettings) -> Iterator[Finding]:
    share = metrics["below_minus_200"]
    if share > settings.max_share_of_air_in_mr and -1100 < metrics["p01"] < -800:
        yield Finding(Level.REFUSAL, "wrong_modality", f"{100 * share:.0f} % of voxels near -1000, as in CT",
                      "an MR image", "give the scan as CT, or check its intensities")  # fmt: skip
