"""A small calibrated atlas, and raw scans for it: heads of the sample data."""

from tests.pipelines.conftest import Trained, trained

__all__ = ["Trained", "trained"]
