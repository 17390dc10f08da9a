"""Score healthy scans for a calibration: their scan scores, and how their evidence is distributed.

The results lie in the model folder, which may be passed on, so they name no subject, no scan and no file.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from anomaly.calibration.conformal import Floats
from anomaly.calibration.operating_point import evidence_edges, exceedance
from anomaly.cohort.table import ScanRecord
from anomaly.core.files import atomic_path
from anomaly.core.results import ScanScore, ScanStatus
from anomaly.inference.model import InferredScan
from anomaly.runs.score_store import ScoreStore
from pipelines.scoring_job import ScoringJob

EXCEEDANCE = "exceedance"


@dataclass(frozen=True, eq=False)
class CalibrationJob(ScoringJob):
    """Scores healthy scans on the template grid, without a calibration."""

    def describe(self, record: ScanRecord) -> ScanScore:
        """Return the result of a scan before it is scored, under the hash of its content."""
        name = record.content_hash[:32]
        return ScanScore(name, record.status, modality=record.modality, model_id=self.model.model_id)

    def finish(self, blank: ScanScore, inferred: InferredScan) -> ScanScore:
        """Compute the scores of a scan, and write the share of its voxels above each evidence threshold."""
        scored = self.model.postprocess(inferred)
        path = self.store.folder / blank.scan_id / f"{EXCEEDANCE}.npy"
        with atomic_path(path) as temporary:
            np.save(temporary, exceedance(scored.evidence[scored.mask], evidence_edges()))
        return replace(
            blank,
            status=ScanStatus.SCORED,
            scores=scored.scores,
            outputs={EXCEEDANCE: path.relative_to(self.store.folder).as_posix()},
        )


def read_exceedance(store: ScoreStore, score: ScanScore) -> Floats:
    """Return the share ``(E,)`` of brain voxels above each of ``evidence_edges()`` of a scored scan."""
    shares: Floats = np.load(store.folder / score.outputs[EXCEEDANCE], allow_pickle=False)
    return shares
