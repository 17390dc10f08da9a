"""The result of scoring one scan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, Self

from anomaly.core.aliases import current_scan_score
from anomaly.core.covariates import years_text


class ScanStatus(StrEnum):
    """Processing status of a scan."""

    ACCEPTED = "accepted"  # ingested, not scored yet
    SCORED = "scored"
    REFUSED = "refused"  # must not be scored; the reason states what was found
    FAILED = "failed"  # an error occurred; the reason is its message
    DUPLICATE = "duplicate"  # same content as another scan of the batch


@dataclass(frozen=True)
class Region:
    """One connected flagged region.

    Parameters
    ----------
    label
        1 for the region with the highest peak.
    volume_ml
        Volume in millilitres, in the scan's own space.
    peak, mean
        Highest and mean evidence in the region.
    mni_mm
        Position of the peak, MNI152 RAS millimetres.
    voxel
        Position of the peak, index ``(i, j, k)`` in the scan as received.
    polarity
        ``"dark"``, ``"bright"`` or ``"either"``: the scan compared with its pseudo-healthy reconstruction;
        ``"structure"`` if most of the evidence is of shape and structure.
    """

    label: int
    volume_ml: float
    peak: float
    mean: float
    mni_mm: tuple[float, float, float]
    voxel: tuple[int, int, int]
    polarity: str = "either"

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Restore a region from the output of ``dataclasses.asdict``."""
        x, y, z = (float(value) for value in values["mni_mm"])
        i, j, k = (int(value) for value in values["voxel"])
        return cls(**{**values, "mni_mm": (x, y, z), "voxel": (i, j, k)})


@dataclass(frozen=True)
class Neighbour:
    """A healthy training scan that is similar to the scan.

    Parameters
    ----------
    label
        Anonymous description, e.g. ``"healthy scan 17, 54 years"``.
    similarity
        Similarity of the features of the model; 1 = identical.
    index
        Index among the training scans, from 0.
    """

    label: str
    similarity: float
    index: int


@dataclass(frozen=True)
class HealthyGroup:
    """The healthy subjects that a scan was compared with, where the healthy reference depends on age and sex.

    Ages are whole years, see :func:`anomaly.core.covariates.reported_age`.

    Parameters
    ----------
    subject_age
        Of the subject of the scan; None where unknown.
    age
        Of the healthy subjects: that of the subject, within ``age_range``. None = of all ages.
    sex
        ``"male"``, ``"female"``, or ``""`` for both.
    age_range
        Youngest and oldest subject of the healthy reference.
    """

    subject_age: float | None
    age: float | None
    sex: str
    age_range: tuple[float, float]

    @property
    def ages_text(self) -> str:
        """The range of ages of the reference, e.g. ``"20 to 78 years"``."""
        youngest, oldest = self.age_range
        return f"{youngest:.0f} to {years_text(oldest)}"

    @property
    def years_outside(self) -> float:
        """By how many years the subject is younger or older than all subjects of the reference."""
        if self.subject_age is None or self.age is None:
            return 0.0
        return abs(self.subject_age - self.age)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Restore a group from the output of ``dataclasses.asdict``."""
        youngest, oldest = (float(value) for value in values["age_range"])
        return cls(**{**values, "age_range": (youngest, oldest)})


@dataclass(frozen=True)
class ScanScore:
    """The result for one scan; one row of ``scores.parquet``.

    ``scores`` holds all scan scores by name, higher = more anomalous; ``p_values`` and ``percentiles`` have the
    same names if the model is calibrated. ``score`` is the declared score, which is compared with the threshold.
    ``neighbours`` are the most similar healthy training scans, the most similar first. ``outputs`` are the files
    written for the scan: name → path relative to the run folder. ``age`` is in whole years, 90 for 90 and older,
    None where unknown; ``sex`` is ``"F"``, ``"M"``, ``"O"`` or ``""``. ``compared_with`` is None for a model whose
    healthy reference does not depend on age and sex.
    """

    scan_id: str
    status: ScanStatus
    subject: str = ""
    session: str = ""
    modality: str = ""
    age: float | None = None
    sex: str = ""
    source: str = ""
    content_hash: str = ""
    reason_code: str = ""
    reason: str = ""
    remedy: str = ""
    score: float | None = None
    p_value: float | None = None
    percentile: float | None = None
    flagged: bool | None = None
    scores: dict[str, float] = field(default_factory=dict)
    p_values: dict[str, float] = field(default_factory=dict)
    percentiles: dict[str, float] = field(default_factory=dict)
    regions: tuple[Region, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    warnings: tuple[str, ...] = ()
    numbers: dict[str, float] = field(default_factory=dict)
    compared_with: HealthyGroup | None = None
    model_id: str = ""
    calibration_id: str = ""
    outputs: dict[str, str] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def map_path(self) -> str:
        """Path of the anomaly map in the run folder; ``""`` if there is none."""
        return self.outputs.get("anomaly_map", "")

    @property
    def mask_path(self) -> str:
        """Path of the mask of flagged voxels in the run folder; ``""`` if there is none."""
        return self.outputs.get("flagged_mask", "")

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Restore a result from the output of ``dataclasses.asdict``; unknown keys are ignored."""
        known = {f.name for f in fields(cls)}
        known_values = {name: value for name, value in current_scan_score(values).items() if name in known}
        known_values["status"] = ScanStatus(values["status"])
        known_values["regions"] = tuple(Region.from_json(region) for region in values.get("regions", ()))
        known_values["neighbours"] = tuple(Neighbour(**neighbour) for neighbour in values.get("neighbours", ()))
        known_values["warnings"] = tuple(values.get("warnings", ()))
        if values.get("compared_with"):
            known_values["compared_with"] = HealthyGroup.from_json(values["compared_with"])
        return cls(**known_values)
