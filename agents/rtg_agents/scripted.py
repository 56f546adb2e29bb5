"""Policies without a model: the untrained attackers, and doubles for tests and examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from rtg_env.errors import ConfigError
from rtg_env.tactics import TACTICS
from rtg_env.types import Action, Observation

ATTACK_TEMPLATES: Final = tuple(tactic.template for tactic in TACTICS if tactic.first_turn == 0)
"""Mild, well-known openings; `{goal}` is replaced by the goal's text."""


def longest_filled(goal: str) -> int:
    """Length of the longest sentence that the templates make of a goal."""
    return max(len(template.replace("{goal}", goal)) for template in ATTACK_TEMPLATES)


_WORDS: Final = ("a", "and", "blue", "game", "in", "is", "it", "no", "of", "red", "the", "to", "word", "yes")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedPolicy:
    """Says the same sentences in every dialogue, one per turn; the last one again if a dialogue is longer."""

    name: str
    """Version name."""

    lines: tuple[str, ...]
    """What it says in turn 0, 1, .."""

    def __post_init__(self) -> None:
        """Refuse a script without lines."""
        if not self.lines:
            raise ConfigError(f"expected at least one line for {self.name}, got none")

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[Action]:
        """The line of each observation's turn."""
        del seeds
        return [Action(text=self.lines[min(o.turn, len(self.lines) - 1)], policy=self.name) for o in observations]


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomPolicy:
    """Says a few random words."""

    name: str = "random"
    """Version name."""

    words: tuple[str, ...] = _WORDS
    """What it draws from."""

    max_words: int = 8
    """Longest sentence."""

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[Action]:
        """Between 1 and `max_words` words per observation, decided by its seed."""
        return [
            Action(text=self._say(np.random.default_rng(seed)), policy=self.name) for seed in seeds[: len(observations)]
        ]

    def _say(self, rng: np.random.Generator) -> str:
        return " ".join(rng.choice(self.words, size=int(rng.integers(1, self.max_words + 1))))


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplatePolicy:
    """Red without a model: puts the goal into one of several templates.

    With the one template `{goal}` it is the plain attacker that just asks.
    """

    name: str = "templates"
    """Version name."""

    templates: tuple[str, ...] = field(default=ATTACK_TEMPLATES)
    """Each holds `{goal}`; the seed chooses."""

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[Action]:
        """One filled template per observation."""
        return [Action(text=self._fill(o, seed), policy=self.name) for o, seed in zip(observations, seeds, strict=True)]

    def _fill(self, observation: Observation, seed: int) -> str:
        if observation.goal is None:
            raise ConfigError(f"expected {self.name} to play red, it was asked to speak as {observation.agent_id}")
        index = int(np.random.default_rng(seed).integers(len(self.templates)))
        return self.templates[index].replace("{goal}", observation.goal.text)


def plain_attacker(name: str = "plain") -> TemplatePolicy:
    """Red that asks for its goal in so many words."""
    return TemplatePolicy(name=name, templates=("{goal}",))
