"""General preference pairs and instructions that ship with the package: mild everyday requests, sentences of our own.

SEAS mixes general pairs among the target's own, so that it stays able to help. The paper's are thousands from public sets;
these are a few dozen, enough to run offline and to see whether ability is lost on the held-out requests. Bring a larger set
with `pair_files.read_pairs`. `scripts/make_general_pairs.py` writes both files.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import cast

from rtg_env.errors import ConfigError
from rtg_env.goals import Split
from rtg_env.jsonl import Line, read_objects, text_field
from rtg_solvers.pair_files import read_pairs
from rtg_solvers.pairs import PreferencePair


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """A request with a helpful answer: a row of supervised training, or what perplexity is measured on."""

    prompt: str
    """What is read; masked in training."""

    completion: str
    """What is to be said."""

    topic: str
    """Such as cooking."""

    split: Split
    """Requests of the held-out half stand in no general pair."""


def builtin_general_pairs() -> list[PreferencePair]:
    """77 pairs: a helpful answer over a wrong, unrelated, rambling, unfinished or empty one, an echo, or a needless refusal."""
    with resources.as_file(resources.files("rtg_solvers").joinpath("data", "general_pairs.jsonl")) as path:
        return read_pairs(path)


def builtin_instructions(split: Split | None = None) -> list[Instruction]:
    """99 requests with answers; of one half (77 train, 22 held out), or all."""
    with resources.as_file(resources.files("rtg_solvers").joinpath("data", "instructions.jsonl")) as path:
        rows = read_instructions(path)
    return [row for row in rows if split in (None, row.split)]


def instructions_of(source: str, split: Split | None = None) -> list[Instruction]:
    """Instructions by name: `builtin`, or a file as `read_instructions` reads it; of one half, or all.

    Raises:
        ConfigError: If the file cannot be read or is broken, or has none of that half.
    """
    if source == "builtin":
        return builtin_instructions(split)
    rows = [row for row in read_instructions(Path(source)) if split in (None, row.split)]
    if not rows:
        raise ConfigError(f"expected instructions of the {split} half in {source}, there is none; add some")
    return rows


def read_instructions(path: Path) -> list[Instruction]:
    """The instructions of a file: one object a line with `prompt`, `completion`, `topic` and `split` (train or heldout).

    Raises:
        ConfigError: If it cannot be read or a line is broken; the message names the line.
    """
    return [_instruction(line) for line in read_objects(path, what="a file of instructions (JSONL)")]


def _instruction(line: Line) -> Instruction:
    where, record = line
    prompt, completion, topic, split = (
        text_field(record, key, where) for key in ("prompt", "completion", "topic", "split")
    )
    if split not in ("train", "heldout"):
        raise ConfigError(f"{where}: expected the split 'train' or 'heldout', got {split!r}; write the file again")
    return Instruction(prompt=prompt, completion=completion, topic=topic, split=cast("Split", split))
