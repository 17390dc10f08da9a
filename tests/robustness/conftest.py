from __future__ import annotations

from tests.pipelines.conftest import trained

__all__ = ["trained"]
