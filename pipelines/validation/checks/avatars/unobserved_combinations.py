"""Exam of naive Bayes of features: looks that nobody was observed with, and how probable each one is."""

from __future__ import annotations

import numpy as np

from pipelines.validation.baselines.naive_bayes_models import FeatureModel
from pipelines.validation.checks.avatars.validity import avatars_of, refuse
from pipelines.validation.datasets.avatars import distribution as law
from pipelines.validation.datasets.avatars.distribution import visible
from pipelines.validation.model_under_test import Candidate, Findings
from pipelines.validation.report.image_grids import sheet

HOW_MANY = 10


def new_looks(candidate: Candidate) -> Findings:
    """Draw ten looks that are none of the fifty, all different.

    Raises
    ------
    ConfigError
        If the model is another one, or the world knows no looks.
    """
    model, avatars = candidate.detector, avatars_of(candidate.world)
    if not isinstance(model, FeatureModel):
        raise refuse(candidate, "new_looks", "knows no features")
    found = model.law.new_looks(HOW_MANY, avatars.observed, candidate.exams.seed)
    looks, before = [look for look, _ in found], {visible(look) for look in avatars.observed}
    rows = [{**look._asdict(), "probability": p} for look, p in found]
    shown = candidate.world.shown(avatars.album.of(law.codes(looks)))
    return Findings(
        {
            "new": float(np.mean([visible(look) not in before for look in looks])),
            "different": len({visible(look) for look in looks}) / len(looks),
            "least_probable": min(p for _, p in found),
        },
        {"New looks": sheet(shown, HOW_MANY)},
        tables={"New looks: none is among the fifty observed": rows},
    )
