from __future__ import annotations

import pytest

from anomaly.core.errors import ConfigError
from anomaly.scoring.settings import EvidenceSettings, ScoringSettings


def test_one_sd_floor_is_that_of_every_map() -> None:
    settings = ScoringSettings(maps={"residual": 1.0, "pca": 2.0}, sd_floor=0.3)
    assert (settings.floor_of("residual"), settings.floor_of("pca")) == (0.3, 0.3)


def test_sd_floors_by_map_must_name_every_map() -> None:
    settings = ScoringSettings(maps={"residual": 1.0, "pca": 2.0}, sd_floor={"residual": 0.1, "pca": 0.5})
    assert settings.floor_of("pca") == 0.5
    with pytest.raises(ConfigError, match="sd_floor names pca; expected one floor for each of maps: residual"):
        ScoringSettings.parse({"sd_floor": {"pca": 0.1}}, "scoring")


@pytest.mark.parametrize(
    "wrong",
    [{"dark_weight": 0}, {"voxel_alpha": 0.6}, {"erode_mm": -1}, {"min_block_correlation": 2}, {"smothing_mm": 2}],
)
def test_impossible_settings_and_unknown_keys_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ScoringSettings.parse(wrong, "scoring")


@pytest.mark.parametrize(("earlier", "now"), [(0.5, 0.4), (0.0, 0.0), (-1.0, -1.0)])
@pytest.mark.parametrize("settings", [EvidenceSettings, ScoringSettings])
def test_the_limit_of_an_earlier_version_is_that_of_blocks_and_refuses_no_more_healthy_scans(
    settings: type[EvidenceSettings], earlier: float, now: float
) -> None:
    assert settings.parse({"min_similarity": earlier}, "scoring").min_block_correlation == pytest.approx(now)
    with pytest.raises(ConfigError, match="min_similarity"):
        settings.parse({"min_similarity": earlier, "min_block_correlation": 0.4}, "scoring")


def test_an_ensemble_has_the_settings_of_evidence_alone() -> None:
    assert set(EvidenceSettings.model_fields) < set(ScoringSettings.model_fields)
    assert "smoothing_mm" not in EvidenceSettings.model_fields
