"""A ``run/`` folder, read: its settings, the result of every scan, and the volumes of one scan."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from anomaly.core.errors import InputError
from anomaly.core.files import read_json, sha256_of_json
from anomaly.core.results import Region, ScanScore, ScanStatus
from anomaly.core.volume import FloatArray, Geometry, MaskArray

# What of run.json a page depends on: a resumed run changes its date and command, and no page needs redrawing.
_DRAWN_KEYS = (
    "version", "model", "calibration", "reference_scores", "display", "score_name", "retrieval", "software"
)  # fmt: skip
_NEIGHBOURS = "neighbours_"


@dataclass(frozen=True)
class Display:
    """The scales every figure of a run shares, so that two scans can be compared by eye.

    Parameters
    ----------
    evidence_max
        Evidence (healthy standard deviations) drawn in the last colour.
    voxel_threshold
        Evidence from which a voxel is marked; None where nothing is.
    intensity_max, intensity_min
        Preprocessed intensity drawn white and black.
    """

    evidence_max: float
    voxel_threshold: float | None
    intensity_max: float
    intensity_min: float = 0.0


@dataclass(frozen=True)
class Run:
    """The settings of one run, as ``run.json`` holds them."""

    folder: Path
    created_at: str
    model: dict[str, Any]
    calibration: dict[str, Any] | None
    display: Display
    score_name: str
    reference_scores: dict[str, list[float]] = field(default_factory=dict)
    retrieval: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    version: str = ""
    software: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    fingerprint: str = ""

    @property
    def in_healthy_sd(self) -> bool:
        """Whether the evidence is in healthy standard deviations, or in the model's own units."""
        return bool(self.settings.get("standardise") != "none")

    @property
    def reference(self) -> list[float]:
        """Return the declared score of each healthy reference scan; empty without a calibration."""
        return self.reference_scores.get(self.score_name, []) if self.calibration else []

    @property
    def threshold(self) -> float | None:
        """Return the threshold of the declared score; None without a calibration."""
        return None if self.calibration is None else _number(self.calibration.get("threshold"))

    @property
    def alpha(self) -> float | None:
        """Return the promised false-flag rate; None without a calibration."""
        return None if self.calibration is None else _number(self.calibration.get("alpha"))


@dataclass(frozen=True, eq=False)
class ScanVolumes:
    """The volumes of one scan on the template grid, all float32 ``(I, J, K)``.

    Parameters
    ----------
    scan
        The preprocessed scan, 0 outside the mask.
    reconstruction
        The pseudo-healthy version of it.
    evidence
        In healthy standard deviations, at least 0, larger = more anomalous; 0 outside the mask.
    mask
        Where evidence was measured.
    geometry
        The template grid: axes along RAS+ millimetres.
    """

    scan: FloatArray
    reconstruction: FloatArray
    evidence: FloatArray
    mask: MaskArray
    geometry: Geometry

    @cached_property
    def peak_mm(self) -> tuple[float, float, float]:
        """Return the place of the highest evidence inside the mask, MNI152 RAS millimetres."""
        inside = np.where(self.mask, self.evidence, -1.0)
        x, y, z = self.geometry.to_world(np.unravel_index(int(inside.argmax()), inside.shape))
        return float(x), float(y), float(z)

    def marked(self, regions: tuple[Region, ...], threshold: float | None) -> MaskArray:
        """Return the voxels of the regions in the table: components above the threshold that hold a peak."""
        if threshold is None or not regions:
            return np.zeros(self.evidence.shape, dtype=bool)
        labels, _ = ndimage.label((self.evidence >= threshold) & self.mask)
        kept = {label for region in regions for label in self._labels_around(labels, region.mni_mm)}
        return np.asarray(np.isin(labels, sorted(kept)), dtype=bool)

    def nearest_index(self, point_mm: tuple[float, float, float]) -> tuple[int, int, int]:
        """Return the voxel nearest to a place, inside the grid."""
        index = np.round(self.geometry.to_index(point_mm)).astype(int)
        i, j, k = np.clip(index, 0, np.array(self.geometry.shape) - 1)
        return int(i), int(j), int(k)

    def _labels_around(self, labels: Any, point_mm: tuple[float, float, float]) -> set[int]:
        # A peak comes from the scan's own grid: on the template it may lie one voxel off.
        i, j, k = self.nearest_index(point_mm)
        if labels[i, j, k]:
            return {int(labels[i, j, k])}
        around = labels[max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2, max(k - 1, 0) : k + 2]
        return {int(label) for label in np.unique(around) if label}


