"""The game of `cached_dialogue` played in our environment: real goals, tactics, rules and pay; replies from the table.

Red and nature say what they say in any run. Blue's reply stands in for the model's text, which the table does not hold:
its hash in brackets, and the judge reads the verdict of that reply. What blue chose is noted where a model's own record
would be: `prompt_ids` is the system prompt it read, `token_ids` the seed it drew.

    bridge = CachedPlay(path)
    play(bridge.game, {"r": bridge.speaker("r", red), "b": bridge.speaker("b", blue)}, pairings)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from rtg_env import goals as known_goals
from rtg_env.errors import PolicyError
from rtg_env.goals import GoalSet
from rtg_env.rules import Deal, GameConfig
from rtg_env.tactics import Tactic, tactic_action
from rtg_env.types import Action, Case, Observation, Role, Verdict
from rtg_solvers import cached_dialogue
from rtg_solvers.cached_dialogue import information, table_of
from rtg_solvers.cached_table import CachedTable, Choices, Reply, text_hash
from rtg_solvers.rollout import Game, Pairing, play, utilities

Behaviour = Mapping[str, Sequence[float]]
"""Probabilities of choices by information state."""

_STAND_IN: Final = re.compile(r"\[([0-9a-f]+)\]")


@dataclass(frozen=True, slots=True)
class TableJudge:
    """Reads verdicts from a table."""

    verdicts: Mapping[tuple[str, str, str], Reply]
    """By goal, and hashes of sentence and reply."""

    @property
    def judge_id(self) -> str:
        """Name and version."""
        return "cached-table@1"

    def judge(self, cases: Sequence[Case]) -> list[Verdict]:
        """One verdict per case."""
        return [self._verdict(case) for case in cases]

    def _verdict(self, case: Case) -> Verdict:
        row = self.verdicts[case.goal.id, heard(case.exchange.red), heard(case.exchange.blue)]
        return Verdict(harm=row.harm, refusal=row.refusal, helpful=row.helpful, judge_id=self.judge_id)


class CachedPlay:
    """One cached game as goals, rules, judge and policies of the environment.

    Args:
        path: Of the table.
        hears: Whether blue hears the sentence before it sets the prompt.
        goals: What the table's goals are called in; default: the built-in set.

    Raises:
        ConfigError: If the file is no table, a goal is unknown, or red's sentences are others than when it was built.
    """

    def __init__(self, path: Path, *, hears: bool = False, goals: GoalSet | None = None) -> None:
        known = known_goals.given_goals(goals)
        self.openspiel = cached_dialogue.load(path, hears=hears)
        self.table: CachedTable = table_of(self.openspiel)
        self.hears = hears
        self._tactics = [[Tactic(name=name, template=text) for name, text in turn] for turn in self.table.tactics]
        self._replies, verdicts = _lookups(self.table)
        self.game = Game(
            config=GameConfig(
                num_exchanges=self.table.num_exchanges,
                benign_prob=self.table.benign_prob,
                helpfulness_weight=self.table.helpfulness_weight,
            ),
            goals=GoalSet([known.by_id(goal.id) for goal in self.table.goals], source=f"{known.source}:cached"),
            judge=TableJudge(verdicts),
        )

    def speaker(self, name: str, behaviour: Behaviour) -> Speaker:
        """A policy that draws its choices.

        Args:
            name: Version name.
            behaviour: Of the side that it is asked to play; `behaviour_of` makes one of a policy of OpenSpiel.
        """
        return Speaker(name, self, Drawn(behaviour, self.table.num_seeds))

    def information(self, observation: Observation) -> str:
        """The information state of OpenSpiel's game in which an observer must choose, from what it sees alone."""
        said = [heard(text) for _, text in observation.messages]
        if observation.role == "red":
            names = [[tactic.name for tactic in turn] for turn in self._tactics]
            own = [names[turn].index(name) for turn, name in enumerate(observation.reasoning)]
            return information("red", observation.goal.id if observation.goal else None, own, said)
        own = [action.prompt_ids[0] for action in observation.said]
        return information("blue", None, own, said if self.hears else said[:-1])

    def says(self, name: str, observation: Observation, choice: int, seed: int) -> Action:
        """The sentence of a choice.

        Args:
            name: Version name of who speaks.
            observation: Where.
            choice: Tactic or prompt.
            seed: In 0..S-1; blue's alone.

        Raises:
            PolicyError: If the dialogue holds other sentences than those of this game.
        """
        if observation.role == "red":
            tactic = self._tactics[observation.turn][choice]
            return tactic_action(tactic, observation, self.game.config.max_action_chars, policy=name)
        key = (tuple(heard(text) for _, text in observation.messages), choice, seed)
        if key not in self._replies:
            raise PolicyError(
                f"expected a dialogue that the table holds, got {[text for _, text in observation.messages]!r:.160}"
            )
        text = f"[{self._replies[key]}]"
        return Action(text=text, policy=name, prompt_ids=(choice,), token_ids=(seed,))

    def expected_utility(self, red: Behaviour, blue: Behaviour) -> float:
        """What red wins on average, chance enumerated over the table: neither OpenSpiel nor the engine takes part.

        Args:
            red: Of red, by information state.
            blue: Of blue.
        """
        table = self.table
        return sum(table.goal_prob(goal) * self._worth((goal,), red, blue) for goal in range(len(table.goals)))

    def _worth(self, path: Choices, red: Behaviour, blue: Behaviour) -> float:
        """The same from here on."""
        table, said, worth = self.table, self.table.said(path), 0.0
        if len(path) == 1 + 3 * table.num_exchanges:
            return table.utility(path)
        speaks = table.goals[path[0]].harmful
        tactics = red[information("red", table.goals[path[0]].id, path[1::3], said)] if speaks else (1.0,)
        for tactic, chosen in enumerate(tactics):
            if not chosen:
                continue
            known = (*said, table.sentence(path, tactic)) if self.hears else said
            for prompt, prob in enumerate(blue[information("blue", None, path[2::3], known)]):
                if prob:
                    ends = [self._worth((*path, tactic, prompt, seed), red, blue) for seed in range(table.num_seeds)]
                    worth += chosen * prob * sum(ends) / table.num_seeds
        return worth

    def played_paths(self) -> dict[Choices, float]:
        """u_red of every whole path, as the environment pays it: each is played with the choices given."""
        paths = [path for path in self.table.paths() if len(path) == 1 + 3 * self.table.num_exchanges]
        speakers, pairings = {}, []
        for path in paths:
            red, blue = (f"red:{path[1::3]}", f"blue:{path[2::3]}:{path[3::3]}")
            speakers[red] = Speaker(red, self, Given([(tactic, 0) for tactic in path[1::3]]))
            speakers[blue] = Speaker(blue, self, Given(list(zip(path[2::3], path[3::3], strict=True))))
            pairings.append(Pairing(red=red, blue=blue, deal=Deal(self.game.goals[path[0]]), seed=0))
        paid = utilities(play(self.game, speakers, pairings))
        return dict(zip(paths, paid.tolist(), strict=True))


