"""Exam of detectors: are looks from outside the law flagged, and those of the law no oftener than was promised?

The model has learnt looks drawn from the law. Others, drawn from it anew, show what normal scores are (held out),
stand behind the p-values (calibration), and keep the promise or not (test). From outside are looks with an
eyepatch, a hat or a print on the shirt, everything else drawn from the law. They are scored as scans are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from anomaly.calibration.conformal import p_values
from anomaly.calibration.operating_point import PromiseCheck, check_promise
from anomaly.core.errors import ConfigError, InputError
from anomaly.core.volume import FloatArray
from anomaly.evaluation.detection import auroc
from anomaly.models.base import Detector
from anomaly.scoring.scorer import ScoredVolume, Scorer
from pipelines.validation.checks.avatars.validity import avatars_of, refuse
from pipelines.validation.datasets.avatars.mosaic import colours
from pipelines.validation.datasets.avatars.rendering import OUTSIDE
from pipelines.validation.labelled_dataset import NOT_SHOWN, Pictures, look_at, scored
from pipelines.validation.model_under_test import Candidate, Findings
from pipelines.validation.report.image_grids import sheet
from pipelines.validation.settings import NaiveBayesTrial, TrialSettings

Floats = npt.NDArray[np.float64]
SHOWN = 5  # of each kind


@dataclass(frozen=True, eq=False)
class Outcome:
    """Scores of looks: of the law, for calibration and for testing, and from outside it, with their kinds."""

    calibration: Floats
    test: Floats
    outside: Floats
    kinds: npt.NDArray[np.str_]

    def auroc(self, kind: str | None = None) -> float:
        """Return the AUROC of all looks from outside the law, or of one kind, against those of the law."""
        outside = self.outside if kind is None else self.outside[self.kinds == kind]
        truth = np.repeat([False, True], [len(self.test), len(outside)])
        return auroc(truth, np.concatenate([self.test, outside]))

    def flagged(self, alpha: float, kind: str | None = None) -> float:
        """Return the share of the looks from outside the law, or of one kind, that are flagged."""
        outside = self.outside if kind is None else self.outside[self.kinds == kind]
        return float((p_values(outside, self.calibration) <= alpha).mean())

    def promise(self, alpha: float) -> PromiseCheck:
        """Compare the flags among looks of the law with what was promised."""
        flagged = int((p_values(self.test, self.calibration) <= alpha).sum())
        return check_promise(flagged, len(self.test), len(self.calibration), alpha)


def outliers(candidate: Candidate) -> Findings:
    """Measure how looks from outside the law are told; see the module's docstring.

    Raises
    ------
    ConfigError
        If what is examined scores nothing, the score that counts does not exist, or the world knows no looks.
    """
    detector, avatars, trial = candidate.detector, avatars_of(candidate.world), candidate.trial
    if not isinstance(detector, Detector) or not isinstance(trial, TrialSettings | NaiveBayesTrial):
        raise refuse(candidate, "outliers", "scores no pictures")
    settings = avatars.settings
    pixels, kinds = avatars.strangers(settings.outside)
    strangers = Pictures(pixels, np.full((len(pixels), candidate.world.test.labels.shape[1]), NOT_SHOWN))
    looks = [avatars.looks(part, n) for part, n in
             (("held out", settings.held_out), ("calibration", settings.calibration))]  # fmt: skip
    scorer = Scorer(detector, trial.scoring).learn_from(
        look_at(detector, candidate.seen.select(slice(settings.reference))), look_at(detector, looks[0])
    )
    results = {"calibration": scored(scorer, looks[1]), "test": scored(scorer, candidate.unseen)}
    outside = list(scored(scorer, strangers))
    scores = {part: _declared(some, trial.scoring.scan_score) for part, some in results.items()}
    outcome = Outcome(scores["calibration"], scores["test"], _declared(outside, trial.scoring.scan_score), kinds)
    sheets = {"Looks from outside the law, what was expected, and the evidence": _seen(pixels, outside)}
    return Findings(
        measures_of(outcome, settings.alphas), sheets, tables={"By kind": _table(outcome, settings.alphas)}
    )


def measures_of(outcome: Outcome, alphas: Iterable[float]) -> dict[str, float]:
    """Return the numbers that bars are set for."""
    promises = {alpha: outcome.promise(alpha) for alpha in alphas}
    return {
        "auroc": outcome.auroc(),
        **{f"auroc_{kind.replace(' ', '_')}": outcome.auroc(kind) for kind in OUTSIDE},
        **{f"flagged_{alpha:g}": outcome.flagged(alpha) for alpha in promises},
        **{f"false_flags_{alpha:g}": promise.rate for alpha, promise in promises.items()},
        "promises_kept": float(np.mean([promise.kept for promise in promises.values()])),
    }


def _declared(results: Iterable[ScoredVolume], name: str) -> Floats:
    found = [result.scores for result in results]
    if name not in found[0]:
        raise ConfigError(f"scan_score {name!r} is none of {', '.join(sorted(found[0]))}")
    values = np.array([scores[name] for scores in found], dtype=np.float64)
    if not np.isfinite(values).all():
        raise InputError(f"found scores {name!r} that are not finite; look at the training of the model")
    return values


def _table(outcome: Outcome, alphas: Iterable[float]) -> list[dict[str, float | str]]:
    return [
        {
            "looks": f"with {'an' if kind == 'eyepatch' else 'a'} {kind}",
            "AUROC": outcome.auroc(kind),
            **{f"flagged at α = {alpha:g}": outcome.flagged(alpha, kind) for alpha in alphas},
        }
        for kind in OUTSIDE
    ]


def _seen(pixels: FloatArray, results: list[ScoredVolume]) -> bytes:
    """Return a sheet of looks in colour, what the model expected, and the evidence in grey."""
    n = SHOWN * len(OUTSIDE)
    expected = np.stack([result.reconstruction[..., 0] for result in results[:n]])
    evidence = np.stack([_in_blocks(result.evidence[..., 0]) for result in results[:n]])
    brightest = max(float(np.quantile(evidence, 0.995)), 1e-9)
    grey = np.repeat((evidence / brightest)[..., None], 3, axis=-1)
    return sheet(np.concatenate([colours(pixels[:n]) / 255, colours(expected) / 255, grey]).astype(np.float32), n)


def _in_blocks(values: FloatArray) -> FloatArray:
    """Return the mean of each block of a mosaic ``(2H, 2W)``."""
    height, width = values.shape
    return np.asarray(values.reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3)))
