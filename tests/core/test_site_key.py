from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from anomaly.core.errors import ConfigError
from anomaly.core.site_key import site_key, site_key_path

PRINT_KEY = "from anomaly.core.site_key import site_key; print(site_key().hex())"


@pytest.fixture
def key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "config" / "site.key"
    monkeypatch.setenv("ANOMALY_SITE_KEY_FILE", str(path))
    return path


def test_the_key_is_made_once_with_a_message_and_for_this_account_alone(
    key_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = site_key()
    assert (len(first), site_key()) == (32, first)
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    assert [path.name for path in key_file.parent.iterdir()] == ["site.key"]
    (message,) = caplog.messages
    assert f"made the site key {key_file}" in message
    assert first.hex() not in message


def test_two_sites_have_different_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = set()
    for site in ("a", "b"):
        monkeypatch.setenv("ANOMALY_SITE_KEY_FILE", str(tmp_path / site))
        keys.add(site_key())
    assert len(keys) == 2


def test_the_key_lies_in_the_configuration_folder_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ANOMALY_SITE_KEY_FILE")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert site_key_path() == tmp_path / "config" / "anomaly" / "site.key"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert site_key_path() == tmp_path / "home" / ".config" / "anomaly" / "site.key"


@pytest.mark.slow
def test_processes_that_make_the_key_at_once_get_the_same_one(key_file: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PRINT_KEY], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(6)
    ]
    keys = {process.communicate()[0] for process in processes}
    assert keys == {key_file.read_text(encoding="ascii")}


@pytest.mark.parametrize("content", ["", "secret", "5a" * 31, "Z" * 64])
def test_a_file_that_holds_no_key_is_an_error_and_stays(key_file: Path, content: str) -> None:
    key_file.parent.mkdir()
    key_file.write_text(content, encoding="ascii")
    with pytest.raises(ConfigError, match=f"{re.escape(str(key_file))} holds no site key: expected 64 hex digits"):
        site_key()
    assert key_file.read_text(encoding="ascii") == content


def test_a_folder_that_cannot_be_written_is_an_error_with_a_remedy(key_file: Path) -> None:
    key_file.parent.write_text("a file, not a folder", encoding="ascii")
    with pytest.raises(ConfigError, match=r"can be neither read nor made .*set ANOMALY_SITE_KEY_FILE to a file"):
        site_key()


def test_an_account_without_a_home_folder_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("ANOMALY_SITE_KEY_FILE", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(ConfigError, match="no home folder for the site key; set ANOMALY_SITE_KEY_FILE"):
        site_key()
    assert os.environ.get("ANOMALY_SITE_KEY_FILE") is None
