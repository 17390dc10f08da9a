"""One scan: read, hash, check, preprocess, write. What a worker process does."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from anomaly import __version__
from anomaly.cohort.record import ScanRecord, record_path
from anomaly.core.config import Settings
from anomaly.core.errors import AnomalyError, ScanRefusedError
from anomaly.core.files import sha256_of_json, sha256_of_voxels
from anomaly.core.results import ScanStatus
from anomaly.core.volume import AffineArray, FloatArray, Geometry, MaskArray, Modality, Volume
from anomaly.export.nifti import write_nifti
from anomaly.io.discover import ScanSource
from anomaly.qc.checks import Level, QcSettings, check, check_modality, refuse
from anomaly.qc.metrics import measure

RECORD_FORMAT = 1  # raise when records made before must not be reused


class PreparedScan(Protocol):
    """What a preprocessing chain makes of a scan."""

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
        """Everything that decides what the chain does."""
        ...

    def apply(self, volume: Volume) -> PreparedScan:
        """Preprocess one scan; raises ScanRefusedError where it must not be scored."""
        ...


@dataclass(frozen=True)
class PreparationSpec:
    """What is done to every scan of a cohort, and where it goes."""

    chain: ScanChain
    folder: Path
    modality: Modality = Modality.UNKNOWN
    qc: QcSettings = field(default_factory=QcSettings)

    def digest(self) -> str:
        """Return a digest of everything that decides what becomes of a scan."""
        qc = self.qc.model_dump(mode="json")
        return sha256_of_json([__version__, RECORD_FORMAT, chain_hash(self.chain), self.modality.value, qc])

    def blank(self, scan: ScanSource) -> ScanRecord:
        """Return what is known of a scan before it is read."""
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
            input_hash=sha256_of_json([scan.identity(), self.digest()]),
        )


def chain_hash(chain: ScanChain) -> str:
    """Return the digest of a chain's settings."""
    return sha256_of_json(chain.settings.model_dump(mode="json"))


def relative(path: Path, folder: Path) -> str:
    """Return a path as tables in a folder name it."""
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()


def prepare(scan: ScanSource, recipe: PreparationSpec) -> ScanRecord:
    """Preprocess one scan and write its volume, mask and record; every error becomes a record."""
    record_path(recipe.folder, scan.scan_id).unlink(missing_ok=True)
    record = _attempt(scan, recipe)
    if record.status is not ScanStatus.ACCEPTED:
        remove_volumes(recipe.folder, scan.scan_id)
    record.save(recipe.folder)
    return record


def remove_volumes(folder: Path, scan_id: str) -> None:
    """Remove the volume and mask of a scan that is not accepted any more."""
    for path in _paths(folder, scan_id):
        path.unlink(missing_ok=True)


def lost(scan: ScanSource, recipe: PreparationSpec, reason: str) -> ScanRecord:
    """Return and write the record of a scan whose process died."""
    record = recipe.blank(scan).because(
        ScanStatus.FAILED, "worker_died", reason, "give the process more memory or fewer jobs, then run again"
    )
    remove_volumes(recipe.folder, scan.scan_id)
    record.save(recipe.folder)
    return record


def _attempt(scan: ScanSource, recipe: PreparationSpec) -> ScanRecord:
    steps = _Steps(recipe.blank(scan))
    try:
        _run(steps, scan, recipe)
    except ScanRefusedError as error:
        return steps.record.because(ScanStatus.REFUSED, error.code, error.reason, error.remedy)
    except MemoryError:
        return steps.record.because(ScanStatus.FAILED, "out_of_memory", f"no memory left to {steps.doing} the scan",
                                    "give the process more memory or fewer jobs, then run again")  # fmt: skip
    except Exception as error:  # noqa: BLE001 - the batch goes on, whatever one scan does
        return steps.record.because(ScanStatus.FAILED, "error", _describe(error, steps.doing, scan.is_dicom),
                                    "report this as a bug, with the reason")  # fmt: skip
    return steps.record


@dataclass
class _Steps:
    """The record as it grows, and the step under way."""

    record: ScanRecord
    doing: str = "read"

    def learn(self, numbers: dict[str, float], **values: Any) -> None:
        self.record = replace(self.record, numbers={**self.record.numbers, **numbers}, **values)

    @contextmanager
    def step(self, doing: str) -> Iterator[None]:
        self.doing = doing
        started = time.perf_counter()
        yield
        self.learn({f"seconds_{doing}": round(time.perf_counter() - started, 4)})


def _run(steps: _Steps, scan: ScanSource, recipe: PreparationSpec) -> None:
    if scan.refusal is None:
        refuse(list(check_modality(scan.modality, recipe.modality)))  # no need to read it
    with steps.step("read"):
        volume = _taken_for(scan, scan.read(), recipe.modality)
        steps.learn({}, modality=volume.modality.value, **_content(volume))
    with steps.step("check"):
        numbers = measure(volume)
        findings = check(volume, numbers, recipe.modality, recipe.qc)
        steps.learn(numbers, warnings=tuple(f.message for f in findings if f.level is Level.WARNING))
        refuse(findings)
    with steps.step("preprocess"):
        prepared = recipe.chain.apply(volume)
    with steps.step("write"):
        _write(prepared, recipe.folder, scan.scan_id)
    volume_path, mask_path = _paths(recipe.folder, scan.scan_id)
    steps.learn(
        {name: float(value) for name, value in prepared.numbers.items()},
        status=ScanStatus.ACCEPTED,
        volume=relative(volume_path, recipe.folder),
        mask=relative(mask_path, recipe.folder),
        template_from_scan=tuple(float(v) for v in prepared.template_from_scan.ravel()),
    )


def _taken_for(scan: ScanSource, volume: Volume, expected: Modality) -> Volume:
    """Return the scan as what is expected, where neither its name nor its header says what it is."""
    if volume.modality is not Modality.UNKNOWN or expected is Modality.UNKNOWN:
        return volume
    if scan.is_dicom and expected.is_ct:  # a CT says so, so this is MR
        refuse(list(check_modality(Modality.T1W, expected)))
    return replace(volume, modality=expected, meta={**volume.meta, "assumed": expected.value})


def _content(volume: Volume) -> dict[str, Any]:
    affine = volume.geometry.affine
    return {
        "content_hash": sha256_of_voxels(volume.voxels, affine + 0.0),  # -0.0 is 0.0
        "shape": volume.geometry.shape,
        "affine": tuple(float(v) for v in affine.ravel()),
    }


def _paths(folder: Path, scan_id: str) -> tuple[Path, Path]:
    return folder / "volumes" / f"{scan_id}.nii", folder / "masks" / f"{scan_id}.nii"


def _write(prepared: PreparedScan, folder: Path, scan_id: str) -> None:
    volume_path, mask_path = _paths(folder, scan_id)
    write_nifti(volume_path, prepared.voxels, prepared.grid, "float32")
    write_nifti(mask_path, prepared.mask, prepared.grid, "uint8")


def _describe(error: Exception, doing: str, is_dicom: bool) -> str:
    """Return what went wrong and where; errors of DICOM readers may quote a header, so their text is left out."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno} while trying to {doing} the scan"
    quotes_header = is_dicom and doing == "read" and not isinstance(error, AnomalyError)
    return where if quotes_header or not str(error) else f"{where}: {error}"
