from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anomaly.calibration.operating_point import check_fpr
from anomaly.core.errors import ConfigError, InputError
from anomaly.evaluation.detection import auroc
from pipelines.validation import fit_and_score
from pipelines.validation.baselines.sklearn_detectors import EstimatorEntry
from pipelines.validation.checks.one_class.protocol import (
    one_class,
    split,
    tuning_split,
)
from pipelines.validation.checks.one_class.result import OneClassResult, load_classes, merged
from pipelines.validation.datasets.digits import Digits
from pipelines.validation.labelled_dataset import LabelledImages
from pipelines.validation.settings import FamilyEntry, OneClassSettings
from pipelines.validation.thresholds import Threshold

pytestmark = pytest.mark.slow  # trains models

SIZE = 8
THRESHOLDS = {"one_normal.auroc": Threshold(min=0.5)}
SETTINGS = OneClassSettings(digits=(0, 2), calibration=100, held_out=20, reference=30, alphas=(0.05, 0.1))
PCA = FamilyEntry(model={"family": "pca", "components": 3}, checks=("one_normal",), thresholds=THRESHOLDS)


def images(n: int, seed: int) -> LabelledImages:
    """Bars whose place is their class, moved by up to a pixel and of any brightness."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    pixels = rng.normal(0.1, 0.03, (n, SIZE, SIZE))
    for image, label in zip(pixels, labels, strict=True):
        row = 2 * label + rng.integers(2)
        image[row : row + 2] += rng.uniform(0.4, 0.8)
    return LabelledImages(pixels.clip(0, 1).astype(np.float32), labels[:, None].astype(np.int64))


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits(images(600, seed=1), images(300, seed=2), "made up")


def unlike_anything(digits: Digits) -> Digits:
    """The same labels with noise for images, from which nothing can be learnt."""
    rng = np.random.default_rng(5)
    train, test = (LabelledImages(rng.random(p.pixels.shape, dtype=np.float32), p.labels)
                   for p in (digits.train, digits.test))  # fmt: skip
    return Digits(train, test, "noise")


def network(**training: Any) -> FamilyEntry:
    return FamilyEntry.model_validate({
        "model": {"family": "ae", "channels": [8], "latent_size": 4},
        "training": {"steps": 3, "batch_size": 8, "warmup": 0, **training},
        "checks": ["one_normal"],
            "thresholds": THRESHOLDS,
    })  # fmt: skip


def estimator(kind: str, **settings: Any) -> EstimatorEntry:
    return EstimatorEntry.model_validate(
        {"estimator": {"kind": kind, **settings}, "checks": ["one_normal"], "thresholds": THRESHOLDS}
    )


def numbers_of(result: OneClassResult) -> dict[str, float]:
    return {name: value for name, value in result.measures().items() if name != "seconds"}


EVERYTHING = [PCA, estimator("knn"), estimator("knn", components=5), estimator("isolation_forest", trees=50),
              estimator("one_class_svm")]  # fmt: skip


@pytest.mark.parametrize("entry", EVERYTHING)
def test_other_digits_are_distinguished_from_the_normal_one_and_noise_is_not(
    entry: FamilyEntry | EstimatorEntry, digits: Digits, tmp_path: Path
) -> None:
    found = one_class(entry, digits, SETTINGS, tmp_path / "digits").measures()
    assert found["auroc"] > 0.9
    nothing = one_class(entry, unlike_anything(digits), SETTINGS, tmp_path / "noise").measures()
    assert abs(nothing["auroc"] - 0.5) < 0.1


def test_the_table_says_which_score_counts_and_agrees_with_the_measures(digits: Digits, tmp_path: Path) -> None:
    entry = FamilyEntry.model_validate({**PCA.model_dump(), "scoring": {"scan_score": "hotelling"}})
    result = one_class(entry, digits, SETTINGS, tmp_path)
    table, found = result.table(), result.measures()
    assert table["digit"].tolist() == [0, 2]
    assert found["auroc"] == pytest.approx(table["auroc"].mean())
    assert found["auroc_lowest"] == table["auroc"].min()
    assert found["auroc"] == pytest.approx(np.mean([c.auroc("hotelling") for c in result.classes]))
    assert {"auroc_reconstruction", "auroc_reconstruction_p99"} <= set(table.columns)
    assert "auroc_hotelling" not in table.columns


@pytest.mark.parametrize(("protocol", "share"), [("one_normal", 2 / 3), ("one_abnormal", 1 / 3)])
def test_labels_follow_the_protocol(protocol: str, share: float, digits: Digits) -> None:
    settings = SETTINGS.model_copy(update={"protocol": protocol})
    parts = split(digits, 2, 0, settings)
    is_two = digits.test.labels[:, 0] == 2
    assert (parts.abnormal == (is_two if protocol == "one_abnormal" else ~is_two)).all()
    assert parts.abnormal.mean() == pytest.approx(share, abs=0.01)
    for normal in (parts.train, parts.held_out, parts.calibration):
        assert ((normal.labels[:, 0] == 2) == (protocol == "one_normal")).all()


def test_no_image_is_in_two_parts(digits: Digits) -> None:
    parts = split(digits, 0, 0, SETTINGS)
    rows = [set(map(bytes, some.pixels)) for some in (parts.train, parts.held_out, parts.calibration, parts.test)]
    assert len(set.union(*rows)) == sum(map(len, rows))
    assert [len(some) for some in rows[:3]] == [80, 20, 100]
    again, other = split(digits, 0, 0, SETTINGS), split(digits, 0, 1, SETTINGS)
    assert (again.calibration.pixels == parts.calibration.pixels).all()
    assert (other.calibration.pixels != parts.calibration.pixels).any()


def test_black_becomes_the_background_level(digits: Digits) -> None:
    parts = split(digits, 0, 0, SETTINGS.model_copy(update={"background_level": 0.25}))
    expected = 0.25 + 0.75 * digits.test.pixels
    assert np.allclose(parts.test.pixels, expected)
    assert parts.train.pixels.min() >= 0.25


def test_the_tuning_split_holds_no_test_image(digits: Digits) -> None:
    found = tuning_split(digits)
    known = set(map(bytes, digits.train.pixels))
    train, test = set(map(bytes, found.train.pixels)), set(map(bytes, found.test.pixels))
    assert train | test == known
    assert not train & test
    assert len(test) == 100
    assert "tuning split" in found.source


def test_too_few_images_are_refused(digits: Digits) -> None:
    with pytest.raises(InputError, match="found 200 normal training images"):
        split(digits, 0, 0, SETTINGS.model_copy(update={"calibration": 180}))
    with pytest.raises(InputError, match="one kind only"):
        split(digits, 7, 0, SETTINGS.model_copy(update={"protocol": "one_abnormal"}))
    with pytest.raises(InputError, match="found 80 normal images; knn expected 91"):
        one_class(estimator("knn", neighbours=90), digits, SETTINGS, Path("unused"))


def test_an_unknown_score_is_refused_before_it_is_kept(digits: Digits, tmp_path: Path) -> None:
    entry = FamilyEntry.model_validate({**PCA.model_dump(), "scoring": {"scan_score": "kl"}})
    with pytest.raises(ConfigError, match=r"'kl' is none of combined, hotelling, reconstruction"):
        one_class(entry, digits, SETTINGS, tmp_path)
    assert load_classes(tmp_path / "scores.npz") == []


def test_an_interrupted_run_goes_on_and_a_finished_one_trains_nothing(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = one_class(network(), digits, SETTINGS, tmp_path / "whole", "cpu")
    one_class(network(), digits, SETTINGS.model_copy(update={"digits": (0,)}), tmp_path / "parts", "cpu")
    as_covariates: list[str] = []
    learnt: list[int] = []
    fit = fit_and_score.fit

    def counted(*args: Any) -> Any:
        learnt.append(1)
        return fit(*args)

    monkeypatch.setattr(fit_and_score, "fit", counted)
    rest = one_class(
        network(), digits, SETTINGS, tmp_path / "parts", "cpu", lambda done, total, what: as_covariates.append(what)
    )
    assert as_covariates == ["ae: digit 2, seed 0", "ae: done"]
    assert len(learnt) == 1
    assert numbers_of(rest) == numbers_of(whole)
    one_class(network(), digits, SETTINGS, tmp_path / "parts", "cpu")
    assert len(learnt) == 1


def test_another_way_of_scoring_trains_nothing_anew(digits: Digits, tmp_path: Path) -> None:
    settings, noise = SETTINGS.model_copy(update={"digits": (0,)}), unlike_anything(digits)
    first = one_class(network(), noise, settings, tmp_path, "cpu")
    weights = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("last.ckpt")}
    other = network().model_copy(update={"scoring": network().scoring.model_copy(update={"top_fraction": 0.1})})
    second = one_class(other, noise, settings, tmp_path, "cpu")
    assert second.measures()["auroc"] != first.measures()["auroc"]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("last.ckpt")} == weights
    one_class(network(learning_rate=0.01), noise, settings, tmp_path, "cpu")
    assert len(list(tmp_path.rglob("last.ckpt"))) == 2


def test_a_seed_decides_everything(digits: Digits, tmp_path: Path) -> None:
    settings, noise = SETTINGS.model_copy(update={"digits": (0,), "seeds": (3, 4)}), unlike_anything(digits)
    first = one_class(network(), noise, settings, tmp_path / "first", "cpu")
    second = one_class(network(), noise, settings, tmp_path / "second", "cpu")
    assert numbers_of(first) == numbers_of(second)
    aurocs = first.table()["auroc"]
    assert aurocs[0] != aurocs[1]
    assert first.measures()["auroc_sd"] == pytest.approx(aurocs.std())


def test_the_false_positive_rate_is_counted_on_normal_test_images(digits: Digits, tmp_path: Path) -> None:
    result = one_class(PCA, digits, SETTINGS, tmp_path)
    found = result.classes[0]
    p = found.p_values("reconstruction")
    n_flagged = int((p[~found.abnormal] <= 0.1).sum())
    assert found.fpr_check("reconstruction", 0.1) == check_fpr(n_flagged, 100, 100, 0.1)
    assert result.table()["fpr_0.1"][0] == pytest.approx(n_flagged / 100)
    assert result.measures()["fpr_not_exceeded"] == 1
    rates = result.table()["fpr_0.1"]
    assert result.measures()["fpr_0.1"] == pytest.approx(rates.mean())


def test_results_of_other_images_are_not_merged(digits: Digits, tmp_path: Path) -> None:
    one = one_class(PCA, digits, SETTINGS, tmp_path / "one")
    other = one_class(PCA, digits, SETTINGS.model_copy(update={"seeds": (1,)}), tmp_path / "other")
    with pytest.raises(ConfigError, match="model 'other' has other digits, seeds or parts"):
        merged({"one": one, "other": other})


def test_scores_on_disk_are_arrays_and_a_damaged_file_is_refused(digits: Digits, tmp_path: Path) -> None:
    result = one_class(PCA, digits, SETTINGS, tmp_path)
    path = tmp_path / "scores.npz"
    with np.load(path, allow_pickle=False) as arrays:
        assert auroc(arrays["2.0.abnormal"], arrays["2.0.test.reconstruction"]) == result.table()["auroc"][1]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="delete it to score anew"):
        one_class(PCA, digits, SETTINGS, tmp_path)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)
