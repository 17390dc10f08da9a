from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from anomaly.core import aliases
from anomaly.core.errors import ConfigError
from anomaly.models.registry import create, parse_settings
from anomaly.scoring.reference import HealthyReference
from anomaly.scoring.settings import ScoringSettings
from pipelines.common import find_config
from pipelines.validation.settings import ValidationSettings
from tests.models.factories import GRID

EARLIER_VALIDATION_TASK = {
    "name": "tiny",
    "world": "digits",
    "description": "Tiny.",
    "classifier": {"least_accuracy": 0.5},
    "exams": {"neighbours_of": 150, "likelihood_of": 3, "importance": [1], "probed": 120},
    "one_class": {"rehearsal": True, "paper": 0.2},
    "avatars": {"classified": 200, "outside": 30},
    "trials": {
        "ae": {
            "draws": 2,
            "model": {"family": "ae"},
            "exams": ["codes", "outliers"],
            "bars": {"codes.better_than_pca": {"least": 1.2}, "outliers.false_flags_0.05": {"most": 0.1}},
        }
    },
}


def test_names_without_an_earlier_name_stay_as_they_are() -> None:
    assert aliases.current_name("dae", aliases.FAMILIES) == "dae"
    assert aliases.current_config_name("latent_diffusion-small") == "latent_diffusion-small"


@pytest.mark.parametrize(("old", "new"), aliases.FAMILIES.items())
def test_a_family_is_found_under_its_earlier_name(old: str, new: str) -> None:
    assert parse_settings({"family": old}, "model").family == new
    assert find_config(f"{old}-small", "models").name == f"{new}-small.yaml"


@pytest.mark.parametrize(
    ("family", "old", "new", "value"),
    [
        ("dae", "severity_weight", "change_logit_weight", 0.5),
        ("diffusion", "evaluations", "n_function_evaluations", 6),
    ],
)
def test_a_setting_is_read_under_its_earlier_name(family: str, old: str, new: str, value: float) -> None:
    settings = parse_settings({"family": family, old: value}, "model")
    assert settings.model_dump()[new] == value


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "values"),
    [
        ("conv_lstm_ae", {"channels": (8,), "latent_size": 4, "hidden_size": 4, "cell": "lstm"}),
        ("cvae", {"channels": (8,), "latent_size": 4}),
        ("f_anogan", {"channels": (8, 16), "latent_size": 4, "conditional": True}),
        ("hvae", {"channels": (8, 16), "latents": (4, 2, 1)}),
    ],
)
def test_weights_are_read_under_their_earlier_names(family: str, values: dict[str, Any]) -> None:
    weights = create(parse_settings({"family": family, **values}, "test"), GRID).state_dict()
    earlier_names = {new: old for old, new in aliases.WEIGHTS[family].items()}
    earlier = {
        ".".join(earlier_names.get(part, part) for part in name.split(".")): value
        for name, value in weights.items()
    }
    assert {part for name in earlier for part in name.split(".")} >= set(earlier_names.values())
    assert list(aliases.current_weights(earlier, family)) == list(weights)
    assert aliases.current_weights(weights, family) == weights


def test_settings_of_models_are_read_under_their_earlier_names() -> None:
    settings = parse_settings({"family": "cvae", "drop": 0.1}, "test")
    assert settings.model_dump()["condition_dropout"] == 0.1
    corruption = {"blobs": 2, "dark": 0.1, "flat": 0.2, "foreign": 0.3, "masked": 0.4}
    found = parse_settings({"family": "dae", "corruption": corruption}, "test").model_dump()["corruption"]
    names = ("max_blobs", "dark_share", "flat_share", "foreign_share", "mask_probability")
    assert [found[name] for name in names] == [2, 0.1, 0.2, 0.3, 0.4]


def test_maps_are_read_under_their_earlier_names_and_keep_their_order() -> None:
    maps = {"severity": 2.0, "residual": 1.0, "departure": 0.5}
    settings = ScoringSettings.model_validate({"maps": maps, "sd_floor": dict.fromkeys(maps, 0.1)})
    assert list(settings.maps.items()) == [("change_logit", 2.0), ("residual", 1.0), ("mean_deviation", 0.5)]
    assert settings.floor_of("mean_deviation") == 0.1


def test_a_healthy_reference_is_read_under_earlier_names_of_its_maps() -> None:
    array = np.ones((2, 2, 2), dtype=np.float32)
    arrays = {"mean.severity": array, "sd.severity": array, "appearance": array, "acquisition": array[0]}
    reference = HealthyReference.from_arrays(arrays, {}, {}, {})
    assert list(reference.mean) == list(reference.sd) == ["change_logit"]


def test_the_family_in_the_metadata_of_a_model_gets_its_present_name() -> None:
    assert aliases.current_metadata({"family": "gan", "model_id": "1"}) == {"family": "f_anogan", "model_id": "1"}


def test_the_earlier_and_the_present_name_of_a_key_together_are_refused() -> None:
    with pytest.raises(ConfigError, match="found both 'severity' and 'change_logit'"):
        aliases.rename_keys({"severity": 1, "change_logit": 2}, aliases.MAPS)


def test_the_statistics_of_scores_in_the_metadata_get_their_present_names() -> None:
    old = {"score_centre": {"kl": 1.0}, "score_spread": {"kl": 2.0}}
    assert aliases.current_metadata(old) == {"score_mean": {"kl": 1.0}, "score_std": {"kl": 2.0}}


def test_a_score_file_of_an_earlier_version_gets_present_names() -> None:
    old = {"scan_id": "a", "map_path": "a/map.nii.gz", "mask_path": "", "provenance": {"look_seconds": 0.5}}
    assert aliases.current_scan_score(old) == {
        "scan_id": "a",
        "outputs": {"anomaly_map": "a/map.nii.gz"},
        "provenance": {"inference_seconds": 0.5},
    }
    assert aliases.current_scan_score({"outputs": {"dicom_seg": "a.dcm"}})["outputs"] == {"dicom_seg": "a.dcm"}


def test_a_validation_task_of_an_earlier_version_is_read() -> None:
    task = ValidationSettings.parse(EARLIER_VALIDATION_TASK, "earlier.yaml")
    assert task.dataset == "digits"
    assert task.classifier.min_accuracy == 0.5
    assert (task.checks.neighbour_images, task.checks.likelihood_images, task.checks.code_images) == (150, 3, 120)
    assert task.checks.importance_samples == (1,)
    assert (task.one_class.tuning_split, task.one_class.background_level) == (True, 0.2)
    assert (task.avatars.classifier_train, task.avatars.out_of_distribution) == (200, 30)
    entry = task.models["ae"]
    assert entry.checks == ("latent_codes", "out_of_distribution")
    assert {name: str(t) for name, t in entry.thresholds.items()} == {
        "latent_codes.pca_error_ratio": "≥ 1.2",
        "out_of_distribution.fpr_0.05": "≤ 0.1",
    }


def test_present_names_of_validation_measures_are_left_as_they_are() -> None:
    for name in ("generation.frechet", "latent_codes.mse", "one_normal.auroc_hotelling"):
        assert aliases.current_validation_measure(name) == name
    assert (
        aliases.current_validation_measure("requests.change_top_type")
        == "avatar_conditional.single_change_top_type"
    )
