from __future__ import annotations

from pipelines.validation.earlier_names import current_measure
from pipelines.validation.settings import ValidationSettings

EARLIER = {
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


def test_a_task_of_an_earlier_version_is_read() -> None:
    task = ValidationSettings.parse(EARLIER, "earlier.yaml")
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


def test_present_measure_names_are_left_as_they_are() -> None:
    for name in ("generation.frechet", "latent_codes.mse", "one_normal.auroc_hotelling"):
        assert current_measure(name) == name
    assert current_measure("requests.change_top_type") == "avatar_conditional.single_change_top_type"
