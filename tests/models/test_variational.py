from __future__ import annotations

import torch
from torch.distributions import Normal, kl_divergence

from anomaly.models.variational import kl, reparameterised


def test_the_closed_form_kl_is_that_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    mu, log_variance = torch.randn(4, 6, generator=generator), torch.randn(4, 6, generator=generator)
    expected = kl_divergence(Normal(mu, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).sum(dim=1)
    torch.testing.assert_close(kl(mu, log_variance), expected)


def test_the_kl_of_the_prior_is_zero() -> None:
    assert kl(torch.zeros(2, 6), torch.zeros(2, 6)).abs().max() == 0


def test_samples_have_the_mean_and_spread_of_the_code() -> None:
    mu, log_variance = torch.tensor([[2.0, -1.0]]), torch.tensor([[0.5, 0.04]]).square().log()
    samples = reparameterised(
        mu.expand(20_000, 2), log_variance.expand(20_000, 2), torch.Generator().manual_seed(0)
    )
    torch.testing.assert_close(samples.mean(0), mu[0], atol=0.02, rtol=0)
    torch.testing.assert_close(samples.std(0), torch.tensor([0.5, 0.04]), atol=0.01, rtol=0)
