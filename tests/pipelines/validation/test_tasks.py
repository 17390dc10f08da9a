"""Every model family passes a validation task, and fails it when its implementation has a fault.

These tests train every family of the task ``digits-small`` for a few steps, and run a few cheap models of
``avatars-small`` and ``mnist-small``; the tasks are in ``*_test.yaml`` in this folder. ``make validate-small`` runs
the three complete tasks; their results are in ``docs/validation.md``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from anomaly.models.components import variational
from anomaly.models.components.diffusion_process import DiffusionProcess
from anomaly.models.diffusion import DiffusionModel
from anomaly.models.f_anogan import FAnoGAN
from anomaly.training.loop import TrainingLoop
from anomaly.training.step import TrainingStep
from pipelines.validation.datasets.digits import load_digits
from pipelines.validation.datasets.load import load_dataset
from pipelines.validation.report.result import ValidationResult
from pipelines.validation.run import load_settings, validate
from pipelines.validation.settings import FamilyEntry, ValidationSettings

pytestmark = pytest.mark.slow

DIGITS, AVATARS, MNIST = (Path(__file__).with_name(f"{name}_test.yaml") for name in ("digits", "avatars", "mnist"))
WITHOUT_GRADIENTS = {"one-digit-pca", "one-digit-intensity"}
"""Models that are not trained by gradient descent."""
LARGEST_GRADIENTS: list[float] = []
"""The largest absolute gradient of each training step since a fault was introduced."""


def models() -> list[str]:
    return list(load_settings(DIGITS).models)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that all processes of this test run share, so that each classifier is trained once."""
    own = tmp_path_factory.getbasetemp()
    return (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "validation"


def failures(outcome: ValidationResult, entry: str) -> list[str]:
    """Return the failures of one model and of the classifier; other tests report those of other models."""
    assert entry in [result.name for result in outcome.results]
    return [failure for failure in outcome.failures if failure.startswith((f"{entry}: ", "classifier"))]


@pytest.mark.parametrize("entry", models())
def test_every_family_passes_on_digits(entry: str, folder: Path) -> None:
    outcome = validate(DIGITS, folder / "digits", families=[entry], jobs=1, device="cpu")
    assert not failures(outcome, entry)


def test_cheap_models_pass_on_avatars(tmp_path: Path) -> None:
    names = ["naive-bayes-features", "naive-bayes-pixels", "pca", "brief-vae"]
    outcome = validate(AVATARS, tmp_path, families=names, jobs=1, device="cpu")
    assert not outcome.failures
    assert [result.name for result in outcome.results] == names
    assert "brief-vae" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.real_data
def test_a_cheap_model_passes_on_mnist(tmp_path: Path) -> None:
    outcome = validate(MNIST, tmp_path, families=["one-digit-pca"], jobs=1, device="cpu")
    assert outcome.source.startswith("MNIST")
    assert not outcome.failures
    assert "one-digit-pca" in (tmp_path / "report.html").read_text(encoding="utf-8")


def without_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    losses, clip = TrainingStep.forward, TrainingLoop._clip

    def without_loss(*args: Any) -> dict[str, Tensor]:
        values = losses(*args)
        return values | {"loss": values["loss"] * 0.0}

    def note_gradients(loop: TrainingLoop) -> None:
        gradients = [w.grad for w in loop.detector.parameters() if w.grad is not None]
        LARGEST_GRADIENTS.append(max(float(gradient.abs().max()) for gradient in gradients))
        clip(loop)

    monkeypatch.setattr(TrainingStep, "forward", without_loss)
    monkeypatch.setattr(TrainingLoop, "_clip", note_gradients)
    LARGEST_GRADIENTS.clear()


def with_negative_kl(monkeypatch: pytest.MonkeyPatch) -> None:
    kl_per_dim = variational.kl_per_dim
    monkeypatch.setattr(variational, "kl_per_dim", lambda *args: -kl_per_dim(*args))


def with_reversed_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    original = DiffusionProcess.__init__

    def init_reversed(self: DiffusionProcess, *args: Any) -> None:
        original(self, *args)
        self.alpha_bar = torch.cat([self.alpha_bar[:1], self.alpha_bar[1:].flip(0)])

    monkeypatch.setattr(DiffusionProcess, "__init__", init_reversed)


def with_copied_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = torch.from_numpy(load_digits(None).train.pixels)

    def sample(self: object, n: int, rng: torch.Generator, covariates: Tensor | None = None) -> Tensor:
        return pixels[torch.randint(len(pixels), (n,), generator=rng)][:, None]

    for family in (DiffusionModel, FAnoGAN):
        monkeypatch.setattr(family, "sample", sample)


FAULTS: list[tuple[Callable[[pytest.MonkeyPatch], None], str]] = [
    *((without_gradient, entry) for entry in models() if entry not in WITHOUT_GRADIENTS),
    (with_negative_kl, "vae"),
    (with_reversed_schedule, "diffusion"),
    (with_copied_samples, "diffusion"),
    (with_copied_samples, "gan"),
]
ANY_TRAINING = (without_gradient, with_copied_samples)
"""Faults that are found however short the training is."""


def task_of(entry: str, fault: Callable[[pytest.MonkeyPatch], None]) -> ValidationSettings:
    """Return the task with one model; its training is short where its length makes no difference."""
    task = load_settings(DIGITS)
    settings = task.models[entry]
    assert isinstance(settings, FamilyEntry)
    if fault in ANY_TRAINING:
        training = settings.training.model_copy(update={"steps": 20, "validate_every": 20})
        settings = settings.model_copy(update={"training": training})
    return task.model_copy(update={"models": {entry: settings}})


@pytest.mark.parametrize(("fault", "entry"), FAULTS, ids=[f"{fault.__name__}-{entry}" for fault, entry in FAULTS])
def test_a_fault_makes_the_validation_fail(
    fault: Callable[[pytest.MonkeyPatch], None],
    entry: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load_dataset(load_settings(DIGITS), folder / "digits")  # trains the classifier before there is a fault
    for classifier in (folder / "digits").glob("classifier-*"):
        (tmp_path / classifier.name).write_bytes(classifier.read_bytes())
    fault(monkeypatch)
    outcome = validate(task_of(entry, fault), tmp_path, jobs=1, device="cpu")
    assert not outcome.passed
    assert all(failure.startswith(f"{entry}: ") for failure in outcome.failures)
    assert (
        fault is with_negative_kl or not outcome.results[0].problem
    )  # a threshold is missed, nothing else went wrong
    if fault is without_gradient:
        assert set(LARGEST_GRADIENTS) == {0.0}
    if fault is with_copied_samples:
        assert any("generation.memorised_fraction" in failure for failure in outcome.failures)
