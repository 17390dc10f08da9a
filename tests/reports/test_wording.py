from __future__ import annotations

from dataclasses import replace

import pytest

from anomaly.core.results import HealthyGroup, Region, ScanScore
from anomaly.reports import wording
from anomaly.runs.reader import RunInfo
from tests.reports.factory import scan_score


def test_the_meaning_names_the_actual_numbers(run: RunInfo) -> None:
    text = wording.explain_score(replace(scan_score("a", 3.0), p_value=0.03), run)
    assert text.startswith(
        "Of 100 healthy scans like the 60 of the reference, about 3 would score at least this high."
    )
    assert text.count(". ") == 1


def test_a_very_small_p_value_is_never_no_scan_at_all(run: RunInfo) -> None:
    of_many = replace(run, reference_scores={run.score_name: [1.0] * 999})
    assert "fewer than 1 would" in wording.explain_score(replace(scan_score("a", 3.0), p_value=0.004), of_many)


def test_the_smallest_p_value_says_no_more_than_that_no_healthy_scan_was_like_this(run: RunInfo) -> None:
    text = wording.explain_score(replace(scan_score("a", 30.0), p_value=1 / 61), run)
    assert text.startswith("None of the 60 healthy reference scans scores this high")
    assert "On average at most 1.6 % of such healthy scans do; 60 scans cannot give a smaller p-value." in text


def test_a_flag_names_the_interval_of_the_rate_of_healthy_scans_that_are_flagged(run: RunInfo) -> None:
    text = wording.explain_score(scan_score("a", 30.0), run)
    assert "of 100 healthy scans are flagged as well (95 % interval 1 % to 13.7 %)" in text


def test_a_scan_that_is_not_flagged_is_not_called_healthy(run: RunInfo) -> None:
    score = scan_score("a", 1.4)
    assert "does not rule out disease" in wording.explain_score(score, run)
    assert wording.flag_status(score).words == "Not flagged"


def test_without_a_calibration_no_rate_is_given(run: RunInfo) -> None:
    score = scan_score("a", 9.0, calibrated=False)
    text = wording.explain_score(score, replace(run, calibration=None)) + wording.flag_status(score).words
    assert "flag" not in text.lower()
    assert "is not calibrated" in text


@pytest.mark.parametrize(
    ("group", "sentence"),
    [
        (HealthyGroup(78, 78, "male", (20, 81)), "Compared with healthy subjects of 78 years, male."),
        (HealthyGroup(40, 40, "", (20, 81)), "Compared with healthy subjects of 40 years, male and female."),
        (
            HealthyGroup(None, None, "", (20, 90)),
            "The age of the subject is unknown: the scan was compared with healthy subjects of all ages "
            "(20 to 90 years or older).",
        ),
    ],
)
def test_the_healthy_subjects_that_a_scan_was_compared_with_are_named(
    run: RunInfo, group: HealthyGroup, sentence: str
) -> None:
    assert wording.compared_with(replace(scan_score("a", 3.0), compared_with=group), run) == sentence


def test_a_model_of_all_ages_names_the_ages_of_its_training_subjects(run: RunInfo) -> None:
    trained_on = {"age_min": 20.2, "age_max": 81.9}
    of_all_ages = replace(run, model={**run.model, "trained_on": trained_on})
    unknown = replace(run, model={**run.model, "trained_on": {"age_min": None, "age_max": None}})

    text = wording.compared_with(scan_score("a", 3.0), of_all_ages)
    assert text == "Compared with healthy subjects of all ages (20 to 81 years)."
    assert wording.compared_with(scan_score("a", 3.0), unknown) == ""


@pytest.mark.parametrize(
    ("point", "words"),
    [((-38, -22, 20), "left, middle, mid-height"), ((2, 60, 50), "midline, front, upper"),
     ((40, -80, -30), "right, back, lower")],
)  # fmt: skip
def test_a_position_is_a_side_and_two_directions_and_never_a_lobe(
    point: tuple[float, float, float], words: str
) -> None:
    assert wording.describe_position(Region(1, 1.0, 5.0, 4.0, point, (0, 0, 0))) == words


def test_the_share_of_flags_is_compared_with_the_target(run: RunInfo) -> None:
    few, many = [scan_score(f"h{i}", 1.4) for i in range(20)], [scan_score(f"p{i}", 6.0) for i in range(10)]
    assert "agrees with the observation" in wording.summarise_flags(few, run)
    assert "10 of 30 scans are flagged (33.3 %)" in wording.summarise_flags(few + many, run)
    assert "there are more" in wording.summarise_flags(few + many, run)


def test_a_small_reference_makes_the_expected_number_of_flags_wider(run: RunInfo) -> None:
    scores = [scan_score(f"h{i}", 1.4) for i in range(92)] + [scan_score(f"p{i}", 6.0) for i in range(8)]
    few = replace(run, reference_scores={run.score_name: [1.0] * 20})
    assert "agrees with the observation" in wording.summarise_flags(scores, few)
    many = replace(run, reference_scores={run.score_name: [1.0] * 2000})
    assert "(1 to 10 of 100 scans" in wording.summarise_flags(scores, many)


def test_numbers_read_well() -> None:
    assert [wording.number(v) for v in (None, 0.12345, -3.0, 1421.0, 12345.6, "x", True)] == [
        "–", "0.123", "−3", "1 421", "12346", "x", "True"]  # fmt: skip
    assert wording.p_value(0.0004) == "< 0.001"
    assert wording.millimetres((-0.2, 30.4, -12.0)) == "0, +30, −12"


def test_the_unit_of_the_evidence_is_named_only_where_it_is_one(run: RunInfo) -> None:
    assert "in healthy standard deviations" in wording.explain_regions(run)
    plain = replace(run, settings={"standardise": "none"})
    assert "standard deviations" not in wording.explain_regions(plain)


def test_regions_of_a_ct_are_hypodense_or_hyperdense(score: ScanScore) -> None:
    dark, bright = (replace(score.regions[0], polarity=polarity) for polarity in ("dark", "bright"))
    ct = replace(score, modality="CT")
    assert [wording.describe_polarity(region, ct) for region in (dark, bright)] == ["hypodense", "hyperdense"]
    assert wording.describe_polarity(dark, replace(score, modality="FLAIR")) == "darker than expected"
    assert [wording.intensity_heading(each) for each in (ct, score)] == ["Density", "Intensity"]


def test_the_window_of_a_ct_is_named(run: RunInfo) -> None:
    assert "HU" not in wording.how_to_read(run)
    ct = replace(run, display=replace(run.display, hu_min=-10.0, hu_max=90.0))
    assert wording.how_to_read(ct).endswith("Black is −10 HU and white is 90 HU.")
