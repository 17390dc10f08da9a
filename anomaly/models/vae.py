"""Variational autoencoder: an image is normal if it is probable under the model.

Idea. The encoder gives a distribution q(z|x) = N(μ, σ²) instead of a point, which is kept close to the prior N(0,
1). A healthy image is reconstructed well (likelihood) from a code that is probable under the prior (KL). Their sum
is a lower bound of the log-probability of the image:

    log p(x) ≥ ELBO = E_q[log p(x|z)] − KL(q‖p)
    KL = −½ Σ (1 + log σ² − μ² − σ²)                              closed form
    log p(x|z) = −½ Σ ((x − x̂)/s)² − N log(s √2π)                 N voxels inside the mask, s the noise SD; or
    log p(x|z) = Σ x log x̂ + (1 − x) log(1 − x̂)                    Bernoulli, for intensities of 0 to 1
    z = μ + σ·ε,  ε ~ N(0, 1)                                      reparameterisation
    L = (−log p(x|z) + β·KL) / N                                    β rises from 0 over the warm-up

Free bits prevent posterior collapse: the KL of a latent unit is not penalised below λ nats. With context encoding,
boxes are hidden in some images. They are reconstructed completely from the mean code, and their KL is left out,
because it reflects the boxes: L = −log p(x|μ(x̃)) / N.

Evidence: the residual x − x̂ at z = μ; per image the KL and the negative ELBO, in nats; optionally the map
|x − x̂| · |∂KL/∂x|, which is high where the reconstruction is poor and the image makes the code improbable, and the
map x − x', where x' is the image after gradient ascent on the ELBO with a penalty on the total variation of the
change.

Source: Kingma & Welling 2014, "Auto-Encoding Variational Bayes"; Kingma et al. 2016, "Improved Variational
Inference with Inverse Autoregressive Flow" (free bits); Zimmerer et al. 2018, "Context-encoding Variational
Autoencoder for Unsupervised Anomaly Detection"; Zimmerer et al. 2019, "Unsupervised Anomaly Localization using
Variational Auto-Encoders" (the gradient map); Chen et al. 2020, "Unsupervised lesion detection via image
restoration with a normative prior".
"""

from __future__ import annotations

from typing import ClassVar, Literal

from monai.networks.nets import VarAutoEncoder
from torch import Tensor, nn

from anomaly.models.base import ModelSettings, crop, pad
from anomaly.models.components.variational_detector import CodeSettings, VariationalDetector


class VariationalSettings(CodeSettings):
    """Settings of the variational autoencoder."""

    family: Literal["vae"] = "vae"


class VariationalAutoencoder(VariationalDetector):
    """Residual, KL and ELBO of a variational autoencoder."""

    family = "vae"
    Settings: ClassVar[type[ModelSettings]] = VariationalSettings
    settings: VariationalSettings

    def build(self) -> nn.Module:
        """Return encoder and decoder."""
        self.conditioning = None
        network: nn.Module = VarAutoEncoder(**self.architecture())
        return network

    def posterior_parameters(self, images: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return μ and log σ² of q(z|x), each ``(B, latent)``."""
        del condition
        mu, log_variance = self.network.encode_forward(pad(images, self.padded))  # type: ignore[operator]
        return mu, log_variance

    def output(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return x̂ ``(B, 1, *S)``, or its log-odds."""
        del condition
        return crop(self.network.decode_forward(z, use_sigmoid=False), self.image_shape)  # type: ignore[operator]
