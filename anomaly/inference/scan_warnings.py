"""What a reader must know before trusting the score of a scan, or all scores of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from anomaly.calibration.record import CalibrationRecord
from anomaly.scoring.scorer import ScoredVolume
from anomaly.scoring.settings import EvidenceSettings

SIMILARITY_MARGIN = 0.15  # a scan this close to the refusal limit is scored, with a warning
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
    """Yield the warnings about a scan that resembles the training scans less than it should."""
    limit, shift = settings.min_similarity, scored.acquisition_shift
    if scored.similarity < limit + SIMILARITY_MARGIN:
        yield (
            f"unlike the training scans: correlation {scored.similarity:.2f} with the mean healthy scan, close to "
            f"the limit of {limit:.2f} below which scans are refused; the score may be unreliable"
        )
    if shift is not None and shift.p_value < settings.acquisition_alpha:
        yield (
            f"intensities and texture unlike the training scans, as of another scanner or protocol ({shift}); if "
            "so, the target false-positive rate does not hold, and healthy scans of that scanner are needed"
        )
