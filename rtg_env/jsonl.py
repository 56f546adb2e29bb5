"""JSON files, one object a line. What others wrote is read one line at a time, and nothing about a line is taken on trust.

Messages name file and line and say what is wrong, but never quote the line: it may hold text that must not reach a terminal.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

from rtg_env.errors import ConfigError
from rtg_env.files import whole_file
from rtg_env.text import well_formed

MAX_LINE_BYTES: Final = 4_000_000
"""Longest line that is read; a longer one is refused before it is in memory."""


class Line(NamedTuple):
    """One object of a file."""

    where: str
    """File and line, for messages."""

    record: dict[str, object]
    """As decoded; values of any type that JSON has."""


def unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object whose keys differ, as `object_pairs_hook`; json would silently keep the last of two.

    Raises:
        ValueError: If a key stands twice.
    """
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)[:40]!r} stands twice")
    return record


def write_objects(path: Path, records: Iterable[Mapping[str, object]]) -> int:
    """Write a file that is there whole or not at all, one object a line; what stood there before is replaced.

    Returns:
        How many were written.

    Raises:
        RunError: If it cannot be written.
    """
    count = 0
    with whole_file(path) as file:
        for record in records:
            # ASCII only: no reader can take U+2028 or the like for the end of a line.
            file.write(json.dumps(record).encode("ascii") + b"\n")
            count += 1
    return count


def read_objects(path: Path, *, what: str, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[Line]:
    """The objects of a file in order; blank lines are skipped.

    Args:
        path: The file.
        what: What it should be, for messages: "a tuple log".
        max_line_bytes: Longest line.

    Raises:
        ConfigError: If the file cannot be read, or a line is too long, not UTF-8, no JSON (NaN and Infinity are none), no
            object, or an object with a key twice.
    """
    try:
        with path.open("rb") as file:
            number = 0
            while raw := file.readline(max_line_bytes + 1):
                number += 1
                where = f"{path.name} line {number}"
                if len(raw) > max_line_bytes and not raw.endswith(b"\n"):
                    raise ConfigError(
                        f"{where}: expected at most {max_line_bytes} bytes, got more; is this {what}, one object a line?"
                    )
                if raw.strip():
                    yield Line(where, _decoded(raw, where))
    except OSError as error:
        raise ConfigError(f"expected {what} that can be read, got {str(path)!r}: {error.strerror}") from None


def text_field(record: Mapping[str, object], key: str, where: str, default: str | None = None) -> str:
    """The text under a key, lone surrogates replaced; the default if the key is missing or null.

    Raises:
        ConfigError: If something else stands there, or nothing does and there is no default.
    """
    value = record.get(key)
    if value is None:
        value = default
    if value is None:
        raise ConfigError(f"{where}: expected the field {key!r}, it is missing; add it")
    if not isinstance(value, str):
        raise ConfigError(f"{where}: expected text under {key!r}, got {type(value).__name__}; write it as a string")
    return well_formed(value)


def _decoded(raw: bytes, where: str) -> dict[str, object]:
    try:
        text = raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{where}: expected UTF-8, got a byte that is none ({error.reason}); convert the file"
        ) from None
    try:
        record = json.loads(text, object_pairs_hook=unique_keys, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{where}: expected one whole JSON object, got none ({error.msg}, column {error.colno}); "
            "mend or remove the line"
        ) from None
    except (ValueError, RecursionError) as error:  # two equal keys, a number without end, or nested without end
        raise ConfigError(f"{where}: expected one plain JSON object: {error}; mend or remove the line") from None
    if not isinstance(record, dict):
        raise ConfigError(f"{where}: expected one JSON object a line, got {type(record).__name__}; put it into {{}}")
    return record


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
