"""Settings classes: validated, immutable values that are read from YAML files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from anomaly.core.errors import ConfigError, unknown_name

EXTENDS = "extends"
"""The key that names another configuration, whose values are the defaults of this one."""

REPLACED_WHOLE = frozenset({"maps", "structure_maps", "sd_floor"})
"""Mappings with arbitrary keys: they are replaced and not merged, so that a file can also remove keys."""


class Settings(BaseModel):
    """Base of all settings classes: immutable; an unknown key is an error that lists the valid keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, protected_namespaces=())

    @classmethod
    def parse(cls, values: Any, where: str) -> Self:
        """Check ``values`` against this class.

        Raises
        ------
        ConfigError
            The message names ``where``, each invalid key, its value and what is valid.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(f"{where}: " + "; ".join(_explain(cls, e) for e in error.errors())) from error


def load_yaml(path: Path) -> Any:
    """Read a YAML file.

    Raises
    ------
    ConfigError
        The file does not exist or is not valid YAML.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"no configuration at {path}; give a shipped name or the path of a YAML file") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error


def load_extended_yaml(path: Path, shipped: Mapping[str, Path]) -> Any:
    """Read a YAML file and the configurations that it extends.

    ``extends: dae`` at the top of a file means: use the values of ``dae`` for keys that this file does not set.
    Mappings are merged key by key; lists and single values are replaced, and so are the mappings of
    :data:`REPLACED_WHOLE`. The extended file may itself extend another one.

    Parameters
    ----------
    path
        The YAML file.
    shipped
        Name → path of the configurations that can be extended by name. Other values are paths relative to the
        folder of the file.

    Raises
    ------
    ConfigError
        A file cannot be read, or a configuration extends itself.
    """
    return resolve_extends(load_yaml(path), path, shipped)


def resolve_extends(values: Any, path: Path, shipped: Mapping[str, Path], seen: tuple[Path, ...] = ()) -> Any:
    """Merge ``values``, read from ``path``, into the values of the configuration that they extend.

    Parameters
    ----------
    shipped
        Name → path of the configurations that can be extended by name.
    seen
        The files that led here by extending each other, outermost first.
    """
    if path.resolve() in seen:
        chain = " → ".join(file.name for file in (*seen, path))
        raise ConfigError(f"{path}: a configuration must not extend itself, found {chain}")
    if not isinstance(values, dict) or EXTENDS not in values:
        return values
    parent = _extended_path(values[EXTENDS], path, shipped)
    base = resolve_extends(load_yaml(parent), parent, shipped, (*seen, path.resolve()))
    if not isinstance(base, dict):
        raise ConfigError(f"{parent}: found no keys; {path} extends it")
    return merge(base, {key: value for key, value in values.items() if key != EXTENDS})


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` updated recursively with ``changes``; the arguments are not modified."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(base.get(key), Mapping) and key not in REPLACED_WHOLE
        merged[key] = merge(base[key], value) if both else value
    return merged


def _extended_path(name: Any, path: Path, shipped: Mapping[str, Path]) -> Path:
    if not isinstance(name, str):
        raise ConfigError(f"{path}: extends: found {name!r}; expected a shipped name or the path of a YAML file")
    if Path(name).suffix in {".yaml", ".yml"}:
        return path.parent / name
    if name not in shipped:
        raise ConfigError(f"{path}: " + unknown_name(EXTENDS, name, list(shipped)) + ", or a path to a .yaml")
    return shipped[name]


def dump_yaml(settings: BaseModel) -> str:
    """Write all settings as YAML text, including defaults, in the order of declaration."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def annotated_yaml(settings: BaseModel, sections: Mapping[str, BaseModel] | None = None) -> str:
    """Write all settings as YAML text, with the description of each key as a comment.

    Parameters
    ----------
    sections
        Field name → settings to write instead of a field that is a plain mapping.
    """
    return "\n".join(_annotated_lines(settings, "", sections or {})) + "\n"


def description_of(cls: type[BaseModel], name: str) -> str:
    """Return the description of a field, or of the field that it overrides; ``""`` if neither has one."""
    fields = (base.model_fields.get(name) for base in cls.__mro__ if issubclass(base, BaseModel))
    return next((field.description for field in fields if field is not None and field.description), "")


def _annotated_lines(settings: BaseModel, indent: str, sections: Mapping[str, BaseModel]) -> Iterator[str]:
    values = settings.model_dump(mode="json")
    for name in type(settings).model_fields:
        description = description_of(type(settings), name)
        comment = f"  # {description}" if description else ""
        section = sections.get(name, getattr(settings, name))
        if isinstance(section, BaseModel):
            yield f"{indent}{name}:{comment}"
            yield from _annotated_lines(section, indent + "  ", {})
        else:
            yield f"{indent}{name}: {_one_line(values[name])}{comment}"


def _one_line(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=2**16)
    return text.removesuffix("...\n").strip()


def _explain(cls: type[BaseModel], error: Any) -> str:
    location = ".".join(str(part) for part in error["loc"]) or "(top level)"
    if error["type"] == "extra_forbidden":
        valid = ", ".join(sorted(_fields_at(cls, error["loc"][:-1])))
        return f"unknown key {location!r}" + (f"; valid keys there: {valid}" if valid else "")
    if error["type"] == "missing":
        return f"missing key {location!r}"
    return f"{location}: {error['msg']}, found {error['input']!r}"


def _fields_at(cls: type[BaseModel], location: tuple[str | int, ...]) -> list[str]:
    fields = cls.model_fields
    for part in location:
        annotation = fields[part].annotation if isinstance(part, str) and part in fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        fields = annotation.model_fields
    return list(fields)
