from __future__ import annotations

import pytest

from anomaly.bundle.display import display_scale
from anomaly.core.errors import BundleError
from anomaly.preprocessing.intensity import IntensitySettings
from anomaly.scoring.scorer import Scorer
from tests.bundle.factory import config_of, trained_scorer


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    return trained_scorer(config_of(), tmp_path_factory.mktemp("display"))


def test_mr_is_drawn_up_to_the_brightest_healthy_tissue(scorer: Scorer) -> None:
    assert scorer.reference is not None
    scale = display_scale(scorer, IntensitySettings())
    brain = scorer.reference.mean_image[scorer.reference.mean_image > 0]
    assert 0.99 < (brain <= scale["intensity_max"]).mean() < 1
    assert scale["evidence_typical"] == scorer.reference.score_mean["reconstruction_p99"]
    assert "hu_min" not in scale


def test_ct_is_drawn_in_its_whole_window(scorer: Scorer) -> None:
    scale = display_scale(scorer, IntensitySettings(method="window", windows=((40.0, 80.0),)))
    assert (scale["intensity_max"], scale["hu_min"], scale["hu_max"]) == (1.0, 0.0, 80.0)


def test_a_model_without_a_reference_has_no_scale(scorer: Scorer) -> None:
    with pytest.raises(BundleError, match="no healthy reference"):
        display_scale(Scorer(scorer.detector, scorer.settings), IntensitySettings())
