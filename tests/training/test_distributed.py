"""Two processes that train one model together, on the CPU."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anomaly.core.errors import TrainingError
from anomaly.models.ae import Autoencoder
from anomaly.models.base import StepInfo, target_slice
from anomaly.training.batches import Batch, ImageBatches
from anomaly.training.fit import fit
from anomaly.training.run import FitReport, FitRun
from anomaly.training.settings import AugmentationSettings, TrainingSettings
from tests.models.factories import healthy_cohort, healthy_scan, images_of, planted_scan
from tests.training.test_fit import KilledError, new, same_state

pytestmark = pytest.mark.slow

TRAINING = TrainingSettings(steps=12, batch_size=2, warmup=2, validate_every=4, num_workers=1)
AS_THEY_ARE = AugmentationSettings(flip=0, deform=0, gamma=0, brightness=0, bias_field=0, noise=0, blur=0)


def train(detector: Autoencoder, folder: Path, training: TrainingSettings = TRAINING, **run: Any) -> FitReport:
    run = {"device": "cpu", "devices": 2} | run
    return fit(detector, healthy_cohort(4), [planted_scan()], FitRun(folder, training, **run))


class Slow(Autoencoder):
    """Takes long enough over a step to be killed within its training."""

    def loss(self, images: Tensor, mask: Tensor, step_info: StepInfo, *corrupted: Tensor) -> dict[str, Tensor]:
        time.sleep(0.2)
        return super().loss(images, mask, step_info, *corrupted)


class TrainsPartsInTurn(Autoencoder):
    """All of it learns, then its decoder, then its encoder; every image weighs the same."""

    def loss(self, images: Tensor, mask: Tensor, step_info: StepInfo, *corrupted: Tensor) -> dict[str, Tensor]:
        return {"loss": ((self.reconstruct(images, mask) - target_slice(images)) ** 2).mean()}

    def trainable_part(self, step: int, steps: int) -> nn.Module:
        parts = (self, self.network.convolutions.decode, self.network.convolutions.encode)
        return parts[3 * step // steps]


class LossBecomesNaNInOneProcess(Autoencoder):
    """In the second process, its loss is not a number from step 6 on."""

    def loss(self, images: Tensor, mask: Tensor, step_info: StepInfo, *corrupted: Tensor) -> dict[str, Tensor]:
        losses = super().loss(images, mask, step_info, *corrupted)
        explodes = step_info.step >= 6 and os.environ["LOCAL_RANK"] == "1"
        return {"loss": losses["loss"] * (float("nan") if explodes else 1.0)}


class KilledInOneProcess(Autoencoder):
    """The system kills its second process."""

    def loss(self, images: Tensor, mask: Tensor, step_info: StepInfo, *corrupted: Tensor) -> dict[str, Tensor]:
        if os.environ["LOCAL_RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().loss(images, mask, step_info, *corrupted)


class BothBatches(ImageBatches):
    """What two processes see, as one batch."""

    def batch(self, step: int) -> Batch:
        parts = [
            ImageBatches(self.source, self.view, self.batch_size, self.seed, rank).batch(step) for rank in (0, 1)
        ]
        return Batch(step, *(torch.cat(tensors) for tensors in list(zip(*parts, strict=True))[1:4]))


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Autoencoder, FitReport, list[int], Path]:
    detector, reported, folder = new(Slow), list[int](), tmp_path_factory.mktemp("together")
    report = train(detector, folder, progress=lambda done, total, message: reported.append(done))
    return detector, report, reported, folder


def test_two_processes_learn_what_one_learns_from_both_their_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = TRAINING.model_copy(update={"augmentation": AS_THEY_ARE, "ema_decay": 0.0, "accumulate": 2})
    two, half, one = (new(TrainsPartsInTurn) for _ in range(3))
    train(two, tmp_path / "two", training)
    train(half, tmp_path / "half", training, devices=1)
    monkeypatch.setattr("anomaly.training.loop.ImageBatches", BothBatches)
    train(one, tmp_path / "one", training, devices=1)
    images, mask = images_of(*healthy_scan(0), one.view)
    # What they answer, not their weights: those that change nothing, before a normalisation, learn from rounding.
    after, with_half, alone = (detector.reconstruct(images, mask).detach() for detector in (two, half, one))
    assert (after - alone).abs().max() < 1e-4
    assert (with_half - alone).abs().max() > 1e-2


def test_one_process_tells_of_progress_and_all_validate_alike(
    together: tuple[Autoencoder, FitReport, list[int], Path],
) -> None:
    _, report, reported, folder = together
    assert report.steps == reported[-1] == 12
    assert reported == sorted(set(reported))
    assert 0 < report.validation["planted_ap"] <= 1
    assert len(list(folder.rglob("metrics.csv"))) == 1


def test_a_killed_training_of_two_processes_resumes_to_the_same_weights(
    together: tuple[Autoencoder, FitReport, list[int], Path], tmp_path: Path
) -> None:
    def kill(done: int, total: int, message: str) -> None:
        if done >= 5:
            raise KilledError

    with pytest.raises(KilledError):
        train(new(Slow), tmp_path, progress=kill)
    reported: list[int] = []
    resumed = new(Slow)
    assert train(resumed, tmp_path, progress=lambda done, total, message: reported.append(done)).steps == 12
    assert reported[0] in {5, 9}  # not from the beginning
    assert same_state(resumed, together[0])


def test_an_interrupted_training_of_two_processes_continues_from_the_step_it_reached(
    together: tuple[Autoencoder, FitReport, list[int], Path], tmp_path: Path
) -> None:
    def interrupt(done: int, total: int, message: str) -> None:
        if done >= 5:
            signal.raise_signal(signal.SIGINT)

    training = TRAINING.model_copy(update={"validate_every": 12})
    with pytest.raises(KeyboardInterrupt):
        train(new(Slow), tmp_path, training, progress=interrupt)
    step = torch.load(tmp_path / "last.ckpt", weights_only=True)["state"]["step"]
    assert 5 <= step < 12
    reported: list[int] = []
    train(new(Slow), tmp_path, training, progress=lambda done, total, message: reported.append(done))
    assert reported[0] == step + 1
    resumed, whole = (
        torch.load(folder / "last.ckpt", weights_only=True)["detector"] for folder in (tmp_path, together[3])
    )
    assert all(torch.equal(resumed[name], weights) for name, weights in whole.items())


def test_a_training_of_two_processes_is_not_continued_by_one(
    together: tuple[Autoencoder, FitReport, list[int], Path],
) -> None:
    with pytest.raises(TrainingError, match=r"2 device\(s\), which 1 cannot continue.*--devices 2"):
        train(new(Slow), together[3], devices=1)


def test_all_processes_stop_early_together_and_print_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    training = TRAINING.model_copy(update={"steps": 100, "patience": 1, "learning_rate": 1e-12, "ema_decay": 0.0})
    report = train(new(), tmp_path, training)
    assert report.steps == 8
    assert "stopped early" in report.notes[0]
    assert capfd.readouterr() == ("", "")


def test_an_error_in_one_process_is_reported(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"at step 6: loss = nan"):
        train(new(LossBecomesNaNInOneProcess), tmp_path)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["state"]["step"] == 4


def test_the_death_of_one_process_is_explained(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"one of 2 training processes ended from outside.*SIGKILL"):
        train(new(KilledInOneProcess), tmp_path)


@pytest.mark.parametrize(("device", "devices"), [("cuda", 2), ("cuda:x", 1), ("tpu", 1), ("cpu:1", 1)])
def test_a_device_that_is_not_there_is_refused(
    device: str, devices: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TrainingError, match=r"unknown device|no CUDA device"):
        train(new(), tmp_path, device=device, devices=devices)


def test_more_devices_than_there_are_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for device, devices in (("cuda", 2), ("cuda:1", 1), ("cuda:0", 2)):
        with pytest.raises(TrainingError, match=r"found 1 CUDA device\(s\)"):
            train(new(), tmp_path, device=device, devices=devices)
