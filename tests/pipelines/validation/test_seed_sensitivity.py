from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from pipelines.validation import seed_sensitivity as command
from pipelines.validation.report.result import ModelResult, StoredCheck, ValidationResult
from pipelines.validation.seed_sensitivity import run_seeds, seed_table, with_seed
from pipelines.validation.settings import EnsembleEntry, FamilyEntry, ValidationSettings
from tests.pipelines.validation.small_datasets import QUICK
from tests.pipelines.validation.test_run import FEW, KNN, ONE, VAE, written


def tiny(**models: Any) -> ValidationSettings:
    task = {"name": "tiny", "dataset": "digits", "description": "Tiny.", "classifier": QUICK, "checks": FEW}
    return ValidationSettings.parse(task | {"one_class": ONE, "models": models}, where="tiny")


def test_another_seed_reaches_trainings_and_parts_and_nothing_else() -> None:
    both = {"members": ["knn", "near"], "checks": KNN["checks"], "thresholds": KNN["thresholds"]}
    task = tiny(vae=VAE, knn=KNN, near=KNN, both=both)
    other = with_seed(task, 7)
    assert isinstance(vae := other.models["vae"], FamilyEntry)
    assert vae.training.seed == 7
    assert vae.training.model_copy(update={"seed": 0}) == task.models["vae"].training  # type: ignore[union-attr]
    assert other.one_class.seeds == (7,)
    assert isinstance(other.models["both"], EnsembleEntry)
    assert other.models["knn"] == task.models["knn"]
    assert task.one_class.seeds == (0,)
    shared = {"checks", "avatars", "classifier", "name", "dataset"}
    assert other.model_dump(include=shared) == task.model_dump(include=shared)


@pytest.mark.slow
def test_each_seed_is_run_once_and_the_classifier_is_trained_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = seed_table(run_seeds(tiny(knn=KNN, near=KNN), tmp_path, [0, 1], jobs=1))
    assert first["model"].tolist() == ["knn", "near"]
    row = first.loc[0]
    assert (row["measure"], row["threshold"], row["missed"], row["runs"]) == ("one_normal.auroc", "≥ 0.8", 0, 2)
    assert 0.8 < row["lowest"] < row["highest"] <= 1
    classifiers = {path.stat().st_ino for path in (tmp_path / "tiny").glob("*/classifier-*")}
    assert len(classifiers) == 1

    stricter = KNN | {"thresholds": {"one_normal.auroc": {"min": row["highest"]}}}
    monkeypatch.setattr("pipelines.validation.run.CHECKS", {"one_normal": None})  # what was measured is used again
    again = seed_table(run_seeds(tiny(knn=stricter, near=KNN), tmp_path, [0, 1], families=["knn"], jobs=1))
    assert again["model"].tolist() == ["knn"]  # what is there of others was not asked for
    assert again["missed"].tolist() == [1]


def test_a_run_in_which_nothing_was_measured_has_missed(tmp_path: Path) -> None:
    def run(**measures: float) -> ValidationResult:
        found = ModelResult(tmp_path / "knn", "knn", (StoredCheck("one_normal", measures),))
        return ValidationResult(tiny(knn=KNN), "", {"accuracy": {}, "min": 0}, (found,), {}, "")

    for outcomes in ([run(), run(auroc=0.9), run(auroc=0.7)], [run(auroc=0.7), run(auroc=0.9), run()]):
        assert seed_table(outcomes).loc[0, ["lowest", "highest", "missed", "runs"]].tolist() == [0.7, 0.9, 2, 3]
    nothing = seed_table([run()]).loc[0]
    assert math.isnan(nothing["lowest"])
    assert nothing["missed"] == 1


@pytest.mark.slow
def test_the_command_prints_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("ANOMALY_DATA", raising=False)
    config = written(tmp_path, {"knn": KNN, "vae": VAE})
    arguments = ["spread", str(config), "-o", str(tmp_path), "--seeds", "3", "--family", "knn", "--jobs", "1"]
    monkeypatch.setattr("sys.argv", arguments)
    command.main()
    printed = capsys.readouterr().out
    assert printed.startswith("NOT MNIST")
    assert "| knn | one_normal.auroc | ≥ 0.8 |" in printed
    assert sorted(path.name for path in (tmp_path / "tiny" / "3").glob("*/")) == ["knn"]
