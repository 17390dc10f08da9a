"""Exam of codes: can looks be added and subtracted, and is what lies between two looks a look?

    d      = mean code of looks with sunglasses − mean code of looks without anything      of the training pictures
    x'     = decoded (code of another look without anything + d)

x' must be read as that look with sunglasses, all other features kept; and the other way round with −d. Half-way
between the codes of two looks, each feature should be that of the one or of the other.

Source: Larsen et al. 2016, "Autoencoding beyond pixels" (attribute vectors); Radford, Metz & Chintala 2016
(arithmetic on codes).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from anomaly.core.volume import FloatArray
from anomaly.models.generation import Decoder, Embedder
from pipelines.validation.checks.avatars.validity import Judged, avatars_of, judged, refuse
from pipelines.validation.checks.latent_codes import embedded
from pipelines.validation.datasets.avatars.distribution import VALUES, Look
from pipelines.validation.labelled_dataset import AT_ONCE, NOT_SHOWN, Pictures
from pipelines.validation.model_under_test import Candidate, Findings
from pipelines.validation.report.image_grids import sheet

FEATURE = Look._fields.index("accessories_type")
WITHOUT, WITH = (VALUES[FEATURE].index(value) for value in ("Blank", "Sunglasses"))
SHOWN = 15
LEARNT_FROM = 2000  # training pictures


def code_arithmetic(candidate: Candidate) -> Findings:
    """Measure what arithmetic on codes gives; see the module's docstring.

    Raises
    ------
    ConfigError
        If the family has no code that it can decode, or the world knows no looks.
    """
    model, world = candidate.detector, candidate.world
    if not (isinstance(model, Embedder) and isinstance(model, Decoder)):
        raise refuse(candidate, "arithmetic", "has no code that it can decode")
    album, test = avatars_of(world).album, candidate.not_learnt
    known = candidate.seen.select(slice(LEARNT_FROM))
    worn = known.labels[:, FEATURE]
    codes = embedded(model, known.pixels)
    step = codes[worn == WITH].mean(axis=0) - codes[worn == WITHOUT].mean(axis=0)
    measures, pictures, shares = dict[str, float](), dict[str, bytes](), list[float]()
    for name, before, after, way in (("put on", WITHOUT, WITH, step), ("taken off", WITH, WITHOUT, -step)):
        some = test.select(test.labels[:, FEATURE] == before)
        truth = some.labels.copy()
        truth[:, FEATURE] = after
        made = decoded(model, embedded(model, some.pixels) + way)
        found = judged(world, made)
        others = np.delete(found.rows == truth, FEATURE, axis=1).all(axis=1)
        there = found.rows[:, FEATURE] == after
        key = name.replace(" ", "_")
        measures |= {f"{key}": float(there.mean()), f"{key}_others_kept": float(others.mean())}
        shares.append(float((there & others).mean()))
        rows = np.concatenate([part[:SHOWN] for part in (some.pixels, made, album.of(truth))])
        pictures[f"Sunglasses {name}: before, after, truth"] = sheet(
            world.shown(rows), min(SHOWN, len(some.pixels))
        )
    measures |= {"success": float(np.mean(shares)), "success_lowest": min(shares)}
    half = len(test.pixels) // 2
    between = (embedded(model, test.pixels[:half]) + embedded(model, test.pixels[half : 2 * half])) / 2
    measures |= half_way(judged(world, decoded(model, between)), test)
    return Findings(measures, pictures)


def decoded(model: Decoder, codes: npt.NDArray[np.floating]) -> FloatArray:
    """Return the pictures ``(N, H, W)`` of codes ``(N, D)``."""
    with torch.inference_mode():
        parts = [model.decode(some)[:, 0] for some in torch.from_numpy(codes).float().split(AT_ONCE)]
    return np.asarray(torch.cat(parts).float().numpy().clip(0, 1), dtype=np.float32)


def half_way(found: Judged, test: Pictures) -> dict[str, float]:
    """Return what lies between the first and the second half of the test looks: looks, and of their features?"""
    n = len(found.rows)
    first, second = test.labels[:n], test.labels[n : 2 * n]
    of_either = (found.rows == first) | (found.rows == second) | (found.rows == NOT_SHOWN)
    return {"half_way_valid": float(found.valid.mean()), "half_way_of_either": float(of_either.mean())}
