"""Score one scan after another with one model, and keep each result on disk.

The networks work on the next scan while the files of the last one are written. One bad scan never stops a batch.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

from anomaly.cohort.table import ScanRecord
from anomaly.core.covariates import reported_age
from anomaly.core.errors import OutputError, ScanRefusedError
from anomaly.core.progress import Progress
from anomaly.core.results import ScanScore, ScanStatus
from anomaly.inference.model import InferredScan, Model
from anomaly.runs.score_store import ScoreStore, score_key
from pipelines.scan_input import PreparedScanRef

log = logging.getLogger(__name__)

MAX_WAITING = 2  # scans whose files are being written while the networks work on the next one


@dataclass(frozen=True, eq=False)
class ScoringJob(ABC):
    """A model that scores scans, and the store of their results.

    Parameters
    ----------
    overwrite
        Score again the scans whose result is in the store.
    """

    model: Model
    store: ScoreStore
    overwrite: bool = False

    @abstractmethod
    def finish(self, blank: ScanScore, inferred: InferredScan) -> ScanScore:
        """Postprocess a scan, write its files and return its result, complete but for its provenance."""

    def describe(self, record: ScanRecord) -> ScanScore:
        """Return the result of a scan before it is scored."""
        return ScanScore(
            scan_id=record.scan_id,
            status=record.status,
            subject=record.subject,
            session=record.session,
            modality=record.modality,
            age=reported_age(record.age),
            sex=record.sex,
            source=record.source,
            content_hash=record.content_hash,
            reason_code=record.reason_code,
            reason=record.reason,
            remedy=record.remedy,
            warnings=record.warnings,
            numbers=dict(record.numbers),
            model_id=self.model.model_id,
            calibration_id=self.model.calibration_id,
        )

    def run(self, scans: Iterable[PreparedScanRef], total: int, progress: Progress) -> Iterator[ScanScore]:
        """Yield the result of every scan, in the order of the scans.

        Raises
        ------
        OutputError
            A result cannot be written, so the others could not either. Those that were written are kept.
        """
        waiting: list[Future[ScanScore]] = []
        with ThreadPoolExecutor(max_workers=1) as writer:
            for done, scan in enumerate(scans):
                progress(done, total, f"scoring {scan.record.scan_id}")
                waiting.append(self.submit(scan, writer))
                while len(waiting) > MAX_WAITING:
                    yield waiting.pop(0).result()
            for future in waiting:
                yield future.result()
        progress(total, total, "done")

    def submit(self, scan: PreparedScanRef, writer: ThreadPoolExecutor) -> Future[ScanScore]:
        """Run the networks on one scan now, and let ``writer`` do the rest."""
        record, blank = scan.record, self.describe(scan.record)
        found = None if self.overwrite else self.store.find(blank.scan_id, self.key(record))
        if found is not None:
            return _completed(found)
        if record.status is not ScanStatus.ACCEPTED:
            return writer.submit(self.save, blank, record)
        try:
            inferred = self.model.infer(scan.load())
        except ScanRefusedError as refusal:
            return writer.submit(self.save, _refused(blank, refusal), record)
        except Exception as error:  # noqa: BLE001 - one bad scan must never stop a batch; the error is recorded
            return writer.submit(self.save, _failed(blank, error), record)
        return writer.submit(self._finish_and_save, blank, record, inferred)

    def key(self, record: ScanRecord) -> str:
        """Return a hash of everything that the result of a scan depends on."""
        calibration_id = self.model.calibration_id or None
        return score_key(
            record.content_hash,
            record.status,
            record.reason,
            self.model.model_id,
            calibration_id,
            record.warnings,
            record.covariates.tolist() if self.model.bundle.scorer.uses_covariates else (),
        )

    def save(self, score: ScanScore, record: ScanRecord, **costs: float) -> ScanScore:
        """Keep a result in the store, and return it."""
        return self.store.save(score, self.key(record), **costs)

    def _finish_and_save(self, blank: ScanScore, record: ScanRecord, inferred: InferredScan) -> ScanScore:
        try:
            score = self.finish(blank, inferred)
            return self.save(score, record, inference_seconds=round(inferred.seconds, 4))
        except OutputError:
            raise
        except Exception as error:  # noqa: BLE001 - a broken grid fails this scan, not the batch
            return self.save(_failed(blank, error), record)


def _refused(blank: ScanScore, refusal: ScanRefusedError) -> ScanScore:
    return replace(
        blank,
        status=ScanStatus.REFUSED,
        reason_code=refusal.code,
        reason=refusal.reason,
        remedy=refusal.remedy,
    )


def _failed(blank: ScanScore, error: Exception) -> ScanScore:
    log.error("scoring %s failed", blank.scan_id, exc_info=error)
    return replace(
        blank,
        status=ScanStatus.FAILED,
        reason_code="error",
        reason=f"{type(error).__name__}: {error}",
        remedy="run the same command again; if it fails again, report this error with the log",
    )


def _completed(score: ScanScore) -> Future[ScanScore]:
    future: Future[ScanScore] = Future()
    future.set_result(score)
    return future
