from pathlib import Path

import pytest
import yaml
from pydantic import Field, ValidationError

from anomaly.core.config import (
    Settings,
    annotated_yaml,
    description_of,
    dump_yaml,
    load_extended_yaml,
    load_yaml,
    merge,
)
from anomaly.core.errors import ConfigError


class Inner(Settings):
    width: int = 3


class Outer(Settings):
    name: str
    inner: Inner = Inner()


def test_an_unknown_key_is_refused_with_the_valid_ones_listed() -> None:
    with pytest.raises(ConfigError, match=r"my\.yaml: unknown key 'colour'; valid keys there: inner, name"):
        Outer.parse({"name": "a", "colour": 1}, "my.yaml")


def test_an_unknown_key_deep_inside_is_named_with_its_path() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'inner\.hight'; valid keys there: width"):
        Outer.parse({"name": "a", "inner": {"hight": 1}}, "my.yaml")


def test_a_wrong_value_is_shown() -> None:
    with pytest.raises(ConfigError, match=r"inner\.width.*found 'wide'"):
        Outer.parse({"name": "a", "inner": {"width": "wide"}}, "my.yaml")


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match="missing key 'name'"):
        Outer.parse({}, "my.yaml")


def test_settings_are_frozen() -> None:
    settings = Outer(name="a")

    with pytest.raises(ValidationError):
        settings.name = "b"


def test_settings_written_as_yaml_read_back_equal() -> None:
    settings = Outer(name="a", inner=Inner(width=5))

    assert Outer.parse(yaml.safe_load(dump_yaml(settings)), "dumped") == settings


def test_a_file_that_is_missing_or_not_yaml_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1")

    with pytest.raises(ConfigError, match="no configuration at"):
        load_yaml(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"broken\.yaml is not valid YAML"):
        load_yaml(broken)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_that_extends_another_says_only_what_differs(tmp_path: Path) -> None:
    base = write(tmp_path / "base.yaml", "a: 1\nb: {c: 2, d: [1, 2]}\n")
    path = write(tmp_path / "small.yaml", "extends: base\nb: {d: [3]}\n")
    assert load_extended_yaml(path, {"base": base}) == {"a": 1, "b": {"c": 2, "d": [3]}}


def test_a_file_extends_one_that_extends_another_by_a_relative_path(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    write(tmp_path / "one.yaml", "a: 1\nb: 1\nc: 1\n")
    write(tmp_path / "two.yaml", "extends: one.yaml\nb: 2\nc: 2\n")
    three = write(tmp_path / "inner" / "three.yaml", "extends: ../two.yaml\nc: 3\n")
    assert load_extended_yaml(three, {}) == {"a": 1, "b": 2, "c": 3}


@pytest.mark.parametrize("key", ["maps", "sd_floor"])
def test_the_maps_of_a_base_are_replaced_and_not_added_to(key: str) -> None:
    assert merge({key: {"residual": 1.0, "pca": 1.0}}, {key: {"pca": 2.0}}) == {key: {"pca": 2.0}}


def test_merging_alters_neither_argument() -> None:
    base, changes = {"a": {"b": 1}}, {"a": {"c": 2}}
    assert merge(base, changes) == {"a": {"b": 1, "c": 2}}
    assert (base, changes) == ({"a": {"b": 1}}, {"a": {"c": 2}})


def test_a_config_that_extends_itself_is_refused_with_the_files_by_name(tmp_path: Path) -> None:
    write(tmp_path / "one.yaml", "extends: two.yaml\n")
    write(tmp_path / "two.yaml", "extends: one.yaml\n")
    with pytest.raises(ConfigError, match=r"one\.yaml → two\.yaml → one\.yaml"):
        load_extended_yaml(tmp_path / "one.yaml", {})


@pytest.mark.parametrize(
    ("text", "message"),
    [("extends: bsae\n", "base"), ("extends: 3\n", "found 3"), ("extends: none.yaml\n", "no configuration at")],
)
def test_an_extended_config_that_is_missing_is_named(tmp_path: Path, text: str, message: str) -> None:
    base = write(tmp_path / "base.yaml", "a: 1\n")
    with pytest.raises(ConfigError, match=message):
        load_extended_yaml(write(tmp_path / "x.yaml", text), {"base": base})


def test_a_base_without_keys_is_refused(tmp_path: Path) -> None:
    base = write(tmp_path / "base.yaml", "- 1\n")
    with pytest.raises(ConfigError, match="found no keys"):
        load_extended_yaml(write(tmp_path / "x.yaml", "extends: base\n"), {"base": base})


class Box(Settings):
    size: int = Field(default=2, description="edge of the cube, voxels")


class Described(Settings):
    text: str = Field(default="a: b # c", description="any text")
    box: Box = Field(default=Box(), description="a section")


class SmallBox(Box):
    size: int = 3


def test_annotated_yaml_has_every_key_with_its_description() -> None:
    text = annotated_yaml(Described())
    assert yaml.safe_load(text) == Described().model_dump()
    assert "  size: 2  # edge of the cube, voxels\n" in text


def test_a_field_that_overrides_another_keeps_its_description() -> None:
    assert description_of(SmallBox, "size") == "edge of the cube, voxels"
