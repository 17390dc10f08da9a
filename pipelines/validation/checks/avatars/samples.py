"""Exam of generators: are their pictures looks, drawn from the law (rule 1) and unlike those observed (rule 2)?

Only valid pictures are counted (:mod:`pipelines.validation.checks.avatars.validity`). Rule 1: how often each value
occurs is held
against the law, by a chi-square test of all pictures, by one of as many as were observed, and by how far apart
both are:

    apart = ½ Σ_v |share of v − θ_v|             total variation; unlike χ² it does not grow with their number

Rule 2: the share whose look is none of the fifty, and none of the looks that the model learnt from, beside what
drawing from the law itself would give; how many are different, and in how many features two of them differ.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from anomaly.core.volume import FloatArray
from anomaly.evaluation.categorical import column_counts
from pipelines.validation.checks.avatars.validity import LIKE, SURE, Judged, avatars_of, judged
from pipelines.validation.datasets.avatars import distribution as law
from pipelines.validation.datasets.avatars.distribution import N_OBSERVED, VALUES, Look, looks_of
from pipelines.validation.labelled_dataset import Labels
from pipelines.validation.model_under_test import Candidate, Findings
from pipelines.validation.report.image_grids import sheet

FEWEST = N_OBSERVED  # valid pictures whose margins say anything
SHOWN, COLUMNS = 30, 15


def drawn_looks(candidate: Candidate) -> Findings:
    """Measure the looks that a model draws; see the module's docstring.

    Raises
    ------
    ConfigError
        If the family draws no pictures, or the world knows no looks.
    """
    world, pixels = candidate.world, candidate.drawn("looks")
    found = judged(world, pixels)
    rows = found.rows[found.valid]
    measures = {
        "valid": float(found.valid.mean()),
        "sure": float((found.sure >= SURE).mean()),
        "alike": float((found.error <= LIKE).mean()),
        "error": float(found.error.mean()),
    }
    notes = [f"{len(rows)} of {len(pixels)} pictures are looks; what follows is about these."]
    tables = {}
    if len(rows) >= FEWEST:
        measures |= by_the_law(rows, candidate.exams.seed)
        measures |= other_than(rows, avatars_of(world).observed, world.train.labels, candidate.exams.seed)
        tables["How often each value is drawn"] = _shares(rows)
    else:
        notes.append(f"They are fewer than {FEWEST}: nothing can be said of the law.")
    return Findings(measures, _pictures(candidate, pixels, found), tables, tuple(notes))


def by_the_law(rows: Labels, seed: int) -> dict[str, float]:
    """Return how far the margins of looks, codes ``(N, 5)``, are from the law: rule 1."""
    looks, few = looks_of(rows), looks_of(rows[:N_OBSERVED])
    everything, fifty = (law.compare(some, (), seed).margins for some in (looks, few))
    counts = column_counts(rows, [len(values) for values in VALUES])
    apart = {
        name: 0.5 * float(np.abs(count / count.sum() - theta).sum())
        for name, count, theta in zip(Look._fields, counts, law.theta(), strict=True)
    }
    return {
        "chi_square_p": everything.p_value,
        "chi_square_p_of_50": fifty.p_value,
        "apart": max(apart.values()),
        **{f"apart_{name}": value for name, value in apart.items()},
        "impossible": everything.impossible / len(rows),
    }


def other_than(rows: Labels, observed: list[Look], learnt: Labels, seed: int) -> dict[str, float]:
    """Return how unlike looks, codes ``(N, 5)``, are to those observed, those learnt, and each other: rule 2."""
    looks, known = looks_of(rows), looks_of(np.unique(learnt, axis=0))
    from_observed, from_known = law.compare(looks, observed, seed), law.compare(looks, known, seed)
    return {
        "novel": from_observed.novel,
        "novel_of_law": from_observed.expected_novel,
        "unseen": from_known.novel,
        "unseen_of_law": from_known.expected_novel,
        "unseen_ratio": from_known.novel / from_known.expected_novel,
        "distinct": from_known.distinct,
        "distinct_ratio": from_known.distinct / from_known.expected_distinct,
        "differing": from_known.differing,
        "differing_ratio": from_known.differing / from_known.expected_differing,
    }


def _shares(rows: Labels) -> list[dict[str, Any]]:
    counts = column_counts(rows, [len(values) for values in VALUES])
    return [
        {"feature": name, "value": value, "law": float(p), "drawn": float(k / count.sum())}
        for name, values, count, theta in zip(Look._fields, VALUES, counts, law.theta(), strict=True)
        for value, k, p in zip(values, count, theta, strict=True)
    ]


def _pictures(candidate: Candidate, pixels: FloatArray, found: Judged) -> dict[str, bytes]:
    """Return sheets of what is a look and what is none, each above the picture of what was read."""
    pictures = {}
    for title, chosen in (("Looks that were drawn", found.valid), ("Pictures that are no look", ~found.valid)):
        some = np.flatnonzero(chosen)[:SHOWN]
        if len(some):
            rows = [part[at] for at in np.split(some, range(COLUMNS, len(some), COLUMNS))
                    for part in (pixels, found.truth)]  # fmt: skip
            shown = candidate.world.shown(np.concatenate(rows))
            pictures[f"{title}, above the look that is read"] = sheet(shown, min(COLUMNS, len(some)))
    return pictures
