from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from anomaly.core.errors import TrainingError
from anomaly.core.volume import Geometry
from anomaly.models.ae import Autoencoder, AutoencoderSettings
from anomaly.models.base import Diagnostics, StepInfo
from anomaly.training.fit import fit
from anomaly.training.gradient_monitor import GPU_CHECK_EVERY_STEPS, GradientMonitor
from anomaly.training.run import FitReport, FitRun
from anomaly.training.settings import TrainingSettings
from tests.models.factories import GRID, MemoryCohort, healthy_cohort, healthy_scan, planted_scan

pytestmark = pytest.mark.slow

TRAINING = TrainingSettings(steps=12, batch_size=2, warmup=2, validate_every=4, num_workers=1)


class KilledError(Exception):
    pass


def new(kind: type[Autoencoder] = Autoencoder, grid: Geometry = GRID) -> Autoencoder:
    return kind(AutoencoderSettings(channels=(8, 16), latent_size=4), grid)


def train(detector: Autoencoder, folder: Path, training: TrainingSettings = TRAINING, **run: Any) -> FitReport:
    return fit(detector, healthy_cohort(4), [planted_scan()], FitRun(folder, training, device="cpu", **run))


def same_state(first: Autoencoder, second: Autoencoder) -> bool:
    return all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def killed_after(steps: int) -> Any:
    def progress(done: int, total: int, message: str) -> None:
        if done >= steps:
            raise KilledError

    return progress


def step_of(checkpoint: Path) -> int:
    step: int = torch.load(checkpoint, weights_only=True)["state"]["step"]
    return step


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Autoencoder:
    detector = new()
    train(detector, tmp_path_factory.mktemp("uninterrupted"))
    return detector


