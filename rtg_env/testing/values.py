"""Clauses about what an environment shows: spaces, observations, infos, rewards and flags."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Final

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete

from rtg_env.testing.clause import NotApplicable, Unmet, clause
from rtg_env.testing.games import Game, View, plain
from rtg_env.testing.trial import Trial
from rtg_env.text import one_line

FREE_TEXTS: Final = ("hello world", "Grüße, 你好, שלום 🙂", "Two lines.\nAnd a tab\t.")
"""What people write; the default alphabet of `gymnasium.spaces.Text` refuses each of them."""


NUMBERS: Final = (Box, Discrete, MultiBinary, MultiDiscrete)
"""Spaces whose elements are no text."""


@clause(
    "mend what raises, or give check_env a `say` that speaks as the rules want; let a rule or a budget end every "
    "episode, or raise max_steps"
)
def episode(trial: Trial) -> None:
    """Episodes can be played from reset to the end within max_steps."""
    for seed in trial.options.seeds:
        trial.script(seed)


@clause("build each space once, in __init__, and return that object", needs=("episode",))
def spaces(trial: Trial) -> None:
    """Spaces are gymnasium spaces, and the same objects each time."""
    game = trial.begun(trial.first_seed)
    for agent in game.possible_agents():
        for name, space in (("observation_space", game.observation_space), ("action_space", game.action_space)):
            if not isinstance(space(agent), gymnasium.Space):
                raise Unmet(f"{name} to be a gymnasium Space", type(space(agent)).__name__, f"agent {agent}")
            if space(agent) is not space(agent):
                raise Unmet(f"{name} to be one object", "a new one at each call", f"agent {agent}")


@clause(
    "widen the action space to what the rules allow (rtg_env.spaces.UnicodeText), or narrow what `say` says",
    needs=("spaces",),
)
def spoken_actions(trial: Trial) -> None:
    """Everything that is said and played is in the action space."""
    for script in trial.scripts():
        game = trial.begun(script.seed)
        for number, (move, mover) in enumerate(zip(script.moves, script.movers, strict=True)):
            said = move.argument if isinstance(move.argument, Mapping) else {mover: move.argument}
            for agent, action in said.items() if move.name == "step" else ():
                text = getattr(action, "text", action)
                if action is not None and not game.action_space(agent).contains(text):
                    where = f"agent {agent}, move {number}, seed {script.seed}"
                    raise Unmet("what is played to be in the action space", one_line(repr(text)), where)


@clause(
    "use a space that checks the length only (rtg_env.spaces.UnicodeText); leave this clause out if the game is "
    "played in a notation of its own",
    needs=("spaces", "spoken-actions"),
)
def free_text(trial: Trial) -> None:
    """The action space holds ordinary text: blanks, line breaks, Unicode, and the empty text if it declares that."""
    game = trial.begun(trial.first_seed)
    if all(isinstance(game.action_space(agent), NUMBERS) for agent in game.possible_agents()):
        raise NotApplicable("the actions are numbers, not text")
    for agent in game.possible_agents():
        space = game.action_space(agent)
        limit = getattr(space, "max_length", 1000)
        texts = [text[:limit] for text in FREE_TEXTS] + ([""] if getattr(space, "min_length", 1) == 0 else [])
        for text in texts:
            if not space.contains(text):
                raise Unmet(f"{one_line(repr(text))} in the action space", f"not in {space}"[:200], f"agent {agent}")


@clause("make the space describe what observe() returns, at its longest too", needs=("spaces",))
def observations(trial: Trial) -> None:
    """Every observation is in its space, at every step and for every agent."""
    _at_every_view(trial, check_observations)


@clause("put plain JSON there: str, int, finite float, bool, None, list, dict with str keys", needs=("episode",))
def json_values(trial: Trial) -> None:
    """Infos are JSON (but for an array under action_mask), observations JSON or arrays of numbers."""
    _at_every_view(trial, check_json)


@clause("pay float(reward), and 0.0 where there is no finite number to pay", needs=("episode",))
def finite_rewards(trial: Trial) -> None:
    """Rewards are finite Python numbers."""
    _at_every_view(trial, check_rewards)


@clause("store bool(...), not numpy.bool_, int or None", needs=("episode",))
def boolean_flags(trial: Trial) -> None:
    """Terminations and truncations are Python booleans."""
    _at_every_view(trial, check_flags)


def check_observations(game: Game, view: View) -> None:
    """Observations in their spaces.

    Raises:
        Unmet: If one is not.
    """
    seen = dict(view.observations)
    if view.last:
        seen[view.mover] = view.last[0]
    for agent, observation in seen.items():
        if not game.observation_space(agent).contains(observation):
            shown = one_line(repr(observation), max_chars=300)
            raise Unmet(f"the observation of {agent} in its space", shown, game.where())


def check_json(game: Game, view: View) -> None:
    """Observations and infos that JSON can hold; what `action_space.sample(info["action_mask"])` takes is an array.

    Raises:
        Unmet: If one is not.
    """
    infos = {
        agent: {key: part for key, part in info.items() if key != "action_mask" or not isinstance(part, np.ndarray)}
        for agent, info in view.infos.items()
    }
    for name, shown in (("info", infos), ("observation", view.observations)):
        for agent, value in shown.items():
            try:
                json.dumps(value, allow_nan=False, default=_array if name == "observation" else None)
            except (TypeError, ValueError, RecursionError) as error:
                raise Unmet(f"the {name} of {agent} to be JSON", str(error), game.where()) from None


def check_rewards(game: Game, view: View) -> None:
    """Finite Python numbers.

    Raises:
        Unmet: If a reward is something else.
    """
    paid = dict(view.rewards)
    if view.last:
        paid[f"{view.mover}, from last()"] = view.last[1]
    for agent, reward in paid.items():
        number = isinstance(reward, float | int) and not isinstance(reward, bool)
        if not number or type(reward).__module__ == "numpy" or not math.isfinite(reward):
            shown = f"{type(reward).__name__} {one_line(repr(reward))}"
            raise Unmet(f"the reward of {agent} to be a finite float", shown, game.where())


def check_flags(game: Game, view: View) -> None:
    """Python booleans.

    Raises:
        Unmet: If a flag is something else.
    """
    for name, flags in (("termination", view.terminations), ("truncation", view.truncations)):
        for agent, flag in flags.items():
            if not isinstance(flag, bool):
                raise Unmet(f"the {name} of {agent} to be bool", type(flag).__name__, game.where())


def check_view(game: Game) -> None:
    """All that is asked of a moment, whatever has led to it.

    Raises:
        Unmet: With the first thing that is wrong.
    """
    view = game.view()
    for check in (check_observations, check_json, check_rewards, check_flags):
        check(game, view)


def _at_every_view(trial: Trial, check: Callable[[Game, View], None]) -> None:
    for script in trial.scripts():
        game = trial.game()
        for move in script.moves:
            game.do(move)
            check(game, game.view())


def _array(value: object) -> object:
    if hasattr(value, "tolist"):
        return plain(value)
    raise TypeError(f"{type(value).__name__} is not JSON")
