"""Check of naive Bayes of pixels: it fails because the pixels of an avatar depend on each other.

neighbour correlation = mean correlation over images of a pixel with its right-hand neighbour, each colour channel
                        on its own, of the pixels that vary
entropy               = nats per image: of the distribution of avatars, and of pixels drawn independently
"""

from __future__ import annotations

import numpy as np

from anomaly.core.volume import FloatArray
from pipelines.validation.baselines.naive_bayes_models import PixelModel
from pipelines.validation.checks.avatars.validity import unsupported
from pipelines.validation.datasets.avatars import distribution
from pipelines.validation.datasets.avatars.mosaic import to_rgb
from pipelines.validation.model_under_test import CheckResult, ModelUnderTest

MIN_PIXEL_SD = 0.02  # of a pixel that varies, 0 to 1


def check_pixel_dependence(model: ModelUnderTest) -> CheckResult:
    """Measure the correlation of neighbouring pixels in test images and in samples, and both entropies.

    Raises
    ------
    ConfigError
        If the model is not naive Bayes of pixels.
    """
    detector = model.detector
    if not isinstance(detector, PixelModel):
        raise unsupported(model, "pixel_dependence", "does not take pixels as independent")
    real = neighbour_correlation(model.test_images.pixels)
    generated = neighbour_correlation(model.samples("pixel_dependence"))
    of_distribution, of_model = distribution.entropy(), detector.fitted().entropy()
    note = (
        f"Naive Bayes of pixels fails: neighbouring pixels of an avatar are correlated by {real:.2f}, those it "
        f"samples by {generated:.2f}. An avatar is five choices, {of_distribution:.1f} nats; sampled by pixel, "
        f"an image is {of_model:.0f} nats, most of them for choices that contradict each other."
    )
    measures = {
        "neighbour_correlation": real,
        "neighbour_correlation_generated": generated,
        "entropy_of_distribution": of_distribution,
        "entropy_of_model": of_model,
    }
    return CheckResult(measures, notes=(note,))


def neighbour_correlation(pixels: FloatArray) -> float:
    """Return the mean correlation of horizontal neighbours in mosaics ``(N, 2H, 2W)``."""
    rgb = to_rgb(pixels).astype(np.float64) / 255
    deviation, sd = rgb - rgb.mean(axis=0), rgb.std(axis=0)
    left, right = deviation[:, :, :-1], deviation[:, :, 1:]
    vary = (sd[:, :-1] > MIN_PIXEL_SD) & (sd[:, 1:] > MIN_PIXEL_SD)
    covariance = (left * right).mean(axis=0)[vary]
    return float((covariance / (sd[:, :-1] * sd[:, 1:])[vary]).mean())
