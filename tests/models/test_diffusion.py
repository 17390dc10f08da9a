from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from anomaly.core.errors import ConfigError, TrainingError
from anomaly.models import registry
from anomaly.models.base import StepInfo, either_foreground
from anomaly.models.diffusion import DenoisingInputs, DiffusionModel
from anomaly.models.generation import interpolate
from anomaly.training.fit import fit
from anomaly.training.run import FitRun
from anomaly.training.settings import TrainingSettings
from tests.models.factories import GRID, healthy_cohort, healthy_scan, images_of, randomise_zero_parameters

SMALL = {"family": "diffusion", "channels": (8, 16), "space_to_depth": 1, "n_function_evaluations": 6}
PATCH = {"view": {"kind": "patch", "size": (8, 10, 8)}}


def new(**changes: Any) -> DiffusionModel:
    detector = registry.create(registry.parse_settings({**SMALL, **changes}, "model"), GRID)
    assert isinstance(detector, DiffusionModel)
    randomise_zero_parameters(detector.network)
    detector.prepare(healthy_cohort(2))
    return detector


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_predictions_exact(detector: DiffusionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the network by one that knows the clean image."""

    def predict(noisy: Tensor, inputs: DenoisingInputs, t: Tensor) -> Tensor:
        signal_scale, noise_scale = detector.process._coefficients(noisy, t)
        return detector.process.target(inputs.clean, (noisy - signal_scale * inputs.clean) / noise_scale, t)

    monkeypatch.setattr(detector, "predict", predict)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v"])
@pytest.mark.parametrize("n_function_evaluations", [3, 6, 30])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_exact_predictions_restore_the_image(
    prediction: str, n_function_evaluations: int, schedule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = new(prediction=prediction, n_function_evaluations=n_function_evaluations, schedule=schedule)
    make_predictions_exact(detector, monkeypatch)
    images, mask = images_of(*healthy_scan(0), detector.view)
    evidence = detector.evidence(images, mask)
    torch.testing.assert_close(evidence.reconstruction, images, atol=1e-4, rtol=0)
    assert evidence.terms["denoising_loss"].max() < 1e-4


@pytest.mark.parametrize("level", [0.02, 0.5, 0.9])
@pytest.mark.parametrize("changes", [{"masked": "patch"}, {"masked": "patch", "patch_sets": 4}, PATCH])
def test_exact_predictions_restore_the_image_at_every_level_and_patch_by_patch(
    level: float, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = new(levels=(level,), n_function_evaluations=8, **changes)
    make_predictions_exact(detector, monkeypatch)
    images, mask = images_of(*healthy_scan(0), detector.view)
    torch.testing.assert_close(detector.reconstruct(images, mask), images, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"n_function_evaluations": 3}, 3),
        ({"n_function_evaluations": 9}, 9),
        ({"n_function_evaluations": 12, "masked": "patch"}, 12),
        ({"levels": (0.5,), "n_function_evaluations": 1}, 1),
    ],
)
def test_the_number_of_function_evaluations_is_that_of_the_settings(
    changes: dict[str, Any], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = new(**changes)
    images, mask = images_of(*healthy_scan(0), detector.view)
    batch_sizes = []
    predict = detector.predict
    monkeypatch.setattr(
        detector, "predict", lambda *inputs: (batch_sizes.append(len(inputs[0])), predict(*inputs))[1]
    )
    with torch.inference_mode():
        detector.evidence(images, mask)
    assert sum(batch_sizes) == expected * len(images)
    assert len(set(batch_sizes)) == 1  # all levels and patches in one batch


@pytest.mark.parametrize("view", [{}, {"kind": "slice", "neighbours": 1}, PATCH["view"]])
@pytest.mark.parametrize("patch_sets", [2, 4])
def test_sets_of_patches_cover_every_voxel_exactly_once(view: dict[str, Any], patch_sets: int) -> None:
    detector = new(view=view, masked="patch", patch_sets=patch_sets, levels=(0.5,), n_function_evaluations=4)
    sets = detector.patches()
    assert sets.shape == (patch_sets, 1, 1, *detector.image_shape)
    assert (sets.sum(dim=0) == 1).all()
    assert new().patches().all()


def test_scoring_adds_noise_inside_the_patches_only(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = new(masked="patch", levels=(0.5,), n_function_evaluations=4)
    images, mask = images_of(*healthy_scan(0), detector.view)
    calls = []
    monkeypatch.setattr(
        detector, "predict", lambda noisy, inputs, t: (calls.append((noisy, inputs)), torch.zeros_like(noisy))[1]
    )
    detector.evidence(images, mask)
    assert len(calls) == 2
    for noisy, inputs in calls:
        assert torch.equal(noisy[~inputs.where], inputs.clean[~inputs.where])
        assert (noisy != inputs.clean)[inputs.where].float().mean() > 0.99
    assert (inputs.where <= inputs.mask).all()


@pytest.mark.parametrize("masked", ["none", "patch"])
def test_training_adds_noise_inside_the_mask_only(masked: str) -> None:
    detector = new(masked=masked, n_function_evaluations=6)
    images, mask = images_of(*healthy_scan(0), detector.view)
    noise, t, where = detector.corrupt(images, mask, generator())
    assert noise.shape == images.shape
    assert where.shape == mask.shape
    assert t.min() >= 1
    assert t.max() <= 1000
    assert (where <= mask).all()
    assert torch.equal(where, mask) == (masked == "none")


def test_training_adds_noise_to_some_whole_images_and_to_patches_of_others() -> None:
    detector = new(masked="patch")
    mask = torch.ones(60, 1, *detector.image_shape, dtype=torch.bool)
    share = detector.corrupt(mask.float(), mask, generator())[2].float().flatten(1).mean(1)
    assert 10 <= int((share == 1).sum()) <= 30
    assert share.min() > 0.3


def test_a_network_that_predicts_0_has_the_mean_square_of_the_noise_as_loss() -> None:
    detector = new(prediction="epsilon")
    for parameter in detector.network.unet.out.parameters():
        torch.nn.init.zeros_(parameter)
    images, mask = images_of(*healthy_scan(0), detector.view)
    corrupted = detector.corrupt(images, mask, generator())
    loss = detector.loss(images, mask, StepInfo(0, 10, generator()), *corrupted)["loss"]
    torch.testing.assert_close(loss, (corrupted[0][mask] ** 2).mean())


def test_the_input_of_the_network_is_standardised(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = new(levels=(0.5,), n_function_evaluations=1)
    calls = []
    monkeypatch.setattr(
        detector, "predict", lambda noisy, inputs, t: (calls.append(inputs), torch.zeros_like(noisy))[1]
    )
    for seed in range(2):  # the scans that the statistics were learnt from
        detector.evidence(*images_of(*healthy_scan(seed), detector.view))
    inside = torch.cat([inputs.clean[inputs.mask] for inputs in calls])
    assert inside.mean() == pytest.approx(0, abs=1e-3)
    assert inside.std() == pytest.approx(1, abs=1e-3)


def test_restorations_stay_within_healthy_intensities(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = new(prediction="sample")
    monkeypatch.setattr(detector, "predict", lambda noisy, inputs, t: torch.full_like(noisy, 50.0))
    images, mask = images_of(*healthy_scan(0), detector.view)
    healthy = torch.cat([torch.from_numpy(healthy_scan(seed)[0][healthy_scan(seed)[1]]) for seed in range(2)])
    assert detector.reconstruct(images, mask).max() == pytest.approx(float(healthy.max()), abs=1e-5)


def test_the_code_of_the_clean_image_changes_the_restoration() -> None:
    detector = new(context=True, context_size=4)
    images, mask = images_of(*healthy_scan(0), detector.view)
    with torch.inference_mode():
        before = detector.reconstruct(images, mask)
        encoder = detector.network.encoder
        assert encoder is not None
        next(reversed(list(encoder.parameters()))).add_(1.0)
        after = detector.reconstruct(images, mask)
    assert not torch.allclose(before, after, atol=1e-4)


def test_the_encoder_learns_with_the_network() -> None:
    detector = new(context=True, context_size=4)
    images, mask = images_of(*healthy_scan(0), detector.view)
    corrupted = detector.corrupt(images, mask, generator())
    detector.loss(images, mask, StepInfo(0, 10, generator()), *corrupted)["loss"].backward()
    assert detector.network.encoder is not None
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in detector.network.encoder.parameters())


@pytest.mark.parametrize("noise", ["gaussian", "coarse", "simplex"])
@pytest.mark.parametrize("view", [{}, {"kind": "slice", "neighbours": 1}, PATCH["view"]])
def test_scoring_noise_is_the_same_for_every_detector_and_differs_between_levels(
    noise: str, view: dict[str, Any]
) -> None:
    detector = new(noise=noise, view=view)
    assert detector.scoring_noise.shape == (3, detector.view.channels, *detector.image_shape)
    assert torch.equal(detector.scoring_noise, new(noise=noise, view=view).scoring_noise)
    assert not torch.allclose(detector.scoring_noise[0], detector.scoring_noise[1])
    assert "scoring_noise" not in detector.state_dict()


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"context": True, "masked": "patch"}, PATCH])
def test_samples_are_finite_in_range_and_different(changes: dict[str, Any]) -> None:
    detector = new(timesteps=50, **changes)
    samples = detector.sample(4, generator())
    assert samples.shape == (4, 1, *detector.image_shape)
    assert samples.isfinite().all()
    assert samples.max() <= detector.highest + 1e-5
    assert samples[samples != 0].min() >= detector.lowest - 1e-5
    assert len(samples.flatten(1).unique(dim=0)) == 4
    assert torch.equal(samples, detector.sample(4, generator()))


def test_samples_are_what_the_network_predicts_for_x0(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = new(prediction="sample", timesteps=100)
    monkeypatch.setattr(detector, "predict", lambda noisy, inputs, t: torch.full_like(noisy, 0.3))
    samples = detector.sample(3, generator())
    inside = samples[samples != 0]
    torch.testing.assert_close(inside, torch.full_like(inside, float(0.3 * detector.sd + detector.mean)))


@pytest.mark.slow
def test_interpolation_restores_the_weighted_mean_of_two_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    detector = new()
    images, _ = images_of(*healthy_scan(0), detector.view)
    first, second = images[4:6], images[6:8]
    restored = interpolate(detector, first, second, 3)
    torch.testing.assert_close(restored, interpolate(detector, first, second, 3))
    make_predictions_exact(detector, monkeypatch)
    steps = interpolate(detector, first, second, 3)
    assert not torch.allclose(restored, steps, atol=1e-2)
    for step, expected in zip(steps, (first, (first + second) / 2, second), strict=True):
        inside = either_foreground(first, second) & (
            expected > detector.lowest
        )  # elsewhere the intensity is not healthy
        torch.testing.assert_close(step[inside], expected[inside], atol=1e-4, rtol=0)


def test_the_foreground_is_that_of_most_healthy_scans() -> None:
    detector = new()
    masks = [torch.from_numpy(healthy_scan(seed)[1]) for seed in range(2)]
    assert torch.equal(detector.foreground, masks[0] & masks[1])
    assert math.isfinite(float(detector.lowest))


def test_neighbouring_slices_are_restored_together(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = new(view={"kind": "slice", "neighbours": 1}, n_function_evaluations=3)
    make_predictions_exact(detector, monkeypatch)
    images, mask = images_of(*healthy_scan(0), detector.view)
    assert images.shape[1] == 3
    torch.testing.assert_close(detector.reconstruct(images, mask), images[:, 1:2] * mask, atol=1e-4, rtol=0)


def test_noise_is_continuous_across_neighbouring_slices() -> None:
    detector = new(
        view={"kind": "slice", "neighbours": 1}, noise="coarse", noise_spacing_mm=64.0, n_function_evaluations=3
    )
    noise = detector.noise(8, generator())
    across, between_images = noise.diff(dim=1).abs().mean(), noise.diff(dim=0).abs().mean()
    assert across < 0.4 * between_images


@pytest.mark.slow
@pytest.mark.parametrize("changes", [PATCH, {"view": {"kind": "slice", "neighbours": 1}, "space_to_depth": 2}])
def test_patches_and_slabs_can_be_trained_on(changes: dict[str, Any], tmp_path: Path) -> None:
    detector = new(noise="coarse", masked="patch", **changes)
    training = TrainingSettings(steps=1, batch_size=2, validate_every=1)
    fit(detector, healthy_cohort(2), [], FitRun(tmp_path, training, device="cpu"))
    with torch.inference_mode():
        images, mask = images_of(*healthy_scan(9), detector.view)
        assert detector.evidence(images, mask).maps["residual"].shape == mask.shape


def test_a_context_code_that_could_copy_the_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="latent_size 320 is not smaller than the image"):
        fit(new(context=True, context_size=320), healthy_cohort(2), [], FitRun(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": (8, 20)}, "multiples of 8"),
        ({"levels": (0.5, 1.2)}, "above 0 and not above 1"),
        ({"n_function_evaluations": 4}, r"found 4; expected a multiple of 3, the number of levels \(3\)"),
        ({"n_function_evaluations": 9, "masked": "patch"}, "expected a multiple of 6"),
        ({"levels": (0.01,), "n_function_evaluations": 11}, "11 steps do not fit below level 0.01"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        new(**changes)
