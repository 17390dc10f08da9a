"""The synthetic runs that the tests of the reports draw."""

from __future__ import annotations

from tests.reports.conftest import run, run_dir, score, uncalibrated_dir, volumes

__all__ = ["run", "run_dir", "score", "uncalibrated_dir", "volumes"]