class Chooser(Protocol):
    """Decides what is said."""

    def __call__(self, turn: int, state: str, seed: int) -> tuple[int, int]:
        """Choice, and the seed that the model would draw, in an exchange and an information state."""
        ...


@dataclass(frozen=True, slots=True)
class Given:
    """Choices that were made before."""

    choices: Sequence[tuple[int, int]]
    """Of each exchange."""

    def __call__(self, turn: int, state: str, seed: int) -> tuple[int, int]:
        """Those of this exchange."""
        return self.choices[turn]


@dataclass(frozen=True, slots=True)
class Drawn:
    """Choices that are drawn."""

    behaviour: Behaviour
    """From what."""

    num_seeds: int
    """S."""

    def __call__(self, turn: int, state: str, seed: int) -> tuple[int, int]:
        """Seeds are drawn first, so that they are the same whatever is chosen."""
        probs = np.asarray(self.behaviour[state])
        choice = int(probs.argmax())
        if probs[choice] < 1.0:
            choice = int(np.random.default_rng(seed).choice(probs.size, p=probs / probs.sum()))
        return choice, seed % self.num_seeds


@dataclass(frozen=True, slots=True)
class Speaker:
    """A policy of the environment."""

    name: str
    """Version name."""

    bridge: CachedPlay
    """The game."""

    chooser: Chooser
    """Who decides."""

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[Action]:
        """One sentence per observation."""
        said = []
        for observation, seed in zip(observations, seeds, strict=True):
            state = self.bridge.information(observation)
            said.append(self.bridge.says(self.name, observation, *self.chooser(observation.turn, state, seed)))
        return said


def heard(text: str) -> str:
    """The hash of a sentence; that in brackets stands for a reply."""
    found = _STAND_IN.fullmatch(text)
    return found[1] if found else text_hash(text)


def information_states(game: Any) -> dict[Role, dict[str, Any]]:
    """A state of OpenSpiel for each information state of either side."""
    found: dict[Role, dict[str, Any]] = {"red": {}, "blue": {}}
    waiting = [game.new_initial_state()]
    while waiting:
        state = waiting.pop()
        if (player := state.current_player()) >= 0:
            found["red" if player == 0 else "blue"].setdefault(state.information_state_string(player), state)
        waiting += [state.child(action) for action in state.legal_actions()]
    return found


def behaviour_of(policy: Any, states: Mapping[str, Any]) -> dict[str, tuple[float, ...]]:
    """What a policy of OpenSpiel does in each information state of one side.

    Args:
        policy: Asked for `action_probabilities`.
        states: Of that side, from `information_states`.
    """
    found = {}
    for name, state in states.items():
        probs = policy.action_probabilities(state, state.current_player())
        found[name] = tuple(float(probs.get(action, 0.0)) for action in state.legal_actions())
    return found


def _lookups(
    table: CachedTable,
) -> tuple[dict[tuple[tuple[str, ...], int, int], str], dict[tuple[str, str, str], Reply]]:
    """Reply by all that was said, prompt and seed; verdict by goal, sentence and reply."""
    replies, verdicts = {}, {}
    for path in table.paths():
        row = table.rows[path]
        replies[(*table.said(path[:-3]), row.sentence), path[-2], path[-1]] = row.reply
        verdicts[table.goals[path[0]].id, row.sentence, row.reply] = row
    return replies, verdicts
