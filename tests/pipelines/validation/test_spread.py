from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.validation import spread
from pipelines.validation.settings import EnsembleTrial, TrialSettings, ValidationSettings
from pipelines.validation.spread import reseeded, run_spread
from tests.pipelines.validation.test_run import FEW, KNN, ONE, VAE, written
from tests.pipelines.validation.worlds import QUICK


def tiny(**trials: Any) -> ValidationSettings:
    task = {"name": "tiny", "world": "digits", "description": "Tiny.", "classifier": QUICK, "exams": FEW}
    return ValidationSettings.parse(task | {"one_class": ONE, "trials": trials}, where="tiny")


def test_another_seed_reaches_trainings_and_parts_and_nothing_else() -> None:
    both = {"members": ["knn", "near"], "exams": KNN["exams"], "bars": KNN["bars"]}
    task = tiny(vae=VAE, knn=KNN, near=KNN, both=both)
    other = reseeded(task, 7)
    assert isinstance(vae := other.trials["vae"], TrialSettings)
    assert vae.training.seed == 7
    assert vae.training.model_copy(update={"seed": 0}) == task.trials["vae"].training  # type: ignore[union-attr]
    assert other.one_class.seeds == (7,)
    assert isinstance(other.trials["both"], EnsembleTrial)
    assert other.trials["knn"] == task.trials["knn"]
    assert task.one_class.seeds == (0,)


def test_the_spread_names_the_worst_of_all_seeds_and_counts_the_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_spread(tiny(knn=KNN), tmp_path, [0, 1, 2], jobs=1)
    assert list(first.columns) == ["model", "measure", "bar", "lowest", "highest", "missed"]
    (row,) = first.to_dict("records")
    lowest, highest = float(row.pop("lowest")), float(row.pop("highest"))
    assert 0.8 < lowest < highest <= 1
    assert row == {"model": "knn", "measure": "one_normal.auroc", "bar": "≥ 0.8", "missed": "0 of 3"}
    classifiers = {path.stat().st_ino for path in (tmp_path / "tiny").glob("*/classifier-*")}
    assert len(classifiers) == 1  # trained once

    stricter = tiny(knn=KNN | {"bars": {"one_normal.auroc": {"least": highest + 1e-3}}})
    monkeypatch.setattr("pipelines.validation.run.EXAMS", {"one_normal": None})  # what was measured is used again
    assert run_spread(stricter, tmp_path, [0, 1, 2], jobs=1)["missed"].tolist() == ["3 of 3"]


def test_the_command_prints_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("ANOMALY_DATA", raising=False)
    config = written(tmp_path, {"knn": KNN, "vae": VAE})
    arguments = ["spread", str(config), "-o", str(tmp_path), "--seeds", "3", "--family", "knn", "--jobs", "1"]
    monkeypatch.setattr("sys.argv", arguments)
    spread.main()
    assert "| knn | one_normal.auroc | ≥ 0.8 |" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "tiny" / "3").glob("*/")) == ["knn"]
