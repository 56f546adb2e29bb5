"""Frozen dataclasses as JSON data and back, by their type hints: for figures that are stored and read again."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from typing import Any, TypeVar

from rtg_env.errors import RunError

T = TypeVar("T")


def to_record(value: object) -> dict[str, Any]:
    """A dataclass as JSON data."""
    return asdict(value)  # type: ignore[call-overload,no-any-return]  # a dataclass instance


def from_record(cls: type[T], data: Mapping[str, Any]) -> T:
    """Inverse of `to_record`, also after JSON made lists of tuples; understands nested dataclasses, tuples and None.

    A field with a default may be missing: an earlier release had nothing to say in it.

    Raises:
        RunError: If any other field is missing, or one is unknown: another release wrote it.
    """
    named = {field.name: field for field in fields(cls)}  # type: ignore[arg-type]  # a dataclass
    needed = {name for name, field in named.items() if field.default is MISSING and field.default_factory is MISSING}
    if odd := sorted((needed - set(data)) | (set(data) - set(named))):
        raise RunError(
            f"expected the fields of {cls.__name__}, {odd[0]!r} is missing or unknown; "
            "read it with the release that wrote it"
        )
    hints = typing.get_type_hints(cls)
    return cls(**{name: _value(hints[name], data[name]) for name in data})


def _value(hint: Any, value: Any) -> Any:
    if value is None:
        return None
    if isinstance(hint, types.UnionType):
        hint = next(part for part in hint.__args__ if part is not type(None))
    if isinstance(hint, type) and is_dataclass(hint):
        return from_record(hint, value)
    if typing.get_origin(hint) is tuple:
        parts = typing.get_args(hint)
        repeated = parts[:1] * len(value) if len(parts) == 2 and parts[1] is Ellipsis else parts
        return tuple(_value(part, item) for part, item in zip(repeated, value, strict=True))
    return value
