"""What a reader must know before trusting the score of a scan."""

from __future__ import annotations

from collections.abc import Iterator

from anomaly.scoring.scorer import ScoredVolume
from anomaly.scoring.settings import EvidenceSettings

SIMILARITY_MARGIN = 0.1  # a scan this close to the refusal limit is scored, with a warning


def model_warnings(scored: ScoredVolume, settings: EvidenceSettings) -> Iterator[str]:
    """Yield the warnings about a scan that resembles the training scans less than it should."""
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
