"""A dialogue game with a real model, from the table of its replies, as an OpenSpiel game: solved exactly.

Chance draws a goal, which red alone sees. In each exchange red chooses a tactic (on a benign goal nature speaks), blue a
system prompt, which it alone knows, and chance one of the seeds that the model samples with. What is said is public,
and is all that either side learns of the other's choices:

    red:   goal, own tactics, all sentences          blue:  own prompts, all sentences

Blue sets the prompt of an exchange before it hears the sentence, as whoever deploys a model does; with `hears` it hears
it first. The reply, and so the pay, is read from a `CachedTable`:

    u_red = max over exchanges of  harm (a harmful goal)  or  c * (1 - helpful) (a benign one),   u_blue = -u_red.

    game = cached_dialogue.load(path)
    value = tabular.exact_value(game)

As in `tabular`, everything is derived from the game's parameters (a file's path and its table's digest), since a game
that was copied or unpickled has lost its attributes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from rtg_env.errors import ConfigError, MissingExtraError
from rtg_env.types import Role
from rtg_solvers.cached_table import CachedTable, Choices
from rtg_solvers.tabular import BLUE, RED

try:
    import pyspiel
except ImportError as error:
    raise MissingExtraError(error.name or "pyspiel", "solve") from error

_NAME: Final = "cached_dialogue"
_PARAMETERS: Final = {"path": "", "digest": "", "hears": False}


class Node(NamedTuple):
    """Where a dialogue stands."""

    path: Choices = ()
    """Goal, then tactic, prompt and seed of each exchange, as far as they were chosen."""

    def __deepcopy__(self, memo: object) -> Node:
        return self  # it cannot change, and OpenSpiel copies a state for every child of a node


class State(pyspiel.State):  # type: ignore[misc]  # untyped base
    """A node of the game."""

    def __init__(self, game: Any) -> None:
        super().__init__(game)
        self.node = Node()

    def current_player(self) -> int:
        """Whose turn it is."""
        path = self.node.path
        if len(path) == 1 + 3 * table_of(self.get_game()).num_exchanges:
            return int(pyspiel.PlayerId.TERMINAL)
        if not path or len(path) % 3 == 0:
            return int(pyspiel.PlayerId.CHANCE)
        return RED if len(path) % 3 == 1 else BLUE

    def _legal_actions(self, player: int) -> list[int]:
        table, path = table_of(self.get_game()), self.node.path
        count = table.num_tactics(path[0], len(path) // 3) if player == RED else len(table.prompts)
        return list(range(count))

    def chance_outcomes(self) -> list[tuple[int, float]]:
        """Goals, or seeds."""
        table = table_of(self.get_game())
        if self.node.path:
            return [(seed, 1.0 / table.num_seeds) for seed in range(table.num_seeds)]
        return [(goal, table.goal_prob(goal)) for goal in range(len(table.goals))]

    def _apply_action(self, action: int) -> None:
        table, path = table_of(self.get_game()), (*self.node.path, action)
        if len(path) % 3 == 1 and len(path) < 1 + 3 * table.num_exchanges and not table.goals[path[0]].harmful:
            path = (*path, 0)  # nature speaks
        self.node = Node(path)

    def _action_to_string(self, player: int, action: int) -> str:
        table, path = table_of(self.get_game()), self.node.path
        if player == pyspiel.PlayerId.CHANCE:
            return f"seed {action}" if path else f"goal {table.goals[action].id}"
        return table.tactics[len(path) // 3][action].name if player == RED else f"prompt {table.prompts[action].name}"

    def is_terminal(self) -> bool:
        """Whether all exchanges were made."""
        return len(self.node.path) == 1 + 3 * table_of(self.get_game()).num_exchanges

    def returns(self) -> list[float]:
        """u_red and u_blue."""
        pay = table_of(self.get_game()).utility(self.node.path) if self.is_terminal() else 0.0
        return [pay, -pay]

    def __str__(self) -> str:
        return " ".join(str(part) for part in self.node.path)


class Observer:
    """What a player knows; both remember everything."""

    def __init__(self, params: Mapping[str, Any] | None) -> None:
        if params:
            raise ValueError(f"expected no parameters for the observer, got {dict(params)}")
        self.tensor = np.zeros(0, np.float32)
        self.dict: dict[str, np.ndarray] = {}

    def set_from(self, state: State, player: int) -> None:
        """There is no tensor."""

    def string_from(self, state: State, player: int) -> str:
        """Information state of a player."""
        return _seen(state.get_game(), state.node.path, player)


def _seen(game: Any, path: Choices, player: int) -> str:
    """What a player knows on a path."""
    table, hears = table_of(game), bool(game.get_parameters()["hears"])
    ended = path[: len(path) - (len(path) - 1) % 3] if path else ()
    heard = table.said(ended)
    if len(path) > len(ended) and (hears or player == RED):
        heard = (*heard, table.sentence(ended, path[len(ended)]))
    if player == RED:
        return information("red", None if not path else table.goals[path[0]].id, path[1::3], heard)
    return information("blue", None, path[2::3], heard)


def information(role: Role, goal_id: str | None, choices: Sequence[int], heard: Sequence[str]) -> str:
    """The name of an information state.

    Args:
        role: Whose.
        goal_id: For red.
        choices: Own tactics or prompts so far.
        heard: Hashes of the sentences so far, in order.
    """
    own = ",".join(str(choice) for choice in choices)
    return f"{role} {goal_id or '-'} [{own}] {' '.join(heard)}"


class Game(pyspiel.Game):  # type: ignore[misc]  # untyped base
    """The game that OpenSpiel loads as `cached_dialogue(path=..,digest=..,hears=..)`."""

    def __init__(self, params: Mapping[str, Any] | None = None) -> None:
        values = {**_PARAMETERS, **(params or {})}
        table = _table(str(values["path"]), str(values["digest"]))
        highest = max(1.0, table.helpfulness_weight)
        widest = max(len(table.prompts), *(len(turn) for turn in table.tactics))
        info = pyspiel.GameInfo(
            num_distinct_actions=widest,
            max_chance_outcomes=max(len(table.goals), table.num_seeds),
            num_players=2,
            min_utility=-highest,
            max_utility=highest,
            utility_sum=0.0,
            max_game_length=2 * table.num_exchanges,
        )
        super().__init__(_TYPE, info, values)

    def new_initial_state(self) -> State:
        """Before chance has drawn a goal."""
        return State(self)

    def make_py_observer(self, iig_obs_type: Any = None, params: Mapping[str, Any] | None = None) -> Observer:
        """What players know."""
        del iig_obs_type
        return Observer(params)


_TYPE: Final = pyspiel.GameType(
    short_name=_NAME,
    long_name="Red teaming of a model whose replies are known",
    dynamics=pyspiel.GameType.Dynamics.SEQUENTIAL,
    chance_mode=pyspiel.GameType.ChanceMode.EXPLICIT_STOCHASTIC,
    information=pyspiel.GameType.Information.IMPERFECT_INFORMATION,
    utility=pyspiel.GameType.Utility.ZERO_SUM,
    reward_model=pyspiel.GameType.RewardModel.TERMINAL,
    max_num_players=2,
    min_num_players=2,
    provides_information_state_string=True,
    provides_information_state_tensor=False,
    provides_observation_string=False,
    provides_observation_tensor=False,
    default_loadable=False,
    parameter_specification=_PARAMETERS,
)


def load(path: Path, *, hears: bool = False) -> Any:
    """The game of a table, as OpenSpiel knows it.

    Args:
        path: Of the table; it must stay there as long as the game is used.
        hears: Whether blue hears the sentence before it sets the prompt.

    Raises:
        ConfigError: If the file is no table.
    """
    digest = CachedTable.read(path).digest
    return pyspiel.load_game(_NAME, {"path": str(path.resolve()), "digest": digest, "hears": hears})


def table_of(game: Any) -> CachedTable:
    """The table of a game, wherever it was copied to."""
    parameters = game.get_parameters()
    return _table(parameters["path"], parameters["digest"])


@lru_cache(maxsize=16)
def _table(path: str, digest: str) -> CachedTable:
    table = CachedTable.read(Path(path))
    if table.digest != digest:
        raise ConfigError(f"expected the table with digest {digest} in {path}, got {table.digest}; load the game again")
    return table


if _NAME not in pyspiel.registered_names():
    pyspiel.register_game(_TYPE, Game)
