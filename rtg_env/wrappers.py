"""PettingZoo wrappers: thin ways to change the game of an environment that somebody else has made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

from pettingzoo.utils.wrappers import BaseParallelWrapper, BaseWrapper

from rtg_env.env import raw_env
from rtg_env.errors import ConfigError


class FilterMessages(BaseWrapper):  # type: ignore[type-arg]
    """Message filters on either side, from the next `reset` on; they become part of the environment's config.

    Args:
        env: A dialogue environment, wrapped or not.
        red: Names of filters on what red and nature say (`rtg_env.filters`).
        blue: Names of filters on what blue answers.

    Raises:
        ConfigError: If a name is unknown, or it is no dialogue environment.
    """

    def __init__(self, env: Any, *, red: Sequence[str] = (), blue: Sequence[str] = ()) -> None:
        super().__init__(env)
        _set_filters(env.unwrapped, red, blue)

    def last(self, observe: bool = True) -> tuple[Any, ...]:
        """As the environment says it; PettingZoo's own would hand out the infos themselves, to be written into."""
        return cast("tuple[Any, ...]", self.env.last(observe))


class FilterMessagesParallel(BaseParallelWrapper):  # type: ignore[type-arg]
    """The same for the parallel environment.

    Args:
        env: A parallel dialogue environment, wrapped or not.
        red: Names of filters on what red and nature say.
        blue: Names of filters on what blue answers.

    Raises:
        ConfigError: If a name is unknown, or it is no dialogue environment.
    """

    def __init__(self, env: Any, *, red: Sequence[str] = (), blue: Sequence[str] = ()) -> None:
        super().__init__(env)
        _set_filters(env.unwrapped, red, blue)


def _set_filters(environment: object, red: Sequence[str], blue: Sequence[str]) -> None:
    if not isinstance(environment, raw_env):
        raise ConfigError(f"expected a dialogue environment (redteam/Dialogue-v0), got {type(environment).__name__}")
    environment.config = replace(environment.config, red_filters=tuple(red), blue_filters=tuple(blue))
