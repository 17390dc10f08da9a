"""Pages are drawn again when what draws them has changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from anomaly.reports import software


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "templates").mkdir()
    (tmp_path / "pages.py").write_text("one")
    (tmp_path / "templates" / "case.html").write_text("page")
    monkeypatch.setattr(software, "_PACKAGE", tmp_path)
    software.drawing_software.cache_clear()
    yield tmp_path
    software.drawing_software.cache_clear()


def current() -> dict[str, str]:
    software.drawing_software.cache_clear()
    return software.drawing_software()


@pytest.mark.parametrize("name", ["pages.py", "templates/case.html"])
def test_a_changed_module_or_template_is_other_software(package: Path, name: str) -> None:
    before = current()
    assert current() == before
    (package / name).write_text("changed")
    assert current() != before


def test_another_version_of_the_package_or_of_a_library_is_other_software(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = current()
    monkeypatch.setattr(software, "__version__", "99.0")
    newer = current()
    monkeypatch.setattr(software, "versions", lambda names: dict.fromkeys(names, "99.0"))
    assert before != newer != current()


def test_compiled_modules_are_not_software(package: Path) -> None:
    before = current()
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "pages.cpython-311.pyc").write_bytes(b"compiled")
    assert current() == before
