"""Exam of naive Bayes of pixels: why it fails. Pixels of a look depend on each other; it draws each on its own.

together  = mean correlation of a pixel with its right-hand neighbour over pictures, each colour on its own,
            of the pixels that vary
nats      = what a picture takes to tell: that of the law, and that of pixels drawn one by one
"""

from __future__ import annotations

import numpy as np

from anomaly.core.volume import FloatArray
from pipelines.validation.baselines.naive_bayes_models import PixelModel
from pipelines.validation.checks.avatars.validity import refuse
from pipelines.validation.datasets.avatars import distribution as law
from pipelines.validation.datasets.avatars.mosaic import colours
from pipelines.validation.model_under_test import Candidate, Findings

VARIES = 0.02  # SD of a pixel, 0 to 1


def independence(candidate: Candidate) -> Findings:
    """Measure what pixels know of one another, and what the model believes.

    Raises
    ------
    ConfigError
        If the model is another one.
    """
    model = candidate.detector
    if not isinstance(model, PixelModel):
        raise refuse(candidate, "independence", "does not take pixels as independent")
    real, drawn = together(candidate.unseen.pixels), together(candidate.drawn("independence"))
    of_law, of_model = law.entropy(), model.learnt().entropy()
    note = (
        f"Why it fails: neighbouring pixels of a look are correlated by {real:.2f}, those it draws by {drawn:.2f}. "
        f"A look is five choices, {of_law:.1f} nats; drawn pixel by pixel, a picture is {of_model:.0f} nats, most "
        "of them for choices that contradict each other."
    )
    measures = {"together": real, "together_drawn": drawn, "nats_of_law": of_law, "nats_of_model": of_model}
    return Findings(measures, notes=(note,))


def together(pixels: FloatArray) -> float:
    """Return the mean correlation of neighbours in mosaics ``(N, 2H, 2W)``."""
    rgb = colours(pixels).astype(np.float64) / 255
    deviation, sd = rgb - rgb.mean(axis=0), rgb.std(axis=0)
    left, right = deviation[:, :, :-1], deviation[:, :, 1:]
    both = (sd[:, :-1] > VARIES) & (sd[:, 1:] > VARIES)
    covariance = (left * right).mean(axis=0)[both]
    return float((covariance / (sd[:, :-1] * sd[:, 1:])[both]).mean())
