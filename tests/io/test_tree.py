"""Which files of a folder or zip may be scans: the same rules for both."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from anomaly.io.tree import FolderTree, Tree, ZipTree, find_files


@contextmanager
def tree_of(kind: str, folder: Path, files: Iterable[str] | dict[str, str]) -> Iterator[Tree]:
    """Put files, by default empty, into a folder or a zip."""
    contents = files if isinstance(files, dict) else dict.fromkeys(files, "")
    if kind == "zip":
        with zipfile.ZipFile(folder / "a.zip", "w") as archive:
            for name, text in contents.items():
                archive.writestr(name, text)
        with zipfile.ZipFile(folder / "a.zip") as archive:
            yield ZipTree(archive, folder / "a.zip")
        return
    for name, text in contents.items():
        path = folder / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    yield FolderTree(folder / "in")


def found(kind: str, folder: Path, files: Iterable[str] | dict[str, str]) -> list[str]:
    with tree_of(kind, folder, files) as tree:
        root = "" if kind == "zip" else f"{folder / 'in'}/"
        return [(f.file.member or str(f.file.path)).removeprefix(root) for f in find_files(tree)]


both = pytest.mark.parametrize("kind", ["folder", "zip"])


@both
def test_files_come_in_a_fixed_order(tmp_path: Path, kind: str) -> None:
    files = ["b/2", "a/c/1", "a/b", "z", "b/1"]
    assert found(kind, tmp_path, files) == ["z", "a/b", "a/c/1", "b/1", "b/2"]


@both
def test_hidden_files_and_folders_are_left_out(tmp_path: Path, kind: str) -> None:
    assert found(kind, tmp_path, [".a.nii", ".git/b.nii", "__MACOSX/c.nii", "x/._d.nii", "e.nii"]) == ["e.nii"]


@both
def test_output_of_this_program_is_left_out(tmp_path: Path, kind: str) -> None:
    files = ["a.nii", "cohort/cohort.json", "cohort/volumes/a.nii", "x/run/run.json", "x/run/b/b.nii"]
    assert found(kind, tmp_path, files) == ["a.nii"]


@both
def test_folders_of_bids_without_raw_scans_are_left_out(tmp_path: Path, kind: str) -> None:
    files = [f"ds/{name}/sub-1/a.nii" for name in ("derivatives", "sourcedata", "code", "stimuli")]
    assert found(kind, tmp_path, [*files, "ds/sub-1/a.nii"]) == ["ds/sub-1/a.nii"]


@both
def test_only_in_bids_these_folders_mean_something_else(tmp_path: Path, kind: str) -> None:
    assert found(kind, tmp_path, ["code/a.nii", "b.nii"]) == ["b.nii", "code/a.nii"]


@both
def test_what_bidsignore_names_is_left_out(tmp_path: Path, kind: str) -> None:
    files = {
        "ds/.bidsignore": "# extra\n*_extra.nii\n/top.nii\nlocal/\n!kept_extra.nii\nsub-2/**/b.nii\n",
        "ds/sub-1/a_extra.nii": "",
        "ds/sub-1/kept_extra.nii": "",
        "ds/sub-1/top.nii": "",
        "ds/top.nii": "",
        "ds/sub-1/local/a.nii": "",
        "ds/sub-2/anat/b.nii": "",
        "other/a_extra.nii": "",
    }
    assert found(kind, tmp_path, files) == ["ds/sub-1/kept_extra.nii", "ds/sub-1/top.nii", "other/a_extra.nii"]


@both
def test_a_bidsignore_in_another_encoding_still_counts(tmp_path: Path, kind: str) -> None:
    with tree_of(kind, tmp_path, {"a.nii": "", "b.nii": "", ".bidsignore": ""}):
        pass
    text = "# Öffnen\nb.nii\n".encode("latin-1")
    if kind == "folder":
        (tmp_path / "in" / ".bidsignore").write_bytes(text)
        assert [f.file.name for f in find_files(FolderTree(tmp_path / "in"))] == ["a.nii"]
        return
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("a.nii", "")
        archive.writestr("b.nii", "")
        archive.writestr(".bidsignore", text)
    with zipfile.ZipFile(tmp_path / "b.zip") as archive:
        assert [f.file.name for f in find_files(ZipTree(archive, tmp_path / "b.zip"))] == ["a.nii"]


@both
@pytest.mark.parametrize("pattern", ["!", "/", "//", "[", "a\\"])
def test_a_pattern_that_means_nothing_does_not_stop_the_search(tmp_path: Path, kind: str, pattern: str) -> None:
    assert found(kind, tmp_path, {".bidsignore": f"{pattern}\n", "b.nii": ""}) == ["b.nii"]


def test_a_bidsignore_that_is_no_file_is_a_problem(tmp_path: Path) -> None:
    with tree_of("folder", tmp_path, ["b.nii"]) as tree:
        os.mkfifo(tmp_path / "in" / ".bidsignore")
        assert [f.file.name for f in find_files(tree)] == ["b.nii"]
    ((file, error),) = tree.problems
    assert file.name == ".bidsignore"
    assert "a named pipe" in error.found


@both
def test_the_neighbours_of_a_file_are_known(tmp_path: Path, kind: str) -> None:
    with tree_of(kind, tmp_path, ["a/X.HDR", "a/x.img", "b/c"]) as tree:
        first = next(iter(find_files(tree)))
    assert first.neighbours == {"x.hdr", "x.img"}


def test_names_of_members_are_read_whatever_software_wrote_them(tmp_path: Path) -> None:
    files = ["windows\\a.nii", "/root/b.nii", "../outside/c.nii", "./here/d.nii", "windows\\.hidden\\e.nii"]
    assert len(found("zip", tmp_path, files)) == 4


def test_a_zip_with_a_thousand_nested_folders_is_walked(tmp_path: Path) -> None:
    assert len(found("zip", tmp_path, ["a/" * 3000 + "b.nii"])) == 1


def test_two_members_of_one_name_are_a_problem_of_the_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.nii", "1")
        archive.writestr("b.nii", "2")
    (tmp_path / "a.zip").write_bytes((tmp_path / "a.zip").read_bytes().replace(b"b.nii", b"a.nii"))
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        ((file, error),) = ZipTree(archive, tmp_path / "a.zip").problems
    assert file.path == tmp_path / "a.zip"
    assert "2 files with 1 names" in error.found


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    with tree_of("folder", tmp_path, ["a/b.nii"]) as tree:
        (tmp_path / "in" / "a" / "back").symlink_to(tmp_path / "in")
        (tmp_path / "in" / "loop").symlink_to("loop")
        assert [f.file.name for f in find_files(tree)] == ["loop", "b.nii"]


def test_a_folder_that_may_not_be_opened_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.scandir

    def scandir(path: str) -> Iterator[os.DirEntry[str]]:
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with tree_of("folder", tmp_path, ["secret/a.nii", "b.nii"]) as tree:
        assert [f.file.name for f in find_files(tree)] == ["b.nii"]
    ((file, error),) = tree.problems
    assert file.path.name == "secret"
    assert "no permission" in error.found
