"""Reading files on disk and in zips, up to a maximum size."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from anomaly.core.errors import ScanRefusedError
from anomaly.io import stored_file
from anomaly.io.stored_file import StoredFile, read_all, read_bytes


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "inner" / "a.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("folder/one", b"1" * 1000)
        opened.writestr("../two", b"2" * 1000)
    return path


def test_a_member_of_a_zip_has_the_same_content_as_the_file(tmp_path: Path, archive: Path) -> None:
    (tmp_path / "one").write_bytes(b"1" * 1000)
    assert read_bytes(StoredFile(archive, "folder/one")) == read_bytes(StoredFile(tmp_path / "one"))


def test_a_member_with_a_path_outside_the_zip_is_not_written_to_disk(tmp_path: Path, archive: Path) -> None:
    file = StoredFile(archive, "../two")
    assert read_bytes(file) == b"2" * 1000
    assert file.name == "two"
    assert sorted(path.name for path in tmp_path.rglob("two")) == []


def test_files_are_read_in_the_given_order(archive: Path) -> None:
    files = [StoredFile(archive, "../two"), StoredFile(archive, "folder/one")]
    assert [file for file, _ in read_all(files)] == files


def test_a_missing_file_is_refused_as_unreadable(archive: Path) -> None:
    for missing in (StoredFile(archive.with_name("gone")), StoredFile(archive, "gone")):
        with pytest.raises(ScanRefusedError) as caught:
            read_bytes(missing)
        assert caught.value.code == "unreadable"


def test_a_member_larger_than_a_scan_can_be_is_refused(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_file, "MAX_FILE_BYTES", 999)
    with pytest.raises(ScanRefusedError) as caught:
        read_bytes(StoredFile(archive, "folder/one"))
    assert caught.value.code == "too_large"


def test_files_that_are_together_larger_than_a_scan_can_be_are_refused(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_file, "MAX_SCAN_BYTES", 1500)
    with pytest.raises(ScanRefusedError) as caught:
        list(read_all([StoredFile(archive, "folder/one"), StoredFile(archive, "../two")]))
    assert caught.value.code == "too_large"


def test_the_cache_key_changes_when_the_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"1")
    before = StoredFile(path).cache_key()
    path.write_bytes(b"22")
    assert StoredFile(path).cache_key() != before
