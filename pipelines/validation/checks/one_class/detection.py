"""Checks of detectors: one class is normal and nine are abnormal, and the other way round."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from anomaly.core.errors import ConfigError
from anomaly.core.volume import FloatArray
from pipelines.validation.baselines.sklearn_detectors import EstimatorEntry
from pipelines.validation.checks.one_class.protocol import one_class, tuning_split
from pipelines.validation.checks.one_class.result import OneClassResult, merged
from pipelines.validation.datasets.digits import Digits
from pipelines.validation.labelled_dataset import LabelledImages
from pipelines.validation.model_under_test import CheckResult, ModelUnderTest
from pipelines.validation.report.image_grids import image_grid, points
from pipelines.validation.settings import EnsembleEntry, FamilyEntry, ModelEntry, OneClassSettings

TABLE_COLUMNS = ("digit", "seed", "auroc")
N_SHOWN = 8  # normal and abnormal images each, for every digit in the report


def one_normal(model: ModelUnderTest) -> CheckResult:
    """Train on each class in turn, and measure how well the nine others are separated from it."""
    return _findings(model, model.task.one_class)


def one_abnormal(model: ModelUnderTest) -> CheckResult:
    """Train on all classes but one, for each in turn, and measure how well that one is separated from them."""
    other = model.task.one_class.model_copy(update={"protocol": "one_abnormal"})
    return _findings(model, other)


def _findings(model: ModelUnderTest, settings: OneClassSettings) -> CheckResult:
    digits = _digits(model, settings)
    result = _result(model, digits, settings)
    table = result.table()
    rates = [name for name in table.columns if name.startswith("fpr_")]
    rows = [
        {str(k): v for k, v in row.items()} for row in table[[*TABLE_COLUMNS, *rates]].round(4).to_dict("records")
    ]
    title = {"one_normal": "One digit is normal", "one_abnormal": "One digit is not normal"}[settings.protocol]
    images = {
        "AUROC of each digit, one point per seed": points(
            {str(digit): values.to_numpy() for digit, values in table.groupby("digit")["auroc"]}, "AUROC"
        ),
        "Most confused images, one row per digit: normal left, abnormal right": image_grid(
            most_confused(result, digits.test), 2 * N_SHOWN
        ),
    }
    return CheckResult(result.measures(), images, {title: rows})


def most_confused(result: OneClassResult, test: LabelledImages) -> FloatArray:
    """Return the most confused test images ``(digits · 2 · N_SHOWN, H, W)``, of each digit's first seed.

    First the normal ones with the highest scores, then the abnormal ones with the lowest. If there are fewer than
    ``N_SHOWN``, the last one is repeated.
    """
    rows: dict[int, FloatArray] = {}
    for found in result.classes:
        if found.digit not in rows:
            order = np.argsort(found.scores["test"][result.declared], kind="stable")
            abnormal = found.abnormal[order]
            normal_last, abnormal_first = order[~abnormal][::-1], order[abnormal]
            shown = [some[np.minimum(np.arange(N_SHOWN), len(some) - 1)] for some in (normal_last, abnormal_first)]
            rows[found.digit] = test.pixels[np.concatenate(shown)]
    return np.concatenate(list(rows.values()))


def _digits(model: ModelUnderTest, settings: OneClassSettings) -> Digits:
    dataset = model.dataset
    digits = Digits(dataset.train, dataset.test, dataset.source)
    return tuning_split(digits) if settings.tuning_split else digits


def _result(model: ModelUnderTest, digits: Digits, settings: OneClassSettings) -> OneClassResult:
    entry = model.entry
    if not isinstance(entry, EnsembleEntry):
        return one_class(_trainable(entry), digits, settings, model.folder / settings.protocol, model.device,
                         model.progress)  # fmt: skip
    return merged(dict(_members(model, entry, digits, settings)), entry.merge)


def _members(
    model: ModelUnderTest, entry: EnsembleEntry, digits: Digits, settings: OneClassSettings
) -> Iterator[tuple[str, OneClassResult]]:
    """Yield the results of the members, which are on disk if they were computed before."""
    for name in entry.members:
        member = model.task.models[name]
        if isinstance(member, EnsembleEntry):
            raise ConfigError(f"found the ensemble {name!r} among members; expected single models")
        folder = model.folder.parent / name / settings.protocol
        yield name, one_class(_trainable(member), digits, settings, folder, model.device, model.progress)


def _trainable(entry: ModelEntry) -> FamilyEntry | EstimatorEntry:
    if not isinstance(entry, FamilyEntry | EstimatorEntry):
        raise ConfigError(f"found {entry.family!r}, which cannot be trained on digits; remove this check")
    return entry
