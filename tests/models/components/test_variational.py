from __future__ import annotations

import math

import torch
from torch.distributions import Bernoulli, Normal, kl_divergence

from anomaly.models.components.variational import (
    expected,
    free_energy,
    kl,
    kl_between,
    kl_per_dim,
    log_density,
    log_likelihood,
    reparameterize,
    with_free_bits,
)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_closed_form_kl_is_that_of_torch() -> None:
    mu, log_variance = random(4, 6), random(4, 6, seed=1)
    expected = kl_divergence(Normal(mu, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).sum(dim=1)
    torch.testing.assert_close(kl(mu, log_variance), expected)
    torch.testing.assert_close(kl_per_dim(mu, log_variance).sum(1), expected)


def test_the_closed_form_kl_of_two_gaussians_is_that_of_torch() -> None:
    mu, log_variance, prior_mu, prior_log_variance = (random(4, 6, 5, 3, seed=n) for n in range(4))
    posterior = Normal(mu, (0.5 * log_variance).exp())
    prior = Normal(prior_mu, (0.5 * prior_log_variance).exp())
    expected = kl_divergence(posterior, prior)
    torch.testing.assert_close(kl_between(mu, log_variance, prior_mu, prior_log_variance), expected)


def test_the_kl_of_the_prior_is_zero() -> None:
    assert kl(torch.zeros(2, 6), torch.zeros(2, 6)).abs().max() == 0
    assert kl_between(*[random(2, 6)] * 4).abs().max() == 0


def test_samples_have_the_mean_and_spread_of_the_code() -> None:
    mu, log_variance = torch.tensor([[2.0, -1.0]]), torch.tensor([[0.5, 0.04]]).square().log()
    samples = reparameterize(mu.expand(20_000, 2), log_variance.expand(20_000, 2), torch.Generator().manual_seed(0))
    torch.testing.assert_close(samples.mean(0), mu[0], atol=0.02, rtol=0)
    torch.testing.assert_close(samples.std(0), torch.tensor([0.5, 0.04]), atol=0.01, rtol=0)


def test_without_free_bits_the_divergence_is_the_mean_kl() -> None:
    divergence = random(4, 6).abs()
    torch.testing.assert_close(with_free_bits(divergence, torch.ones(4), 0.0), divergence.mean(0))


def test_a_unit_whose_mean_kl_is_below_the_free_bits_is_not_pushed_down() -> None:
    divergence = torch.tensor([[0.1, 0.9], [0.3, 1.9]], requires_grad=True)
    floored = with_free_bits(divergence, torch.ones(2), 0.5)
    torch.testing.assert_close(floored, torch.tensor([0.5, 1.4]))
    floored.sum().backward()
    assert torch.equal(divergence.grad, torch.tensor([[0.0, 0.5], [0.0, 0.5]]))


def test_images_that_do_not_count_have_no_part_in_free_bits() -> None:
    divergence = torch.tensor([[0.1, 0.9], [7.0, 7.0]])
    floored = with_free_bits(divergence, torch.tensor([1.0, 0.0]), 0.5)
    torch.testing.assert_close(floored, torch.tensor([0.5, 0.9]))
    assert torch.equal(with_free_bits(divergence, torch.zeros(2), 0.5), torch.tensor([0.5, 0.5]))


def test_the_free_energy_is_the_negative_elbo_per_voxel() -> None:
    likelihood, divergence = random(4), random(4, 6).abs()
    mask = random(4, 1, 5, 5, seed=1) > 0
    parts = free_energy(likelihood, divergence, mask, beta=1.0)
    torch.testing.assert_close(parts["loss"], (divergence.sum() - likelihood.sum()) / mask.sum())
    torch.testing.assert_close(parts["loss"], parts["kl"] - parts["likelihood"])


def test_each_group_of_units_can_have_a_beta_of_its_own() -> None:
    likelihood, divergence, mask = torch.zeros(2), torch.ones(2, 2), torch.ones(2, 1, 1, 1)
    assert free_energy(likelihood, divergence, mask, beta=torch.tensor([0.5, 3.0]))["loss"] == 3.5


def test_the_log_density_is_that_of_torch() -> None:
    z, mu, log_variance = (random(4, 2, 5, 3, seed=n) for n in range(3))
    found = Normal(mu, (0.5 * log_variance).exp()).log_prob(z).flatten(1).sum(1)
    torch.testing.assert_close(log_density(z, mu, log_variance), found)


def test_a_bernoulli_likelihood_is_that_of_torch_inside_the_mask() -> None:
    log_odds, mask = random(4, 1, 5, 5), random(4, 1, 5, 5, seed=1) > 0
    images = (random(4, 3, 5, 5, seed=2) > 0).float()
    probability = Bernoulli(logits=log_odds).log_prob(images[:, 1:2])
    found = log_likelihood(images, log_odds, mask, 0.1, "bernoulli")
    torch.testing.assert_close(found, (probability * mask).flatten(1).sum(1))
    torch.testing.assert_close(expected(log_odds, "bernoulli"), log_odds.sigmoid())


def test_a_bernoulli_likelihood_of_grey_weighs_both_answers() -> None:
    image, mask = torch.full((1, 1, 1, 1), 0.3), torch.ones((1, 1, 1, 1), dtype=torch.bool)
    found = log_likelihood(image, torch.zeros_like(image), mask, 0.1, "bernoulli")
    torch.testing.assert_close(found, torch.tensor([0.5]).log())
    best = log_likelihood(image, image.logit(), mask, 0.1, "bernoulli")
    torch.testing.assert_close(best, torch.tensor([0.3 * math.log(0.3) + 0.7 * math.log(0.7)]))


def test_a_bernoulli_likelihood_is_safe_where_the_model_is_sure_and_wrong() -> None:
    log_odds = torch.tensor([40.0, -40.0, 1e4]).reshape(3, 1, 1, 1).requires_grad_()
    images = torch.tensor([0.0, 1.0, 0.0]).reshape(3, 1, 1, 1)
    found = log_likelihood(images, log_odds, images > -1, 0.1, "bernoulli")
    assert found.tolist() == [-40, -40, -1e4]
    found.sum().backward()
    assert log_odds.grad.flatten().tolist() == [-1, 1, -1]


def test_what_lies_beyond_black_and_white_counts_as_black_or_white() -> None:
    log_odds, mask = random(2, 1, 5, 5), torch.ones((2, 1, 5, 5), dtype=torch.bool)
    images = random(2, 1, 5, 5, seed=1)
    first, second = (log_likelihood(x, log_odds, mask, 0.1, "bernoulli") for x in (images, images.clamp(0, 1)))
    assert torch.equal(first, second)
    assert (first < 0).all()
