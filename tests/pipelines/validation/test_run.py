from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from anomaly.core.errors import ConfigError, InputError
from anomaly.core.files import read_json
from pipelines.cli import app
from pipelines.common import Exit, shipped_configs
from pipelines.validation import cache_keys as fingerprints
from pipelines.validation import run
from pipelines.validation.model_under_test import Findings
from pipelines.validation.report.result import TrialResult
from pipelines.validation.run import load_settings, validate
from pipelines.validation.thresholds import Bar
from tests.pipelines.validation.small_datasets import QUICK

VAE = {
    "model": {"family": "vae", "channels": [8, 16], "latent_size": 4, "noise_sd": 0.3},
    "training": {"steps": 60, "batch_size": 32, "validate_every": 60},
    "exams": ["generation"],
    "bars": {"generation.frechet": {"most": 1000}, "generation.copied": {"most": 0.5}},
}
KNN = {
    "estimator": {"kind": "knn"},
    "exams": ["one_normal"],
    "bars": {"one_normal.auroc": {"least": 0.8}},
}
FEW = {"samples": 100, "neighbours_of": 100, "likelihood_of": 10, "probed": 100}
ONE = {"digits": [0, 1], "calibration": 25, "held_out": 10, "alphas": [0.1]}


@pytest.fixture(autouse=True)
def _no_mnist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANOMALY_DATA", raising=False)


def written(folder: Path, trials: dict[str, Any]) -> Path:
    path = folder / "tiny.yaml"
    task = {"name": "tiny", "world": "mnist", "description": "Tiny.", "classifier": QUICK}
    path.write_text(yaml.safe_dump(task | {"exams": FEW, "one_class": ONE, "trials": trials}, sort_keys=False))
    return path


