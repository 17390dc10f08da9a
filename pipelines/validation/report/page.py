"""The page of a validation: the verdict, every number beside its bar, and the pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from anomaly.core.files import write_text
from anomaly.models.registry import FAMILIES
from anomaly.reports import pages
from pipelines.validation.checks.avatars import metric_descriptions as look_meanings
from pipelines.validation.report.result import Check, TrialResult, Verdict

MEANINGS = {
    "generation.frechet": "Fréchet distance to the test pictures, in features of the classifier; 0 = none",
    "generation.frechet_of_training": "Fréchet distance of as many training pictures to the test pictures",
    "generation.precision": "share of the samples that could be test pictures",
    "generation.recall": "share of the test pictures that could be samples",
    "generation.coverage": "share of the test pictures with a sample among their nearest neighbours",
    "generation.density": "samples among the neighbours of test pictures; 1 = as many as test pictures themselves",
    "generation.legible": "share of the samples that the classifier is sure of (0.9)",
    "generation.kinds_apart": "total variation between what samples and test pictures show; 0 = alike",
    "generation.rarest_kind": "how often the rarest kind is drawn, as a share of how often it should be",
    "generation.copied": "share of the samples that copy a training picture",
    "conditional.as_asked": "share of the pictures drawn on request that show what was asked for",
    "conditional.as_asked_lowest": "share as asked, of the request that succeeds least",
    "likelihood.nll_1": "negative log-likelihood, nats per picture, bound from 1 draw of the code",
    "likelihood.nll_50": "negative log-likelihood, nats per picture, bound from 50 draws",
    "likelihood.nll_500": "negative log-likelihood, nats per picture, bound from 500 draws",
    "likelihood.bits_per_dimension": "negative log-likelihood, bits per pixel of 8 bits",
    "codes.code_size": "numbers of the code",
    "codes.mse": "mean squared error of rebuilt test pictures",
    "codes.pca_mse": "mean squared error of as many principal components",
    "codes.better_than_pca": "how many times smaller the error is than that of as many principal components",
    "codes.linear_probe": "share of the test pictures that a linear classifier reads rightly from the code",
    "codes.precision_at_10": "share of the ten pictures with the most equal bits that show the same",
    "codes.inpainting_psnr": "half hidden and restored, dB",
    "codes.inpainting_psnr_gain": "half hidden and restored: dB above filling in the mean picture",
    "codes.denoising_psnr": "noisy and restored, dB",
    "codes.denoising_psnr_gain": "noisy and restored: dB above the noisy pictures themselves",
    **{
        f"{exam}.{measure}": meaning
        for exam in ("one_normal", "one_abnormal")
        for measure, meaning in {
            "auroc": "AUROC of the declared score, mean over digits and seeds",
            "auroc_lowest": "AUROC of the digit that is told least",
            "auroc_sd": "SD over seeds of the mean AUROC",
            "false_flags_kept": "share of digits and rates with no more false flags than promised (99 % band)",
            "false_flags_inside": "share of digits and rates with false flags inside the 99 % band",
            "seconds": "seconds per detector",
        }.items()
    },
    **look_meanings.MEANINGS,
}
"""What each measure says."""

FURTHER = {
    "auroc_": "AUROC of the score {}",
    "false_flag_rate_": "share of the normal pictures that are flagged where {} is promised",
}
"""What measures say whose names go on with that of a score or a rate; another is shown by its name."""

BESIDE = {
    "ensemble": "members merged by their p-values",
    "knn": "baseline: distance to the nearest normal pictures",
    "isolation_forest": "baseline: isolation forest of pixels",
    "one_class_svm": "baseline: one-class support vector machine of pixels",
}
"""What is examined beside the families."""


@dataclass(frozen=True)
class Line:
    """One measure of a trial, as shown."""

    meaning: str
    found: float
    check: Check | None

    @property
    def state(self) -> str:
        """How it stands beside its bar, in a word."""
        if self.check is None:
            return "measured"
        return "met" if self.check.met else "missed"


@dataclass(frozen=True)
class Section:
    """One trial, as shown."""

    result: TrialResult
    family: str
    lines: tuple[Line, ...]
    pictures: tuple[tuple[str, bytes], ...]

    @property
    def passed(self) -> bool:
        """Whether all its bars are met."""
        return not self.result.problem and all(line.state != "missed" for line in self.lines)

    @property
    def met(self) -> str:
        """How many of its bars are met, of how many."""
        checks = [line.check for line in self.lines if line.check is not None]
        return f"{sum(check.met for check in checks)} of {len(checks)}"


def write_page(verdict: Verdict, output: Path) -> Path:
    """Write ``report.html`` and return its path."""
    sections = [_section(verdict, result) for result in verdict.results]
    path = output / "report.html"
    write_text(
        path, pages.render("validation.html.j2", verdict=verdict, sections=sections, software=_software(verdict))
    )
    return path


def _section(verdict: Verdict, result: TrialResult) -> Section:
    checks = {check.measure: check for check in verdict.checks(result)}
    names = [*result.measures, *(name for name in checks if name not in result.measures)]
    lines = [Line(meaning(n), result.measures.get(n, float("nan")), checks.get(n)) for n in names]
    ordered = sorted(lines, key=lambda line: line.check is None)
    pictures = [(title, (result.folder / file).read_bytes()) for title, file in result.pictures.items()]
    known = FAMILIES.get(result.family)
    family = known.description if known else BESIDE.get(result.family, result.family)
    return Section(result, family, tuple(ordered), tuple(pictures))


def meaning(name: str) -> str:
    """Return what a measure, ``exam.measure``, says."""
    measure = name.partition(".")[2]
    further = (text.format(_rest(measure, start)) for start, text in FURTHER.items() if measure.startswith(start))
    return MEANINGS.get(name) or next(further, name)


def _rest(measure: str, start: str) -> str:
    return measure.removeprefix(start).replace("_", " ")


def _software(verdict: Verdict) -> list[tuple[str, str]]:
    return [*verdict.software.items(), ("measured", verdict.at)]
