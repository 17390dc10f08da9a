from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from anomaly.core.errors import ConfigError, InputError
from anomaly.core.files import read_json
from pipelines.cli import app
from pipelines.common import Exit, shipped_configs
from pipelines.validation import cache_keys
from pipelines.validation.check_registry import CHECKS
from pipelines.validation.model_under_test import CheckResult
from pipelines.validation.run import load_settings, validate
from pipelines.validation.settings import FamilyEntry
from tests.pipelines.validation.small_avatars import NAIVE_BAYES, avatar_task
from tests.pipelines.validation.small_datasets import QUICK

VAE = {
    "model": {"family": "vae", "channels": [8, 16], "latent_size": 4, "noise_sd": 0.3},
    "training": {"steps": 60, "batch_size": 32, "validate_every": 60},
    "checks": ["generation"],
    "thresholds": {"generation.frechet": {"max": 1000}, "generation.memorised_fraction": {"max": 0.5}},
}
KNN = {
    "estimator": {"kind": "knn"},
    "checks": ["one_normal"],
    "thresholds": {"one_normal.auroc": {"min": 0.8}},
}
FEW = {"samples": 100, "neighbour_images": 100, "likelihood_images": 10, "code_images": 100}
ONE = {"digits": [0, 1], "calibration": 25, "held_out": 10, "alphas": [0.1]}


@pytest.fixture(autouse=True)
def _no_mnist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANOMALY_DATA", raising=False)


def replace_check(monkeypatch: pytest.MonkeyPatch, run_check: Any) -> None:
    """Let the check one_normal do something else."""
    monkeypatch.setitem(CHECKS, "one_normal", replace(CHECKS["one_normal"], run=run_check))  # type: ignore[misc]


def written(folder: Path, models: dict[str, Any]) -> Path:
    path = folder / "tiny.yaml"
    task = {"name": "tiny", "dataset": "mnist", "description": "Tiny.", "classifier": QUICK}
    path.write_text(yaml.safe_dump(task | {"checks": FEW, "one_class": ONE, "models": models}, sort_keys=False))
    return path


