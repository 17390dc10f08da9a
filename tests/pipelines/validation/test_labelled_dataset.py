from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from anomaly.models.registry import create, parse_settings
from anomaly.scoring.maps import raw_evidence
from anomaly.scoring.scorer import Scorer
from anomaly.training.fit import fit
from anomaly.training.run import FitRun
from pipelines.validation.labelled_dataset import Pictures, look_at, scored
from pipelines.validation.settings import PictureScoring


def pictures(n: int = 40, size: int = 8, draws: int = 0) -> Pictures:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 3, (n, 1))
    pixels = rng.random((n, size, size)) * 0.3 + labels[:, :, None] * 0.3
    return Pictures(pixels.clip(0, 1).astype(np.float32), labels, draws)


def test_a_picture_is_a_volume_of_one_slice() -> None:
    some = pictures()
    voxels, mask = some[7]
    assert voxels.shape == mask.shape == some.grid.shape == (8, 8, 1)
    assert mask.all()
    assert (voxels[..., 0] == some.pixels[7]).all()
    assert some.covariates(7) == some.labels[7]


def test_draws_are_black_and_white_repeat_and_are_as_grey_on_average() -> None:
    some = pictures(5, draws=400)
    assert len(some) == 2000
    assert (some[3][0] == some[3][0]).all()
    drawn = np.stack([some[3 + 5 * draw][0][..., 0] for draw in range(400)])
    assert set(np.unique(drawn)) == {0.0, 1.0}
    assert np.abs(drawn.mean(axis=0) - some.pixels[3]).max() < 0.1
    assert some.covariates(3 + 5 * 17) == some.labels[3]


@pytest.mark.parametrize("family", ["pca", "ae"])
def test_looking_at_many_pictures_is_looking_at_each(family: str, tmp_path: Path) -> None:
    settings = {"pca": {"components": 3}, "ae": {"channels": [8], "latent_size": 4}}[family]
    some = pictures()
    detector = create(parse_settings({"family": family, **settings}, "test"), some.grid)
    if family == "pca":
        fit(detector, some, (), FitRun(tmp_path))
    for number, (raw, voxels, mask) in enumerate(look_at(detector, some, at_once=16)):
        alone = raw_evidence(detector, voxels, mask, some.covariates(number))
        assert np.allclose(raw.maps["residual"], alone.maps["residual"], atol=1e-5)
        assert np.allclose(raw.reconstruction, alone.reconstruction, atol=1e-5)
        assert raw.terms == pytest.approx(alone.terms, rel=1e-4)
    assert number == len(some) - 1


def test_pictures_are_scored_like_scans(tmp_path: Path) -> None:
    some = pictures()
    detector = create(parse_settings({"family": "pca", "components": 3}, "test"), some.grid)
    fit(detector, some, (), FitRun(tmp_path))
    known, new = some.select(slice(0, 30)), some.select(slice(30, None))
    scorer = Scorer(detector, PictureScoring())
    together = scorer.learn_from(look_at(detector, known), look_at(detector, new))
    apart = scorer.learn_reference(known, new)
    assert together.reference is not None
    assert apart.reference is not None
    assert np.allclose(together.reference.sd["residual"], apart.reference.sd["residual"], rtol=1e-4)
    for index, result in enumerate(scored(together, new)):
        assert result.scores == pytest.approx(apart.score(*new[index]).scores, rel=1e-4)
        assert result.acquisition_shift is None


def test_a_selection_keeps_pictures_and_labels_together() -> None:
    some = pictures()
    chosen = some.select(some.labels[:, 0] == 2)
    assert (chosen.labels == 2).all()
    assert torch.from_numpy(chosen.pixels).mean() > 0.6
