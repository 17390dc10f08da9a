from __future__ import annotations

import math

from pipelines.validation.thresholds import Threshold


def test_a_threshold_includes_its_limits_and_nan_never_meets_it() -> None:
    assert Threshold(min=0.5).is_met_by(0.5)
    assert not Threshold(min=0.5, max=0.7).is_met_by(0.71)
    assert not Threshold(max=1).is_met_by(math.nan)
    assert str(Threshold(min=0.5, max=2)) == "≥ 0.5 and ≤ 2"
