from __future__ import annotations

from pathlib import Path

import pytest

from anomaly.bundle import shipped
from anomaly.bundle.shipped import find_model, is_shipped, refuse_to_change, shipped_models
from anomaly.core.errors import BundleError


@pytest.fixture
def pretrained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with the models ``default`` and ``large``; the current folder is another, empty one."""
    folder = tmp_path / "package" / "pretrained"
    for name in ("default", "large"):
        (folder / name).mkdir(parents=True)
        (folder / name / "metadata.json").write_text("{}", encoding="utf-8")
    (folder / "notes").mkdir()
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(shipped, "PRETRAINED", folder)
    return folder


def test_the_shipped_models_are_the_folders_with_a_model(pretrained: Path) -> None:
    assert shipped_models() == {name: pretrained / name for name in ("default", "large")}


def test_without_a_folder_of_models_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "PRETRAINED", tmp_path / "none")
    assert shipped_models() == {}
    assert find_model("default") == Path("default")


@pytest.mark.parametrize("name", ["default", Path("default")])
def test_a_name_is_the_folder_of_the_shipped_model(pretrained: Path, name: str | Path) -> None:
    assert find_model(name) == pretrained / "default"


@pytest.mark.parametrize(
    "path", ["model", "notes", "models/default", "/models/default", "metadata.json", "../here"]
)
def test_any_other_path_stays_as_it_is(pretrained: Path, path: str) -> None:
    assert find_model(path) == Path(path)


def test_a_name_that_is_also_a_folder_here_is_refused_with_both_paths(pretrained: Path) -> None:
    Path("default").mkdir()
    with pytest.raises(BundleError, match="found two models called default") as error:
        find_model("default")
    assert str(Path("default").resolve()) in str(error.value)
    assert str(pretrained / "default") in str(error.value)
    assert find_model(Path("default").resolve()) == Path("default").resolve()
    assert find_model("large") == pretrained / "large"


def test_only_a_shipped_model_is_not_to_be_changed(pretrained: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(pretrained / "default")
    for folder in (pretrained / "default", tmp_path / "link"):
        assert is_shipped(folder)
        with pytest.raises(BundleError, match=r"comes with anomaly and is never changed; .* --output"):
            refuse_to_change(folder)
    assert not is_shipped(tmp_path / "model")
    refuse_to_change(tmp_path / "model")
