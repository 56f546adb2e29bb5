"""One way to play all three interfaces: PettingZoo's AEC and parallel environments, and Gymnasium's.

A `Game` steps an environment and shows what everybody can see of it. What is shown is compared in the form that
`plain` gives it, which is JSON.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import gymnasium
import numpy as np
from pettingzoo import AECEnv, ParallelEnv

from rtg_env.errors import ConfigError
from rtg_env.testing.clause import Unmet, described
from rtg_env.text import one_line

Kind = Literal["aec", "parallel", "gymnasium"]
ALONE = "agent_0"
"""What the one agent of a Gymnasium environment is called here."""


class Move(NamedTuple):
    """One call of the environment that changes it."""

    name: Literal["reset", "step"]
    """Which method."""

    argument: Any = None
    """The seed, or what is given to `step`."""


class View(NamedTuple):
    """Everything that an environment shows at one moment."""

    mover: str
    """Who acts next; empty if nobody does, or all at once."""

    agents: tuple[str, ...]
    """Who takes part."""

    observations: Mapping[str, Any]
    """What each of them sees."""

    rewards: Mapping[str, Any]
    """What each was paid for the last step."""

    terminations: Mapping[str, Any]
    """Whether the rules have ended it for each."""

    truncations: Mapping[str, Any]
    """Whether a budget has."""

    infos: Mapping[str, Any]
    """What else is told to each."""

    last: tuple[Any, ...] = ()
    """What `last()` returns (AEC)."""


class Game:
    """An environment that is played, with a count of its steps."""

    kind: Kind = "aec"

    def __init__(self, env: Any) -> None:
        self.env = env
        self.num_steps = 0
        self.seed: int | None = None
        self._mover = ""
        self._view = View("", (), {}, {}, {}, {}, {})

    def do(self, move: Move, expected: str = "an episode without exceptions") -> None:
        """Reset or step; a crash is reported with its place, and with what it means that there was none.

        Raises:
            Unmet: If the environment raises.
        """
        try:
            self._call(move)
        except Exception as error:
            raise Unmet(expected, f"{described(error)} from {self._shown(move)}", self.where()) from error

    def attempt(self, move: Move) -> Exception | None:
        """What a call raises that may be refused."""
        try:
            self._call(move)
        except Exception as error:  # noqa: BLE001 - any exception is a refusal
            return error
        return None

    def reset(self, seed: int | None, options: dict[str, Any] | None = None) -> None:
        """Begin an episode, with options if there are any."""
        self._reset(seed, {"seed": seed} if options is None else {"seed": seed, "options": options})

    def view(self) -> View:
        """Everything that can be seen now.

        Raises:
            Unmet: If the environment raises.
        """
        try:
            self._view = self._look()
        except Exception as error:
            raise Unmet("what every agent sees", described(error), self.where()) from error
        self._mover = self._view.mover
        return self._view

    def plain(self) -> Any:
        """The view in plain JSON, for comparisons."""
        view = self.view()
        return {**{name: plain(part) for name, part in view._asdict().items()}, "agents": list(view.agents)}

    @property
    def over(self) -> bool:
        """Whether nobody acts any more (dead agents may still have to leave)."""
        env = self.env
        return all(env.terminations[agent] or env.truncations[agent] for agent in env.agents)

    def payload(self, say: Callable[[str, Any], Any]) -> Any:
        """What to give to `step` if every agent that acts says what `say` returns for it and its observation."""
        mover = self.env.agent_selection
        if self.env.terminations[mover] or self.env.truncations[mover]:
            return None
        return say(mover, self.env.observe(mover))

    def everybody_says(self, action: Any) -> Any:
        """What to give to `step` if everybody that acts says the same."""
        return action

    def action_space(self, agent: str) -> Any:
        """Space of what this agent may say."""
        return self.env.action_space(agent)

    def observation_space(self, agent: str) -> Any:
        """Space of what this agent sees."""
        return self.env.observation_space(agent)

    def possible_agents(self) -> list[str]:
        """Everybody who may take part, whether the environment was reset or not."""
        return list(getattr(self.env, "possible_agents", None) or self.env.agents)

    def around(self, env: Any) -> Game:
        """A copy of the environment as a game at the same point."""
        twin = type(self)(env)
        twin.num_steps, twin.seed, twin._mover = self.num_steps, self.seed, self._mover
        twin._view = copy.deepcopy(self._view)
        return twin

    def where(self) -> str:
        """Agent, step and seed, for messages."""
        parts = [f"agent {self._mover}"] if self._mover else []
        return ", ".join([*parts, f"step {self.num_steps}", f"seed {self.seed}"])

    def _call(self, move: Move) -> None:
        if move.name == "reset":
            self._reset(move.argument, {"seed": move.argument})
        else:
            self._step(move.argument)
            self.num_steps += 1

    def _reset(self, seed: int | None, arguments: dict[str, Any]) -> None:
        self.env.reset(**arguments)
        self.num_steps = 0
        self.seed = self.seed if seed is None else seed

    def _step(self, argument: Any) -> None:
        self.env.step(argument)

    def _look(self) -> View:
        env = self.env
        agents = tuple(env.agents)
        return View(
            mover=env.agent_selection if agents else "",
            agents=agents,
            observations={agent: env.observe(agent) for agent in agents},
            rewards=dict(env.rewards),
            terminations=dict(env.terminations),
            truncations=dict(env.truncations),
            infos=dict(env.infos),
            last=tuple(env.last()) if agents else (),
        )

    def _shown(self, move: Move) -> str:
        argument = f"seed={move.argument}" if move.name == "reset" else one_line(repr(move.argument), max_chars=60)
        return f"{move.name}({argument})"


class ParallelGame(Game):
    """A PettingZoo parallel environment: all live agents act at once."""

    kind: Kind = "parallel"

    @property
    def over(self) -> bool:
        """Whether everybody has left."""
        return not self.env.agents

    def payload(self, say: Callable[[str, Any], Any]) -> Any:
        """One action per live agent."""
        return {agent: say(agent, self._view.observations.get(agent)) for agent in self.env.agents}

    def everybody_says(self, action: Any) -> Any:
        """One action per possible agent."""
        return dict.fromkeys(self.env.agents or self.env.possible_agents, action)

    def _reset(self, seed: int | None, arguments: dict[str, Any]) -> None:
        observations, infos = self.env.reset(**arguments)
        agents = tuple(self.env.agents)
        self._view = View("", agents, observations, {}, {}, {}, infos)
        self.num_steps = 0
        self.seed = self.seed if seed is None else seed

    def _step(self, argument: Any) -> None:
        self._view = View("", tuple(self.env.agents), *self.env.step(argument))
        self._view = self._view._replace(agents=tuple(self.env.agents))

    def _look(self) -> View:
        return self._view


class GymnasiumGame(Game):
    """A Gymnasium environment: one agent."""

    kind: Kind = "gymnasium"

    @property
    def over(self) -> bool:
        """Whether the episode was terminated or truncated."""
        return bool(self._view.terminations.get(ALONE) or self._view.truncations.get(ALONE))

    def payload(self, say: Callable[[str, Any], Any]) -> Any:
        """What the agent says."""
        return say(ALONE, self._view.observations.get(ALONE))

    def action_space(self, agent: str) -> Any:
        """The action space."""
        return self.env.action_space

    def observation_space(self, agent: str) -> Any:
        """The observation space."""
        return self.env.observation_space

    def possible_agents(self) -> list[str]:
        """The one agent."""
        return [ALONE]

    def _reset(self, seed: int | None, arguments: dict[str, Any]) -> None:
        observation, info = self.env.reset(**arguments)
        self._view = View(ALONE, (ALONE,), {ALONE: observation}, {}, {}, {}, {ALONE: info})
        self.num_steps = 0
        self.seed = self.seed if seed is None else seed

    def _step(self, argument: Any) -> None:
        observation, reward, termination, truncation, info = self.env.step(argument)
        flags = ({ALONE: termination}, {ALONE: truncation})
        self._view = View(ALONE, (ALONE,), {ALONE: observation}, {ALONE: reward}, *flags, {ALONE: info})

    def _look(self) -> View:
        return self._view


def game_of(env: Any) -> Game:
    """The environment as a game, by its type.

    Raises:
        ConfigError: If it is none of the three.
    """
    if isinstance(env, AECEnv):
        return Game(env)
    if isinstance(env, ParallelEnv):
        return ParallelGame(env)
    if isinstance(env, gymnasium.Env):
        return GymnasiumGame(env)
    raise ConfigError(
        "expected make_env() to return a pettingzoo.AECEnv, a pettingzoo.ParallelEnv or a gymnasium.Env, "
        f"got {type(env).__name__}; return a new environment from it"
    )


def plain(value: Any) -> Any:
    """Any value as JSON that compares by content: NaN equals NaN, a tuple its list, an array its numbers.

    What JSON cannot hold becomes the name of its type, so that comparing it says nothing (clause `json` names it).
    """
    if value is None or isinstance(value, bool | int | str | float):
        return value if value == value else "NaN"  # noqa: PLR0124 - only NaN differs from itself
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else repr(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value) if field.compare}
    return f"<{type(value).__name__}>"


def difference(expected: Any, got: Any, path: str = "") -> str:
    """Where two plain values differ first, and how; empty if they are equal."""
    if expected == got:
        return ""
    if isinstance(expected, dict) and isinstance(got, dict) and expected.keys() == got.keys():
        parts = [(f"{path}.{key}" if path else str(key), expected[key], got[key]) for key in expected]
    elif isinstance(expected, list) and isinstance(got, list) and len(expected) == len(got):
        parts = [(f"{path}[{index}]", *pair) for index, pair in enumerate(zip(expected, got, strict=True))]
    else:
        short = [one_line(repr(value), max_chars=80) for value in (expected, got)]
        return f"{short[1]} instead of {short[0]} in {path or 'all of it'}"
    return next(filter(None, (difference(one, other, name) for name, one, other in parts)), "")