@pytest.mark.slow  # runs several tasks
def test_a_task_is_run_to_a_verdict_and_a_page(tmp_path: Path) -> None:
    ensemble = {"members": ["knn", "forest"], "exams": KNN["exams"], "bars": KNN["bars"]}
    forest = KNN | {"estimator": {"kind": "isolation_forest", "trees": 20}}
    config = written(tmp_path, {"vae": VAE, "both": ensemble, "knn": KNN, "forest": forest})
    verdict = validate(config, tmp_path / "out", jobs=1)
    assert verdict.passed, verdict.failures
    assert verdict.source.startswith("NOT MNIST")
    assert [result.name for result in verdict.results] == ["vae", "both", "knn", "forest"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Passed" in page
    assert "Research use only" in page
    assert page.count("data:image/png") >= 3
    kept = read_json(tmp_path / "out" / "result.json")
    assert kept["verdict"] == "passed"
    assert kept["trials"]["knn"]["measures"]["one_normal.auroc"] > 0.9


def test_what_was_measured_is_not_measured_again_and_bars_may_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = validate(written(tmp_path, {"knn": KNN}), tmp_path / "out", jobs=1)

    def fails(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setitem(run.EXAMS, "one_normal", fails)  # type: ignore[arg-type]
    stricter = KNN | {"bars": {"one_normal.auroc": {"least": 1.0}}}
    second = validate(written(tmp_path, {"knn": stricter}), tmp_path / "out", jobs=1)
    assert second.results[0].measures == first.results[0].measures
    assert re.fullmatch(r"knn: one_normal\.auroc is 0\.\d+, expected ≥ 1", second.failures[0])
    with pytest.raises(AssertionError, match="measured again"):
        validate(written(tmp_path, {"knn": KNN | {"estimator": {"kind": "knn", "neighbours": 3}}}),
                 tmp_path / "out", jobs=1)  # fmt: skip


@pytest.mark.slow  # starts two processes
def test_one_model_that_cannot_be_trained_fails_and_the_others_go_on(tmp_path: Path) -> None:
    broken = VAE | {"training": {"steps": 30, "learning_rate": 1e12, "gradient_clip": 1e12, "validate_every": 30}}
    verdict = validate(written(tmp_path, {"broken": broken, "knn": KNN}), tmp_path / "out", jobs=2)
    assert not verdict.passed
    assert verdict.results[0].problem
    assert verdict.results[1].measures["one_normal.auroc"] > 0.9
    assert verdict.failures[0].startswith("broken: ")
    assert "broken" in verdict.as_text()


def test_an_exam_that_a_family_cannot_take_is_a_failure_that_says_so(tmp_path: Path) -> None:
    silent = VAE | {"model": {"family": "pca", "components": 5}}
    verdict = validate(written(tmp_path, {"pca": silent}), tmp_path / "out", jobs=1)
    assert "leave out the exam generation" in verdict.failures[0]


@pytest.mark.parametrize(
    ("trials", "message"),
    [
        ({"vae": VAE | {"exams": ["generatoin"]}}, r"trials\.vae\.exams.*generatoin.*generation"),
        ({"vae": {k: v for k, v in VAE.items() if k != "bars"}}, r"trials\.vae.*bars"),
        ({"vae": VAE | {"bars": {}}}, r"trials\.vae.*bars"),
        ({"vae": VAE | {"bars": {"generation.frechet": {}}}}, "expected least, most, or both"),
        ({"x": {"exams": ["codes"], "bars": {"a": {"most": 1}}}}, "expected one of the keys model, estimator"),
        (
            {"e": {"members": ["a", "b"], "exams": ["one_normal"], "bars": {"a": {"most": 1}}}},
            r"trials\.e\.members",
        ),
        ({"vae": VAE | {"model": {"family": "vea"}}}, "vea"),
        ({"vae": VAE | {"bars": {"codes.mse": {"most": 1}}}}, r"found 'codes\.mse'; expected EXAM\.MEASURE"),
    ],
)
def test_a_wrong_task_is_refused(trials: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load_settings(written(tmp_path, trials))


@pytest.mark.slow  # runs several tasks
def test_families_are_chosen_by_name_or_family(tmp_path: Path) -> None:
    config = written(tmp_path, {"vae": VAE, "near": KNN})
    near = validate(config, tmp_path / "a", families=["near"], jobs=1)
    assert [r.name for r in near.results] == ["near"]
    assert near.as_dict()["not_run"] == sorted(load_settings(config).trials.keys() - {"near"})
    assert [r.name for r in validate(config, tmp_path / "b", families=["knn"], jobs=1).results] == ["near"]
    both = {"members": ["near", "far"], "exams": KNN["exams"], "bars": KNN["bars"]}
    together = written(tmp_path, {"vae": VAE, "both": both, "near": KNN, "far": KNN})
    found = validate(together, tmp_path / "d", families=["both"], jobs=1)
    assert [result.name for result in found.results] == ["both", "near", "far"]
    with pytest.raises(ConfigError, match="'dae'"):
        validate(config, tmp_path / "c", families=["dae"], jobs=1)


def test_the_command_prints_the_verdict_and_exits_with_it(tmp_path: Path) -> None:
    config = written(tmp_path, {"knn": KNN})
    done = CliRunner().invoke(app, ["validate", str(config), "-o", str(tmp_path / "out"), "-q"])
    assert done.exit_code == Exit.DONE
    assert "1 of 1 bars met" in done.stdout
    assert done.stdout.strip().endswith("report.html")
    missed = written(tmp_path, {"knn": KNN | {"bars": {"one_normal.auroc": {"most": 0.5}}}})
    done = CliRunner().invoke(app, ["validate", str(missed), "-o", str(tmp_path / "out"), "-q", "--json"])
    assert done.exit_code == Exit.MISSED
    assert json.loads(done.stdout)["verdict"] == "failed"
    assert "expected ≤ 0.5" in done.stderr


def test_bars_are_met_on_their_edge_and_never_by_what_is_no_number() -> None:
    assert Bar(least=0.5).met_by(0.5)
    assert not Bar(least=0.5, most=0.7).met_by(0.71)
    assert not Bar(most=1).met_by(math.nan)
    assert str(Bar(least=0.5, most=2)) == "≥ 0.5 and ≤ 2"


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    result = TrialResult(tmp_path / "a", "vae", {"x.y": 1.5, "x.z": math.nan}, {"t": "01.png"}, {"u": [{"k": 1.0}]})
    result.write("mark")
    (tmp_path / "a" / "01.png").touch()
    again = TrialResult.read(tmp_path / "a", "mark")
    assert again is not None
    assert again.measures["x.y"] == 1.5
    assert math.isnan(again.measures["x.z"])
    assert (again.pictures, again.tables, again.notes) == (result.pictures, result.tables, ())
    assert TrialResult.read(tmp_path / "a", "another mark") is None
    (tmp_path / "a" / "01.png").unlink()
    assert TrialResult.read(tmp_path / "a", "mark") is None


def test_changed_code_is_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = written(tmp_path, {"knn": KNN})
    validate(config, tmp_path / "out", jobs=1)
    monkeypatch.setattr(fingerprints, "of_code", lambda: "other code")
    monkeypatch.setitem(run.EXAMS, "one_normal", lambda _: Findings({"auroc": 0.123}))  # type: ignore[misc]
    assert validate(config, tmp_path / "out", jobs=1).results[0].measures == {"one_normal.auroc": 0.123}


def test_what_went_wrong_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = written(tmp_path, {"knn": KNN})

    def fails(_: object) -> Findings:
        raise InputError("no such device")

    with monkeypatch.context() as patch:
        patch.setitem(run.EXAMS, "one_normal", fails)  # type: ignore[misc]
        assert validate(config, tmp_path / "out", jobs=1).failures[0] == "knn: no such device"
    assert validate(config, tmp_path / "out", jobs=1).passed


def test_asking_for_one_model_keeps_what_was_found_of_others(tmp_path: Path) -> None:
    config = written(tmp_path, {"near": KNN, "far": KNN | {"estimator": {"kind": "knn", "neighbours": 3}}})
    validate(config, tmp_path / "out", jobs=1)
    again = validate(config, tmp_path / "out", families=["far"], jobs=1)
    assert [result.name for result in again.results] == ["near", "far"]
    assert read_json(tmp_path / "out" / "result.json")["trials"].keys() == {"near", "far"}


@pytest.mark.parametrize("path", shipped_configs("validation").values(), ids=lambda path: path.stem)
def test_every_shipped_task_is_right(path: Path) -> None:
    settings = load_settings(path)
    assert settings.name == path.stem
