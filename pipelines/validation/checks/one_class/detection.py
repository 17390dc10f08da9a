"""Exams of detectors: one class is normal and nine are not, and the other way round."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from anomaly.core.errors import ConfigError
from anomaly.core.volume import FloatArray
from pipelines.validation.baselines.sklearn_detectors import EstimatorTrial
from pipelines.validation.checks.one_class.protocol import one_class, rehearsal
from pipelines.validation.checks.one_class.result import OneClassResult, merged
from pipelines.validation.datasets.digits import Digits
from pipelines.validation.labelled_dataset import Pictures
from pipelines.validation.model_under_test import Candidate, Findings
from pipelines.validation.report.image_grids import points, sheet
from pipelines.validation.settings import EnsembleTrial, OneClassSettings, Trial, TrialSettings

SHOWN = ("digit", "seed", "auroc")
EACH = 8  # pictures of each kind that are shown


def one_normal(candidate: Candidate) -> Findings:
    """Measure how well nine classes are told from the one that was learnt; each is the one in turn."""
    return _findings(candidate, candidate.settings.one_class)


def one_abnormal(candidate: Candidate) -> Findings:
    """Measure how well one class is told from the nine that were learnt; each is the one in turn."""
    other = candidate.settings.one_class.model_copy(update={"protocol": "one_abnormal"})
    return _findings(candidate, other)


def _findings(candidate: Candidate, settings: OneClassSettings) -> Findings:
    digits = _digits(candidate, settings)
    result = _result(candidate, digits, settings)
    table = result.table()
    rates = [name for name in table.columns if name.startswith("rate_")]
    rows = [{str(k): v for k, v in row.items()} for row in table[[*SHOWN, *rates]].round(4).to_dict("records")]
    title = {"one_normal": "One digit is normal", "one_abnormal": "One digit is not normal"}[settings.protocol]
    pictures = {
        "AUROC of each digit, a point for each seed": points(
            {str(digit): values.to_numpy() for digit, values in table.groupby("digit")["auroc"]}, "AUROC"
        ),
        "Likeliest mistakes, a row for each digit: normal pictures left, abnormal ones right": sheet(
            mistakable(result, digits.test), 2 * EACH
        ),
    }
    return Findings(result.measures(), pictures, {title: rows})


def mistakable(result: OneClassResult, test: Pictures) -> FloatArray:
    """Return the pictures that are the likeliest mistakes ``(digits · 2 EACH, H, W)``, for each digit's first seed.

    First the normal ones with the highest scores, then the abnormal ones with the lowest; where there are fewer
    than ``EACH``, the last is shown again.
    """
    rows: dict[int, FloatArray] = {}
    for found in result.classes:
        if found.digit not in rows:
            order = np.argsort(found.scores["test"][result.declared], kind="stable")
            abnormal = found.abnormal[order]
            normal_last, abnormal_first = order[~abnormal][::-1], order[abnormal]
            shown = [some[np.minimum(np.arange(EACH), len(some) - 1)] for some in (normal_last, abnormal_first)]
            rows[found.digit] = test.pixels[np.concatenate(shown)]
    return np.concatenate(list(rows.values()))


def _digits(candidate: Candidate, settings: OneClassSettings) -> Digits:
    world = candidate.world
    digits = Digits(world.train, world.test, world.source)
    return rehearsal(digits) if settings.rehearsal else digits


def _result(candidate: Candidate, digits: Digits, settings: OneClassSettings) -> OneClassResult:
    trial = candidate.trial
    if not isinstance(trial, EnsembleTrial):
        return one_class(_scored(trial), digits, settings, candidate.folder / settings.protocol, candidate.device,
                         candidate.progress)  # fmt: skip
    return merged(dict(_members(candidate, trial, digits, settings)), trial.merge)


def _members(
    candidate: Candidate, trial: EnsembleTrial, digits: Digits, settings: OneClassSettings
) -> Iterator[tuple[str, OneClassResult]]:
    """Yield what the members found; it is on disk where they were examined before."""
    for name in trial.members:
        member = candidate.settings.trials[name]
        if isinstance(member, EnsembleTrial):
            raise ConfigError(f"found the ensemble {name!r} among members; expected trials of one model each")
        folder = candidate.folder.parent / name / settings.protocol
        yield name, one_class(_scored(member), digits, settings, folder, candidate.device, candidate.progress)


def _scored(trial: Trial) -> TrialSettings | EstimatorTrial:
    if not isinstance(trial, TrialSettings | EstimatorTrial):
        raise ConfigError(f"found {trial.family!r}, which learns no digits; leave out this exam")
    return trial
