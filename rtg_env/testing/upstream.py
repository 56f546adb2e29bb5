"""The tests that PettingZoo and Gymnasium ship, as clauses: quiet, and without their remarks about text.

They are imported where they are called: `pettingzoo.test` imports example games, and pytest where it is installed.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from rtg_env.testing.clause import NotApplicable, clause
from rtg_env.testing.games import Game
from rtg_env.testing.trial import Trial

_NUM_CYCLES: Final = 20
_SOUND: Final = (
    "replay",
    "interleaved",
    "spaces",
    "observations",
    "json-values",
    "finite-rewards",
    "boolean-flags",
    "dead-steps",
    "unknown-options",
    "tampered-observations",
    "kept-observations",
)
_ABOUT_TEXT: Final = (
    "Observation is not a NumPy array",
    "Action space for each agent probably should be",
    "Observation space for each agent probably should be",
    "Agents have different observation space sizes",
    "Environment has not defined a render() method",
)
"""Remarks that are true of every text game, or of one whose agents have private parts."""

_REMEDY: Final = (
    "see pettingzoo.farama.org/content/environment_tests; these tests play samples of the action space, so leave "
    "them out if most of those are refused"
)


@clause(_REMEDY, needs=_SOUND, kinds=("aec",))
def pettingzoo_api(trial: Trial) -> None:
    """PettingZoo's api_test passes."""
    from pettingzoo.test.api_test import api_test

    with _without_remarks():
        _untyped(api_test)(_sampled(trial).env, num_cycles=_NUM_CYCLES)


@clause(_REMEDY, needs=_SOUND, kinds=("aec",))
def pettingzoo_seed(trial: Trial) -> None:
    """PettingZoo's seed_test passes."""
    from pettingzoo.test.seed_test import seed_test

    with _without_remarks():
        _untyped(seed_test)(lambda: _sampled(trial).env, num_cycles=_NUM_CYCLES)


@clause(_REMEDY, needs=_SOUND, kinds=("parallel",))
def pettingzoo_parallel_api(trial: Trial) -> None:
    """PettingZoo's parallel_api_test passes."""
    from pettingzoo.test.parallel_test import parallel_api_test

    with _without_remarks():
        parallel_api_test(_sampled(trial).env, num_cycles=_NUM_CYCLES)


@clause(_REMEDY, needs=_SOUND, kinds=("parallel",))
def pettingzoo_parallel_seed(trial: Trial) -> None:
    """PettingZoo's parallel_seed_test passes."""
    from pettingzoo.test.seed_test import parallel_seed_test

    with _without_remarks():
        _untyped(parallel_seed_test)(lambda: _sampled(trial).env, num_cycles=_NUM_CYCLES)


@clause(
    'accept render_mode "human" (render() returns None then) and each mode of metadata["render_modes"]; "ansi" '
    "returns text",
    needs=_SOUND,
    kinds=("aec",),
)
def pettingzoo_render(trial: Trial) -> None:
    """PettingZoo's render_test passes."""
    from pettingzoo.test.render_test import render_test

    modes = (getattr(trial.game().env, "metadata", None) or {}).get("render_modes")
    if not modes:
        raise NotApplicable("the environment names no render modes")
    if not trial.takes("render_mode"):
        raise NotApplicable("make_env takes no render_mode; let it pass one on")
    with _without_remarks():
        _untyped(render_test)(lambda render_mode: _sampled(trial, render_mode=render_mode).env)


@clause("see gymnasium.farama.org, `gymnasium.utils.env_checker`", needs=_SOUND, kinds=("gymnasium",))
def gymnasium_api(trial: Trial) -> None:
    """Gymnasium's check_env passes, rendering apart."""
    from gymnasium.utils.env_checker import check_env

    with _without_remarks():
        check_env(trial.game().env.unwrapped, skip_render_check=True)


def _sampled(trial: Trial, **keywords: Any) -> Game:
    """A game whose spaces sample the same each time, so that these tests come to the same end each time."""
    game = trial.game(**keywords)
    for index, agent in enumerate(game.possible_agents()):
        game.action_space(agent).seed(trial.first_seed + index)
    return game


def _untyped(function: Any) -> Any:
    """What PettingZoo does not annotate, or annotates too narrowly."""
    return function


@contextmanager
def _without_remarks() -> Iterator[None]:
    """Remarks that are about text are dropped, all others are passed on."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for item in caught:
        if not str(item.message).startswith(_ABOUT_TEXT):
            warnings.warn_explicit(item.message, item.category, item.filename, item.lineno)
