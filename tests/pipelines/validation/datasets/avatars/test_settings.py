from __future__ import annotations

from typing import Any

import pytest

from anomaly.core.errors import ConfigError
from pipelines.validation.datasets.avatars.settings import AvatarSettings, NaiveBayesSettings


def test_a_target_that_needs_more_calibration_images_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"alpha 0\.01 needs calibration 99, found 98"):
        AvatarSettings.parse({"alphas": [0.01, 0.1], "calibration": 98}, "avatars")
    assert AvatarSettings.parse({"alphas": [0.01, 0.1], "calibration": 99}, "avatars").calibration == 99


@pytest.mark.parametrize(
    "values", [{}, {"of": "scans"}, {"of": "pixels", "levels": 1}, {"of": "pixels", "alpha": -1}]
)
def test_wrong_settings_of_naive_bayes_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        NaiveBayesSettings.parse(values, "naive_bayes")
