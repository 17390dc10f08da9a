from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from anomaly.core.config import Settings, dump_yaml, load_yaml
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


def test_a_file_that_is_not_there_or_not_yaml_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1")

    with pytest.raises(ConfigError, match="no configuration at"):
        load_yaml(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"broken\.yaml is not valid YAML"):
        load_yaml(broken)
