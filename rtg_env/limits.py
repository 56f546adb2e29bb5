"""Limits from outside the game: when a caller's patience ends, the dialogue is truncated.

Budgets in tokens are rules of the game (`GameConfig.red_tokens`), and who has spent one goes on without a word. A limit
on calls or on time is none: it ends the dialogue in the middle, which pays what was paid so far and has no utility.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from rtg_env.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When a dialogue is truncated."""

    calls: int | None = None
    """Sentences that agents may say in one dialogue (a model call each), at least 1; None for no limit."""

    seconds: float | None = None
    """Time from the deal on, above 0; None for no limit. What it cuts differs from run to run."""

    clock: Callable[[], float] = time.monotonic
    """Tells the time in seconds."""

    def __post_init__(self) -> None:
        """Refuse settings outside their range."""
        if self.calls is not None and (
            isinstance(self.calls, bool) or not isinstance(self.calls, int) or self.calls < 1
        ):
            raise ConfigError(f"calls must be None or a whole number >= 1, got {self.calls!r}")
        if self.seconds is not None and (
            isinstance(self.seconds, bool) or not isinstance(self.seconds, int | float) or not self.seconds > 0
        ):
            raise ConfigError(f"seconds must be None or a number > 0, got {self.seconds!r}")
        if not callable(self.clock):
            raise ConfigError(f"clock must be a function that tells the time in seconds, got {self.clock!r}")

    def begin(self) -> float:
        """The time of a deal, for `reached`."""
        return 0.0 if self.seconds is None else self.clock()

    def reached(self, calls: int, begun: float) -> bool:
        """Whether a dialogue that goes on must stop here.

        Args:
            calls: Sentences that agents have said in it.
            begun: What `begin` returned when it was dealt.
        """
        if self.calls is not None and calls >= self.calls:
            return True
        return self.seconds is not None and self.clock() - begun >= self.seconds


def given_limits(limits: Limits | None) -> Limits:
    """The limits that a caller gave; none at all for None.

    Raises:
        ConfigError: If they are something else.
    """
    if limits is not None and not isinstance(limits, Limits):
        raise ConfigError(f"limits must be Limits, got {type(limits).__name__}; pass Limits(calls=..., seconds=...)")
    return limits or Limits()
