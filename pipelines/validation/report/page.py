"""The report of a validation: the result, every number with its threshold, and the images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from anomaly.core.files import write_text
from anomaly.models.registry import FAMILIES
from anomaly.reports import pages
from pipelines.validation.checks.avatars import metric_descriptions
from pipelines.validation.report.result import ModelResult, ThresholdResult, ValidationResult

MEASURES = {
    "generation.frechet": "Fréchet distance to the test images, in features of the reference classifier; 0 = equal",
    "generation.frechet_of_training": "Fréchet distance of as many training images to the test images",
    "generation.precision": "share of the samples within the neighbourhood of test images",
    "generation.recall": "share of the test images within the neighbourhood of samples",
    "generation.coverage": "share of the test images with a sample among their nearest neighbours",
    "generation.density": "samples among the neighbours of test images; 1 = as many as test images themselves",
    "generation.confident_fraction": "share of the samples that the classifier labels with P ≥ 0.9",
    "generation.class_total_variation": "total variation between classes of samples and test images; 0 = equal",
    "generation.rarest_class_ratio": "lowest ratio of a class's frequency in samples to that in test images",
    "generation.memorised_fraction": "share of the samples that copy a training image",
    "conditional.condition_accuracy": "share of the samples that show what their condition says",
    "conditional.condition_accuracy_lowest": "that share, of the class for which it is lowest",
    "likelihood.nll_1": "negative log-likelihood, nats per image, bound from 1 latent sample",
    "likelihood.nll_50": "negative log-likelihood, nats per image, bound from 50 latent samples",
    "likelihood.nll_500": "negative log-likelihood, nats per image, bound from 500 latent samples",
    "likelihood.bits_per_dimension": "negative log-likelihood, bits per pixel of 8 bits",
    "latent_codes.code_size": "size of the latent code",
    "latent_codes.mse": "mean squared error of reconstructed test images",
    "latent_codes.pca_mse": "mean squared error of as many principal components",
    "latent_codes.pca_error_ratio": "error of as many principal components, relative to the model's",
    "latent_codes.linear_probe": "accuracy of a linear classifier of the code on test images",
    "latent_codes.precision_at_10": "share with the same label of the ten images with the nearest binary codes",
    "latent_codes.inpainting_psnr": "half hidden and restored: PSNR, dB",
    "latent_codes.inpainting_psnr_gain": "half hidden and restored: PSNR above that of the mean image, dB",
    "latent_codes.denoising_psnr": "noisy and restored: PSNR, dB",
    "latent_codes.denoising_psnr_gain": "noisy and restored: PSNR above that of the noisy images, dB",
    **{
        f"{check}.{measure}": text
        for check in ("one_normal", "one_abnormal")
        for measure, text in {
            "auroc": "AUROC of the declared score, mean over digits and seeds",
            "auroc_lowest": "AUROC of the digit for which it is lowest",
            "auroc_sd": "SD over seeds of the mean AUROC",
            "fpr_not_exceeded": "share of digits and targets whose FPR is not exceeded (99 % band)",
            "fpr_inside_band": "share of digits and targets whose FPR is inside the 99 % band",
            "seconds": "seconds per detector",
        }.items()
    },
    **metric_descriptions.DESCRIPTIONS,
}
"""``CHECK.MEASURE`` → what it is."""

PREFIXES = {
    "auroc_": "AUROC of the score {}",
    "fpr_": "false-positive rate at a target of {}",
}
"""Start of a measure's name → what it is; the rest of the name is that of a score, or a rate."""

OTHER_MODELS = {
    "ensemble": "ensemble: members merged by their p-values",
    "knn": "baseline: distance to the nearest normal images",
    "isolation_forest": "baseline: isolation forest of pixels",
    "one_class_svm": "baseline: one-class support vector machine of pixels",
}
"""Descriptions of models that are no family."""


@dataclass(frozen=True)
class Line:
    """A row of the report: one measure of a model."""

    description: str
    value: float
    threshold_result: ThresholdResult | None

    @property
    def state(self) -> str:
        """``met`` or ``missed``; ``measured`` if it has no threshold."""
        if self.threshold_result is None:
            return "measured"
        return "met" if self.threshold_result.met else "missed"


@dataclass(frozen=True)
class Section:
    """A section of the report: one model."""

    result: ModelResult
    family: str
    lines: tuple[Line, ...]
    images: tuple[tuple[str, bytes], ...]

    @property
    def passed(self) -> bool:
        """Whether all its thresholds are met."""
        return not self.result.problem and all(line.state != "missed" for line in self.lines)

    @property
    def met(self) -> str:
        """How many of its thresholds are met, of how many."""
        threshold_results = [line.threshold_result for line in self.lines if line.threshold_result is not None]
        return f"{sum(row.met for row in threshold_results)} of {len(threshold_results)}"


def write_page(validation: ValidationResult, output: Path) -> Path:
    """Write ``report.html`` and return its path."""
    sections = [_section(validation, result) for result in validation.results]
    path = output / "report.html"
    write_text(
        path,
        pages.render("validation.html.j2", result=validation, sections=sections, software=_software(validation)),
    )
    return path


def _section(validation: ValidationResult, result: ModelResult) -> Section:
    threshold_results = {row.measure: row for row in validation.threshold_results(result)}
    names = [*result.measures, *(name for name in threshold_results if name not in result.measures)]
    lines = [Line(describe(n), result.measures.get(n, float("nan")), threshold_results.get(n)) for n in names]
    ordered = sorted(lines, key=lambda line: line.threshold_result is None)
    images = [(title, (result.folder / file).read_bytes()) for title, file in result.images.items()]
    known = FAMILIES.get(result.family)
    family = known.description if known else OTHER_MODELS.get(result.family, result.family)
    return Section(result, family, tuple(ordered), tuple(images))


def describe(name: str) -> str:
    """Return what a measure, ``check.measure``, says."""
    measure = name.partition(".")[2]
    further = (text.format(_rest(measure, start)) for start, text in PREFIXES.items() if measure.startswith(start))
    return MEASURES.get(name) or next(further, name)


def _rest(measure: str, start: str) -> str:
    return measure.removeprefix(start).replace("_", " ")


def _software(validation: ValidationResult) -> list[tuple[str, str]]:
    return [*validation.software.items(), ("measured", validation.at)]
