"""Checks of generative models: are samples like the test images, diverse, and not copies of training images?

Samples of the model are compared with the test images in the features of the reference classifier; the measures are
in :mod:`anomaly.evaluation.generation`. The classifier also labels the samples. The share that it labels with a
probability of 0.9 or more shows how many are recognisable, and the frequencies of the labels show missing classes.
"""

from __future__ import annotations

import numpy as np
import torch

from anomaly.core.errors import ConfigError
from anomaly.core.volume import FloatArray
from anomaly.evaluation.generation import density_coverage, frechet_distance, memorised_fraction, precision_recall
from anomaly.models.generation import EncoderDecoder, Interpolator, can_interpolate, interpolate
from pipelines.validation.labelled_dataset import LabelledImages, Labels, as_covariates
from pipelines.validation.model_under_test import CheckResult, ModelUnderTest
from pipelines.validation.report.image_grids import histogram, image_grid
from pipelines.validation.sampling import is_conditional, sample_conditions, to_pixels

MIN_CONFIDENCE = 0.9  # probability of a label above which a sample counts as recognisable
N_SHOWN, GRID_COLUMNS = 96, 16  # samples in the report
N_INTERPOLATIONS, N_STEPS = 8, 10  # interpolations in the report, and images along each
N_PER_CONDITION = 10  # samples of each condition in the report


def check_generation(model: ModelUnderTest) -> CheckResult:
    """Measure the samples of a model; see the module's docstring.

    Raises
    ------
    ConfigError
        If the family samples no images.
    """
    detector, dataset, samples = model.detector, model.dataset, model.samples("generation")
    measures, frequencies = generation_measures(model, samples)
    classes = next(iter(dataset.attributes.values()))
    images = {
        "Samples": image_grid(dataset.to_display(samples[:N_SHOWN]), GRID_COLUMNS),
        "Classes of the samples": histogram(frequencies, classes),
        "Samples above their nearest training images": image_grid(
            dataset.to_display(_with_nearest(model, samples)), GRID_COLUMNS
        ),
    }
    if can_interpolate(detector):
        between = interpolations(detector, model.test_images.select(slice(2 * N_INTERPOLATIONS)))
        images["Interpolation between two test images"] = image_grid(dataset.to_display(between), N_STEPS)
    return CheckResult(measures, images)


def generation_measures(
    model: ModelUnderTest, samples: FloatArray
) -> tuple[dict[str, float], dict[str, FloatArray]]:
    """Return measures of samples ``(N, H, W)``, and the frequencies of the first attribute's values by source."""
    dataset, n = model.dataset, model.settings.neighbour_images
    train = np.unique(dataset.train.pixels, axis=0)  # a duplicate would be nearest to itself, and hide a copy
    real, generated, learnt = (
        dataset.classifier.features(pixels)
        for pixels in (dataset.test.pixels, samples, dataset.train.pixels[: len(samples)])
    )
    diversity, fidelity = density_coverage(real[:n], generated[:n]), precision_recall(real[:n], generated[:n])
    classification = dataset.classify(samples)
    n_classes = len(next(iter(dataset.attributes.values())))
    frequencies = {
        "test": _frequencies(dataset.test.labels, n_classes),
        "generated": _frequencies(classification.labels, n_classes),
    }
    scale = real.std(axis=0) + 1e-6  # gives all features the same weight
    measures = {
        "frechet": frechet_distance(real / scale, generated / scale),
        "frechet_of_training": frechet_distance(real / scale, learnt / scale),
        "precision": fidelity.precision,
        "recall": fidelity.recall,
        "coverage": diversity.coverage,
        "density": diversity.density,
        "confident_fraction": float((classification.confidence >= MIN_CONFIDENCE).mean()),
        "class_total_variation": 0.5 * float(np.abs(frequencies["generated"] - frequencies["test"]).sum()),
        "rarest_class_ratio": _lowest_ratio(frequencies["generated"], frequencies["test"]),
        "memorised_fraction": memorised_fraction(train, samples),
    }
    return measures, frequencies


def check_conditional_generation(model: ModelUnderTest) -> CheckResult:
    """Measure whether a conditional model samples what its condition says; each class is sampled equally often.

    Raises
    ------
    ConfigError
        If the model is not conditional.
    """
    detector, dataset = model.detector, model.dataset
    if not is_conditional(detector):
        raise ConfigError(f"the family {detector.family!r} is not conditional; remove the check conditional")
    n_classes = len(next(iter(dataset.attributes.values())))
    conditions = np.arange(model.settings.samples) % n_classes
    samples = sample_conditions(detector, conditions[:, None], model.rng(1), model.progress)
    correct = dataset.classifier.read(samples)[:, 0] == conditions
    by_class = [float(correct[conditions == value].mean()) for value in range(n_classes)]
    first = samples[: N_PER_CONDITION * n_classes].reshape(N_PER_CONDITION, n_classes, *samples.shape[1:])
    rows = np.swapaxes(first, 0, 1).reshape(-1, *samples.shape[1:])
    return CheckResult(
        {"condition_accuracy": float(correct.mean()), "condition_accuracy_lowest": min(by_class)},
        {"Samples under each condition, a row for each": image_grid(dataset.to_display(rows), N_PER_CONDITION)},
    )


def interpolations(model: EncoderDecoder | Interpolator, images: LabelledImages) -> FloatArray:
    """Return images ``(N · N_STEPS / 2, H, W)`` that interpolate from the first half of N images to the second."""
    first, second = torch.from_numpy(images.model_inputs())[:, None].chunk(2)
    covariates = torch.from_numpy(as_covariates(images.labels)).chunk(2)
    with torch.inference_mode():
        steps = interpolate(model, first, second, N_STEPS, (covariates[0], covariates[1]))
    return to_pixels(steps.swapaxes(0, 1).flatten(0, 1))


def _frequencies(labels: Labels, n_classes: int) -> FloatArray:
    return np.asarray(np.bincount(labels[:, 0], minlength=n_classes) / len(labels), dtype=np.float32)


def _lowest_ratio(generated: FloatArray, test: FloatArray) -> float:
    """Return the lowest ratio of generated to test frequency, of the classes that the test images show."""
    return float((generated / np.maximum(test, 1e-9))[test > 0].min())


def _with_nearest(model: ModelUnderTest, samples: FloatArray) -> FloatArray:
    """Return a few samples, followed by the training images nearest to them."""
    some, train = samples[:GRID_COLUMNS], model.train_images.model_inputs()
    flat = train.reshape(len(train), -1)
    nearest = [int(np.argmin(((flat - image.ravel()) ** 2).sum(axis=1))) for image in some]
    return np.concatenate([some, train[nearest]])