def read_run(folder: Path) -> Run:
    """Read ``run.json``.

    Raises
    ------
    InputError
        If the folder holds no run, or its ``run.json`` lacks what a page needs.
    """
    path = folder / "run.json"
    if not path.is_file():
        raise InputError(f"no run at {folder}: expected {path.name} there; make one with `anomaly score`")
    values = read_json(path)
    missing = [key for key in ("created_at", "model", "display", "score_name") if key not in values]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}; score the scans again with `anomaly score`")
    known = {f.name for f in fields(Run)} - {"folder", "display", "fingerprint", "calibration"}
    kept: dict[str, Any] = {key: value for key, value in values.items() if key in known and value is not None}
    return Run(
        folder=folder,
        display=_display(values["display"]),
        calibration=values.get("calibration"),
        fingerprint=sha256_of_json({key: values.get(key) for key in _DRAWN_KEYS}),
        **kept,
    )


def read_scores(folder: Path) -> list[ScanScore]:
    """Return the result of every scan: each ``score.json``, and the rows of ``refused_failed.tsv`` without one."""
    found = {score.scan_id: score for score in map(read_score, sorted(folder.glob("*/score.json")))}
    table = folder / "refused_failed.tsv"
    if table.is_file():
        with table.open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream, delimiter="\t"):
                score = _from_row(row)
                found.setdefault(score.scan_id, score)
    return list(found.values())


def read_score(path: Path) -> ScanScore:
    """Return the result of one scan from its ``score.json``."""
    return ScanScore.from_json(read_json(path))


def volumes_path(folder: Path, scan_id: str) -> Path:
    """Return where a scan's template-space volumes lie."""
    return folder / scan_id / f"{scan_id}_space-template_volumes.npz"


def read_volumes(folder: Path, scan_id: str) -> ScanVolumes:
    """Return a scan's volumes on the template grid."""
    path = volumes_path(folder, scan_id)
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:  # closed even if damaged
        scan, reconstruction, evidence = (
            np.nan_to_num(arrays[name].astype(np.float32)) for name in ("input", "reconstruction", "evidence")
        )
        mask = arrays["mask"].astype(bool)
        return ScanVolumes(scan, reconstruction, evidence * mask, mask, Geometry(scan.shape, arrays["affine"]))


def read_neighbours(folder: Path, scan_id: str) -> dict[str, npt.NDArray[np.uint8]]:
    """Return the middle slices of the healthy scans most like a scan, plane → ``(k, across, up)``.

    Empty where none were looked for.
    """
    with volumes_path(folder, scan_id).open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        names = [name for name in arrays.files if name.startswith(_NEIGHBOURS)]
        return {name.removeprefix(_NEIGHBOURS): arrays[name] for name in names}


def _display(values: dict[str, Any]) -> Display:
    known = {f.name for f in fields(Display)}
    return Display(**{key: _number(value) for key, value in values.items() if key in known})  # type: ignore[arg-type]


def _from_row(row: dict[str, str]) -> ScanScore:
    text = ("subject", "session", "modality", "source", "content_hash", "reason_code", "reason", "remedy")
    values: dict[str, Any] = {name: row.get(name) or "" for name in text}
    status = ScanStatus(row.get("status") or ScanStatus.FAILED)
    return ScanScore(scan_id=row.get("scan_id") or values["source"] or "(unnamed)", status=status, **values)


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
