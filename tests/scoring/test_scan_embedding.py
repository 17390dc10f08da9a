from __future__ import annotations

import numpy as np
import pytest
from torch import Tensor

from anomaly.core.image_views import ImageView
from anomaly.scoring.scan_embedding import put_together, scan_code
from anomaly.scoring.scorer import Scorer
from anomaly.scoring.settings import ScoringSettings
from tests.scoring.factory import Constant, Scans

SETTINGS = ScoringSettings(smoothing_mm=0)


class Embedding(Constant):
    """Its code is the mean inside the mask and the size of the mask."""

    def embed(self, images: Tensor, mask: Tensor) -> Tensor:
        middle, inside = images[:, images.shape[1] // 2].flatten(1), mask[:, 0].flatten(1).float()
        size = inside.sum(1)
        return ((middle * inside).sum(1) / size.clamp_min(1))[:, None] * Tensor([[1.0, 2.0]])


def test_a_scan_of_slices_is_described_by_thirds_from_bottom_to_top() -> None:
    codes = np.arange(9, dtype=np.float32)[:, None] * [1, 10]
    assert put_together(codes.astype(np.float32), 3).tolist() == [1, 10, 4, 40, 7, 70]
    assert put_together(codes.astype(np.float32), 1).tolist() == [4, 40]


@pytest.mark.parametrize("n", [1, 2, 4, 5])
def test_a_scan_of_few_slices_has_a_code_of_the_same_length(n: int) -> None:
    found = put_together(np.ones((n, 2), dtype=np.float32), 3)
    assert found.tolist() == [1] * 6


@pytest.mark.parametrize(("kind", "length"), [("slice", 6), ("patch", 2), ("volume", 2)])
def test_every_view_gives_one_code_whatever_the_batch_size(kind: str, length: int) -> None:
    detector = Embedding(ImageView.model_validate({"kind": kind, "size": (8, 8, 8)}))
    voxels, mask = Scans()[0]
    one, many = (scan_code(detector, voxels, mask, size) for size in (1, 64))
    assert one.shape == (length,)
    np.testing.assert_allclose(one, many, rtol=1e-6)


def test_a_family_without_a_latent_code_has_none_to_give() -> None:
    with pytest.raises(TypeError, match="'constant' has no latent code"):
        scan_code(Constant(), *Scans()[0])


def test_a_scorer_finds_the_healthy_scans_that_are_most_like_a_scan() -> None:
    scans = Scans(10, noise=0.3)
    scorer = Scorer(Embedding(), SETTINGS).learn_reference(scans).learn_index(scans, 2.0)
    scored = scorer.score(*scans[4])
    assert scored.neighbours[0].index == 4
    assert scored.neighbours[0].similarity == pytest.approx(1)
    assert len(scored.neighbours) == 3
    assert {plane: len(slices) for plane, slices in scored.neighbour_pictures.items()} == {
        "axial": 3, "coronal": 3, "sagittal": 3
    }  # fmt: skip
    assert scorer.nearest_similarities(scans) == pytest.approx([1.0] * 10)
    np.testing.assert_array_equal(
        scored.evidence, Scorer(Embedding(), SETTINGS).learn_reference(scans).score(*scans[4]).evidence
    )


def test_there_is_no_index_where_none_is_wanted_or_the_family_has_no_code() -> None:
    scans = Scans(4)
    unwanted = Scorer(Embedding(), SETTINGS.model_copy(update={"retrieval": 0})).learn_index(scans, 2.0)
    unable = Scorer(Constant(), SETTINGS).learn_index(scans, 2.0)
    for scorer in (unwanted, unable):
        assert scorer.index is None
        assert scorer.nearest_similarities(scans) == []
        assert scorer.score(*scans[0]).neighbours == ()
