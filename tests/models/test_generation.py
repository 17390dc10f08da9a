from __future__ import annotations

import torch
from torch import Tensor

from anomaly.models.generation import can_interpolate, interpolate


class PixelCode:
    """A model whose code is the image itself."""

    def embed(self, images: Tensor, mask: Tensor) -> Tensor:
        return images.flatten(1)

    def decode(self, z: Tensor) -> Tensor:
        return z.reshape(-1, 1, 4, 5)


class CovariateInterpolator:
    """A model that interpolates the first covariate and returns it as the intensity of the image."""

    def interpolate(
        self, first: Tensor, second: Tensor, weight: float, covariates: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        assert covariates is not None
        values = torch.lerp(covariates[0], covariates[1], weight)
        return values[:, :1, None, None].expand(-1, 1, 4, 5)


def images(seed: int) -> Tensor:
    return torch.rand((3, 1, 4, 5), generator=torch.Generator().manual_seed(seed))


def test_codes_are_interpolated_linearly_from_the_first_to_the_second_images() -> None:
    first, second = images(0), images(1)
    steps = interpolate(PixelCode(), first, second, 3)
    assert steps.shape == (3, 3, 1, 4, 5)
    torch.testing.assert_close(steps[0], first)
    torch.testing.assert_close(steps[1], (first + second) / 2)
    torch.testing.assert_close(steps[2], second)


def test_a_model_with_its_own_interpolation_gets_the_covariates() -> None:
    pair = torch.zeros(3, 2), torch.ones(3, 2)
    steps = interpolate(CovariateInterpolator(), images(0), images(1), 5, pair)
    assert steps[:, 0, 0, 0, 0].tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_a_model_can_interpolate_if_it_has_a_method_or_encodes_and_decodes() -> None:
    encoder_only = type("EncoderOnly", (), {"embed": PixelCode.embed})()
    assert can_interpolate(PixelCode())
    assert can_interpolate(CovariateInterpolator())
    assert not can_interpolate(encoder_only)
