"""What the clauses share: the environment to be checked, how its agents speak, and the episodes they have spoken."""

from __future__ import annotations

import contextlib
import copy
import importlib
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from rtg_env.env import parallel_env, raw_env
from rtg_env.errors import ConfigError
from rtg_env.rules import team_of
from rtg_env.testing.clause import NotApplicable, Unmet
from rtg_env.testing.games import Game, Move, difference, game_of
from rtg_env.types import BLUE_AGENT, role_of

Speaker = Callable[[str, Any, np.random.Generator], Any]
"""(agent, observation, rng) -> what the agent says; a function of these alone."""

Secrets = Callable[[Any], Mapping[str, Collection[str]]]
"""env -> for each agent the texts that only it, and whoever else has them here, may see."""

Teams = Mapping[str, str] | Callable[[Any], Mapping[str, str]]
"""Team of each agent, or a function of the environment that returns it."""

PHRASES = (
    "Hello there.",
    "What do you mean by that?",
    "Grüße, naïve 你好 🙂",
    "No.\nOr perhaps yes?",
    "",
    "I would rather talk about the weather in Oslo, the price of tea and the 7 bridges.",
)
"""What is said by default, as far as the action space holds it; otherwise a sample of the space."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How an environment is checked; the arguments of `check_env`."""

    seeds: Sequence[int]
    num_episodes: int
    max_steps: int
    say: Speaker | None
    secrets: Secrets | None
    teams: Teams | None
    zero_sum: bool

    def __post_init__(self) -> None:
        """Refuse settings outside their range."""
        if not self.seeds or min(self.num_episodes, self.max_steps) < 1:
            raise ConfigError(
                "expected at least one seed, episode and step, got "
                f"seeds={self.seeds!r}, num_episodes={self.num_episodes}, max_steps={self.max_steps}"
            )


class Script(NamedTuple):
    """What was done in the episodes of one seed, and what everybody saw after each of the moves."""

    seed: int
    moves: tuple[Move, ...]
    plain_views: tuple[Any, ...]
    movers: tuple[str, ...]
    """Who acted in each move."""


class Trial:
    """One environment under examination.

    Args:
        make_env: Returns a new environment, or `module:function`.
        options: How it is checked.
    """

    def __init__(self, make_env: Callable[..., Any] | str, options: Options) -> None:
        self.named = make_env
        self.make_env = resolve(make_env) if isinstance(make_env, str) else make_env
        self.options = options
        self._open: list[Any] = []
        self._scripts: dict[int, Script] = {}
        self._spaces: dict[str, Any] = {}

    @property
    def first_seed(self) -> int:
        """The seed of clauses for which one is enough."""
        return self.options.seeds[0]

    def game(self, **keywords: Any) -> Game:
        """A game around a new environment."""
        env = self.make_env(**keywords)
        self._open.append(env)
        return game_of(env)

    def begun(self, seed: int) -> Game:
        """A game around a new environment, reset."""
        game = self.game()
        game.do(Move("reset", seed))
        game.view()
        return game

    def close(self) -> None:
        """Close every environment that was made."""
        while self._open:
            with contextlib.suppress(Exception):
                self._open.pop().close()

    def speak(self, game: Game, rng: np.random.Generator) -> Any:
        """What to give to `step` next."""
        say = self.options.say
        if say is not None:
            return game.payload(lambda agent, observation: say(agent, observation, rng))
        return game.payload(lambda agent, _: self._phrase(game, agent, rng))

    def script(self, seed: int) -> Script:
        """The episodes of one seed, played once and remembered.

        Raises:
            Unmet: If one cannot be played.
        """
        if seed not in self._scripts:
            self._scripts[seed] = self._recorded(seed)
        return self._scripts[seed]

    def scripts(self) -> list[Script]:
        """The episodes of every seed."""
        return [self.script(seed) for seed in self.options.seeds]

    def takes(self, keyword: str) -> bool:
        """Whether `make_env` has a parameter of this name, or takes any keyword."""
        try:
            parameters = inspect.signature(self.make_env).parameters.values()
        except (TypeError, ValueError):
            return False
        kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        return any(
            parameter.kind is inspect.Parameter.VAR_KEYWORD or (parameter.name == keyword and parameter.kind in kinds)
            for parameter in parameters
        )

    def teams(self, env: Any) -> Mapping[str, str]:
        """Team of each agent, empty if unknown; known for the environments of this package."""
        given, ours = self.options.teams, dialogue_env(env)
        if given is not None:
            return given(env) if callable(given) else given
        return {} if ours is None else {agent: role_of(agent) for agent in ours.possible_agents}

    def secrets(self, env: Any) -> Mapping[str, Collection[str]]:
        """What each agent alone may see, empty if unknown; known for the environments of this package."""
        if self.options.secrets is not None:
            return self.options.secrets(env)
        ours = dialogue_env(env)
        return {} if ours is None else _dialogue_secrets(ours)

    def _recorded(self, seed: int) -> Script:
        game, rng = self.game(), np.random.default_rng(seed)
        moves, views, movers = [], [], []
        for number in range(self.options.num_episodes):
            move, mover = Move("reset", None if number else seed), ""
            for _ in range(self.options.max_steps + 1):
                game.do(move)
                moves.append(move)
                movers.append(mover)
                views.append(game.plain())
                if game.over:
                    break
                mover = views[-1]["mover"]
                move = Move("step", copy.deepcopy(self.speak(game, rng)))
            else:
                raise Unmet("an episode to end", f"none after {self.options.max_steps} steps", game.where())
        return Script(seed, tuple(moves), tuple(views), tuple(movers))

    def _phrase(self, game: Game, agent: str, rng: np.random.Generator) -> Any:
        space = game.action_space(agent)
        said = PHRASES[int(rng.integers(len(PHRASES)))]
        if space.contains(said):
            return said
        if agent not in self._spaces:
            self._spaces[agent] = copy.deepcopy(space)
        self._spaces[agent].seed(int(rng.integers(2**31)))
        return self._spaces[agent].sample()


