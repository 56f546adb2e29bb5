"""Clauses about who holds what: copies go on alone, and nobody can change or see what is another's."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable, Iterator, Mapping, MutableMapping, MutableSequence, MutableSet
from functools import partial
from typing import Any

import numpy as np

from rtg_env.dialogue import Transcript
from rtg_env.testing.clause import NotApplicable, Unmet, clause
from rtg_env.testing.games import Game, View, difference, plain
from rtg_env.testing.processes import through_pickle
from rtg_env.testing.trial import Trial, dialogue_env, follow, optional_method
from rtg_env.text import one_line
from rtg_env.transcripts import transcript_from_json, transcript_to_json


@clause(
    "copy everything that changes, the generator included; do not inherit EzPickle, which makes copy.deepcopy "
    "build a fresh environment",
    needs=("replay", "interleaved"),
)
def copies(trial: Trial) -> None:
    """A copy in mid-episode, by clone() or else copy.deepcopy, goes on alike, and neither side feels the other."""

    def copied(game: Game) -> Any:
        clone = getattr(game.env, "clone", None)
        try:
            return clone() if callable(clone) else copy.deepcopy(game.env)
        except Exception as error:
            if callable(clone):
                raise
            raise NotApplicable(f"it has no clone(), and copy.deepcopy fails ({one_line(str(error))})") from None

    _at_several_points(trial, copied)


@clause(
    "let get_state() return all that changes as JSON, the generator included, and set_state() put it back",
    needs=("replay", "interleaved"),
)
def saved_state(trial: Trial) -> None:
    """What get_state() returns is JSON; a new environment goes on from it alike after set_state()."""
    optional_method(trial.begun(trial.first_seed).env, "get_state")

    def restored(game: Game) -> Any:
        saved = optional_method(game.env, "get_state")()
        text = json.dumps(saved, allow_nan=False)
        twin = trial.begun(trial.options.seeds[-1] + 1).env
        optional_method(twin, "set_state")(json.loads(text))
        if found := difference(json.loads(text), plain(twin.get_state())):
            raise Unmet("get_state() to return what set_state() was given", found, game.where())
        return twin

    _at_several_points(trial, restored)


@clause(
    "keep open files, connections and closures out of the instance, and do not inherit EzPickle, which makes "
    "pickle build a fresh environment",
    needs=("copies",),
)
def pickled(trial: Trial) -> None:
    """An environment that can be pickled in mid-episode goes on alike on the other side."""
    _at_several_points(trial, lambda game: through_pickle(game.env))


@clause(
    "return a value without references to the running game: a frozen dataclass, or a deep copy",
    needs=("replay", "interleaved"),
)
def transcript(trial: Trial) -> None:
    """Asking for a transcript changes nothing; the same episode has the same one, and it does not change later."""
    for script in trial.scripts():
        game, again = trial.game(), trial.game()
        kept: list[tuple[Any, Any]] = []
        for index in range(len(script.moves)):
            follow(game, script, "the same episode although transcript() is asked", begin=index, end=index + 1)
            record = _transcript(game)
            kept.append((record, plain(record)))
            again.do(script.moves[index])
        if found := difference(kept[-1][1], plain(_transcript(again))):
            raise Unmet("the same transcript of the same episode", found, again.where())
        for index, (record, before) in enumerate(kept):
            where = f"transcript after move {index}, seed {script.seed}"
            if found := difference(before, plain(record)):
                raise Unmet("a transcript to stay as it was", found, where)
            if found := difference(before, plain(_through_json(game, record))):
                raise Unmet("a transcript to survive JSON", found, where)


@clause(
    "build what observe() returns anew each time, or of tuples and other values that refuse to be changed",
    needs=("replay",),
)
def tampered_observations(trial: Trial) -> None:
    """Whoever changes an observation that was returned changes nothing else."""
    _while_spoiling(trial, lambda view: [*view.observations.values(), *view.last[:1]], "observations")


@clause(
    "build the infos of all agents anew in each step and reset (copying them in last() is not enough under "
    "PettingZoo's wrappers, which hand out env.infos)",
    needs=("replay",),
)
def tampered_infos(trial: Trial) -> None:
    """Whoever changes an info that was returned changes nothing for other agents, nor for itself after the next step."""
    _while_spoiling(trial, lambda view: [view.last[4]] if view.last else list(view.infos.values()), "infos")


@clause(
    "build what observe() and last() return anew each time, never fill a buffer again", needs=("tampered-observations",)
)
def kept_observations(trial: Trial) -> None:
    """What was returned does not change while the game goes on."""
    for script in trial.scripts():
        game = trial.game()
        kept = []
        for move in script.moves:
            game.do(move)
            view = game.view()
            shown = {"observations": view.observations, "last": list(view.last[:1])}
            kept.append((shown, plain(shown), game.where()))
        for shown, before, where in kept:
            if found := difference(before, plain(shown)):
                raise Unmet("an observation to stay as it was when it was returned", found, where)


@clause("leave the private text out of what other agents are shown, infos included", needs=("episode",))
def secrets(trial: Trial) -> None:
    """No agent is shown a text that is private to others, in any observation or info."""
    num_texts = 0
    for script in trial.scripts():
        game = trial.game()
        for move in script.moves:
            game.do(move)
            view, private = game.view(), trial.secrets(game.env)
            num_texts += sum(bool(text) for texts in private.values() for text in texts)
            for agent, shown in _shown(view):
                mine = set(private.get(agent, ()))
                for owner, texts in private.items():
                    for text in set(texts) - mine:
                        if text and any(text in said for said in _texts(shown)):
                            found = f"it holds {one_line(repr(text), max_chars=80)}, private to {owner}"
                            raise Unmet(f"what {agent} is shown to be free of others' secrets", found, game.where())
    if not num_texts:
        raise NotApplicable("no private text is known; name it by secrets=lambda env: {agent: [text, ..]}")


def _at_several_points(trial: Trial, copied: Callable[[Game], Any]) -> None:
    """Copy at several points; one copy goes on before the original does, one after it."""
    for script in trial.scripts():
        total = len(script.moves)
        for point in sorted({1, total // 3, total // 2, total - 1} - {0}):
            game = trial.game()
            follow(game, script, "the same episode", end=point)
            early, late = game.around(copied(game)), game.around(copied(game))
            for player, who in ((early, "a copy"), (game, "the original"), (late, "a second copy")):
                expected = f"{who} made at move {point} to go on as if there were no other"
                follow(player, script, expected, begin=point)


def _while_spoiling(trial: Trial, returned: Callable[[View], list[Any]], name: str) -> None:
    expected = f"the same episode although somebody changes returned {name}"
    for script in trial.scripts():
        game = trial.game()
        for index, seen in enumerate(script.plain_views):
            follow(game, script, expected, begin=index, end=index + 1)
            for value in returned(game.view()):
                spoil(value)
            mine = seen["mover"] if name == "infos" else ""
            now = game.plain()
            if game.kind == "aec" and (found := difference(_of_others(seen, mine), _of_others(now, mine))):
                raise Unmet(expected, found, game.where())


def _of_others(seen: Any, agent: str) -> Any:
    """A plain view without the info of one agent: nobody is harmed by what it has done to its own."""
    if not agent:
        return seen
    return {
        **seen,
        "infos": {name: info for name, info in seen["infos"].items() if name != agent},
        "last": seen["last"][:4],
    }


def spoil(value: Any) -> None:
    """Change every container inside a value that lets itself be changed."""
    for part in _parts(value):
        spoil(part)
    attempts: list[Callable[[], Any]] = []
    if isinstance(value, MutableMapping):
        attempts += [partial(value.__setitem__, key, "tampered") for key in [*value, "tampered"]]
        attempts += [partial(value.update, {"tampered": 1}), value.popitem, value.clear]
    elif isinstance(value, MutableSequence):
        attempts += [partial(value.append, "tampered"), value.reverse, value.pop, value.clear]
    elif isinstance(value, MutableSet):
        attempts += [value.clear]
    elif isinstance(value, np.ndarray):
        attempts += [partial(np.copyto, value, 1 - value)]
    for attempt in attempts:
        with contextlib.suppress(TypeError, AttributeError, ValueError, LookupError, NotImplementedError):
            attempt()


def _parts(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple | set) else []


def _transcript(game: Game) -> Any:
    return optional_method(dialogue_env(game.env) or game.env, "transcript")()


def _through_json(game: Game, record: Any) -> Any:
    ours = dialogue_env(game.env)
    if ours is None or not isinstance(record, Transcript):
        return record
    text = json.dumps(transcript_to_json(record), allow_nan=False)
    return transcript_from_json(json.loads(text), ours.goals)


def _shown(view: View) -> Iterator[tuple[str, Any]]:
    yield from view.observations.items()
    yield from view.infos.items()
    if view.last:
        yield view.mover, [view.last[0], view.last[4]]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _texts(key)
            yield from _texts(part)
    elif isinstance(value, list | tuple | set | frozenset):
        for part in value:
            yield from _texts(part)
