from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from anomaly.core.image_views import ImageView
from anomaly.core.volume import FloatArray
from anomaly.models.base import Detector, Evidence
from anomaly.scoring.maps import batches
from anomaly.scoring.scan_embedding import embed_scan, group_means, scan_embedding_of
from anomaly.scoring.scorer import Scorer
from anomaly.scoring.settings import ScoringSettings
from tests.scoring.factory import Constant, Scans

SETTINGS = ScoringSettings(smoothing_mm=0)


class Embedding(Constant):
    """Its code is the mean inside the mask, and twice that. It counts how often it is computed."""

    n_embedded = 0

    def embed(self, images: Tensor, mask: Tensor) -> Tensor:
        self.n_embedded += len(images)
        middle, inside = images[:, images.shape[1] // 2].flatten(1), mask[:, 0].flatten(1).float()
        mean = (middle * inside).sum(1) / inside.sum(1).clamp_min(1)
        return mean[:, None] * Tensor([[1.0, 2.0]])


class EmbeddingInOnePass(Embedding):
    """Gives the code with the evidence."""

    def evidence(self, images: Tensor, mask: Tensor, covariates: Tensor | None = None) -> Evidence:
        return replace(super().evidence(images, mask), embedding=self.embed(images, mask))


def embedding(detector: Detector, batch_size: int = 16) -> FloatArray:
    return embed_scan(detector, batches(detector, *Scans()[0], batch_size))


def test_the_code_of_slices_has_the_means_of_thirds_from_bottom_to_top() -> None:
    codes = np.arange(9, dtype=np.float32)[:, None] * [1, 10]
    assert group_means(codes.astype(np.float32), 3).tolist() == [1, 10, 4, 40, 7, 70]
    assert group_means(codes.astype(np.float32), 1).tolist() == [4, 40]


@pytest.mark.parametrize("n", [1, 2, 4, 5])
def test_a_scan_of_few_slices_has_a_code_of_the_same_length(n: int) -> None:
    assert group_means(np.ones((n, 2), dtype=np.float32), 3).tolist() == [1] * 6


@pytest.mark.parametrize(("kind", "length"), [("slice", 6), ("patch", 2), ("volume", 2)])
def test_every_view_gives_one_code_whatever_the_batch_size(kind: str, length: int) -> None:
    detector = Embedding(ImageView.model_validate({"kind": kind, "size": (8, 8, 8)}))
    one, many = (embedding(detector, batch_size) for batch_size in (1, 64))
    assert one.shape == (length,)
    np.testing.assert_allclose(one, many, rtol=1e-6)


def test_a_family_without_a_latent_code_is_refused() -> None:
    with pytest.raises(TypeError, match="'constant' has no latent code"):
        embedding(Constant())


def test_batches_without_a_code_give_no_code_of_the_scan() -> None:
    code = torch.ones((2, 3))
    assert scan_embedding_of([code, None], ImageView(kind="volume")) is None
    assert scan_embedding_of([], ImageView(kind="volume")) is None
    found = scan_embedding_of([code, 4 * code], ImageView(kind="volume"))
    assert found is not None
    assert found.tolist() == [2.5] * 3


def test_a_scorer_finds_the_most_similar_healthy_scans() -> None:
    scans = Scans(10, noise=0.3)
    scorer = Scorer(Embedding(), SETTINGS).learn_reference(scans).learn_index(scans, 2.0)
    scored = scorer.score(*scans[4])
    assert scored.neighbours[0].index == 4
    assert scored.neighbours[0].similarity == pytest.approx(1)
    assert len(scored.neighbours) == 3
    assert {plane: len(slices) for plane, slices in scored.neighbour_slices.items()} == {
        "axial": 3, "coronal": 3, "sagittal": 3
    }  # fmt: skip
    assert scorer.nearest_similarities(scans) == pytest.approx([1.0] * 10)
    np.testing.assert_array_equal(
        scored.evidence, Scorer(Embedding(), SETTINGS).learn_reference(scans).score(*scans[4]).evidence
    )


@pytest.mark.parametrize("flip_average", [False, True])
def test_a_code_that_comes_with_the_evidence_is_not_computed_again(flip_average: bool) -> None:
    scans, settings = Scans(10, noise=0.3), SETTINGS.model_copy(update={"flip_average": flip_average})
    found, computed = [], []
    for detector in (Embedding(), EmbeddingInOnePass()):
        scorer = Scorer(detector, settings).learn_reference(scans).learn_index(scans, 2.0)
        before = detector.n_embedded
        found.append(scorer.score(*scans[4]).neighbours)
        computed.append(detector.n_embedded - before)
    n_slices = int(scans[4][1].any(axis=(0, 1)).sum())
    assert found[0] == found[1]
    assert computed == [n_slices, n_slices * (1 + flip_average)]  # the mirrored scan goes through the network too


def test_there_is_no_index_where_the_settings_ask_for_none_or_the_family_has_no_code() -> None:
    scans = Scans(4)
    unwanted = Scorer(Embedding(), SETTINGS.model_copy(update={"retrieval": 0})).learn_index(scans, 2.0)
    unable = Scorer(Constant(), SETTINGS).learn_index(scans, 2.0)
    for scorer in (unwanted, unable):
        assert scorer.index is None
        assert scorer.nearest_similarities(scans) == []
        assert scorer.score(*scans[0]).neighbours == ()
