"""Reading files on disk and in zips, up to a maximum size."""

from __future__ import annotations

import errno
import os
import zipfile
from pathlib import Path

import pytest

from anomaly.core.errors import ScanRefusedError
from anomaly.io import stored_file
from anomaly.io.stored_file import StoredFile, read_all, read_bytes


def refusal(file: StoredFile) -> ScanRefusedError:
    with pytest.raises(ScanRefusedError) as caught:
        read_bytes(file)
    return caught.value


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


def test_a_member_that_claims_more_than_it_can_hold_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("scan.nii", b"1" * 1000)
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = (3_000_000_000).to_bytes(4, "little")
    path.write_bytes(content)
    assert refusal(StoredFile(path, "scan.nii")).expected == "3,000,000,000 bytes, as the header says"


@pytest.mark.parametrize("size", [400, 1600])
def test_a_member_of_another_size_than_its_zip_says_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("scan.nii", bytes(range(250)) * 4)
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = size.to_bytes(4, "little")
    path.write_bytes(content)
    assert refusal(StoredFile(path, "scan.nii")).code == "unreadable"


def test_a_damaged_member_of_a_zip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr("scan.nii", b"1" * 1000)
    content = bytearray(path.read_bytes())
    content[500] ^= 1
    path.write_bytes(content)
    assert refusal(StoredFile(path, "scan.nii")).found == "a damaged file: its checksum is wrong"


def test_an_encrypted_member_is_called_encrypted(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr("scan.nii", b"1" * 1000)
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    assert "encrypted" in refusal(StoredFile(path, "scan.nii")).found


def test_only_files_with_content_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.nii")
    (tmp_path / "loop.nii").symlink_to("loop.nii")
    (tmp_path / "dangling.nii").symlink_to("nowhere")
    (tmp_path / "annex.nii").symlink_to("../.git/annex/objects/Kp/8P/SHA256E-s1--ab.nii")
    (tmp_path / "folder.nii").mkdir()
    found = {path.stem: refusal(StoredFile(path)).found for path in tmp_path.iterdir()}
    assert found == {
        "pipe": "a named pipe",
        "loop": "a link that leads back to itself",
        "dangling": "a link to a file that does not exist",
        "annex": "a git-annex link whose content is not here",
        "folder": "a folder",
    }
    assert refusal(StoredFile(Path("/dev/zero"))).found == "a device"


def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.nii").write_bytes(b"1")
    monkeypatch.setattr(Path, "open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    assert "no permission" in refusal(StoredFile(tmp_path / "a.nii")).found


@pytest.mark.parametrize(
    ("number", "is_transient"),
    [(errno.EIO, True), (errno.ESTALE, True), (errno.EACCES, True), (errno.ENOENT, False)],
)
@pytest.mark.parametrize("method", ["stat", "open"])
@pytest.mark.parametrize("name", ["file", "link"])
def test_a_refusal_says_whether_the_file_may_be_readable_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, method: str, number: int, is_transient: bool
) -> None:
    (tmp_path / "file").write_bytes(b"1")
    (tmp_path / "link").symlink_to("file")
    with monkeypatch.context() as patched:
        patched.setattr(Path, method, lambda *_, **__: (_ for _ in ()).throw(OSError(number, "x")))
        assert refusal(StoredFile(tmp_path / name)).is_transient is is_transient


def test_a_name_that_no_file_can_have_is_refused(tmp_path: Path) -> None:
    file = StoredFile(tmp_path / "a\0b.nii")
    assert refusal(file).code == "unreadable"
    assert file.identity() == (str(tmp_path / "a\0b.nii"), "")


def test_a_link_is_identical_to_its_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").symlink_to("a")
    assert StoredFile(tmp_path / "a").identity() == StoredFile(tmp_path / "b").identity()


def test_a_sibling_lies_in_the_same_folder(archive: Path) -> None:
    assert StoredFile(archive, "folder/one").sibling("two") == StoredFile(archive, "folder/two")
    assert StoredFile(archive, "folder/one").exists()
    assert not StoredFile(archive, "folder/two").exists()
    assert StoredFile(archive).sibling("b.zip") == StoredFile(archive.with_name("b.zip"))


def test_the_cache_key_changes_when_the_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"1")
    before = StoredFile(path).cache_key()
    path.write_bytes(b"22")
    assert StoredFile(path).cache_key() != before
