"""A small calibrated atlas on synthetic cohorts, shared with the tests of the pipelines."""

from tests.pipelines.conftest import trained

__all__ = ["trained"]
