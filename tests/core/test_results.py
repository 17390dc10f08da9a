import json
from dataclasses import asdict, replace

import pytest

from anomaly.core.results import HealthyGroup, Neighbour, Region, ScanScore, ScanStatus

REGION = Region(
    label=1, volume_ml=2.5, peak=9.0, mean=6.0, mni_mm=(1.0, -2.0, 3.5), voxel=(4, 5, 6), polarity="dark"
)
SCORE = ScanScore(
    "sub-01_T1w", ScanStatus.SCORED, score=3.2, scores={"kl": 1.0}, regions=(REGION,), warnings=("a",),
    neighbours=(Neighbour("healthy scan 17, 54 years", 0.61, 16),),
)  # fmt: skip


def test_a_result_survives_json() -> None:
    assert ScanScore.from_json(json.loads(json.dumps(asdict(SCORE)))) == SCORE


@pytest.mark.parametrize("age", [78.0, None])
def test_the_healthy_subjects_that_a_scan_was_compared_with_survive_json(age: float | None) -> None:
    score = replace(SCORE, age=83.0, sex="M", compared_with=HealthyGroup(83.0, age, "male", (20.0, 78.0)))
    assert ScanScore.from_json(json.loads(json.dumps(asdict(score)))) == score


@pytest.mark.parametrize(
    ("group", "years"),
    [(HealthyGroup(83, 78, "", (20, 78)), 5), (HealthyGroup(15, 20, "", (20, 78)), 5),
     (HealthyGroup(50, 50, "", (20, 78)), 0), (HealthyGroup(None, None, "", (20, 78)), 0)],
)  # fmt: skip
def test_a_subject_is_outside_the_reference_by_the_years_to_its_nearest_age(
    group: HealthyGroup, years: float
) -> None:
    assert group.years_outside == years
    assert group.ages_text == "20 to 78 years"


def test_a_key_of_another_version_is_left_out() -> None:
    assert ScanScore.from_json(asdict(SCORE) | {"halo": 1}) == SCORE


def test_a_result_of_an_earlier_version_is_read() -> None:
    old = asdict(SCORE) | {"map_path": "a/map.nii.gz", "mask_path": "", "provenance": {"look_seconds": 0.5}}
    del old["outputs"]
    found = ScanScore.from_json(old)
    assert (found.map_path, found.mask_path) == ("a/map.nii.gz", "")
    assert found.outputs == {"anomaly_map": "a/map.nii.gz"}
    assert found.provenance == {"inference_seconds": 0.5}
