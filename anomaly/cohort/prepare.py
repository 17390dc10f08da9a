"""Prepare one scan, in a worker process: read, hash, check, preprocess and write it."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from anomaly import __version__
from anomaly.cohort.record import ScanRecord, record_path
from anomaly.core.config import Settings
from anomaly.core.errors import AnomalyError, OutputError, ScanRefusedError
from anomaly.core.files import sha256_of_file, sha256_of_json, sha256_of_voxels
from anomaly.core.results import ScanStatus
from anomaly.core.volume import AffineArray, FloatArray, Geometry, MaskArray, Modality, Volume
from anomaly.export.nifti import write_nifti
from anomaly.io.discover import ScanSource
from anomaly.qc.checks import Level, QcSettings, check, check_modality, raise_first_refusal
from anomaly.qc.metrics import image_quality_metrics

RECORD_FORMAT = 1  # increase when records of earlier versions must not be reused


class PreparedScan(Protocol):
    """The output of a preprocessing chain for one scan."""

    @property
    def voxels(self) -> FloatArray:
        """float32 ``(I, J, K)`` on the template grid, 0 outside the mask."""
        ...

    @property
    def mask(self) -> MaskArray:
        """Foreground ``(I, J, K)``."""
        ...

    @property
    def grid(self) -> Geometry:
        """The template grid."""
        ...

    @property
    def template_from_scan(self) -> AffineArray:
        """``(4, 4)``: scan RAS+ mm → template RAS+ mm."""
        ...

    @property
    def numbers(self) -> dict[str, float]:
        """Quality numbers and seconds per step."""
        ...


class ScanChain(Protocol):
    """A configured preprocessing chain; picklable."""

    @property
    def settings(self) -> Settings:
        """All settings that determine the output of the chain."""
        ...

    def apply(self, volume: Volume) -> PreparedScan:
        """Preprocess one scan; raise ScanRefusedError if it must not be scored."""
        ...


@dataclass(frozen=True)
class PreparationSpec:
    """How every scan of a cohort is prepared, and where the results are written.

    Parameters
    ----------
    chain
        The preprocessing chain.
    folder
        The cohort folder.
    modality
        The modality that the chain is for.
    qc
        Thresholds of the quality checks.
    """

    chain: ScanChain
    folder: Path
    modality: Modality = Modality.UNKNOWN
    qc: QcSettings = field(default_factory=QcSettings)

    def settings_hash(self) -> str:
        """Return the SHA-256 of everything besides its files that determines the record of a scan."""
        qc = self.qc.model_dump(mode="json")
        return sha256_of_json([__version__, RECORD_FORMAT, chain_hash(self.chain), self.modality.value, qc])

    def initial_record(self, scan: ScanSource) -> ScanRecord:
        """Return the record of a scan before it is read."""
        origin = relative(scan.origin, self.folder)
        return ScanRecord(
            scan_id=scan.scan_id,
            status=ScanStatus.FAILED,
            subject=scan.subject,
            session=scan.session,
            modality=scan.modality.value,
            group=scan.group,
            split=scan.split,
            age=scan.age,
            sex=scan.sex,
            source=f"{origin}#{scan.fragment}" if scan.fragment else origin,
            lesion_mask=relative(scan.lesion_mask, self.folder) if scan.lesion_mask else "",
            input_hash=sha256_of_json([scan.cache_key(), self.settings_hash()]),
        )


def chain_hash(chain: ScanChain) -> str:
    """Return the SHA-256 of a chain's settings."""
    return sha256_of_json(chain.settings.model_dump(mode="json"))


def relative(path: Path, folder: Path) -> str:
    """Return a path relative to a folder, in POSIX form, as the tables in that folder write it."""
    real, start = (
        os.path.realpath(path),
        os.path.realpath(folder),
    )  # Path.resolve raises an error for a looping link
    return Path(os.path.relpath(real, start)).as_posix()


def prepare(scan: ScanSource, spec: PreparationSpec) -> ScanRecord:
    """Preprocess one scan and write its volume, mask and record; an error is written as a record, too.

    Raises
    ------
    OutputError
        The cohort folder cannot be written.
    """
    record_path(spec.folder, scan.scan_id).unlink(missing_ok=True)
    record = _try_to_prepare(scan, spec)
    if record.status is not ScanStatus.ACCEPTED:
        remove_volumes(spec.folder, scan.scan_id)
    record.save(spec.folder)
    return record


def remove_volumes(folder: Path, scan_id: str) -> None:
    """Remove the volume and mask of a scan that is no longer accepted."""
    for path in _volume_paths(folder, scan_id):
        path.unlink(missing_ok=True)


def record_crash(scan: ScanSource, reason: str, spec: PreparationSpec) -> ScanRecord:
    """Write and return the record of a scan whose worker process died."""
    record = spec.initial_record(scan).with_status(
        ScanStatus.FAILED, "worker_died", reason, "give the process more memory or fewer jobs, then run again"
    )
    remove_volumes(spec.folder, scan.scan_id)
    record.save(spec.folder)
    return record


