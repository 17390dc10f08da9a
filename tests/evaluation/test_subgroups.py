from __future__ import annotations

import numpy as np
import pytest

from anomaly.calibration.operating_point import clopper_pearson
from anomaly.evaluation.subgroups import SubgroupFPR, subgroup_fprs, subgroups


def by_group(found: tuple[SubgroupFPR, ...]) -> dict[str, SubgroupFPR]:
    return {item.group: item for item in found}


def test_every_scan_is_in_one_group_by_age_and_in_one_by_sex() -> None:
    found = subgroups([0, 39.9, 40, 59.9, 60, 90, np.nan], ["F", "M", "", "O", "F", "M", "F"])
    counts = {name: int(inside.sum()) for name, inside in found.items()}
    assert counts == {
        "under 40 years": 2,
        "40 to 59 years": 2,
        "60 years and older": 2,
        "unknown age": 1,
        "female": 3,
        "male": 2,
        "unknown sex": 2,
    }


def test_the_rate_of_a_group_is_that_of_its_scans_with_an_exact_interval() -> None:
    ages, p_values = [30.0] * 20 + [70.0] * 12, [0.5] * 19 + [0.05] + [0.01] * 3 + [0.5] * 9
    found = by_group(subgroup_fprs(p_values, ages, ["F"] * 32, alpha=0.05))

    assert list(found) == ["under 40 years", "60 years and older", "female"]
    assert (found["under 40 years"].n_flagged, found["under 40 years"].rate) == (1, 0.05)
    old = found["60 years and older"]
    assert (old.n_flagged, old.n_test, old.rate, old.too_few) == (3, 12, 0.25, False)
    assert old.interval == clopper_pearson(3, 12)


@pytest.mark.parametrize(("n", "too_few"), [(9, True), (10, False)])
def test_a_rate_of_few_scans_is_marked(n: int, too_few: bool) -> None:
    found = subgroup_fprs([0.5] * n, [30.0] * n, ["M"] * n, alpha=0.1)
    assert [item.too_few for item in found] == [too_few] * 2


@pytest.mark.parametrize("n", [0, 5])
def test_without_any_age_or_sex_there_are_no_groups(n: int) -> None:
    assert subgroup_fprs([0.5] * n, [np.nan] * n, [""] * n, alpha=0.1) == ()
