from __future__ import annotations

import pytest

from pipelines.common import shipped_configs
from pipelines.validation.checks.avatars.metric_descriptions import DESCRIPTIONS
from pipelines.validation.run import load_settings


@pytest.mark.parametrize("task", ["avatars", "avatars-small"])
def test_every_measure_with_a_threshold_is_described(task: str) -> None:
    checks = {name.partition(".")[0] for name in DESCRIPTIONS}
    models = load_settings(shipped_configs("validation")[task]).models.values()
    measures = {name for model in models for name in model.thresholds if name.partition(".")[0] in checks}
    assert len(measures) > 10
    assert measures <= DESCRIPTIONS.keys()
