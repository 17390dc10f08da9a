from __future__ import annotations

from pipelines.validation.report.page import describe


def test_measures_say_what_they_are_also_those_that_go_on_with_a_name() -> None:
    assert describe("one_normal.auroc") == "AUROC of the declared score, mean over digits and seeds"
    assert describe("one_normal.auroc_negative_elbo") == "AUROC of the score negative elbo"
    assert "at a target of 0.05" in describe("one_abnormal.fpr_0.05")
    assert describe("unheard.of") == "unheard.of"
