from __future__ import annotations

import math
from pathlib import Path

from pipelines.validation.model_under_test import CheckResult
from pipelines.validation.report.result import StoredCheck


def test_a_stored_check_is_read_as_it_was_written(tmp_path: Path) -> None:
    found = CheckResult({"y": 1.5, "z": math.nan}, {"t": b"png"}, {"u": [{"k": 1.0}]}, ("A note.",))
    written_check = StoredCheck.write(tmp_path, "x", found, "key", 2.0)
    read = StoredCheck.read(tmp_path, "x", "key")
    assert read is not None
    assert read.measures["y"] == 1.5
    assert math.isnan(read.measures["z"])
    assert (read.images, read.tables, read.notes) == ({"t": "x-01.png"}, found.tables, ("A note.",))
    assert read.seconds == written_check.seconds == 2.0
    assert StoredCheck.read(tmp_path, "x", "another key") is None
    (tmp_path / "x-01.png").unlink()
    assert StoredCheck.read(tmp_path, "x", "key") is None