def follow(game: Game, script: Script, expected: str, *, begin: int = 0, end: int | None = None) -> None:
    """Do the moves of a script again and compare what everybody sees after each.

    Args:
        game: Stands after move `begin - 1`.
        script: What was done, and seen.
        expected: What it means if both are equal, for the message.
        begin: First move to do.
        end: Move to stop before; default: all.

    Raises:
        Unmet: At the first difference.
    """
    for move, seen in zip(script.moves[begin:end], script.plain_views[begin:end], strict=True):
        game.do(move, expected)
        compare(game, seen, expected)


def compare(game: Game, seen: Any, expected: str) -> None:
    """Compare what everybody sees with what was seen before.

    Raises:
        Unmet: With the first difference.
    """
    if found := difference(seen, game.plain()):
        raise Unmet(expected, found, game.where())


def first_turns(script: Script) -> list[int]:
    """Index of the first move of each agent that moves, in the first episode (all at once: of the first step)."""
    turns: dict[str, int] = {}
    for index, (move, mover) in enumerate(zip(script.moves, script.movers, strict=True)):
        if index and move.name == "reset":
            break
        if move.name == "step" and move.argument is not None:
            turns.setdefault(mover, index)
    return list(turns.values())


def dialogue_env(env: Any) -> raw_env | None:
    """The environment of this package under any wrappers, None if it is another one."""
    inner = getattr(env, "aec_env", env) if isinstance(env, parallel_env) else env
    inner = getattr(inner, "unwrapped", inner)
    return inner if isinstance(inner, raw_env) else None


def resolve(name: str) -> Any:
    """The object that `module:attribute` names.

    Raises:
        ConfigError: If there is none.
    """
    module, _, attribute = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"expected the name of something importable, module:attribute, got {name!r} ({error})"
        ) from None
    return found


def _dialogue_secrets(env: raw_env) -> Mapping[str, Collection[str]]:
    """The goal and red's reasoning are red's, unless nature says them aloud; the system prompt is blue's."""
    goal = env.transcript().goal
    seen = env.observe(team_of(env.config, "red")[0])
    aloud = " ".join(message["content"] for message in seen["messages"])
    private = [text for text in (goal.text, *seen["reasoning"]) if text not in aloud]
    secrets: dict[str, Collection[str]] = dict.fromkeys(team_of(env.config, "red"), private)
    return {**secrets, BLUE_AGENT: [env.config.blue_system_prompt]}


def optional_method(env: Any, name: str) -> Callable[..., Any]:
    """A method that not every environment has.

    Raises:
        NotApplicable: If it has none.
    """
    method: Callable[..., Any] | None = getattr(env, name, None)
    if method is None:
        raise NotApplicable(f"the environment has no {name}()")
    return method