@pytest.mark.parametrize("steps", [1, 6, 8, 11])
def test_a_killed_training_resumes_to_the_same_weights(
    steps: int, uninterrupted: Autoencoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anomaly.training.loop.REPORT_EVERY_SECONDS", 0.0)
    with pytest.raises(KilledError):
        train(new(), tmp_path, progress=killed_after(steps))
    resumed = new()
    report = train(resumed, tmp_path)
    assert report.steps == 12
    assert same_state(resumed, uninterrupted)


@pytest.mark.parametrize(("accumulate", "checkpoint_seconds"), [(1, 60.0), (2, 60.0), (1, 0.0), (2, 0.0)])
def test_a_training_killed_again_and_again_validates_at_the_steps_of_one_that_was_not(
    accumulate: int, checkpoint_seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anomaly.training.loop.REPORT_EVERY_SECONDS", 0.0)
    monkeypatch.setattr("anomaly.training.loop.CHECKPOINT_EVERY_SECONDS", checkpoint_seconds)
    validated: list[int] = []

    class RecordsValidations(Autoencoder):
        def ready_to_validate(self, step: int, steps: int) -> bool:
            validated.append(step)
            return step == steps

    training = TRAINING.model_copy(update={"steps": 18, "accumulate": accumulate})
    for step in (6, 10, 14):
        with pytest.raises(KilledError):
            train(new(RecordsValidations), tmp_path / "killed", training, progress=killed_after(step))
    killed, uninterrupted = new(RecordsValidations), new(RecordsValidations)
    assert train(killed, tmp_path / "killed", training).validation["best_step"] == 18
    assert validated == [4, 8, 12, 16, 18]
    train(uninterrupted, tmp_path / "whole", training)
    assert same_state(killed, uninterrupted)


def test_checkpoints_are_also_written_between_validations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anomaly.training.loop.REPORT_EVERY_SECONDS", 0.0)
    monkeypatch.setattr("anomaly.training.loop.CHECKPOINT_EVERY_SECONDS", 0.0)
    with pytest.raises(KilledError):
        train(new(), tmp_path, progress=killed_after(7))
    assert step_of(tmp_path / "last.ckpt") == 6
    reported: list[int] = []
    train(new(), tmp_path, progress=lambda done, total, message: reported.append(done))
    assert reported[0] == 7


class Interrupted(Autoencoder):
    """Within its sixth step, or within its second validation, the program is interrupted once."""

    within: ClassVar[str]
    number: ClassVar[signal.Signals]

    def loss(self, images: Tensor, mask: Tensor, step_info: StepInfo, *corrupted: Tensor) -> dict[str, Tensor]:
        if step_info.step == 5:
            self.interrupt("step")
        return super().loss(images, mask, step_info, *corrupted)

    def ready_to_validate(self, step: int, steps: int) -> bool:
        if step == 8:
            self.interrupt("validation")
        return super().ready_to_validate(step, steps)

    @classmethod
    def interrupt(cls, where: str) -> None:
        if cls.within == where:
            cls.within = ""
            signal.raise_signal(cls.number)


@pytest.mark.parametrize(("within", "step"), [("step", 6), ("validation", 8)])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_an_interrupted_training_continues_from_its_last_complete_step(
    within: str, step: int, number: signal.Signals, uninterrupted: Autoencoder, tmp_path: Path
) -> None:
    Interrupted.within, Interrupted.number = within, number
    before = signal.signal(number, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            train(new(Interrupted), tmp_path)
    finally:
        signal.signal(number, before)
    assert step_of(tmp_path / "last.ckpt") == step
    resumed = new(Interrupted)
    assert train(resumed, tmp_path).validation["best_step"] in {4, 8, 12}
    assert same_state(resumed, uninterrupted)


def test_a_killed_training_keeps_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anomaly.training.loop.REPORT_EVERY_SECONDS", 0.0)
    with pytest.raises(KilledError):
        train(new(), tmp_path, progress=killed_after(6))
    assert "planted_ap" in next(tmp_path.rglob("metrics.csv")).read_text()


def test_a_finished_training_is_not_repeated(uninterrupted: Autoencoder, tmp_path: Path) -> None:
    train(new(), tmp_path)
    again = new()
    reported: list[int] = []
    train(again, tmp_path, progress=lambda done, total, message: reported.append(done))
    assert not reported
    assert same_state(again, uninterrupted)


class TrainsPartsInTurn(Autoencoder):
    """Trains its decoder first, then its encoder; it can be validated only then."""

    def trainable_part(self, step: int, steps: int) -> nn.Module:
        return self.network.convolutions.decode if step < steps // 2 else self.network.convolutions.encode

    def ready_to_validate(self, step: int, steps: int) -> bool:
        return step > steps // 2


def test_parts_are_trained_in_their_own_steps_only(tmp_path: Path) -> None:
    states: list[dict[str, Tensor]] = []

    class RecordsWeights(TrainsPartsInTurn):
        def loss(self, images: Tensor, mask: Tensor, step_info: StepInfo, *corrupted: Tensor) -> dict[str, Tensor]:
            states.append({name: value.detach().clone() for name, value in self.network.named_parameters()})
            return super().loss(images, mask, step_info, *corrupted)

    trained = new(RecordsWeights)
    train(trained, tmp_path, training=TRAINING.model_copy(update={"ema_decay": 0.0}))
    start, middle, end = states[0], states[6], dict(trained.network.named_parameters())
    changed = {name for name in start if not torch.equal(start[name], middle[name])}
    changed_later = {name for name in start if not torch.equal(middle[name], end[name])}
    assert {name.split(".")[1] for name in changed} == {"decode"}
    assert {name.split(".")[1] for name in changed_later} == {"encode"}


def test_what_is_kept_is_the_moving_average_of_the_weights(tmp_path: Path) -> None:
    weights: list[Tensor] = []  # before each step; the last ones are those of the checkpoint

    class RecordsWeights(Autoencoder):
        def loss(self, images: Tensor, mask: Tensor, step_info: StepInfo, *corrupted: Tensor) -> dict[str, Tensor]:
            weights.append(self.network.to_latent.weight.detach().clone())
            return super().loss(images, mask, step_info, *corrupted)

    detector = new(RecordsWeights)
    fit(detector, healthy_cohort(4), [], FitRun(tmp_path, TRAINING.model_copy(update={"ema_decay": 0.5})))
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    average, *after = [*weights, checkpoint["detector"]["network.to_latent.weight"]]
    for step, current in enumerate(after, start=1):
        decay = min(0.5, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * current
    torch.testing.assert_close(detector.network.to_latent.weight.detach(), average)
    assert not torch.equal(average, current)


def test_no_weights_are_kept_before_they_can_be_validated(tmp_path: Path) -> None:
    assert train(new(TrainsPartsInTurn), tmp_path).validation["best_step"] in {8, 12}


def test_a_loss_gets_the_covariates_of_its_images(tmp_path: Path) -> None:
    reported: list[Tensor] = []

    class RecordsCovariates(Autoencoder):
        def loss(self, images: Tensor, mask: Tensor, step_info: StepInfo, *corrupted: Tensor) -> dict[str, Tensor]:
            assert step_info.covariates is not None
            reported.append(step_info.covariates)
            return super().loss(images, mask, step_info, *corrupted)

    train(new(RecordsCovariates), tmp_path)
    ages = torch.cat(reported)[:, 0]
    assert set(ages.tolist()) == {20.0, 21.0, 22.0, 23.0}


def test_without_resume_a_training_starts_anew(uninterrupted: Autoencoder, tmp_path: Path) -> None:
    train(new(), tmp_path)
    again = new()
    reported: list[int] = []
    train(again, tmp_path, resume=False, progress=lambda done, total, message: reported.append(done))
    assert reported
    assert same_state(again, uninterrupted)


def test_without_resume_nothing_of_an_earlier_training_is_left(tmp_path: Path) -> None:
    train(new(), tmp_path)
    with pytest.raises(KilledError):
        train(new(), tmp_path, resume=False, progress=killed_after(1))
    assert not (tmp_path / "last.ckpt").exists()
    assert not (tmp_path / "best.safetensors").exists()


def test_an_interrupt_is_passed_on_and_the_next_one_is_heard(tmp_path: Path) -> None:
    def interrupt(done: int, total: int, message: str) -> None:
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(new(), tmp_path, progress=interrupt)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_checkpoint_of_other_settings_is_not_continued(tmp_path: Path) -> None:
    train(new(), tmp_path)
    other = TRAINING.model_copy(update={"learning_rate": 0.5})
    with pytest.raises(TrainingError, match="other settings"):
        train(new(), tmp_path, training=other)


def test_the_seed_decides_the_weights(uninterrupted: Autoencoder, tmp_path: Path) -> None:
    other = new()
    train(other, tmp_path, seed=1)
    assert not same_state(other, uninterrupted)


def test_adding_up_gradients_takes_as_many_steps(tmp_path: Path) -> None:
    training = TRAINING.model_copy(update={"accumulate": 2, "steps": 5})
    assert train(new(), tmp_path, training=training).steps == 5


def test_the_folder_holds_checkpoint_weights_and_logs(tmp_path: Path) -> None:
    train(new(), tmp_path)
    names = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert {"last.ckpt", "best.safetensors", "metrics.csv"} <= names
    assert any("tfevents" in name for name in names)
    assert "planted_ap" in next(tmp_path.rglob("metrics.csv")).read_text()


def test_training_reports_only_through_its_callback(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    reported: list[tuple[int, int, str]] = []
    with caplog.at_level(logging.INFO):
        train(new(), tmp_path, progress=lambda *what: reported.append(what))
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert reported[-1][:2] == (12, 12)
    assert reported[-1][2].startswith("loss ")


class LossBecomesNaN(Autoencoder):
    """Its loss is not a number from step 6 on."""

    def loss(self, images: Tensor, mask: Tensor, step_info: StepInfo, *corrupted: Tensor) -> dict[str, Tensor]:
        losses = super().loss(images, mask, step_info, *corrupted)
        return {"loss": losses["loss"] * (float("nan") if step_info.step >= 6 else 1.0)}


class GradientBecomesNaN(Autoencoder):
    """Its loss is finite, its gradient is not."""

    def loss(self, images: Tensor, mask: Tensor, step_info: StepInfo, *corrupted: Tensor) -> dict[str, Tensor]:
        loss = super().loss(images, mask, step_info, *corrupted)["loss"]
        return {"loss": (loss - loss.detach()).sqrt() if step_info.step >= 6 else loss}


@pytest.mark.parametrize("kind", [LossBecomesNaN, GradientBecomesNaN])
def test_a_loss_or_gradient_that_is_not_finite_is_explained_and_the_last_good_weights_are_kept(
    kind: type[Autoencoder], tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=r"at step 6: .*Lower training\.learning_rate"):
        train(new(kind), tmp_path)
    assert (tmp_path / "best.safetensors").is_file()
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["state"]["step"] == 4
    assert all(value.isfinite().all() for value in checkpoint["detector"].values())


class GradientOverflowsOnce(Autoencoder):
    """One gradient is not finite."""

    def loss(self, images: Tensor, mask: Tensor, step_info: StepInfo, *corrupted: Tensor) -> dict[str, Tensor]:
        loss = super().loss(images, mask, step_info, *corrupted)["loss"]
        return {"loss": (loss - loss.detach()).sqrt() if step_info.step == 6 else loss}


def test_a_rare_overflow_in_mixed_precision_is_left_out(tmp_path: Path) -> None:
    detector = new(GradientOverflowsOnce)
    assert train(detector, tmp_path, training=TRAINING.model_copy(update={"precision": "bf16"})).steps == 12
    assert all(value.isfinite().all() for value in detector.state_dict().values())


def test_a_series_of_overflows_is_refused_in_mixed_precision_too(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="at step 9: gradient norm"):
        train(new(GradientBecomesNaN), tmp_path, training=TRAINING.model_copy(update={"precision": "bf16"}))


class GradientOverflowsInOnePart(TrainsPartsInTurn):
    """The gradient of the part that learns first is never finite; the other's is."""

    def trainable_part(self, step: int, steps: int) -> nn.Module:
        return super().trainable_part(0 if step % 2 else steps, steps)

    def loss(self, images: Tensor, mask: Tensor, step_info: StepInfo, *corrupted: Tensor) -> dict[str, Tensor]:
        loss = super().loss(images, mask, step_info, *corrupted)["loss"]
        return {"loss": (loss - loss.detach()).sqrt() if step_info.step % 2 else loss}


def test_a_series_of_overflows_is_counted_for_each_part_that_takes_its_turn(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="at step 7: gradient norm"):
        train(new(GradientOverflowsInOnePart), tmp_path, training=TRAINING.model_copy(update={"precision": "bf16"}))


def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check the numbers of every tenth step of a part only."""
    monkeypatch.setattr(
        GradientMonitor, "checks", lambda self, part: self.histories[part].steps % GPU_CHECK_EVERY_STEPS == 0
    )


def test_an_overflow_between_two_checks_does_not_reach_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_on_a_gpu(monkeypatch)
    detector = new(GradientOverflowsOnce)
    train(detector, tmp_path, training=TRAINING.model_copy(update={"precision": "bf16"}))
    assert all(value.isfinite().all() for value in detector.state_dict().values())


def test_every_trainable_part_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_a_gpu(monkeypatch)
    with pytest.raises(TrainingError, match="at step 1: gradient norm"):
        train(new(GradientOverflowsInOnePart), tmp_path)


def test_scans_that_are_not_finite_are_explained(tmp_path: Path) -> None:
    voxels, mask = healthy_scan(0)
    cohort = MemoryCohort([(voxels * float("nan"), mask)] * 2)
    with pytest.raises(TrainingError, match="check the intensities"):
        fit(new(), cohort, [], FitRun(tmp_path, TRAINING, device="cpu"))


class GradientBecomesHuge(Autoencoder):
    """Its gradient is finite, and huge for a while."""

    def loss(self, images: Tensor, mask: Tensor, step_info: StepInfo, *corrupted: Tensor) -> dict[str, Tensor]:
        loss = super().loss(images, mask, step_info, *corrupted)["loss"]
        return {"loss": loss * (1e8 if step_info.step in range(30, 38) else 1.0)}


def test_a_series_of_huge_gradients_gives_a_warning_and_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("anomaly.training.loop.REPORT_EVERY_SECONDS", 0.0)
    training = TRAINING.model_copy(update={"steps": 44, "learning_rate": 1e-5})
    with caplog.at_level(logging.WARNING), pytest.raises(KilledError):
        train(new(GradientBecomesHuge), tmp_path, training, progress=killed_after(41))
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("step 34: the gradient explodes: norm ")
    report = train(new(GradientBecomesHuge), tmp_path, training)
    assert "the gradient exploded 1 time(s), first at step 34" in report.notes[-1]


def test_too_little_memory_is_explained(tmp_path: Path) -> None:
    class RunsOutOfMemory(Autoencoder):
        def loss(self, images: Tensor, mask: Tensor, step_info: StepInfo, *corrupted: Tensor) -> dict[str, Tensor]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nGPU 0 has ...")

    with pytest.raises(TrainingError, match=r"batch of 2 \(CUDA out of memory.*lower training\.batch_size"):
        train(new(RunsOutOfMemory), tmp_path)


def test_a_damaged_checkpoint_is_explained_and_the_training_can_start_anew(tmp_path: Path) -> None:
    train(new(), tmp_path)
    whole = (tmp_path / "last.ckpt").read_bytes()
    (tmp_path / "last.ckpt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TrainingError, match=r"last\.ckpt is damaged.*delete it"):
        train(new(), tmp_path)
    assert train(new(), tmp_path, resume=False).steps == 12


def test_missing_best_weights_are_explained_before_the_training_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anomaly.training.loop.REPORT_EVERY_SECONDS", 0.0)
    with pytest.raises(KilledError):
        train(new(), tmp_path, progress=killed_after(6))
    (tmp_path / "best.safetensors").unlink()
    reported: list[int] = []
    with pytest.raises(TrainingError, match=r"best\.safetensors is missing.*delete .*last\.ckpt, too"):
        train(new(), tmp_path, progress=lambda done, total, message: reported.append(done))
    assert not reported


def test_a_checkpoint_of_an_earlier_version_is_continued(uninterrupted: Autoencoder, tmp_path: Path) -> None:
    train(new(), tmp_path)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    del checkpoint["state"]["validated"]
    checkpoint["state"]["averaged_steps"] = 12
    torch.save(checkpoint, tmp_path / "last.ckpt")
    again = new()
    assert train(again, tmp_path).steps == 12
    assert same_state(again, uninterrupted)


def test_early_stopping_stops_and_stays_stopped(tmp_path: Path) -> None:
    training = TRAINING.model_copy(update={"steps": 100, "patience": 1, "learning_rate": 1e-12, "ema_decay": 0.0})
    report = train(new(), tmp_path, training=training)
    assert report.steps < 100
    assert "stopped early" in report.notes[0]
    assert train(new(), tmp_path, training=training).steps == report.steps


def test_the_weights_that_are_kept_are_the_best_validated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.2, 0.5, 0.1])
    monkeypatch.setattr("anomaly.training.loop.planted_precision", lambda *_: next(scores))
    report = train(new(), tmp_path)
    assert report.validation == {"planted_ap": 0.5, "best_step": 8}


def test_networks_start_from_the_seed_wherever_they_are_made() -> None:
    torch.manual_seed(1)
    first = new()
    torch.manual_seed(2)
    assert same_state(first, new())


class WithDiagnostics(Autoencoder):
    """Its diagnostics hold a number and a warning, computed from the batches."""

    def diagnostics(self, batches: Iterator[tuple[Tensor, Tensor, Tensor]]) -> Diagnostics:
        images, mask, covariates = next(batches)
        assert not self.training
        assert images.shape == mask.shape == (2, 1, 16, 20)
        assert covariates.shape == (2, 2)
        return Diagnostics({"first_voxels": float(images.sum())}, ("the loss oscillates",))


def test_diagnostics_are_logged_at_every_validation_and_reported_at_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        report = train(new(WithDiagnostics), tmp_path)
    assert caplog.messages == [f"step {step}: the loss oscillates" for step in (4, 8, 12)]
    assert "the loss oscillates" in report.notes
    logged = pd.read_csv(next(tmp_path.rglob("metrics.csv")))["first_voxels"].dropna().tolist()
    assert logged == pytest.approx([report.validation["first_voxels"]] * 3)  # the same batches each time
