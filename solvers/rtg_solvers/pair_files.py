"""Preference pairs as JSONL, one pair a line: our own, and general ones from elsewhere.

`prompt`, `chosen` and `rejected` are texts, as TRL's trainers and most public preference sets have them. Our own lines also
hold `chosen_place` and `rejected_place` ([seed_id, attack_index, reply_index]; the last is null where the text is an attack)
and the unsafe shares; both are null for pairs from elsewhere. Other fields are left alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from rtg_env.errors import ConfigError
from rtg_env.jsonl import read_objects, text_field, write_objects
from rtg_solvers.pairs import PreferencePair
from rtg_solvers.tuples import Place


def write_pairs(path: Path, pairs: Iterable[PreferencePair]) -> int:
    """Write a pair file that is there whole or not at all.

    Returns:
        How many were written.

    Raises:
        RunError: If it cannot be written.
    """
    return write_objects(path, map(asdict, pairs))


def read_pairs(path: Path) -> list[PreferencePair]:
    """The pairs of a file, in order; an empty file has none.

    Raises:
        ConfigError: If the file cannot be read, or a line is broken; the message names the line, never its texts.
    """
    pairs = []
    for where, record in read_objects(path, what="a file of preference pairs (JSONL)"):
        pair = PreferencePair(
            prompt=text_field(record, "prompt", where),
            chosen=text_field(record, "chosen", where),
            rejected=text_field(record, "rejected", where),
            chosen_place=_place(record, "chosen_place", where),
            rejected_place=_place(record, "rejected_place", where),
            chosen_unsafe_share=_share(record, "chosen_unsafe_share", where),
            rejected_unsafe_share=_share(record, "rejected_unsafe_share", where),
        )
        if pair.chosen.strip() == pair.rejected.strip():
            raise ConfigError(f"{where}: expected chosen and rejected to differ, got equal texts; remove the line")
        pairs.append(pair)
    return pairs


def _place(record: Mapping[str, object], key: str, where: str) -> Place | None:
    value = record.get(key)
    if value is None:
        return None
    if (
        not isinstance(value, list)
        or len(value) != 3
        or not isinstance(value[0], str)
        or type(value[1]) is not int
        or not (value[2] is None or type(value[2]) is int)
    ):
        raise ConfigError(
            f"{where}: expected {key} to be [seed_id, attack_index, reply_index], got something else; remove it"
        )
    return Place(*value)


def _share(record: Mapping[str, object], key: str, where: str) -> float | None:
    value = record.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not 0 <= value <= 1:
        raise ConfigError(f"{where}: expected {key} to be a share in [0, 1], got something else; remove it")
    return float(value)
