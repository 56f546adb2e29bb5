"""Configs from files: dataclasses in, clear complaints out."""

from __future__ import annotations

import dataclasses
import json
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from rtg_env.errors import ConfigError

T = TypeVar("T")


def read_config_file(path: Path) -> dict[str, Any]:
    """The settings in a .toml or .json file.

    Raises:
        ConfigError: If it cannot be read or holds no table.
    """
    if path.suffix not in (".toml", ".json"):
        raise ConfigError(f"expected a config file that ends in .toml or .json, got {path.name!r}")
    try:
        text = path.read_text(encoding="utf-8")
        data = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except FileNotFoundError:
        raise ConfigError(f"expected a config file, {str(path)!r} does not exist") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"expected valid {path.suffix[1:].upper()} in {path}: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"expected a table of settings in {path}, got {type(data).__name__}")
    return data


def from_mapping(cls: type[T], data: Mapping[str, Any], where: str = "config", *, default: T | None = None) -> T:
    """Build a (nested) config dataclass; every key must be a field, every value of its type.

    Args:
        cls: The dataclass.
        data: Its settings; a table may name some of a nested config's.
        where: For errors.
        default: Has what is left out; none: the class's own defaults.

    Raises:
        ConfigError: Naming the setting, what was expected and what came.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]  # cls is a dataclass
    unknown = sorted(set(data) - set(fields))
    if unknown:
        raise ConfigError(
            f"{where}: expected settings among {', '.join(fields)}; got {unknown[0]!r}; correct or remove it"
        )
    hints = typing.get_type_hints(cls)
    kept = {name: getattr(default, name) for name, field in fields.items() if field.init} if default is not None else {}
    values = {
        name: _value(hints[name], value, f"{where}.{name}", kept.get(name, _default_of(fields[name])))
        for name, value in data.items()
    }
    try:
        return cls(**{**kept, **values})
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def to_mapping(config: object) -> dict[str, Any]:
    """A config dataclass as JSON data; `from_mapping` is its inverse."""
    return dataclasses.asdict(config)  # type: ignore[call-overload,no-any-return]  # config is a dataclass instance


def _default_of(field: dataclasses.Field[Any]) -> Any:
    """A field's default; None if it has none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _value(hint: Any, value: Any, where: str, default: Any) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: expected a table of settings, got {value!r}")
        return from_mapping(hint, value, where, default=default)
    if isinstance(hint, types.UnionType):
        if value is None and type(None) in hint.__args__:
            return None
        hint = next(arg for arg in hint.__args__ if arg is not type(None))
    if typing.get_origin(hint) is typing.Literal:
        return _choice(typing.get_args(hint), value, where)
    if typing.get_origin(hint) is tuple:
        return _numbers(value, where) if float in typing.get_args(hint) else _texts(value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and (not isinstance(value, hint) or (hint is not bool and isinstance(value, bool))):
        raise ConfigError(f"{where}: expected {hint.__name__}, got {value!r}")
    return value


def _choice(choices: tuple[Any, ...], value: Any, where: str) -> Any:
    if value not in choices:
        raise ConfigError(f"{where}: expected one of {choices}, got {value!r}")
    return value


def _texts(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise ConfigError(f"{where}: expected a list of texts, got {value!r}")
    return tuple(value)


def _numbers(value: Any, where: str) -> tuple[float, ...]:
    if not isinstance(value, list | tuple) or any(
        isinstance(item, bool) or not isinstance(item, int | float) for item in value
    ):
        raise ConfigError(f"{where}: expected a list of numbers, got {value!r}")
    return tuple(float(item) for item in value)
