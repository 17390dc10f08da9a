import numpy as np
import pytest

from anomaly.core.image_views import ImageView
from anomaly.scoring.maps import raw_evidence
from tests.scoring.factory import SHAPE, Constant, Scans, ball


@pytest.mark.parametrize(
    "view",
    [ImageView(kind="slice", neighbours=1), ImageView(kind="patch", size=(8, 8, 8)), ImageView(kind="volume")],
    ids=str,
)
def test_the_residual_volume_is_assembled_from_the_residuals_of_the_images(view: ImageView) -> None:
    voxels, mask = Scans()[0]
    evidence = raw_evidence(Constant(view), voxels, mask, batch_size=5)

    np.testing.assert_allclose(evidence.maps["residual"], np.where(mask, voxels - 1, 0), atol=1e-5)
    assert evidence.reconstruction.shape == SHAPE


def test_evidence_is_zero_outside_the_mask() -> None:
    voxels, mask = Scans()[0]

    assert not raw_evidence(Constant(), voxels, mask).maps["residual"][~mask].any()


def test_the_batch_size_changes_nothing() -> None:
    voxels, mask = Scans()[1]
    one, many = (raw_evidence(Constant(), voxels, mask, batch_size=n) for n in (1, 64))

    np.testing.assert_array_equal(one.maps["residual"], many.maps["residual"])
    assert one.terms["kl"] == pytest.approx(many.terms["kl"])


def test_averaging_with_the_mirrored_scan_changes_nothing_for_a_detector_without_position() -> None:
    voxels, mask = Scans()[0]
    plain, averaged = (raw_evidence(Constant(), voxels, mask, flip_average=flip) for flip in (False, True))

    np.testing.assert_allclose(plain.maps["residual"], averaged.maps["residual"], atol=1e-6)
    assert ball().shape == plain.reconstruction.shape