@pytest.mark.slow  # runs several tasks
def test_a_task_gives_a_result_and_a_page(tmp_path: Path) -> None:
    ensemble = {"members": ["knn", "forest"], "checks": KNN["checks"], "thresholds": KNN["thresholds"]}
    forest = KNN | {"estimator": {"kind": "isolation_forest", "trees": 20}}
    config = written(tmp_path, {"vae": VAE, "both": ensemble, "knn": KNN, "forest": forest})
    outcome = validate(config, tmp_path / "out", jobs=1)
    assert outcome.passed, outcome.failures
    assert outcome.source.startswith("NOT MNIST")
    assert [result.name for result in outcome.results] == ["vae", "both", "knn", "forest"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Passed" in page
    assert "Research use only" in page
    assert page.count("data:image/png") >= 3
    kept = read_json(tmp_path / "out" / "result.json")
    assert kept["result"] == "passed"
    assert kept["models"]["knn"]["measures"]["one_normal.auroc"] > 0.9


@pytest.mark.slow
def test_what_was_measured_is_not_measured_again_and_thresholds_may_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = validate(written(tmp_path, {"knn": KNN}), tmp_path / "out", jobs=1)

    def fails(*_: object) -> None:
        raise AssertionError("measured again")

    replace_check(monkeypatch, fails)
    stricter = KNN | {"thresholds": {"one_normal.auroc": {"min": 1.0}}}
    second = validate(written(tmp_path, {"knn": stricter}), tmp_path / "out", jobs=1)
    assert second.results[0].measures == first.results[0].measures
    assert re.fullmatch(r"knn: one_normal\.auroc is 0\.\d+, expected ≥ 1", second.failures[0])
    with pytest.raises(AssertionError, match="measured again"):
        validate(written(tmp_path, {"knn": KNN | {"estimator": {"kind": "knn", "neighbours": 3}}}),
                 tmp_path / "out", jobs=1)  # fmt: skip


@pytest.mark.slow  # starts two processes
def test_one_model_that_cannot_be_trained_fails_and_the_others_go_on(tmp_path: Path) -> None:
    broken = VAE | {"training": {"steps": 30, "learning_rate": 1e12, "gradient_clip": 1e12, "validate_every": 30}}
    outcome = validate(written(tmp_path, {"broken": broken, "knn": KNN}), tmp_path / "out", jobs=2)
    assert not outcome.passed
    assert outcome.results[0].problem
    assert outcome.results[1].measures["one_normal.auroc"] > 0.9
    assert outcome.failures[0].startswith("broken: ")
    assert "broken" in outcome.as_text()


@pytest.mark.slow
def test_a_check_that_a_family_does_not_support_is_a_failure(tmp_path: Path) -> None:
    silent = VAE | {"model": {"family": "pca", "components": 5}}
    outcome = validate(written(tmp_path, {"pca": silent}), tmp_path / "out", jobs=1)
    assert "remove the check generation" in outcome.failures[0]


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ({"vae": VAE | {"checks": ["generatoin"]}}, r"models\.vae\.checks.*generatoin.*generation"),
        ({"vae": {k: v for k, v in VAE.items() if k != "thresholds"}}, r"models\.vae.*thresholds"),
        ({"vae": VAE | {"thresholds": {}}}, r"models\.vae.*thresholds"),
        ({"vae": VAE | {"thresholds": {"generation.frechet": {}}}}, "expected min, max, or both"),
        (
            {"x": {"checks": ["latent_codes"], "thresholds": {"a": {"max": 1}}}},
            "expected one of the keys model, estimator",
        ),
        (
            {"e": {"members": ["a", "b"], "checks": ["one_normal"], "thresholds": {"a": {"max": 1}}}},
            r"models\.e\.members",
        ),
        ({"vae": VAE | {"model": {"family": "vea"}}}, "vea"),
        (
            {"vae": VAE | {"thresholds": {"latent_codes.mse": {"max": 1}}}},
            r"found 'latent_codes\.mse'; expected CHECK\.MEASURE",
        ),
    ],
)
def test_a_wrong_task_is_refused(models: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load_settings(written(tmp_path, models))


@pytest.mark.slow  # runs several tasks
def test_families_are_chosen_by_name_or_family(tmp_path: Path) -> None:
    config = written(tmp_path, {"vae": VAE, "near": KNN})
    near = validate(config, tmp_path / "a", families=["near"], jobs=1)
    assert [r.name for r in near.results] == ["near"]
    assert near.as_dict()["not_run"] == sorted(load_settings(config).models.keys() - {"near"})
    assert [r.name for r in validate(config, tmp_path / "b", families=["knn"], jobs=1).results] == ["near"]
    both = {"members": ["near", "far"], "checks": KNN["checks"], "thresholds": KNN["thresholds"]}
    together = written(tmp_path, {"vae": VAE, "both": both, "near": KNN, "far": KNN})
    found = validate(together, tmp_path / "d", families=["both"], jobs=1)
    assert [result.name for result in found.results] == ["both", "near", "far"]
    with pytest.raises(ConfigError, match="'dae'"):
        validate(config, tmp_path / "c", families=["dae"], jobs=1)


@pytest.mark.slow
def test_the_command_prints_the_result_and_exits_with_its_code(tmp_path: Path) -> None:
    config = written(tmp_path, {"knn": KNN})
    done = CliRunner().invoke(app, ["validate", str(config), "-o", str(tmp_path / "out"), "-q"])
    assert done.exit_code == Exit.DONE
    assert "1 of 1 thresholds met" in done.stdout
    assert done.stdout.strip().endswith("report.html")
    missed = written(tmp_path, {"knn": KNN | {"thresholds": {"one_normal.auroc": {"max": 0.5}}}})
    done = CliRunner().invoke(app, ["validate", str(missed), "-o", str(tmp_path / "out"), "-q", "--json"])
    assert done.exit_code == Exit.THRESHOLD_MISSED
    assert json.loads(done.stdout)["result"] == "failed"
    assert "expected ≤ 0.5" in done.stderr


@pytest.mark.slow
def test_a_check_with_a_new_version_is_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = written(tmp_path, {"knn": KNN})
    validate(config, tmp_path / "out", jobs=1)
    monkeypatch.setattr(cache_keys, "CHECK_VERSIONS", {"one_normal": 2})
    replace_check(monkeypatch, lambda _: CheckResult({"auroc": 0.123}))
    assert validate(config, tmp_path / "out", jobs=1).results[0].measures == {"one_normal.auroc": 0.123}


@pytest.mark.slow
def test_a_model_that_failed_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = written(tmp_path, {"knn": KNN})

    def fails(_: object) -> CheckResult:
        raise InputError("no such device")

    with monkeypatch.context() as patch:
        replace_check(patch, fails)
        assert validate(config, tmp_path / "out", jobs=1).failures[0] == "knn: no such device"
    assert validate(config, tmp_path / "out", jobs=1).passed


@pytest.mark.slow
def test_asking_for_one_model_keeps_what_was_found_of_others(tmp_path: Path) -> None:
    config = written(tmp_path, {"near": KNN, "far": KNN | {"estimator": {"kind": "knn", "neighbours": 3}}})
    validate(config, tmp_path / "out", jobs=1)
    again = validate(config, tmp_path / "out", families=["far"], jobs=1)
    assert [result.name for result in again.results] == ["near", "far"]
    assert read_json(tmp_path / "out" / "result.json")["models"].keys() == {"near", "far"}


@pytest.mark.parametrize("path", shipped_configs("validation").values(), ids=lambda path: path.stem)
def test_every_shipped_task_is_right(path: Path) -> None:
    settings = load_settings(path)
    assert settings.name == path.stem


def test_a_task_says_only_what_differs_from_the_one_it_extends(tmp_path: Path) -> None:
    path = tmp_path / "short.yaml"
    path.write_text(
        "extends: digits-small\nname: short\nmodels:\n  vae:\n    training: {steps: 7}\n", encoding="utf-8"
    )
    short, whole = load_settings(path), load_settings(shipped_configs("validation")["digits-small"])
    assert short.name == "short"
    assert short.models.keys() == whole.models.keys()
    assert short.models["cvae"] == whole.models["cvae"]
    vae, whole_vae = short.models["vae"], whole.models["vae"]
    assert isinstance(vae, FamilyEntry)
    assert isinstance(whole_vae, FamilyEntry)
    assert vae.training == whole_vae.training.model_copy(update={"steps": 7})


@pytest.mark.parametrize("name", ["avatars", "avatars-small"])
def test_a_shipped_task_can_be_read_and_covers_what_was_asked_for(name: str) -> None:
    settings = load_settings(Path("configs/validation") / f"{name}.yaml")
    families = {entry.family for entry in settings.models.values()}
    assert {
        "ae",
        "vae",
        "cvae",
        "f_anogan",
        "diffusion",
        "naive Bayes of features",
        "naive Bayes of pixels",
    } <= families
    checks = {check for entry in settings.models.values() for check in entry.checks}
    assert (
        {
            "avatar_samples",
            "avatar_conditional",
            "latent_arithmetic",
            "out_of_distribution",
            "unobserved_combinations",
            "generation",
        }
        <= checks
        <= set(CHECKS)
    )
    assert settings.classifier.min_accuracy >= 0.98


@pytest.mark.slow
def test_a_task_reports_unobserved_combinations(tmp_path: Path) -> None:
    few = {"train": 300, "test": 150, "classifier_train": 600, "reference": 60, "held_out": 30, "calibration": 60,
           "out_of_distribution": 30}  # fmt: skip
    values = avatar_task(
        naive=NAIVE_BAYES,
        pixels={
            "naive_bayes": {"of": "pixels", "alpha": 0.01},
            "checks": ["avatar_samples", "out_of_distribution"],
            "thresholds": {"avatar_samples.valid": {"max": 0.05}},
        },
        components={
            "model": {"family": "pca", "components": 20},
            "checks": ["out_of_distribution"],
            "thresholds": {"out_of_distribution.auroc": {"min": 0.9}},
        },
    )
    values |= {"avatars": few, "checks": {"samples": 100, "neighbour_images": 100}}
    values["classifier"] = {"steps": 20, "batch_size": 32, "channels": 8, "normalise": True, "min_accuracy": 0.0}
    config = tmp_path / "task.yaml"
    config.write_text(yaml.safe_dump(values), encoding="utf-8")
    outcome = validate(config, tmp_path / "out", jobs=1)
    assert outcome.passed, outcome.failures
    found = json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))
    (rows,) = found["models"]["naive"]["tables"].values()
    assert len(rows) == 10
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Combinations that none of the fifty observed avatars has" in page
    assert all(row["clothing_type"] in page for row in rows)
    again = validate(config, tmp_path / "out", jobs=1)
    assert [result.measures for result in again.results] == [result.measures for result in outcome.results]
