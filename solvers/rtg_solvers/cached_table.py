"""Replies of a real model, judged and written down: a dialogue game small enough to be solved exactly.

Red chooses among tactics, blue among system prompts, and chance draws the goal and, for every reply, one of a few seeds
that the model samples with (the seed as chance: Gemp et al. 2024, arXiv:2402.01704). Then a dialogue is a path
(goal; tactic, prompt, seed; tactic, prompt, seed; ..), and the game is the table of what was said on each path and what
the judge made of it. The table holds hashes and numbers, none of the model's text.

    table = CachedTable.read(path)      # `cached_dialogue` solves it, `cached_play` plays it in the environment
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple

from rtg_env.errors import ConfigError
from rtg_env.files import write_text

_SCHEMA_VERSION: Final = 1
_HASH_CHARS: Final = 12
_DIGITS: Final = 9
"""Of the judge's numbers: less than what two machines agree on, more than any figure needs."""


class Choice(NamedTuple):
    """What one side or chance may pick at one place, by name: a tactic's template, a system prompt."""

    name: str
    """Unique among its kind."""

    text: str
    """Template or system prompt."""


class Reply(NamedTuple):
    """The last exchange of a path."""

    sentence: str
    """Hash of what red or nature said."""

    reply: str
    """Hash of what the model answered; equal answers have equal hashes."""

    harm: float
    """What the judge made of it, in [0, 1]."""

    refusal: float
    """The same."""

    helpful: float
    """The same."""


Choices = tuple[int, ...]
"""A path: the goal, then tactic (0 where nature speaks), prompt and seed of each exchange so far."""


class CachedGoal(NamedTuple):
    """What chance may draw first."""

    id: str
    """In the goal set that was played."""

    harmful: bool
    """Whether red speaks."""


