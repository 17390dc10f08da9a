"""What a reader must know before trusting the score of a scan, or all scores of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from anomaly.calibration.record import CalibrationRecord
from anomaly.core.covariates import years_text
from anomaly.core.results import HealthyGroup
from anomaly.scoring.scorer import ScoredVolume
from anomaly.scoring.settings import EvidenceSettings

SIMILARITY_MARGIN = 0.1  # a scan this close to the refusal limit is scored, with a warning
SHIPPED_CALIBRATION = (
    "The target FPR holds for the scanner of the shipped reference scans only. Use `anomaly adapt` and `anomaly "
    "calibrate` with your own healthy scans."
)


def model_notices(metadata: Mapping[str, Any], record: CalibrationRecord | None) -> tuple[str, ...]:
    """Return what holds for all scores of a model with a calibration.

    A calibration that came with the package has the reason that the metadata of the shipped model name, also where
    the folder was copied.
    """
    shipped = metadata.get("shipped")
    is_shipped = shipped is not None and record is not None and record.reason == shipped["reference"]
    return (SHIPPED_CALIBRATION,) if is_shipped else ()


def model_warnings(scored: ScoredVolume, settings: EvidenceSettings) -> Iterator[str]:
    """Yield the warnings about a scan, or a subject, that resembles the training scans less than it should."""
    limit, shift = settings.min_block_correlation, scored.acquisition_shift
    if scored.similarity < limit + SIMILARITY_MARGIN:
        yield (
            f"unlike the training scans: median block correlation {scored.similarity:.2f} with the mean healthy "
            f"scan, close to the limit of {limit:.2f} below which scans are refused; the score may be unreliable"
        )
    if shift is not None and shift.p_value < settings.acquisition_alpha:
        yield (
            f"intensities and texture unlike the training scans, as of another scanner or protocol ({shift}); if "
            "so, the target false-positive rate does not hold, and healthy scans of that scanner are needed"
        )
    if scored.compared_with is not None:
        yield from _age_warnings(scored.compared_with)


def _age_warnings(group: HealthyGroup) -> Iterator[str]:
    """Yield a warning where the healthy subjects are not of the subject's age."""
    if group.subject_age is None:
        yield (
            "the age of the subject is unknown, so the scan was compared with healthy subjects of all ages "
            f"({group.ages_text}); old subjects may be flagged more often than the target false-positive rate"
        )
    elif group.age is not None and group.years_outside:
        yield (
            f"the subject is {years_text(group.subject_age)} old; the reference holds healthy subjects of "
            f"{group.ages_text}, so the scan was compared with those of {years_text(group.age)}; the score may be "
            "unreliable"
        )
