"""Run a validation task: train each model, examine it, compare what was measured with the bars.

::

    output/classifier-….safetensors     says what pictures show
    output/<trial>/training/            of its network; an interrupted run continues
    output/<trial>/result.json, *.png   what was found; used again while code, settings and pictures are the same
    output/report.html, result.json     the page and the verdict
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from anomaly.cohort.workers import run_in_order
from anomaly.core.aliases import FAMILIES, current_name
from anomaly.core.config import load_yaml
from anomaly.core.errors import AnomalyError, ConfigError, unknown_name
from anomaly.core.files import atomic_path, write_json
from anomaly.core.progress import Progress, no_progress
from anomaly.core.provenance import now
from anomaly.core.versions import software_versions
from anomaly.models.device import choose_device
from pipelines.common import cores, find_config
from pipelines.validation import cache_keys as fingerprints
from pipelines.validation.checks.avatars.conditional_samples import asked_looks
from pipelines.validation.checks.avatars.latent_arithmetic import code_arithmetic
from pipelines.validation.checks.avatars.out_of_distribution import outliers
from pipelines.validation.checks.avatars.pixel_dependence import independence
from pipelines.validation.checks.avatars.samples import drawn_looks
from pipelines.validation.checks.avatars.unobserved_combinations import new_looks
from pipelines.validation.checks.generation import conditional, generation
from pipelines.validation.checks.latent_codes import codes
from pipelines.validation.checks.likelihood import likelihood
from pipelines.validation.checks.one_class.detection import one_abnormal, one_normal
from pipelines.validation.datasets.load import load_world
from pipelines.validation.model_under_test import Candidate, Findings, World
from pipelines.validation.report.page import write_page
from pipelines.validation.report.result import TrialResult, Verdict
from pipelines.validation.settings import EnsembleTrial, Trial, ValidationSettings

EXAMS: Mapping[str, Callable[[Candidate], Findings]] = {
    "generation": generation,
    "conditional": conditional,
    "likelihood": likelihood,
    "codes": codes,
    "one_normal": one_normal,
    "one_abnormal": one_abnormal,
    "looks": drawn_looks,
    "requests": asked_looks,
    "arithmetic": code_arithmetic,
    "outliers": outliers,
    "new_looks": new_looks,
    "independence": independence,
}
"""What can be measured of a model; see the modules."""


@dataclass(frozen=True)
class Request:
    """What is validated, where and how.

    Parameters
    ----------
    settings
        The task.
    output
        The folder to make or continue.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
    fetch
        Whether pictures may be fetched where they are not at hand.
    """

    settings: ValidationSettings
    output: Path
    device: str = "auto"
    fetch: bool = False


def validate(
    config: str | Path | ValidationSettings,
    output: Path,
    *,
    families: Sequence[str] = (),
    device: str = "auto",
    fetch: bool = False,
    jobs: int = 0,
    progress: Progress = no_progress,
) -> Verdict:
    """Run a validation task, or continue one, and write its page.

    Parameters
    ----------
    config
        A task, its shipped name, or the path of its YAML file.
    families
        Only trials of these families or names; all of them if none is given.
    jobs
        Trials at a time, each with one thread; 0 = one per core.

    Raises
    ------
    ConfigError
        The configuration is wrong, or no trial is of a family.
    """
    task = config if isinstance(config, ValidationSettings) else load_settings(find_config(config, "validation"))
    settings = chosen(task, families)
    request = Request(settings, output, device, fetch)
    world = load_world(settings, output, fetch, progress)  # trains the classifier once, before others need it
    at_once = 1 if choose_device(device).startswith("cuda") else jobs or cores()  # a GPU has one memory
    found = {result.name: result for result in _results(request, world, at_once, progress)}
    found |= {result.name: result for result in _others(task, settings, world, output)}
    results = tuple(found[name] for name in task.trials if name in found)
    verdict = Verdict(task, world.source, _of_classifier(world, settings), results, software_versions(), now())
    write_json(output / "result.json", verdict.as_dict())
    write_page(verdict, output)
    return verdict


def _results(request: Request, world: World, jobs: int, progress: Progress) -> Iterator[TrialResult]:
    """Yield the results of all trials; ensembles come last, because their members are examined first."""
    trials = request.settings.trials
    ensembles = [name for name, trial in trials.items() if isinstance(trial, EnsembleTrial)]
    single = [name for name in trials if name not in ensembles]
    here = partial(examine, request, world, progress=progress)
    if min(jobs, len(single)) < 2:
        yield from map(here, [*single, *ensembles])
        return
    results = run_in_order(partial(examined, request), single, partial(_lost, request), min(jobs, len(single)))
    for done, name in enumerate(single):
        progress(done, len(single), f"examining {name} and others")
        yield next(results)
    yield from map(here, ensembles)


def _others(
    task: ValidationSettings, settings: ValidationSettings, world: World, output: Path
) -> Iterator[TrialResult]:
    """Yield what earlier calls have found of trials that were not asked for now."""
    for name, trial in task.trials.items():
        if name not in settings.trials:
            known = TrialResult.read(output / name, _fingerprint(task, trial, world))
            if known is not None:
                yield known


def load_settings(path: Path) -> ValidationSettings:
    """Read a validation task, refusing exams that do not exist, and bars for exams that are not taken."""
    settings = ValidationSettings.parse(load_yaml(path), where=str(path))
    for name, trial in settings.trials.items():
        for exam in trial.exams:
            if exam not in EXAMS:
                raise ConfigError(f"{path}: trials.{name}.exams: " + unknown_name("exam", exam, list(EXAMS)))
        for measure in trial.bars:
            if measure.partition(".")[0] not in trial.exams:
                raise ConfigError(
                    f"{path}: trials.{name}.bars: found {measure!r}; expected EXAM.MEASURE, of one of its exams: "
                    f"{', '.join(trial.exams)}"
                )
    return settings


def chosen(settings: ValidationSettings, families: Sequence[str]) -> ValidationSettings:
    """Return a task with the trials of some families, or of these names, only; ensembles bring their members."""
    if not families:
        return settings
    families = [name if name in settings.trials else current_name(name, FAMILIES) for name in families]
    known = sorted({*settings.trials, *(trial.family for trial in settings.trials.values())})
    for family in families:
        if family not in known:
            raise ConfigError(unknown_name("family or trial", family, known))
    of_family = set(families) - settings.trials.keys()  # a name stands for its trial alone
    wanted = {name for name, trial in settings.trials.items() if name in families or trial.family in of_family}
    ensembles = [trial for name in wanted if isinstance(trial := settings.trials[name], EnsembleTrial)]
    wanted |= {member for ensemble in ensembles for member in ensemble.members}
    return settings.model_copy(update={"trials": {n: t for n, t in settings.trials.items() if n in wanted}})


def examined(request: Request, name: str) -> TrialResult:
    """Examine one trial in a process of its own."""
    torch.set_num_threads(1)
    world = load_world(request.settings, request.output, request.fetch)
    return examine(request, world, name)


def examine(request: Request, world: World, name: str, progress: Progress = no_progress) -> TrialResult:
    """Train and examine one model, unless an earlier call has; a model that cannot be trained has failed."""
    trial, folder = request.settings.trials[name], request.output / name
    fingerprint = _fingerprint(request.settings, trial, world)
    if (known := TrialResult.read(folder, fingerprint)) is not None:
        return known
    named: Progress = lambda done, total, message: progress(done, total, f"{name}: {message}")  # noqa: E731
    candidate = Candidate(world, trial, request.settings, folder, request.device, named)
    started = time.monotonic()
    measures, notes, problem = dict[str, float](), list[str](), ""
    pictures, tables = dict[str, bytes](), dict[str, Any]()
    try:
        for exam in trial.exams:
            found = EXAMS[exam](candidate)
            measures |= {f"{exam}.{measure}": value for measure, value in found.measures.items()}
            pictures |= found.pictures
            tables |= found.tables
            notes += found.notes
    except AnomalyError as error:
        problem = str(error)
    files = {}
    for number, (title, png) in enumerate(pictures.items(), start=1):
        files[title] = f"{number:02d}.png"
        with atomic_path(folder / files[title]) as temporary:
            temporary.write_bytes(png)
    seconds = round(time.monotonic() - started, 1)
    result = TrialResult(folder, trial.family, measures, files, tables, tuple(notes), seconds, problem)
    if not problem:  # what went wrong may go right the next time
        result.write(fingerprint)
    return result


def _fingerprint(settings: ValidationSettings, trial: Trial, world: World) -> str:
    """Return the name of everything that measures depend on; the bars are none of it."""
    facts = trial.model_dump(mode="json", exclude={"bars"})
    members = [settings.trials[n].model_dump(mode="json", exclude={"bars"}) for n in facts.get("members", ())]
    shared = settings.model_dump(mode="json", include={"exams", "one_class", "avatars"})
    classifier = settings.classifier.model_dump(mode="json", exclude={"least_accuracy"})
    return fingerprints.of(facts, members, shared, classifier, world.fingerprint)


def _lost(request: Request, name: str, reason: str) -> TrialResult:
    return TrialResult(request.output / name, request.settings.trials[name].family, problem=reason)


def _of_classifier(world: World, settings: ValidationSettings) -> dict[str, Any]:
    return {"accuracy": world.accuracy(), "least": settings.classifier.least_accuracy}
