from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from anomaly.core.config import description_of
from anomaly.core.errors import ConfigError
from pipelines.common import shipped_configs
from pipelines.shipped_models.settings import ShippedModelSettings, load_settings

REQUIRED = {
    "config": "dae", "healthy": "ixi", "reference": "one scanner", "attribution": "From IXI.", "licence": "CC0"
}  # fmt: skip


def test_the_settings_of_the_default_model_state_its_source_its_licence_and_its_limits() -> None:
    settings = load_settings(shipped_configs("shipped_models")["default"])
    assert settings.alphas == (0.05, 0.10)
    assert settings.max_mb == 10
    facts = settings.facts("default")
    assert facts["name"] == "default"
    assert facts["shipped"].keys() == {"reference", "attribution", "licence"}
    assert "CC BY-SA 3.0" in facts["shipped"]["licence"]
    assert any("`anomaly calibrate` with your own healthy scans" in limit for limit in facts["limits"])


def test_every_setting_has_a_description() -> None:
    assert all(description_of(ShippedModelSettings, name) for name in ShippedModelSettings.model_fields)


@pytest.mark.parametrize(
    ("key", "value"), [("voxel_bits", 4), ("alphas", []), ("licence", ""), ("calibration_subjects", 1), ("size", 3)]
)
def test_a_wrong_value_is_refused_with_the_file_and_the_key(tmp_path: Path, key: str, value: object) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(REQUIRED | {key: value}), encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"mine\.yaml: .*{key}"):
        load_settings(path)