def _try_to_prepare(scan: ScanSource, spec: PreparationSpec) -> ScanRecord:
    progress = _Progress(spec.initial_record(scan))
    try:
        _prepare(progress, scan, spec)
    except ScanRefusedError as error:
        if error.is_transient:
            remedy = "make the file readable, then run the same command again"
            return progress.record.with_status(ScanStatus.FAILED, error.code, error.reason, remedy)
        return progress.record.with_status(ScanStatus.REFUSED, error.code, error.reason, error.remedy)
    except OutputError:
        raise
    except MemoryError:
        return progress.record.with_status(
            ScanStatus.FAILED, "out_of_memory", f"no memory left to {progress.step_name} the scan",
            "give the process more memory or fewer jobs, then run again",
        )  # fmt: skip
    except Exception as error:  # noqa: BLE001 - one scan must not stop the batch
        return progress.record.with_status(
            ScanStatus.FAILED, "error", _describe_error(error, progress.step_name, scan.is_dicom),
            "report this as a bug, with the reason",
        )  # fmt: skip
    return progress.record


@dataclass
class _Progress:
    """The record of a scan so far, and the current step."""

    record: ScanRecord
    step_name: str = "read"

    def update(self, numbers: dict[str, float], **values: Any) -> None:
        self.record = replace(self.record, numbers={**self.record.numbers, **numbers}, **values)

    @contextmanager
    def step(self, step_name: str) -> Iterator[None]:
        self.step_name = step_name
        started = time.perf_counter()
        yield
        self.update({f"seconds_{step_name}": round(time.perf_counter() - started, 4)})


def _prepare(progress: _Progress, scan: ScanSource, spec: PreparationSpec) -> None:
    if scan.refusal is None:
        raise_first_refusal(list(check_modality(scan.modality, spec.modality)))  # before the file is read
    with progress.step("read"):
        volume = with_expected_modality(scan.read(), spec.modality, scan.is_dicom)
        progress.update({}, modality=volume.modality.value, **_content_fields(volume))
    with progress.step("check"):
        metrics = image_quality_metrics(volume)
        findings = check(volume, metrics, spec.modality, spec.qc)
        progress.update(metrics, warnings=tuple(f.message for f in findings if f.level is Level.WARNING))
        raise_first_refusal(findings)
    with progress.step("preprocess"):
        prepared = spec.chain.apply(volume)
    with progress.step("write"):
        _write_volumes(prepared, spec.folder, scan.scan_id)
    volume_path, mask_path = _volume_paths(spec.folder, scan.scan_id)
    progress.update(
        {name: float(value) for name, value in prepared.numbers.items()},
        status=ScanStatus.ACCEPTED,
        volume=relative(volume_path, spec.folder),
        mask=relative(mask_path, spec.folder),
        volume_hash=hash_of_files([volume_path, mask_path]),
        template_from_scan=tuple(float(v) for v in prepared.template_from_scan.ravel()),
    )


def with_expected_modality(volume: Volume, expected: Modality, is_dicom: bool = False) -> Volume:
    """Return the scan with the expected modality, where neither its name nor its header names one.

    Raises
    ------
    ScanRefusedError
        A DICOM series of unknown modality cannot be CT.
    """
    if volume.modality is not Modality.UNKNOWN or expected is Modality.UNKNOWN:
        return volume
    if is_dicom and expected.is_ct:  # the header of a CT names it, so this is MR
        raise_first_refusal(list(check_modality(Modality.T1W, expected)))
    return replace(volume, modality=expected, meta={**volume.meta, "assumed": expected.value})


def _content_fields(volume: Volume) -> dict[str, Any]:
    affine = volume.geometry.affine
    return {
        "content_hash": sha256_of_voxels(volume.voxels, affine + 0.0),  # -0.0 is 0.0
        "shape": volume.geometry.shape,
        "affine": tuple(float(v) for v in affine.ravel()),
    }


def hash_of_files(paths: Sequence[Path]) -> str:
    """Return the SHA-256 of the contents of some files, ``""`` if one cannot be read."""
    try:
        return sha256_of_json([sha256_of_file(path) for path in paths])
    except OSError:
        return ""


def _volume_paths(folder: Path, scan_id: str) -> tuple[Path, Path]:
    return folder / "volumes" / f"{scan_id}.nii", folder / "masks" / f"{scan_id}.nii"


def _write_volumes(prepared: PreparedScan, folder: Path, scan_id: str) -> None:
    volume_path, mask_path = _volume_paths(folder, scan_id)
    write_nifti(volume_path, prepared.voxels, prepared.grid, "float32")
    write_nifti(mask_path, prepared.mask, prepared.grid, "uint8")


def _describe_error(error: Exception, step_name: str, is_dicom: bool) -> str:
    """Return what went wrong and where.

    The text of an error from reading DICOM is left out, because it may quote the header, and so the patient.
    """
    line = traceback.extract_tb(error.__traceback__)[-1]
    where = (
        f"{type(error).__name__} at {Path(line.filename).name}:{line.lineno} while trying to {step_name} the scan"
    )
    may_quote_header = is_dicom and step_name == "read" and not isinstance(error, AnomalyError)
    return where if may_quote_header or not str(error) else f"{where}: {error}"
