"""Run a validation task: train each model, run its checks, compare what they measure with the thresholds.

::

    output/classifier-….safetensors          the reference classifier
    output/<model>/training/                 training of the network; an interrupted one continues
    output/<model>/<check>.json, *.png       what a check measured; used again under the same cache key
    output/report.html, result.json          the report and the result
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from anomaly.cohort.workers import run_in_order
from anomaly.core.aliases import FAMILIES, current_name
from anomaly.core.config import load_extended_yaml
from anomaly.core.errors import AnomalyError, ConfigError, unknown_name
from anomaly.core.files import write_json
from anomaly.core.progress import Progress, no_progress
from anomaly.core.provenance import now
from anomaly.core.versions import software_versions
from anomaly.models.device import choose_device
from pipelines.common import cores, find_config, shipped_configs
from pipelines.validation.check_registry import CHECKS, cache_keys_of
from pipelines.validation.datasets.load import load_dataset
from pipelines.validation.model_under_test import Dataset, ModelUnderTest
from pipelines.validation.report.page import write_page
from pipelines.validation.report.result import ModelResult, StoredCheck, ValidationResult, stored_checks
from pipelines.validation.settings import EnsembleEntry, ValidationSettings


@dataclass(frozen=True)
class ValidationRun:
    """A task, and where and how it runs.

    Parameters
    ----------
    settings
        The task.
    output
        The folder to make or continue.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
    fetch
        Whether images may be downloaded if they are not on disk.
    """

    settings: ValidationSettings
    output: Path
    device: str = "auto"
    fetch: bool = False

    def model(self, dataset: Dataset, name: str, progress: Progress = no_progress) -> ModelUnderTest:
        """Return one of the models under test."""
        entry = self.settings.models[name]
        return ModelUnderTest(dataset, entry, self.settings, self.output / name, self.device, progress)


def validate(
    config: str | Path | ValidationSettings,
    output: Path,
    *,
    families: Sequence[str] = (),
    device: str = "auto",
    fetch: bool = False,
    jobs: int = 0,
    progress: Progress = no_progress,
) -> ValidationResult:
    """Run a validation task, or continue one, and write its report.

    Parameters
    ----------
    config
        A task, its shipped name, or the path of its YAML file.
    families
        Only models of these families or names; () = all.
    jobs
        Models at a time, each with one thread; 0 = one per core.

    Raises
    ------
    ConfigError
        The configuration is wrong, or no model has one of the families or names.
    """
    task = config if isinstance(config, ValidationSettings) else load_settings(find_config(config, "validation"))
    settings = select_models(task, families)
    run = ValidationRun(settings, output, device, fetch)
    dataset = load_dataset(settings, output, fetch, progress)  # trains the classifier once, before workers start
    workers = 1 if choose_device(device).startswith("cuda") else jobs or cores()  # models share the GPU's memory
    found = {result.name: result for result in _results(run, dataset, workers, progress)}
    found |= {result.name: result for result in _earlier_results(task, run, dataset)}
    results = tuple(found[name] for name in task.models if name in found)
    outcome = ValidationResult(
        task, dataset.source, _classifier_facts(dataset, settings), results, software_versions(), now()
    )
    write_json(output / "result.json", outcome.as_dict())
    write_page(outcome, output)
    return outcome


def load_settings(path: Path) -> ValidationSettings:
    """Read a validation task and the one that it ``extends``, a shipped name or the path of a YAML file.

    Raises
    ------
    ConfigError
        A key is wrong, a check is unknown, or a threshold is set for a check that the model does not run.
    """
    settings = ValidationSettings.parse(load_extended_yaml(path, shipped_configs("validation")), where=str(path))
    for name, entry in settings.models.items():
        for check in entry.checks:
            if check not in CHECKS:
                raise ConfigError(f"{path}: models.{name}.checks: " + unknown_name("check", check, list(CHECKS)))
        for measure in entry.thresholds:
            if measure.partition(".")[0] not in entry.checks:
                raise ConfigError(
                    f"{path}: models.{name}.thresholds: found {measure!r}; expected CHECK.MEASURE, of one of its "
                    f"checks: {', '.join(entry.checks)}"
                )
    return settings


def select_models(settings: ValidationSettings, families: Sequence[str]) -> ValidationSettings:
    """Return a task with only the models of some families or names; ensembles bring their members."""
    if not families:
        return settings
    families = [name if name in settings.models else current_name(name, FAMILIES) for name in families]
    known = sorted({*settings.models, *(entry.family for entry in settings.models.values())})
    for family in families:
        if family not in known:
            raise ConfigError(unknown_name("family or model", family, known))
    of_family = set(families) - settings.models.keys()  # a model's name selects that model alone
    wanted = {name for name, entry in settings.models.items() if name in families or entry.family in of_family}
    ensembles = [entry for name in wanted if isinstance(entry := settings.models[name], EnsembleEntry)]
    wanted |= {member for ensemble in ensembles for member in ensemble.members}
    return settings.model_copy(update={"models": {n: m for n, m in settings.models.items() if n in wanted}})


def run_checks(run: ValidationRun, dataset: Dataset, name: str, progress: Progress = no_progress) -> ModelResult:
    """Train one model and run its checks, except those stored under the same cache key.

    An error ends the checks of this model; it becomes the result's ``problem``.
    """
    model = run.model(dataset, name, lambda done, total, message: progress(done, total, f"{name}: {message}"))
    results: list[StoredCheck] = []
    try:
        for check, key in cache_keys_of(model).items():
            stored = StoredCheck.read(model.folder, check, key)
            results.append(stored or _measured(model, check, key))
    except AnomalyError as error:
        return ModelResult(model.folder, model.entry.family, tuple(results), str(error))
    return ModelResult(model.folder, model.entry.family, tuple(results))


def run_checks_in_worker(run: ValidationRun, name: str) -> ModelResult:
    """Run the checks of one model in a process of its own."""
    torch.set_num_threads(1)
    return run_checks(run, load_dataset(run.settings, run.output, run.fetch), name)


def _measured(model: ModelUnderTest, check: str, key: str) -> StoredCheck:
    started = time.monotonic()
    found = CHECKS[check].run(model)
    return StoredCheck.write(model.folder, check, found, key, round(time.monotonic() - started, 1))


def _results(run: ValidationRun, dataset: Dataset, workers: int, progress: Progress) -> Iterator[ModelResult]:
    """Yield the results of all models; ensembles come last, because they use what their members measured."""
    models = run.settings.models
    ensembles = [name for name, entry in models.items() if isinstance(entry, EnsembleEntry)]
    single = [name for name in models if name not in ensembles]
    in_this_process = partial(run_checks, run, dataset, progress=progress)
    workers = min(workers, len(single))
    if workers < 2:
        yield from map(in_this_process, [*single, *ensembles])
        return
    results = run_in_order(partial(run_checks_in_worker, run), single, partial(_crashed_result, run), workers)
    for done, name in enumerate(single):
        progress(done, len(single), f"checking {name} and others")
        yield next(results)
    yield from map(in_this_process, ensembles)


def _earlier_results(task: ValidationSettings, run: ValidationRun, dataset: Dataset) -> Iterator[ModelResult]:
    """Yield what earlier calls measured of the models that this call does not select."""
    whole = ValidationRun(task, run.output, run.device)
    for name, entry in task.models.items():
        if name not in run.settings.models:
            model = whole.model(dataset, name)
            stored = stored_checks(model.folder, cache_keys_of(model))
            if len(stored) == len(entry.checks):
                yield ModelResult(model.folder, entry.family, tuple(stored))


def _crashed_result(run: ValidationRun, name: str, reason: str) -> ModelResult:
    return ModelResult(run.output / name, run.settings.models[name].family, problem=reason)


def _classifier_facts(dataset: Dataset, settings: ValidationSettings) -> dict[str, Any]:
    return {"accuracy": dataset.classifier_accuracy(), "min": settings.classifier.min_accuracy}
