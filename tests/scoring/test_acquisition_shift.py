import numpy as np
import pytest
from scipy import ndimage

from anomaly.core.volume import FloatArray, MaskArray
from anomaly.scoring.acquisition_shift import FEATURES, AcquisitionReference, acquisition_features

SHAPE = (24, 26, 22)
ALPHA = 1e-4


def mask() -> MaskArray:
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij")
    return np.asarray(sum(axis**2 for axis in axes) < 0.8)


def scan(seed: int, noise: float = 0.05, blur: float = 0.0, gamma: float = 1.0) -> FloatArray:
    """Return a scan of one scanner: anatomy and contrast of its own, and the scanner's noise and sharpness."""
    rng = np.random.default_rng(seed)
    anatomy = 0.7 + 1.0 * ndimage.gaussian_filter(rng.normal(size=SHAPE), 2) + rng.normal(0, 0.02)
    image = np.clip(anatomy, 0.05, None) ** gamma + rng.normal(0, noise, SHAPE)
    return np.where(mask(), ndimage.gaussian_filter(image, [0, 0, blur]), 0).astype(np.float32)


@pytest.fixture(scope="module")
def reference() -> AcquisitionReference:
    return AcquisitionReference(np.array([acquisition_features(scan(seed), mask()) for seed in range(60)]))


def p_value(reference: AcquisitionReference, voxels: FloatArray) -> float:
    found = reference.compare(acquisition_features(voxels, mask()))
    assert found is not None
    return found.p_value


@pytest.mark.slow
def test_p_values_of_scans_of_the_same_scanner_are_uniform(reference: AcquisitionReference) -> None:
    found = np.array([p_value(reference, scan(seed)) for seed in range(1000, 1200)])
    assert np.mean(found < ALPHA) <= 0.01
    assert 0.35 < np.mean(found < 0.5) < 0.65
    assert np.mean(found < 0.05) < 0.12


@pytest.mark.parametrize(
    ("change", "feature"),
    [
        ({"noise": 0.1}, "finest texture"),
        ({"noise": 0.02}, "finest texture"),
        ({"blur": 1.5}, "finest texture bottom to top"),
        ({"gamma": 3.0}, "percentile"),
    ],
    ids=["noisier", "smoother", "thick slices", "another contrast"],
)
def test_another_scanner_or_protocol_has_a_small_p_value_and_a_named_feature(
    reference: AcquisitionReference, change: dict[str, float], feature: str
) -> None:
    found = reference.compare(acquisition_features(scan(2000, **change), mask()))
    assert found is not None
    assert found.p_value < ALPHA
    assert feature in found.feature
    assert f"{found.deviation:+.1f} SD" in str(found)


def test_a_lesion_is_not_taken_for_another_scanner(reference: AcquisitionReference) -> None:
    abnormal = scan(3000)
    abnormal[9:13, 9:13, 9:13] *= 0.4
    assert p_value(reference, abnormal) > ALPHA


def test_with_too_few_training_scans_there_is_no_result(reference: AcquisitionReference) -> None:
    few = AcquisitionReference(reference.features[: 2 * len(FEATURES) - 1])
    assert few.compare(reference.features[0]) is None
    assert AcquisitionReference(reference.features[:0]).compare(reference.features[0]) is None


def test_a_constant_feature_is_not_compared(reference: AcquisitionReference) -> None:
    flat = reference.features.copy()
    flat[:, 0] = 1.0
    found = AcquisitionReference(flat).compare(np.append(np.float32(5.0), flat[3, 1:]))
    assert found is not None
    assert found.p_value > 0.01


def test_an_empty_mask_has_features(reference: AcquisitionReference) -> None:
    features = acquisition_features(scan(1), np.zeros(SHAPE, dtype=bool))
    assert features.shape == (len(FEATURES),)
    assert np.isfinite(features).all()


def test_a_feature_that_is_constant_among_many_scans_is_not_compared() -> None:
    flat = np.full((3000, len(FEATURES)), np.log(1e-6), dtype=np.float32)  # its mean in float32 is another number
    flat[:, 0] = np.random.default_rng(0).normal(size=3000)
    found = AcquisitionReference(flat).compare(np.array([5.0, *flat[0, 1:]], dtype=np.float32))
    assert found is not None
    assert found.feature == FEATURES[0]
    assert found.p_value < ALPHA
