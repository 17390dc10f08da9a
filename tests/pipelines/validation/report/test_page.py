from __future__ import annotations

from pipelines.validation.report.page import describe


def test_measures_are_described_also_those_that_end_with_the_name_of_a_score() -> None:
    assert describe("one_normal.auroc") == "AUROC of the declared score, mean over digits and seeds"
    assert describe("one_normal.auroc_negative_elbo") == "AUROC of the score negative elbo"
    assert "at a target of 0.05" in describe("one_abnormal.fpr_0.05")
    assert describe("unheard.of") == "unheard.of"
