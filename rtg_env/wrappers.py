"""PettingZoo wrappers: thin ways to change the game of an environment that somebody else has made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

from pettingzoo.utils.wrappers import BaseWrapper

from rtg_env.env import parallel_env, raw_env


class FilterMessages(BaseWrapper):  # type: ignore[type-arg]
    """Message filters on either side, from the next `reset` on; they become part of the environment's config.

    Args:
        env: A dialogue environment, wrapped or not.
        red: Names of filters on what red and nature say (`rtg_env.filters`).
        blue: Names of filters on what blue answers.

    Raises:
        ConfigError: If a name is unknown.
    """

    def __init__(self, env: Any, *, red: Sequence[str] = (), blue: Sequence[str] = ()) -> None:
        super().__init__(env)
        _set_filters(cast("raw_env", env.unwrapped), red, blue)

    def last(self, observe: bool = True) -> tuple[Any, ...]:
        """As the environment says it; PettingZoo's own would hand out the infos themselves, to be written into."""
        return cast("tuple[Any, ...]", self.env.last(observe))


def filter_messages_parallel(env: parallel_env, *, red: Sequence[str] = (), blue: Sequence[str] = ()) -> parallel_env:
    """The same for the parallel environment, which is changed and returned."""
    _set_filters(cast("raw_env", env.aec_env), red, blue)
    return env


def _set_filters(environment: raw_env, red: Sequence[str], blue: Sequence[str]) -> None:
    environment.config = replace(environment.config, red_filters=tuple(red), blue_filters=tuple(blue))
