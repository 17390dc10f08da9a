"""A small calibrated atlas on synthetic cohorts, shared with the tests of the pipelines."""

from tests.pipelines.conftest import pretrained, shipped_model, trained

__all__ = ["pretrained", "shipped_model", "trained"]
