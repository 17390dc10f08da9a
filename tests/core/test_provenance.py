from __future__ import annotations

import getpass
import os
from datetime import UTC, datetime, timedelta

import pytest

from anomaly.core.provenance import command_line, now, user_name


def test_the_time_is_in_utc_to_the_second() -> None:
    time = datetime.fromisoformat(now())

    assert time.utcoffset() == timedelta(0)
    assert time.microsecond == 0
    assert abs(datetime.now(UTC) - time) < timedelta(seconds=5)


def test_an_account_without_a_name_is_given_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr(getpass, "getuser", lambda: "a.reader")
    assert user_name() == "a.reader"
    monkeypatch.setattr(getpass, "getuser", unknown)
    assert user_name() == f"uid {os.getuid()}"


def test_the_command_line_is_quoted_and_has_no_path_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/opt/bin/anomaly", "score", "my model/", "-o", "run/"])

    assert command_line() == "anomaly score 'my model/' -o run/"
