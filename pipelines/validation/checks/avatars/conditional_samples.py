"""Exam of conditional generators: do they draw the look that was asked for, and does one wish change one thing?

Looks drawn from the law are asked for. Then one feature of each request is changed to another value, drawn from the
law as well, and drawn again from the same code: that feature must change as asked, and the others must stay.

    spill = √(mean (x' − x)² where the pictures of both looks agree / mean (x' − x)² where they differ)
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from anomaly.core.volume import FloatArray
from pipelines.validation.checks.avatars.validity import avatars_of, judged, refuse, same
from pipelines.validation.datasets.avatars import distribution as law
from pipelines.validation.datasets.avatars.dataset import FEATURES, Avatars
from pipelines.validation.datasets.avatars.image_bank import HAIR_COLOR, hidden
from pipelines.validation.labelled_dataset import NOT_SHOWN, Labels
from pipelines.validation.model_under_test import Candidate, Findings
from pipelines.validation.report.image_grids import sheet
from pipelines.validation.sampling import on_request, takes_requests

REQUESTS = 500
CODES = 4  # which random numbers codes are drawn with
EQUAL = 0.02  # difference of pixels, 0 to 1, that is none
SHOWN = 6


class Change(NamedTuple):
    """Requests of which one feature was changed, ``(N, 5)`` each, and the pictures ``(N, H, W)`` drawn."""

    before: Labels
    after: Labels
    first: FloatArray
    second: FloatArray


def asked_looks(candidate: Candidate) -> Findings:
    """Measure whether requests are met; see the module's docstring.

    Raises
    ------
    ConfigError
        If the model takes no requests, or the world knows no looks.
    """
    detector, world = candidate.detector, candidate.world
    if not takes_requests(detector):
        raise refuse(candidate, "requests", "takes no requests")
    asked = requests(avatars_of(world), min(REQUESTS, candidate.exams.samples))
    drawn = on_request(detector, asked, candidate.rng(CODES), candidate.progress)
    found = judged(world, drawn)
    shown = asked != NOT_SHOWN
    right = (found.rows == asked) & shown
    by_feature = right.sum(axis=0) / shown.sum(axis=0)
    measures = {
        "as_asked": float(by_feature.mean()),
        "as_asked_lowest": float(by_feature.min()),
        "as_asked_all": float((right | ~shown).all(axis=1).mean()),
        "valid": float(found.valid.mean()),
    }
    rng, columns = np.random.default_rng(candidate.exams.seed), [drawn[:SHOWN]]
    changes = []
    for feature, name in enumerate(FEATURES):
        after = changed(asked, feature, rng)
        second = on_request(detector, after, candidate.rng(CODES), candidate.progress)  # of the same codes
        new = world.read(second).labels
        obeyed = new[:, feature] == after[:, feature]
        others = np.delete(same(new, found.rows), feature, axis=1).all(axis=1)
        measures[f"change_{name}"] = float((obeyed & others).mean())
        measures[f"others_stay_{name}"] = float(others.mean())
        changes.append(Change(asked, after, drawn, second))
        columns.append(second[:SHOWN])
    measures["change_lowest"] = min(measures[f"change_{name}"] for name in FEATURES)
    measures["spill"] = float(np.mean([spill(avatars_of(world), change) for change in changes]))
    rows = np.stack(columns, axis=1).reshape(-1, *drawn.shape[1:])
    title = "Rows: as asked, then with " + ", ".join(name.replace("_", " ") for name in FEATURES) + " changed"
    return Findings(measures, {title: sheet(world.shown(rows), len(columns))})


def requests(avatars: Avatars, n: int) -> Labels:
    """Return ``n`` looks with hair, codes ``(n, 5)``, drawn from the law."""
    rows: Labels = avatars.codes("requests", 2 * n)
    with_hair: Labels = rows[rows[:, HAIR_COLOR] != NOT_SHOWN]
    return with_hair[:n]


def changed(rows: Labels, feature: int, rng: np.random.Generator) -> Labels:
    """Return looks with another value of a feature, drawn from the law without the value that is there."""
    after = rows.copy()
    theta = law.theta()[feature]
    for row in after:
        others = np.where(np.arange(len(theta)) == row[feature], 0.0, theta)
        row[feature] = rng.choice(len(theta), p=others / others.sum())
    return hidden(after)


def spill(avatars: Avatars, change: Change) -> float:
    """Return how much changes where nothing should, as a share of what changes where something should."""
    truth = np.abs(avatars.album.of(change.before) - avatars.album.of(change.after)) > EQUAL
    moved = (change.second - change.first) ** 2
    return float(np.sqrt(moved[~truth].mean() / max(moved[truth].mean(), 1e-12)))
