"""What scoring says of one scan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, Self

from anomaly.core.aliases import current_scan_score


class ScanStatus(StrEnum):
    """What became of a scan."""

    ACCEPTED = "accepted"  # ingested, not scored yet
    SCORED = "scored"
    REFUSED = "refused"  # must not be scored, for a reason that names what was found
    FAILED = "failed"  # the software failed on it; the reason is the error
    DUPLICATE = "duplicate"  # the same content as another scan of the batch


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
        Highest and mean evidence inside.
    mni_mm
        Position of the peak, MNI152 RAS millimetres.
    voxel
        Position of the peak, ``(i, j, k)`` index in the scan as it was received.
    polarity
        ``"dark"``, ``"bright"`` or ``"either"``: the scan against its pseudo-healthy reconstruction.
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
        """Return the region that ``dataclasses.asdict`` turned into ``values``."""
        x, y, z = (float(value) for value in values["mni_mm"])
        i, j, k = (int(value) for value in values["voxel"])
        return cls(**{**values, "mni_mm": (x, y, z), "voxel": (i, j, k)})


@dataclass(frozen=True)
class Neighbour:
    """A healthy training scan that is like the scan.

    Parameters
    ----------
    label
        What it is called, e.g. ``"healthy scan 17, 54 years"``: it has a number and no name.
    similarity
        1 = alike in all that the model sees.
    index
        Which of the training scans, from 0.
    """

    label: str
    similarity: float
    index: int


@dataclass(frozen=True)
class ScanScore:
    """The result for one scan; one row of ``scores.parquet``.

    ``scores`` holds every scan score by name, larger = more anomalous; ``p_values`` and ``percentiles`` hold
    the same names once there is a calibration. ``score`` is the declared one, which is compared with the
    threshold. ``neighbours`` are the healthy training scans that are most like the scan, the most similar first.
    ``outputs`` are the files that were written for the scan, name → path relative to the run folder.
    """

    scan_id: str
    status: ScanStatus
    subject: str = ""
    session: str = ""
    modality: str = ""
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
    model_id: str = ""
    calibration_id: str = ""
    outputs: dict[str, str] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def map_path(self) -> str:
        """Path of the anomaly map in the run folder; ``""`` where there is none."""
        return self.outputs.get("anomaly_map", "")

    @property
    def mask_path(self) -> str:
        """Path of the mask of flagged voxels in the run folder; ``""`` where there is none."""
        return self.outputs.get("flagged_mask", "")

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return the result that ``dataclasses.asdict`` turned into ``values``; unknown keys are left out."""
        known = {f.name for f in fields(cls)}
        kept = {name: value for name, value in current_scan_score(values).items() if name in known}
        kept["status"] = ScanStatus(values["status"])
        kept["regions"] = tuple(Region.from_json(region) for region in values.get("regions", ()))
        kept["neighbours"] = tuple(Neighbour(**neighbour) for neighbour in values.get("neighbours", ()))
        kept["warnings"] = tuple(values.get("warnings", ()))
        return cls(**kept)
