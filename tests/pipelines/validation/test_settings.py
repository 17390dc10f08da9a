from __future__ import annotations

import pytest

from anomaly.core.errors import ConfigError
from pipelines.validation.settings import NaiveBayesEntry, OneClassSettings, ValidationSettings
from tests.pipelines.validation.small_avatars import NAIVE_BAYES, avatar_task


def test_naive_bayes_is_a_model_under_test() -> None:
    model = {
        "model": {"family": "pca"},
        "checks": ["out_of_distribution"],
        "thresholds": {"out_of_distribution.auroc": {"min": 0.9}},
    }
    settings = ValidationSettings.parse(avatar_task(naive=NAIVE_BAYES, components=model), "here")
    assert isinstance(settings.models["naive"], NaiveBayesEntry)
    assert settings.models["naive"].family == "naive Bayes of features"
    assert settings.models["components"].family == "pca"


def test_a_wrong_key_of_naive_bayes_is_named() -> None:
    wrong = NAIVE_BAYES | {"naive_bayes": {"of": "pixels", "smoothing": 1}}
    with pytest.raises(ConfigError, match=r"naive_bayes\.smoothing"):
        ValidationSettings.parse(avatar_task(naive=wrong), "here")


def test_an_alpha_that_needs_more_calibration_images_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs calibration 99, found 50"):
        OneClassSettings.parse({"calibration": 50, "alphas": [0.01]}, "one_class")


@pytest.mark.parametrize("members", [["pixels", "nobody"], ["pixels", "both"]])
def test_a_member_of_an_ensemble_is_another_model_of_the_task(members: list[str]) -> None:
    pixels = {"naive_bayes": {"of": "pixels"}, "checks": ["a"], "thresholds": {"a.b": {"min": 1}}}
    both = {"members": members, "checks": ["a"], "thresholds": {"a.b": {"min": 1}}}
    with pytest.raises(ConfigError, match=rf"models\.both\.members.*{members[1]}"):
        ValidationSettings.parse(avatar_task(pixels=pixels, both=both), "here")
