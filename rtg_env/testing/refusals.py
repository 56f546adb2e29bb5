"""Clauses about order and actions: what must be refused is refused whole, what is accepted harms nobody."""

from __future__ import annotations

import json
import unicodedata
import warnings
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from pettingzoo.utils.env_logger import EnvLogger

from rtg_env.testing.clause import NotApplicable, Unmet, clause, described
from rtg_env.testing.games import Game, Move, plain
from rtg_env.testing.trial import Script, Trial, compare, first_turns, follow
from rtg_env.testing.values import NUMBERS, check_view

WRONG_TYPES: Final = (None, 3, 1.5, b"bytes", ["a list"])
"""What is no text."""

AWKWARD: Final[Mapping[str, str]] = {
    "an empty text": "",
    "NUL": "a\x00b",
    "a lone surrogate": "a\ud800b",
    "an escape sequence": "\x1b[2J\x1b]0;title\x07\x9b31m\r\x08",
    "bidirectional overrides": "\u202egnp.exe\u2066\u200f",
    "right-to-left text": "שלום עליכם, مرحبا",
    "emoji of many code points": "👩‍👩‍👧 🏳️‍🌈",
    "combining characters": "Z\u0335\u0321\u0489a\u0300",
    "odd line breaks": "a\u2028b\u0085c\r\nd\x0b",
    "template characters": "{0} {x} %s ${y} <|im_end|> \\u0000",
}
"""What models and attackers write."""


@clause(
    "raise an error that says to call reset() first (pettingzoo's OrderEnforcingWrapper does)",
    needs=("episode",),
)
def step_before_reset(trial: Trial) -> None:
    """A step before the first reset raises."""
    game = trial.game()
    action = next(move for move in trial.script(trial.first_seed).moves if move.name == "step").argument
    if game.attempt(Move("step", action)) is None:
        raise Unmet("step() before reset() to raise", "nothing")


@clause(
    "raise, or warn, that the episode is over and reset() is needed (pettingzoo's OrderEnforcingWrapper warns)",
    needs=("episode", "dead-steps"),
    kinds=("aec", "parallel"),
)
def step_after_end(trial: Trial) -> None:
    """A step after all agents have left raises or warns, or in a parallel environment returns nothing; nobody comes back."""
    script = trial.script(trial.first_seed)
    game = trial.begun(script.seed)
    follow(game, script, "the same episode", begin=1, end=_end_of_first_episode(script))
    _leave(game)
    if game.kind == "parallel":
        refused = game.attempt(Move("step", {})) is not None or not any(
            (view := game.view()).observations or view.rewards or view.infos
        )
    else:
        refused = _refused_or_warned(game, Move("step", "hello"))
    if not refused or game.env.agents:
        raise Unmet("a step after the end to be refused", f"agents {game.env.agents} and no error", game.where())


@clause(
    "check the type of an action before anything else is done in step(), and raise (pettingzoo's "
    "AssertOutOfBoundsWrapper does)",
    needs=("replay", "transcript", "saved-state"),
)
def wrong_types(trial: Trial) -> None:
    """An action that is neither text nor in the space, or None of a live agent, is refused with an error, and nothing has happened."""
    script = trial.script(trial.first_seed)
    for turn in first_turns(script):
        game = trial.begun(script.seed)
        follow(game, script, "the same episode", begin=1, end=turn)
        for action in _wrong(game, script.movers[turn]):
            before = _state(game)
            if game.attempt(Move("step", game.everybody_says(action))) is None:
                raise Unmet(f"the action {action!r} to be refused", "no error", game.where())
            if _state(game) != before:
                raise Unmet(f"nothing to happen by the refused action {action!r}", "another state", game.where())
        if game.kind == "aec":
            compare(game, script.plain_views[turn - 1], "to see the same after refused actions")
        follow(game, script, "the same episode in spite of refused actions", begin=turn)


@clause(
    "check the whole text before anything else is done in step(), and refuse what you cannot play by one class of "
    "exception with a message",
    needs=("replay", "observations", "json-values", "finite-rewards", "boolean-flags", "wrong-types"),
)
def awkward_text(trial: Trial) -> None:
    """Text of any kind and length is either played, or refused by one class of exception, with a message, and whole."""
    script = trial.script(trial.first_seed)
    refusals: dict[str, str] = {}
    for turn in first_turns(script):
        for name, text in _awkward(trial, script, turn).items():
            game = trial.begun(script.seed)
            follow(game, script, "the same episode", begin=1, end=turn)
            before = _state(game)
            error = game.attempt(Move("step", game.everybody_says(text)))
            if error is None:
                _play_on(trial, game, name)
                continue
            refusals[type(error).__name__] = name
            if not str(error).strip():
                raise Unmet(f"{name} to be refused with a message", described(error), game.where())
            if _state(game) != before:
                raise Unmet(f"nothing to happen when {name} is refused", "another state", game.where())
            follow(game, script, f"the same episode after {name} was refused", begin=turn)
    if len(refusals) > 1:
        found = " and ".join(f"{error} for {name}" for error, name in sorted(refusals.items()))
        raise Unmet("one class of exception for all text that is refused", found)


