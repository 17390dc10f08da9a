"""Every family passes the shipped tasks, and a fault in one is seen."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import anomaly.models.components.variational
import anomaly.models.vae
from anomaly.models.components.diffusion_process import DiffusionProcess
from anomaly.models.diffusion import DiffusionModel
from anomaly.models.f_anogan import FAnoGAN
from anomaly.training.loop import TrainingLoop
from anomaly.training.step import TrainingStep
from pipelines.common import find_config
from pipelines.validation.datasets.digits import load_digits
from pipelines.validation.report.result import ValidationResult
from pipelines.validation.run import load_settings, validate
from pipelines.validation.settings import EnsembleEntry, FamilyEntry, ValidationSettings

pytestmark = pytest.mark.slow

GRADIENTS: list[float] = []  # the largest of each step that a fault has looked at
LEARNT_OTHERWISE = {"one-digit-pca", "one-digit-intensity"}  # no gradients


def models(task: str) -> list[str]:
    return list(load_settings(find_config(task, "validation")).models)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that all processes of this run share, so that a classifier is trained once."""
    own = tmp_path_factory.getbasetemp()
    return (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "validation"


def failures(outcome: ValidationResult, entry: str) -> list[str]:
    """Return what went wrong with one trial; other tests say what went wrong with those that share the folder."""
    settings = outcome.settings.models[entry]
    members = settings.members if isinstance(settings, EnsembleEntry) else ()
    names = tuple(f"{name}: " for name in (entry, *members, "classifier"))
    assert entry in [result.name for result in outcome.results]
    return [failure for failure in outcome.failures if failure.startswith(names)]


@pytest.mark.parametrize("entry", models("digits-small"))
def test_every_family_passes_on_small_digits(entry: str, folder: Path) -> None:
    outcome = validate("digits-small", folder / "digits", families=[entry], jobs=1, device="cpu")
    assert not failures(outcome, entry)


@pytest.mark.parametrize("entry", models("avatars-small"))
def test_every_family_passes_on_avatars(entry: str, folder: Path) -> None:
    outcome = validate("avatars-small", folder / "avatars", families=[entry], jobs=1, device="cpu")
    assert not failures(outcome, entry)


@pytest.mark.real_data
@pytest.mark.parametrize("entry", [name for name in models("mnist-small") if name != "one-digit-dae"])
def test_every_family_passes_on_mnist(entry: str, folder: Path) -> None:
    """The denoiser of one digit is examined with the ensemble that it is a member of."""
    outcome = validate("mnist-small", folder / "mnist", families=[entry], jobs=1, device="cpu")
    assert outcome.source.startswith("MNIST")
    assert not failures(outcome, entry)


def without_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    losses, clip = TrainingStep.forward, TrainingLoop._clip

    def without_loss(*args: Any) -> dict[str, Tensor]:
        values = losses(*args)
        return values | {"loss": values["loss"] * 0.0}

    def note_gradients(loop: TrainingLoop) -> None:
        gradients = [w.grad for w in loop.detector.parameters() if w.grad is not None]
        GRADIENTS.append(max(float(gradient.abs().max()) for gradient in gradients))
        clip(loop)

    monkeypatch.setattr(TrainingStep, "forward", without_loss)
    monkeypatch.setattr(TrainingLoop, "_clip", note_gradients)
    GRADIENTS.clear()


def with_negative_kl(monkeypatch: pytest.MonkeyPatch) -> None:
    def upside_down(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *args: -function(*args)

    monkeypatch.setattr(
        anomaly.models.components.variational,
        "kl_per_dim",
        upside_down(anomaly.models.components.variational.kl_per_dim),
    )


def with_reversed_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    made = DiffusionProcess.__init__

    def reversed_chain(self: DiffusionProcess, *args: Any) -> None:
        made(self, *args)
        self.alpha_bar = torch.cat([self.alpha_bar[:1], self.alpha_bar[1:].flip(0)])

    monkeypatch.setattr(DiffusionProcess, "__init__", reversed_chain)


def with_copied_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = torch.from_numpy(load_digits(None).train.pixels)

    def sample(self: object, n: int, rng: torch.Generator, covariates: Tensor | None = None) -> Tensor:
        return pixels[torch.randint(len(pixels), (n,), generator=rng)][:, None]

    for family in (DiffusionModel, FAnoGAN):
        monkeypatch.setattr(family, "sample", sample)


FAULTS: list[tuple[Callable[[pytest.MonkeyPatch], None], str]] = [
    *((without_gradient, entry) for entry in models("digits-small") if entry not in LEARNT_OTHERWISE),
    (with_negative_kl, "vae"),
    (with_reversed_schedule, "diffusion"),
    (with_copied_samples, "diffusion"),
    (with_copied_samples, "gan"),
]
WHATEVER_THE_TRAINING = (without_gradient, with_copied_samples)  # the verdict does not depend on its length


def task_of(entry: str, fault: Callable[[pytest.MonkeyPatch], None]) -> ValidationSettings:
    """Return the task with one trial, whose training is short where it makes no difference."""
    task = load_settings(find_config("digits-small", "validation"))
    settings = task.models[entry]
    assert isinstance(settings, FamilyEntry)
    if fault in WHATEVER_THE_TRAINING:
        training = settings.training.model_copy(update={"steps": 50, "validate_every": 50})
        settings = settings.model_copy(update={"training": training})
    return task.model_copy(update={"trials": {entry: settings}})


@pytest.mark.parametrize(("fault", "entry"), FAULTS, ids=[f"{fault.__name__}-{entry}" for fault, entry in FAULTS])
def test_a_fault_turns_the_verdict(
    fault: Callable[[pytest.MonkeyPatch], None],
    entry: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for kept in (folder / "digits").glob("classifier-*"):  # the judge has no fault
        (tmp_path / kept.name).write_bytes(kept.read_bytes())
    fault(monkeypatch)
    outcome = validate(task_of(entry, fault), tmp_path, jobs=1, device="cpu")
    assert not outcome.passed
    assert all(failure.startswith(f"{entry}: ") for failure in outcome.failures)
    assert fault is with_negative_kl or not outcome.results[0].problem  # a bar is missed, nothing else went wrong
    if fault is without_gradient:
        assert set(GRADIENTS) == {0.0}
    if fault is with_copied_samples:
        assert any("generation.memorised_fraction" in failure for failure in outcome.failures)
