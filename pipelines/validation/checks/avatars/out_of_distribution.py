"""Check of detectors on avatars: are images with an unknown attribute detected at the target false-positive rate?

The model is trained on avatars drawn from the distribution. Other avatars from it give normal scores (held out),
the p-values (calibration), and the false-positive rate (test). Out of distribution are avatars with an eyepatch, a
hat or a printed shirt, all other attributes drawn from the distribution. Images are scored as scans are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from anomaly.calibration.conformal import p_values
from anomaly.calibration.operating_point import FPRCheck, check_fpr
from anomaly.core.volume import FloatArray
from anomaly.evaluation.detection import auroc
from anomaly.models.base import Detector
from anomaly.scoring.scorer import ScoredVolume
from pipelines.validation.checks.avatars.validity import avatars_of, unsupported
from pipelines.validation.datasets.avatars.mosaic import to_rgb
from pipelines.validation.datasets.avatars.rendering import OOD_KINDS
from pipelines.validation.fit_and_score import fit_scorer, score_images, scores_by_name
from pipelines.validation.labelled_dataset import NOT_VISIBLE, LabelledImages
from pipelines.validation.model_under_test import CheckResult, ModelUnderTest
from pipelines.validation.report.image_grids import image_grid
from pipelines.validation.settings import FamilyEntry, NaiveBayesEntry

Floats = npt.NDArray[np.float64]
N_SHOWN = 5  # images of each kind in the report


@dataclass(frozen=True, eq=False)
class ScoresByPart:
    """Scores of in-distribution images for calibration and test, and of out-of-distribution ones by kind."""

    calibration: Floats
    test: Floats
    out_of_distribution: Floats
    kinds: npt.NDArray[np.str_]

    def auroc(self, kind: str | None = None) -> float:
        """Return the AUROC of out-of-distribution images, all or of one kind, against the test images."""
        abnormal = self._of_kind(kind)
        truth = np.repeat([False, True], [len(self.test), len(abnormal)])
        return auroc(truth, np.concatenate([self.test, abnormal]))

    def sensitivity(self, alpha: float, kind: str | None = None) -> float:
        """Return the share of out-of-distribution images, all or of one kind, that are flagged."""
        return float((p_values(self._of_kind(kind), self.calibration) <= alpha).mean())

    def fpr_check(self, alpha: float) -> FPRCheck:
        """Compare the false-positive rate on the test images with the target alpha."""
        flagged = int((p_values(self.test, self.calibration) <= alpha).sum())
        return check_fpr(flagged, len(self.test), len(self.calibration), alpha)

    def _of_kind(self, kind: str | None) -> Floats:
        return self.out_of_distribution if kind is None else self.out_of_distribution[self.kinds == kind]


def check_out_of_distribution(model: ModelUnderTest) -> CheckResult:
    """Measure the detection of out-of-distribution avatars; see the module's docstring.

    Raises
    ------
    ConfigError
        If the model scores no images, its declared score does not exist, or the dataset is not avatars.
    """
    detector, entry = model.detector, model.entry
    if not isinstance(detector, Detector) or not isinstance(entry, FamilyEntry | NaiveBayesEntry):
        raise unsupported(model, "out_of_distribution", "scores no images")
    avatars = avatars_of(model.dataset)
    settings = avatars.settings
    pixels, kinds = avatars.out_of_distribution_images(settings.out_of_distribution)
    unlabelled = np.full((len(pixels), model.dataset.test.labels.shape[1]), NOT_VISIBLE)
    held_out = avatars.images("held out", settings.held_out)
    calibration = avatars.images("calibration", settings.calibration)
    reference = model.train_images.select(slice(settings.reference))
    scorer = fit_scorer(detector, entry.scoring, reference, held_out)
    abnormal = list(score_images(scorer, LabelledImages(pixels, unlabelled)))
    declared = entry.scoring.scan_score
    scores = ScoresByPart(
        scores_by_name(score_images(scorer, calibration), declared)[declared],
        scores_by_name(score_images(scorer, model.test_images), declared)[declared],
        scores_by_name(abnormal, declared)[declared],
        kinds,
    )
    grid = {"Out-of-distribution avatars, the reconstruction, and the evidence": _grid(pixels, abnormal)}
    tables = {"By kind": _table(scores, settings.alphas)}
    return CheckResult(detection_measures(scores, settings.alphas), grid, tables)


def detection_measures(scores: ScoresByPart, alphas: Iterable[float]) -> dict[str, float]:
    """Return the measures that thresholds are set for."""
    fpr_checks = {alpha: scores.fpr_check(alpha) for alpha in alphas}
    return {
        "auroc": scores.auroc(),
        **{f"auroc_{kind.replace(' ', '_')}": scores.auroc(kind) for kind in OOD_KINDS},
        **{f"sensitivity_{alpha:g}": scores.sensitivity(alpha) for alpha in fpr_checks},
        **{f"fpr_{alpha:g}": check.rate for alpha, check in fpr_checks.items()},
        "fpr_not_exceeded": float(np.mean([check.within_target for check in fpr_checks.values()])),
    }


def _table(scores: ScoresByPart, alphas: Iterable[float]) -> list[dict[str, float | str]]:
    return [
        {
            "avatars": f"with {'an' if kind == 'eyepatch' else 'a'} {kind}",
            "AUROC": scores.auroc(kind),
            **{f"flagged at α = {alpha:g}": scores.sensitivity(alpha, kind) for alpha in alphas},
        }
        for kind in OOD_KINDS
    ]


def _grid(pixels: FloatArray, results: list[ScoredVolume]) -> bytes:
    """Return a grid of images in colour, their reconstructions, and the evidence in grey."""
    n = N_SHOWN * len(OOD_KINDS)
    reconstruction = np.stack([result.reconstruction[..., 0] for result in results[:n]])
    evidence = np.stack([_block_means(result.evidence[..., 0]) for result in results[:n]])
    brightest = max(float(np.quantile(evidence, 0.995)), 1e-9)
    grey = np.repeat((evidence / brightest)[..., None], 3, axis=-1)
    rows = np.concatenate([to_rgb(pixels[:n]) / 255, to_rgb(reconstruction) / 255, grey])
    return image_grid(rows.astype(np.float32), n)


def _block_means(values: FloatArray) -> FloatArray:
    """Return the mean of each 2 × 2 block of a mosaic ``(2H, 2W)``."""
    height, width = values.shape
    return np.asarray(values.reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3)))