@clause(
    "delete an agent in its own dead step, accept None alone there, and select the next one (AECEnv._was_dead_step does)",
    needs=("replay",),
    kinds=("aec",),
)
def dead_steps(trial: Trial) -> None:
    """Each agent whose episode is over gets exactly one step, with None, and is gone then."""
    for script in trial.scripts():
        game = trial.begun(script.seed)
        gone = [mover for move, mover in _first_episode(script) if move.name == "step" and move.argument is None]
        follow(game, script, "the same episode", begin=1, end=_end_of_first_episode(script))
        remaining = set(game.env.agents)
        gone += _leave(game)
        if len(gone) != len(set(gone)) or remaining - set(gone):
            raise Unmet(f"one dead step for each of {sorted(remaining)}", f"dead steps of {gone}", game.where())


@clause(
    "return text from which escape sequences and control characters were removed (rtg_env.text.for_terminal)",
    needs=("replay", "pettingzoo-render"),
)
def rendering(trial: Trial) -> None:
    """What render() returns in mode "ansi" holds no control character but line breaks and tabs, whatever was said."""
    script = trial.script(trial.first_seed)
    if "ansi" not in (getattr(trial.begun(script.seed).env, "metadata", None) or {}).get("render_modes", ()):
        raise NotApplicable('the environment has no render mode "ansi"')
    if not trial.takes("render_mode"):
        raise NotApplicable("make_env takes no render_mode; let it pass one on")
    for turn in first_turns(script):
        for name, text in AWKWARD.items():
            game = trial.game(render_mode="ansi")
            follow(game, script, "the same episode in mode ansi", end=turn)
            game.attempt(Move("step", game.everybody_says(text)))
            shown = game.env.render()
            bad = sorted({f"U+{ord(char):04X}" for char in shown or "" if _moves_the_cursor(char)})
            if bad:
                raise Unmet(f"render() to be safe for a terminal after {name}", ", ".join(bad), game.where())


def _wrong(game: Game, agent: str) -> list[Any]:
    """What no agent may do; 3 is an action where actions are numbers."""
    space = game.action_space(agent or next(iter(game.env.agents)))
    return [action for action in WRONG_TYPES if not (isinstance(space, NUMBERS) and space.contains(action))]


def _awkward(trial: Trial, script: Script, turn: int) -> dict[str, str]:
    """The awkward texts, and those around the limit of this agent's action space."""
    game = trial.begun(script.seed)
    agent = script.movers[turn] or next(iter(game.env.agents))
    limit = getattr(game.action_space(agent), "max_length", None)
    lengths = (
        {"a text at the limit": limit, "a text one above the limit": limit + 1} if limit else {"a long text": 10**5}
    )
    return {**AWKWARD, **{name: "x" * length for name, length in lengths.items()}}


def _play_on(trial: Trial, game: Game, name: str) -> None:
    rng = np.random.default_rng(0)
    try:
        check_view(game)
        for _ in range(trial.options.max_steps):
            if game.over:
                return
            game.do(Move("step", trial.speak(game, rng)))
            check_view(game)
    except Unmet as unmet:
        raise Unmet(f"a sound episode after {name}", f"a broken one: {unmet}") from None
    raise Unmet(f"an episode to end after {name}", f"none in {trial.options.max_steps} steps", game.where())


def _leave(game: Game) -> list[str]:
    """Take the dead steps at the end; who took them, in order.

    Raises:
        Unmet: If an agent that is not over is selected, or one does not leave.
    """
    gone: list[str] = []
    while game.kind == "aec" and game.env.agents:
        agent = game.view().mover
        if not game.env.terminations[agent] and not game.env.truncations[agent]:
            raise Unmet("only dead agents to be selected at the end", f"{agent}, which is not", game.where())
        if not gone and game.attempt(Move("step", "hello")) is None:
            raise Unmet("an action of a dead agent to be refused", "no error", game.where())
        game.do(Move("step", None))
        gone.append(agent)
        tables = (game.env.agents, game.env.rewards, game.env.terminations, game.env.truncations, game.env.infos)
        if any(agent in table for table in tables):
            raise Unmet(f"{agent} to be gone from agents, rewards, flags and infos", "still there", game.where())
    return gone


def _first_episode(script: Script) -> list[tuple[Move, str]]:
    return list(zip(script.moves, script.movers, strict=True))[: _end_of_first_episode(script)]


def _end_of_first_episode(script: Script) -> int:
    resets = [index for index, move in enumerate(script.moves) if move.name == "reset"]
    return resets[1] if len(resets) > 1 else len(script.moves)


def _refused_or_warned(game: Game, move: Move) -> bool:
    before = len(EnvLogger.mqueue)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        refused = game.attempt(move) is not None
    return refused or bool(caught) or len(EnvLogger.mqueue) > before


def _state(game: Game) -> str:
    """All that is known of the state, for comparisons."""
    parts: list[Any] = [game.plain()]
    for name in ("get_state", "transcript"):
        method = getattr(game.env, name, None)
        parts.append(plain(method()) if callable(method) else None)
    return json.dumps(parts, sort_keys=True)


def _moves_the_cursor(char: str) -> bool:
    override = 0x202A <= ord(char) <= 0x202E or 0x2066 <= ord(char) <= 0x2069
    return override or (char not in "\n\t" and unicodedata.category(char) in ("Cc", "Cs"))