@dataclass(frozen=True, kw_only=True)
class CachedTable:
    """A game as a table."""

    num_exchanges: int
    """T."""

    benign_prob: float
    """Chance of a benign goal, in [0, 1); goals of one kind are equally likely."""

    helpfulness_weight: float
    """c: what an unhelpful answer to a benign request costs blue."""

    goals: tuple[CachedGoal, ...]
    """At least one harmful one; a benign one if `benign_prob` is above 0."""

    tactics: tuple[tuple[Choice, ...], ...]
    """[T] red's choices in each exchange."""

    prompts: tuple[Choice, ...]
    """Blue's choices in every exchange."""

    num_seeds: int
    """S; seeds are equally likely."""

    rows: Mapping[Choices, Reply] = field(repr=False)
    """Of every path of 1 to T exchanges."""

    source: Mapping[str, Any] = field(default_factory=dict)
    """Where the replies come from: model, fingerprint, sampling, judge."""

    def __post_init__(self) -> None:
        """Refuse tables with holes, and verdicts that depend on more than players can see."""
        if not self.harmful or (self.benign_prob > 0) != bool(self.benign):
            raise ConfigError(
                f"expected harmful goals, and benign ones if and only if benign_prob > 0, got {len(self.harmful)}, "
                f"{len(self.benign)} and {self.benign_prob!r}"
            )
        if missing := [path for path in self.paths() if path not in self.rows]:
            raise ConfigError(
                f"expected a reply for every path of 1 to {self.num_exchanges} exchanges, {len(missing)} are missing, "
                f"the first is {missing[0]}; build the table again"
            )
        self._check_sentences()

    def _check_sentences(self) -> None:
        """What is said follows from what was heard, so that equal hashes mean equal information."""
        told: dict[tuple[object, ...], object] = {}
        for path in self.paths():
            row, (*before, tactic, prompt, seed) = self.rows[path], path
            heard = self.said(tuple(before))
            facts: list[tuple[tuple[object, ...], object]] = [
                (("sentence", path[0], heard, tactic), row.sentence),
                (("reply", heard, row.sentence, prompt, seed), row.reply),
                (("verdict", path[0], row.sentence, row.reply), row[2:]),
            ]
            for key, value in facts:
                if told.setdefault(key, value) != value:
                    raise ConfigError(
                        f"expected one {key[0]} for what was chosen and heard on {path}, got {told[key]} and {value}"
                    )

    @cached_property
    def harmful(self) -> tuple[int, ...]:
        """Indices of goals that red plays."""
        return tuple(index for index, goal in enumerate(self.goals) if goal.harmful)

    @cached_property
    def benign(self) -> tuple[int, ...]:
        """Indices of goals that nature plays."""
        return tuple(index for index, goal in enumerate(self.goals) if not goal.harmful)

    def goal_prob(self, goal: int) -> float:
        """That chance draws this goal."""
        if self.goals[goal].harmful:
            return (1.0 - self.benign_prob) / len(self.harmful)
        return self.benign_prob / len(self.benign)

    def num_tactics(self, goal: int, turn: int) -> int:
        """Choices of whoever speaks first in an exchange: nature has one."""
        return len(self.tactics[turn]) if self.goals[goal].harmful else 1

    def paths(self) -> list[Choices]:
        """Every path of 1 to T exchanges, shorter ones first."""
        found: list[Choices] = []
        ends: list[Choices] = [(goal,) for goal in range(len(self.goals))]
        for turn in range(self.num_exchanges):
            ends = [
                (*path, tactic, prompt, seed)
                for path in ends
                for tactic in range(self.num_tactics(path[0], turn))
                for prompt in range(len(self.prompts))
                for seed in range(self.num_seeds)
            ]
            found += ends
        return found

    def said(self, path: Choices) -> tuple[str, ...]:
        """Hashes of all that was said on a path, in order."""
        replies = [self.rows[path[:end]] for end in range(4, len(path) + 1, 3)]
        return tuple(text for row in replies for text in (row.sentence, row.reply))

    def sentence(self, path: Choices, tactic: int) -> str:
        """Hash of what a tactic says after a path."""
        return self.rows[(*path, tactic, 0, 0)].sentence

    def utility(self, path: Choices) -> float:
        """u_red of what was said so far: the worst exchange counts."""
        rows = [self.rows[path[:end]] for end in range(4, len(path) + 1, 3)]
        if self.goals[path[0]].harmful:
            return max((row.harm for row in rows), default=0.0)
        return max((self.helpfulness_weight * (1.0 - row.helpful) for row in rows), default=0.0)

    @cached_property
    def digest(self) -> str:
        """Hash of the whole table."""
        return text_hash(json.dumps(self._record()))

    def write(self, path: Path) -> None:
        """Write the table as JSON, one row a line; `read` is its inverse."""
        record = self._record()
        rows = record.pop("rows")
        head = json.dumps(record, indent=1)[:-2]
        write_text(path, head + ',\n "rows": [\n' + ",\n".join(json.dumps(row) for row in rows) + "\n ]\n}\n")

    @classmethod
    def read(cls, path: Path) -> CachedTable:
        """A table from its file.

        Raises:
            ConfigError: If the file is no such table, or has holes.
        """
        try:
            record = json.loads(path.read_text("utf-8"))
            if record["schema_version"] != _SCHEMA_VERSION:
                raise ValueError(f"schema version {record['schema_version']}")
            return cls(
                num_exchanges=record["num_exchanges"],
                benign_prob=record["benign_prob"],
                helpfulness_weight=record["helpfulness_weight"],
                goals=tuple(CachedGoal(*goal) for goal in record["goals"]),
                tactics=tuple(tuple(Choice(*tactic) for tactic in turn) for turn in record["tactics"]),
                prompts=tuple(Choice(*prompt) for prompt in record["prompts"]),
                num_seeds=record["num_seeds"],
                rows={tuple(where): Reply(*row) for where, *row in record["rows"]},
                source=record["source"],
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"expected a table of judged replies in {path}, got {error!r}; build it again") from error

    def _record(self) -> dict[str, Any]:
        return {
            "schema_version": _SCHEMA_VERSION,
            "source": dict(self.source),
            "num_exchanges": self.num_exchanges,
            "benign_prob": self.benign_prob,
            "helpfulness_weight": self.helpfulness_weight,
            "goals": [list(goal) for goal in self.goals],
            "tactics": [[list(tactic) for tactic in turn] for turn in self.tactics],
            "prompts": [list(prompt) for prompt in self.prompts],
            "num_seeds": self.num_seeds,
            "rows": [[list(path), *self.rows[path]] for path in self.paths()],
        }


def text_hash(text: str) -> str:
    """What stands for a sentence: equal if and only if the text is."""
    return hashlib.sha256(text.encode()).hexdigest()[:_HASH_CHARS]


def rounded(numbers: Sequence[float]) -> tuple[float, ...]:
    """A judge's numbers as a table holds them."""
    return tuple(round(number, _DIGITS) for number in numbers)
