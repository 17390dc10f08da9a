"""The results of scored scans on disk, one file each, so that an interrupted run continues where it stopped.

``score`` keeps them in the run folder, ``calibrate`` in ``calibration_scans`` of the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from anomaly.core.errors import DamagedFileError
from anomaly.core.files import sha256_of_file, sha256_of_json, write_json
from anomaly.core.provenance import now
from anomaly.core.results import ScanScore, ScanStatus
from anomaly.runs.layout import score_path, volumes_path
from anomaly.runs.reader import read_score

FILES = "files"
"""Key of the provenance: SHA-256 of each file of the scan, by its path relative to the folder."""


@dataclass(frozen=True)
class ScoreStore:
    """Results of scans in a folder: ``<folder>/<scan_id>/score.json``.

    A result is saved last, after all other files of its scan. A scan with a result is therefore complete.
    """

    folder: Path

    def find(self, scan_id: str, key: str) -> ScanScore | None:
        """Return the result of a scan if it was stored under this ``key``, else None.

        A scan that failed is not found, so that it is scored again. Nor is one whose files are missing or damaged.
        """
        found = self.read(scan_id)
        if found is None or found.provenance.get("key") != key or found.status is ScanStatus.FAILED:
            return None
        return found if self._has_whole_files(found) else None

    def read(self, scan_id: str) -> ScanScore | None:
        """Return the result under the name of a scan, whatever it was made from.

        None if there is none, or if its file is damaged.
        """
        path = score_path(self.folder, scan_id)
        try:
            return read_score(path) if path.is_file() else None
        except DamagedFileError:
            return None

    def save(self, score: ScanScore, key: str, **costs: float) -> ScanScore:
        """Write the result of a scan with what it was made from, and return it.

        Parameters
        ----------
        costs
            What scoring took, e.g. ``inference_seconds``.
        """
        hashes = {name: sha256_of_file(self.folder / name) for name in self._files(score)}
        saved = replace(score, provenance={"key": key, "scored_at": now(), **costs, FILES: hashes})
        write_json(score_path(self.folder, score.scan_id), asdict(saved))
        return saved

    def _files(self, score: ScanScore) -> Iterator[str]:
        """Yield the files of a scan, relative to the folder: its outputs and, of a run, its template volumes."""
        yield from score.outputs.values()
        if score.map_path:
            yield volumes_path(self.folder, score.scan_id).relative_to(self.folder).as_posix()

    def _has_whole_files(self, score: ScanScore) -> bool:
        """Return whether the files of a result are as they were written; earlier versions stored no hashes."""
        hashes = score.provenance.get(FILES) or dict.fromkeys(self._files(score))
        return all(
            (self.folder / name).is_file() and expected in {None, sha256_of_file(self.folder / name)}
            for name, expected in hashes.items()
        )


def score_key(
    content_hash: str,
    status: ScanStatus,
    reason: str,
    model_id: str,
    calibration_id: str | None,
    warnings: Sequence[str] = (),
    covariates: Sequence[float] = (),
) -> str:
    """Return a hash of everything that a result depends on.

    Parameters
    ----------
    content_hash, status, reason, warnings
        Of the scan as it was prepared.
    calibration_id
        None for no calibration.
    covariates
        Of the subject, for a model that uses them.
    """
    facts = [content_hash, status, reason, model_id, calibration_id, *warnings]
    return sha256_of_json([*facts, list(covariates)] if covariates else facts)
