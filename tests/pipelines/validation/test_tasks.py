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
from anomaly.models.f_anogan import GenerativeAdversarial
from anomaly.training.loop import TrainingLoop
from anomaly.training.step import TrainingStep
from pipelines.common import find_config
from pipelines.validation.datasets.digits import load_digits
from pipelines.validation.report.result import Verdict
from pipelines.validation.run import load_settings, validate
from pipelines.validation.settings import EnsembleTrial, TrialSettings, ValidationSettings

pytestmark = pytest.mark.slow

GRADIENTS: list[float] = []  # the largest of each step that a fault has looked at
LEARNT_OTHERWISE = {"one-digit-pca", "one-digit-intensity"}  # no gradients


def trials(task: str) -> list[str]:
    return list(load_settings(find_config(task, "validation")).trials)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that all processes of this run share, so that a classifier is trained once."""
    own = tmp_path_factory.getbasetemp()
    return (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "validation"


def failures(verdict: Verdict, trial: str) -> list[str]:
    """Return what went wrong with one trial; other tests say what went wrong with those that share the folder."""
    settings = verdict.settings.trials[trial]
    members = settings.members if isinstance(settings, EnsembleTrial) else ()
    names = tuple(f"{name}: " for name in (trial, *members, "classifier"))
    assert trial in [result.name for result in verdict.results]
    return [failure for failure in verdict.failures if failure.startswith(names)]


@pytest.mark.parametrize("trial", trials("digits-small"))
def test_every_family_passes_on_small_digits(trial: str, folder: Path) -> None:
    verdict = validate("digits-small", folder / "digits", families=[trial], jobs=1, device="cpu")
    assert not failures(verdict, trial)


@pytest.mark.parametrize("trial", trials("avatars-small"))
def test_every_family_passes_on_avatars(trial: str, folder: Path) -> None:
    verdict = validate("avatars-small", folder / "avatars", families=[trial], jobs=1, device="cpu")
    assert not failures(verdict, trial)


@pytest.mark.real_data
@pytest.mark.parametrize("trial", [name for name in trials("mnist-small") if name != "one-digit-dae"])
def test_every_family_passes_on_mnist(trial: str, folder: Path) -> None:
    """The denoiser of one digit is examined with the ensemble that it is a member of."""
    verdict = validate("mnist-small", folder / "mnist", families=[trial], jobs=1, device="cpu")
    assert verdict.source.startswith("MNIST")
    assert not failures(verdict, trial)


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

    for family in (DiffusionModel, GenerativeAdversarial):
        monkeypatch.setattr(family, "sample", sample)


FAULTS: list[tuple[Callable[[pytest.MonkeyPatch], None], str]] = [
    *((without_gradient, trial) for trial in trials("digits-small") if trial not in LEARNT_OTHERWISE),
    (with_negative_kl, "vae"),
    (with_reversed_schedule, "diffusion"),
    (with_copied_samples, "diffusion"),
    (with_copied_samples, "gan"),
]
WHATEVER_THE_TRAINING = (without_gradient, with_copied_samples)  # the verdict does not depend on its length


def task_of(trial: str, fault: Callable[[pytest.MonkeyPatch], None]) -> ValidationSettings:
    """Return the task with one trial, whose training is short where it makes no difference."""
    task = load_settings(find_config("digits-small", "validation"))
    settings = task.trials[trial]
    assert isinstance(settings, TrialSettings)
    if fault in WHATEVER_THE_TRAINING:
        training = settings.training.model_copy(update={"steps": 50, "validate_every": 50})
        settings = settings.model_copy(update={"training": training})
    return task.model_copy(update={"trials": {trial: settings}})


@pytest.mark.parametrize(("fault", "trial"), FAULTS, ids=[f"{fault.__name__}-{trial}" for fault, trial in FAULTS])
def test_a_fault_turns_the_verdict(
    fault: Callable[[pytest.MonkeyPatch], None],
    trial: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for kept in (folder / "digits").glob("classifier-*"):  # the judge has no fault
        (tmp_path / kept.name).write_bytes(kept.read_bytes())
    fault(monkeypatch)
    verdict = validate(task_of(trial, fault), tmp_path, jobs=1, device="cpu")
    assert not verdict.passed
    assert all(failure.startswith(f"{trial}: ") for failure in verdict.failures)
    assert fault is with_negative_kl or not verdict.results[0].problem  # a bar is missed, nothing else went wrong
    if fault is without_gradient:
        assert set(GRADIENTS) == {0.0}
    if fault is with_copied_samples:
        assert any("generation.copied" in failure for failure in verdict.failures)
