"""Settings of scoring, from evidence to map, mask and scan score. They are fixed before a scan is scored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from anomaly.core.aliases import current_scoring_settings
from anomaly.core.config import Settings
from anomaly.scoring.structure import StructureMap


class EvidenceSettings(Settings):
    """How signed evidence becomes a map and a declared score, for one model or an ensemble."""

    dark_weight: float = Field(default=1.0, gt=0, description="weight of voxels darker than expected")
    bright_weight: float = Field(default=1.0, gt=0, description="weight of voxels brighter than expected")
    erode_mm: float = Field(
        default=0.0, ge=0, description="width of the brain edge that is left out of the evidence, millimetres"
    )
    scan_score: str = Field(
        default="reconstruction", description="the declared scan score, which is compared with the threshold"
    )
    voxel_alpha: float = Field(
        default=0.005,
        gt=0,
        lt=0.5,
        description="share of the healthy brain voxels that are above the voxel threshold",
    )
    min_region_ml: float = Field(
        default=0.1, ge=0, description="smallest flagged region that is reported, millilitres"
    )
    min_block_correlation: float = Field(
        default=0.4,
        ge=-1,
        le=1,
        description="refuse the scan if the median over its 16 mm blocks of the correlation with the healthy mean "
        "is smaller; lesions hardly change it",
    )
    acquisition_alpha: float = Field(
        default=0.0001,
        ge=0,
        lt=1,
        description="warn of another scanner or protocol if the intensities and texture of a scan are less "
        "probable than this among the training scans; 0 = no warning",
    )

    @model_validator(mode="before")
    @classmethod
    def _present_names(cls, values: Any) -> Any:
        return current_scoring_settings(values) if isinstance(values, Mapping) else values


class ScoringSettings(EvidenceSettings):
    """How the raw maps of a model become one evidence map and one declared scan score."""

    maps: dict[str, float] = Field(
        default={"residual": 1.0},
        min_length=1,
        description="weights of the model's maps in the evidence, which is their weighted sum",
    )
    structure_maps: dict[StructureMap, PositiveFloat] = Field(
        default_factory=dict,
        description="weights of the maps of shape and structure that are added to the evidence (structure, "
        "texture, growth, growth_asymmetry), relative to that of the model's maps together; empty = none",
    )
    structure_sd_floor: float = Field(
        default=0.5, gt=0, description="smallest SD of the maps of structure, as a share of its median in the brain"
    )
    background_percentile: float = Field(
        default=0.0,
        ge=0,
        lt=100,
        description="percentile of a scan's evidence in the brain that is its background; where it exceeds that of "
        "healthy scans, the evidence of the model's maps is divided by their ratio, because another scanner raises "
        "the evidence everywhere; 0 = never divided",
    )
    smoothing_mm: float = Field(
        default=2.0, ge=0, description="sigma of the Gaussian that smooths each map, millimetres; 0 = none"
    )
    median_voxels: int = Field(
        default=0, ge=0, description="width of a 3D median filter before smoothing, voxels; 0 = none"
    )
    standardise: Literal["voxelwise", "normative", "none"] = Field(
        default="voxelwise",
        description="voxelwise: subtract the healthy mean and divide by the healthy SD of the voxel; normative: "
        "with the mean and SD of healthy subjects of that age and sex, where the age is known; or none",
    )
    sd_smoothing_mm: float = Field(
        default=4.0, ge=0, description="sigma of the Gaussian that smooths the SD map, millimetres"
    )
    sd_floor: NonNegativeFloat | dict[str, NonNegativeFloat] = Field(
        default=0.5,
        description="smallest SD, as a share of its median in the brain: one number for all maps, or one for each",
    )
    flip_average: bool = Field(
        default=False, description="average the evidence with that of the scan mirrored left to right"
    )
    top_fraction: float = Field(
        default=0.01,
        gt=0,
        le=1,
        description="share of brain voxels with the most evidence, whose mean is the score reconstruction",
    )
    retrieval: int = Field(
        default=3,
        ge=0,
        le=8,
        description="number of most similar healthy scans that a report shows, for families with a latent code; "
        "0 = none, and no image of a training scan is saved in the model",
    )
    retrieval_by: Literal["cosine", "hash"] = Field(
        default="cosine", description="similarity of two codes: their cosine, or the share of equal bits of a hash"
    )
    batch_size: int = Field(default=16, ge=1, description="images per forward pass")

    @model_validator(mode="after")
    def _a_floor_for_every_map(self) -> ScoringSettings:
        if isinstance(self.sd_floor, dict) and self.sd_floor.keys() != self.maps.keys():
            found, expected = (", ".join(sorted(names)) or "no map" for names in (self.sd_floor, self.maps))
            raise ValueError(f"sd_floor names {found}; expected one floor for each of maps: {expected}")
        return self

    def floor_of(self, name: str) -> float:
        """Return the floor of a map's SD, as a share of its median in the brain."""
        if name in self.structure_maps:
            return self.structure_sd_floor
        return self.sd_floor[name] if isinstance(self.sd_floor, dict) else self.sd_floor
