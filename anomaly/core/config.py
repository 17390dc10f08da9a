"""Settings: YAML in, checked and frozen values out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from anomaly.core.errors import ConfigError


class Settings(BaseModel):
    """Base of every settings class: frozen, and an unknown key is an error that lists the valid ones."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, protected_namespaces=())

    @classmethod
    def parse(cls, values: Any, where: str) -> Self:
        """Check ``values`` against this class.

        Raises
        ------
        ConfigError
            Naming ``where``, each wrong key, what was found and what is valid.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(f"{where}: " + "; ".join(_explain(cls, e) for e in error.errors())) from error


def load_yaml(path: Path) -> Any:
    """Read a YAML file, naming the file if it cannot be read."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"no configuration at {path}; give a shipped name or the path of a YAML file") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error


def dump_yaml(settings: BaseModel) -> str:
    """Return the settings as YAML text, complete (defaults included) and in declared order."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


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
