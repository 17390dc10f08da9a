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
from pipelines.validation.fit_and_score import image_evidence, score_images
from pipelines.validation.labelled_dataset import NOT_VISIBLE, LabelledImages
from pipelines.validation.settings import ImageScoring


def images(n: int = 40, size: int = 8, binarisations: int = 0) -> LabelledImages:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 3, (n, 1))
    pixels = rng.random((n, size, size)) * 0.3 + labels[:, :, None] * 0.3
    return LabelledImages(pixels.clip(0, 1).astype(np.float32), labels, binarisations)


def test_an_image_is_a_volume_of_one_slice() -> None:
    some = images()
    voxels, mask = some[7]
    assert voxels.shape == mask.shape == some.grid.shape == (8, 8, 1)
    assert mask.all()
    assert (voxels[..., 0] == some.pixels[7]).all()
    assert some.covariates(7) == some.labels[7]


def test_binarisations_are_black_and_white_reproducible_and_have_the_mean_of_the_image() -> None:
    some = images(5, binarisations=400)
    assert len(some) == 2000
    assert (some[3][0] == some[3][0]).all()
    sample = np.stack([some[3 + 5 * draw][0][..., 0] for draw in range(400)])
    assert set(np.unique(sample)) == {0.0, 1.0}
    assert np.abs(sample.mean(axis=0) - some.pixels[3]).max() < 0.1
    assert some.covariates(3 + 5 * 17) == some.labels[3]


@pytest.mark.parametrize("family", ["pca", "ae"])
def test_a_batch_of_images_gives_the_evidence_of_each(family: str, tmp_path: Path) -> None:
    settings = {"pca": {"components": 3}, "ae": {"channels": [8], "latent_size": 4}}[family]
    some = images()
    detector = create(parse_settings({"family": family, **settings}, "test"), some.grid)
    if family == "pca":
        fit(detector, some, (), FitRun(tmp_path))
    for number, (raw, voxels, mask) in enumerate(image_evidence(detector, some, batch_size=16)):
        alone = raw_evidence(detector, voxels, mask, some.covariates(number))
        assert np.allclose(raw.maps["residual"], alone.maps["residual"], atol=1e-5)
        assert np.allclose(raw.reconstruction, alone.reconstruction, atol=1e-5)
        assert raw.terms == pytest.approx(alone.terms, rel=1e-4)
    assert number == len(some) - 1


def test_images_are_scored_like_scans(tmp_path: Path) -> None:
    some = images()
    detector = create(parse_settings({"family": "pca", "components": 3}, "test"), some.grid)
    fit(detector, some, (), FitRun(tmp_path))
    known, new = some.select(slice(0, 30)), some.select(slice(30, None))
    scorer = Scorer(detector, ImageScoring())
    together = scorer.learn_from(image_evidence(detector, known), image_evidence(detector, new))
    apart = scorer.learn_reference(known, new)
    assert together.reference is not None
    assert apart.reference is not None
    assert np.allclose(together.reference.sd["residual"], apart.reference.sd["residual"], rtol=1e-4)
    for index, result in enumerate(score_images(together, new)):
        assert result.scores == pytest.approx(apart.score(*new[index]).scores, rel=1e-4)
        assert result.acquisition_shift is None


def test_a_selection_keeps_images_and_labels_together() -> None:
    some = images()
    selected = some.select(some.labels[:, 0] == 2)
    assert (selected.labels == 2).all()
    assert torch.from_numpy(selected.pixels).mean() > 0.6


def test_attributes_that_an_image_does_not_show_are_unknown_covariates() -> None:
    one = LabelledImages(np.zeros((1, 8, 8), dtype=np.float32), np.array([[0, NOT_VISIBLE, 1, 2, 3]]))
    found = one.covariates(0)
    assert np.isnan(found).tolist() == [False, True, False, False, False]
    assert found[2:].tolist() == [1, 2, 3]
