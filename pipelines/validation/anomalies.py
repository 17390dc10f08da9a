"""Exams of detectors: one class is normal and nine are not, and the other way round."""

from __future__ import annotations

from collections.abc import Iterator

from anomaly.core.errors import ConfigError
from pipelines.validation.candidate import Candidate, Findings
from pipelines.validation.digits import Digits
from pipelines.validation.estimators import EstimatorTrial
from pipelines.validation.one_class import one_class, rehearsal
from pipelines.validation.one_class_result import OneClassResult, merged
from pipelines.validation.settings import EnsembleTrial, OneClassSettings, Trial, TrialSettings

SHOWN = ("digit", "seed", "auroc")


def one_normal(candidate: Candidate) -> Findings:
    """Measure how well nine classes are told from the one that was learnt; each is the one in turn."""
    return _findings(candidate, candidate.settings.one_class)


def one_abnormal(candidate: Candidate) -> Findings:
    """Measure how well one class is told from the nine that were learnt; each is the one in turn."""
    other = candidate.settings.one_class.model_copy(update={"protocol": "one_abnormal"})
    return _findings(candidate, other)


def _findings(candidate: Candidate, settings: OneClassSettings) -> Findings:
    result = _result(candidate, settings)
    table = result.table()
    rates = [name for name in table.columns if name.startswith("rate_")]
    rows = [{str(k): v for k, v in row.items()} for row in table[[*SHOWN, *rates]].round(4).to_dict("records")]
    title = {"one_normal": "One digit is normal", "one_abnormal": "One digit is not normal"}[settings.protocol]
    return Findings(result.measures(), tables={title: rows})


def _result(candidate: Candidate, settings: OneClassSettings) -> OneClassResult:
    world, trial = candidate.world, candidate.trial
    digits = Digits(world.train, world.test, world.source)
    if settings.rehearsal:
        digits = rehearsal(digits)
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
