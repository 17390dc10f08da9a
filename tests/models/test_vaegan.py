from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from anomaly.core.errors import TrainingError
from anomaly.models.components.variational import kl, reparameterize
from anomaly.models.generation import Embedder, Generator
from anomaly.models.vaegan import VAEGAN, VAEGANSettings, replace_half
from anomaly.training.fit import fit
from anomaly.training.run import FitRun
from anomaly.training.settings import TrainingSettings
from tests.models.factories import GRID, healthy_cohort, healthy_scan, images_of, planted_scan, step_info

pytestmark = pytest.mark.slow  # trains models

TRAINING = TrainingSettings(steps=4, batch_size=8, learning_rate=5e-3, warmup=0, validate_every=2, ema_decay=0.0)


def new(kind: type[VAEGAN] = VAEGAN, **changes: object) -> VAEGAN:
    values = {"channels": (8, 16), "latent_size": 6, "critic_steps": 1, **changes}
    return kind(VAEGANSettings.parse(values, "model"), GRID)


def slices(detector: VAEGAN) -> tuple[Tensor, Tensor]:
    return images_of(*healthy_scan(0), detector.view)


def trained(detector: VAEGAN, folder: Path, training: TrainingSettings = TRAINING) -> tuple[str, ...]:
    return fit(detector, healthy_cohort(4), [planted_scan()], FitRun(folder, training, device="cpu")).notes


def gradients(detector: VAEGAN, step: int) -> dict[str, Tensor]:
    """Return the gradients of a step by the name of the parameter; those that get none are left out."""
    part = detector.trainable_part(step, 100)
    detector.requires_grad_(False)
    part.requires_grad_()
    detector.loss(*slices(detector), step_info(step))["loss"].backward()
    return {name: p.grad for name, p in detector.network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("objective", ["wgan-gp", "non-saturating", "minimax"])
def test_critic_and_autoencoder_are_trained_in_alternation(objective: str) -> None:
    critic, autoencoder = (gradients(new(objective=objective), step) for step in (0, 1))
    assert {name.split(".")[0] for name in critic} == {"critic"}
    assert {name.split(".")[0] for name in autoencoder} == {"autoencoder"}


def test_the_adversarial_loss_has_a_gradient_for_the_decoder_only() -> None:
    without, with_it = (gradients(new(adversarial_weight=weight), 1) for weight in (0.0, 10.0))
    changed = {
        name.split(".")[1]
        for name, gradient in without.items()
        if not torch.allclose(gradient, with_it[name], rtol=1e-4, atol=1e-6)
    }
    assert changed == {"decoder"}


def test_the_loss_is_the_negative_elbo_of_critic_features_and_voxels() -> None:
    detector = new(adversarial_weight=0.0, voxel_weight=0.5, noise_sd=0.2, beta=2.0, beta_warmup=0.0)
    images, mask = slices(detector)
    with torch.no_grad():
        losses = detector.loss(images, mask, step_info(1))
        mu, log_variance = detector.network.encoder.encode(images)
        reconstruction = detector.network.decode(reparameterize(mu, log_variance, step_info(1).rng))
        features = [detector.network.critic.features(x) for x in (images, reconstruction)]
    likelihood = (
        -0.5 * ((features[0] - features[1]) ** 2).sum()
        - 0.5 * 0.5 * (((images - reconstruction)[mask] / 0.2) ** 2).sum()
    )
    torch.testing.assert_close(losses["loss"], (2 * kl(mu, log_variance).sum() - likelihood) / mask.sum())


def test_half_of_the_decoded_codes_of_the_critic_are_new() -> None:
    z = torch.ones(5, 3, requires_grad=True)
    codes = replace_half(z, torch.Generator().manual_seed(0))
    assert not codes.requires_grad
    assert (codes[:2] == 1).all()
    assert (codes[2:] != 1).all()


def test_the_evidence_is_the_residual_the_kl_and_the_feature_distance() -> None:
    detector = new(view={"neighbours": 1})
    images, mask = slices(detector)
    with torch.inference_mode():
        evidence = detector.evidence(images, mask)
        reconstruction = detector.reconstruct(images, mask)
        divergence = kl(*detector.network.encoder.encode(images))
    torch.testing.assert_close(evidence.maps["residual"], torch.where(mask, images[:, 1:2] - reconstruction, 0.0))
    torch.testing.assert_close(evidence.terms["kl"], divergence)
    assert (evidence.terms["critic_features"] > 0).all()


def test_the_model_samples_and_embeds() -> None:
    detector = new()
    assert isinstance(detector, Generator)
    assert isinstance(detector, Embedder)
    images, mask = slices(detector)
    assert detector.sample(4, torch.Generator().manual_seed(0)).shape == (4, 1, 16, 20)
    assert detector.embed(images, mask).shape == (len(images), 6)


def test_a_latent_as_large_as_the_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"lower model\.latent_size"):
        trained(new(latent_size=16 * 20), tmp_path)


def test_3d_patches_can_be_trained_on_in_bfloat16(tmp_path: Path) -> None:
    detector = new(view={"kind": "patch", "size": (8, 8, 8)}, spectral_norm=True)
    trained(detector, tmp_path, TRAINING.model_copy(update={"precision": "bf16"}))
    assert detector.sample(2, torch.Generator().manual_seed(0)).shape == (2, 1, 8, 8, 8)


class Collapsed(VAEGAN):
    """A model whose samples are all the same."""

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        return torch.zeros_like(super().sample(n, rng))


def test_mode_collapse_is_reported(tmp_path: Path) -> None:
    assert any("mode collapse of the generator" in note for note in trained(new(Collapsed), tmp_path))
