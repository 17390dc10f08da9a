"""Exams of generators: are their pictures like the test pictures, of all kinds, and new?

What is compared are pictures that the model draws and the test pictures, in the features of the classifier; see
:mod:`anomaly.evaluation.generation` for the measures. The classifier also reads what is drawn: a picture it is
sure of (probability 0.9 or more of each label) is legible, and how often each value is read shows missing kinds.
"""

from __future__ import annotations

import numpy as np
import torch

from anomaly.core.errors import ConfigError
from anomaly.core.volume import FloatArray
from anomaly.evaluation.generation import copied, frechet_distance, likeness, variety
from anomaly.models.generation import EncoderDecoder, Interpolator, can_interpolate, interpolate
from pipelines.validation.labelled_dataset import Labels, Pictures, told
from pipelines.validation.model_under_test import Candidate, Findings
from pipelines.validation.report.image_grids import histogram, sheet
from pipelines.validation.sampling import on_request, pixels_of, takes_requests

SURE = 0.9  # probability of a label that counts as legible
SHOWN, COLUMNS = 96, 16
WAYS, STEPS = 8, 10  # of the interpolations that are shown
EACH = 10  # pictures of each request that are shown


def generation(candidate: Candidate) -> Findings:
    """Measure pictures that a model draws; see the module's docstring.

    Raises
    ------
    ConfigError
        If the family draws none.
    """
    detector, world, drawn = candidate.detector, candidate.world, candidate.drawn("generation")
    measures, shares = measured(candidate, drawn)
    kinds = next(iter(world.features.values()))
    pictures = {
        "Samples": sheet(world.shown(drawn[:SHOWN]), COLUMNS),
        "What the samples show": histogram(shares, kinds),
        "Samples above the training pictures nearest to them": sheet(
            world.shown(_beside_nearest(candidate, drawn)), COLUMNS
        ),
    }
    if can_interpolate(detector):
        ways = between(detector, candidate.unseen.select(slice(2 * WAYS)))
        pictures["On the way from one test picture to another"] = sheet(world.shown(ways), STEPS)
    return Findings(measures, pictures)


def measured(candidate: Candidate, drawn: FloatArray) -> tuple[dict[str, float], dict[str, FloatArray]]:
    """Return measures of generated pictures ``(N, H, W)``, and how often the first label has each value."""
    world, few = candidate.world, candidate.exams.neighbours_of
    known = np.unique(world.train.pixels, axis=0)  # a look that is there twice would be nobody's copy
    real, made, learnt = (
        world.classifier.features(pixels) for pixels in (world.test.pixels, drawn, world.train.pixels[: len(drawn)])
    )
    found, near = variety(real[:few], made[:few]), likeness(real[:few], made[:few])
    reading, shown = world.read(drawn), world.test.labels
    kinds = len(next(iter(world.features.values())))
    shares = {"test": _shares(shown, kinds), "generated": _shares(reading.labels, kinds)}
    apart = 0.5 * float(np.abs(shares["generated"] - shares["test"]).sum())
    scale = real.std(axis=0) + 1e-6  # so that every feature counts alike
    measures = {
        "frechet": frechet_distance(real / scale, made / scale),
        "frechet_of_training": frechet_distance(real / scale, learnt / scale),
        "precision": near.precision,
        "recall": near.recall,
        "coverage": found.coverage,
        "density": found.density,
        "legible": float((reading.sure >= SURE).mean()),
        "kinds_apart": apart,
        "rarest_kind": float((shares["generated"] / np.maximum(shares["test"], 1e-9))[shares["test"] > 0].min()),
        "copied": copied(known, drawn),
    }
    return measures, shares


def conditional(candidate: Candidate) -> Findings:
    """Measure whether a conditional model draws what it is asked for: each value of the first label, as often.

    Raises
    ------
    ConfigError
        If the model is not conditional.
    """
    detector, world, exams = candidate.detector, candidate.world, candidate.exams
    if not takes_requests(detector):
        raise ConfigError(f"the family {detector.family!r} takes no requests; leave out the exam conditional")
    kinds = len(next(iter(world.features.values())))
    asked = np.arange(exams.samples) % kinds
    drawn = on_request(detector, asked[:, None], candidate.rng(1), candidate.progress)
    right = world.classifier.read(drawn)[:, 0] == asked
    each = [float(right[asked == kind].mean()) for kind in range(kinds)]
    first = drawn[: EACH * kinds].reshape(EACH, kinds, *drawn.shape[1:])
    grid = np.swapaxes(first, 0, 1).reshape(-1, *drawn.shape[1:])
    return Findings(
        {"as_asked": float(right.mean()), "as_asked_lowest": min(each)},
        {"Each row: pictures drawn on request": sheet(world.shown(grid), EACH)},
    )


def _shares(labels: Labels, kinds: int) -> FloatArray:
    return np.asarray(np.bincount(labels[:, 0], minlength=kinds) / len(labels), dtype=np.float32)


def _beside_nearest(candidate: Candidate, drawn: FloatArray) -> FloatArray:
    """Return a few generated pictures, and the training pictures nearest to them."""
    some, known = drawn[:COLUMNS], candidate.seen.seen()
    flat = known.reshape(len(known), -1)
    nearest = [int(np.argmin(((flat - picture.ravel()) ** 2).sum(axis=1))) for picture in some]
    return np.concatenate([some, known[nearest]])


def between(model: EncoderDecoder | Interpolator, some: Pictures) -> FloatArray:
    """Return pictures ``(N · STEPS / 2, H, W)`` on the way from the first half of N to the second, pair by pair."""
    first, second = torch.from_numpy(some.seen())[:, None].chunk(2)
    about = torch.from_numpy(told(some.labels)).chunk(2)
    with torch.inference_mode():
        ways = interpolate(model, first, second, STEPS, (about[0], about[1]))
    return pixels_of(ways.swapaxes(0, 1).flatten(0, 1))
