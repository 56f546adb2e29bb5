"""Spaces for text: gymnasium's `Text` checks every character against a short alphabet; ours checks the length."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from rtg_env.errors import ConfigError
from rtg_env.goals import MAX_GOAL_CHARS
from rtg_env.rules import GameConfig
from rtg_env.types import BLUE_AGENT, MAX_REASONING_CHARS

_SAMPLE_CHARS = "abcdefghijklmnopqrstuvwxyz ,.!?é"
_UNKNOWN = "\ufffd"


class UnicodeText(spaces.Text):
    """Any string of at most `max_length` code points.

    `gymnasium.spaces.Text` excludes blanks by default and walks over every character in `contains`; here
    `contains` is a type and a length check. Samples are short lower-case noise. Stays a `Text`, so that
    gymnasium's batching and flattening know it; characters outside the sample alphabet flatten to U+FFFD.
    """

    def __init__(self, max_length: int, *, min_length: int = 0, seed: int | np.random.Generator | None = None) -> None:
        if max_length < 1 or not 0 <= min_length <= max_length:
            raise ConfigError(
                f"expected 0 <= min_length <= max_length and max_length >= 1, got {min_length}, {max_length}"
            )
        super().__init__(max_length, min_length=min_length, charset=_SAMPLE_CHARS + _UNKNOWN, seed=seed)

    def contains(self, x: Any) -> bool:
        """Whether x is text within the length limits."""
        return isinstance(x, str) and self.min_length <= len(x) <= self.max_length

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """Noise of at most 24 characters, or of `min_length` if that is more; masks and probabilities are ignored."""
        low = max(1, self.min_length)
        length = int(self.np_random.integers(low, max(low, min(24, self.max_length)) + 1))
        return "".join(_SAMPLE_CHARS[i] for i in self.np_random.integers(len(_SAMPLE_CHARS), size=length))

    def character_index(self, char: str) -> np.int32:
        """Index for flattening; every unknown character shares one."""
        return super().character_index(char if char in self.character_set else _UNKNOWN)

    def __repr__(self) -> str:
        """Short: the alphabet is of no interest."""
        return f"UnicodeText({self.min_length}, {self.max_length})"

    def __eq__(self, other: object) -> bool:
        """Equal limits."""
        return isinstance(other, UnicodeText) and (self.min_length, self.max_length) == (
            other.min_length,
            other.max_length,
        )

    __hash__ = None  # type: ignore[assignment]  # spaces are mutable (they hold a generator), as in gymnasium


def messages_space(max_chars: int) -> spaces.Sequence:
    """The public dialogue: a tuple of {"role", "content"}."""
    message = spaces.Dict({"role": UnicodeText(9), "content": UnicodeText(max_chars)})
    return spaces.Sequence(message)


def observation_space_of(config: GameConfig, agent: str) -> spaces.Dict:
    """What one agent sees: the public dialogue, and its own private part."""
    prompt = UnicodeText(max(MAX_GOAL_CHARS, len(config.blue_system_prompt)))
    private: dict[str, spaces.Space[Any]] = {"system_prompt": prompt}
    if agent != BLUE_AGENT:
        thought = UnicodeText(MAX_REASONING_CHARS)
        private = {"goal": UnicodeText(MAX_GOAL_CHARS), "reasoning": spaces.Sequence(thought)}
    turn = spaces.Discrete(config.num_exchanges + 1)
    return spaces.Dict({"messages": messages_space(config.max_action_chars), "turn": turn, **private})
