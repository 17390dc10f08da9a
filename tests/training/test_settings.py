from __future__ import annotations

import pytest

from anomaly.core.errors import ConfigError
from anomaly.training.settings import AugmentationSettings, TrainingSettings


def test_the_range_of_elastic_nodes_has_its_smaller_number_first() -> None:
    assert AugmentationSettings(elastic_nodes=(4, 12)).elastic_nodes == (4, 12)
    with pytest.raises(ConfigError, match=r"elastic_nodes: .*found \[12, 4\]"):
        AugmentationSettings.parse({"elastic_nodes": [12, 4]}, "training.augmentation")


def test_every_setting_describes_itself() -> None:
    for settings in (TrainingSettings, AugmentationSettings):
        without = [name for name, field in settings.model_fields.items() if not field.description]
        assert without in ([], ["augmentation"])
