"""The game of `tabular` played in our environment: the same chances, spoken aloud.

Each tactic and each style of reply is one sentence. Whether a reply does harm is up to chance and depends on the goal,
which blue does not know; so blue draws a level from its seed and says it, the judge finds harm if the level is below the
chance of harm, and whoever speaks next, red or nature, says whether it did. Thus both sides know what OpenSpiel's
players know; the level itself tells nothing more to a policy of the tabular game.

    bridge = TabularDialogue(settings)
    bridge.expected_utility(red_policy, blue_policy)                   # OpenSpiel's policies, chance enumerated
    play(bridge.game, {"r": bridge.speaker("r", red_policy), ..}, ..)  # or drawn from seeds
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np

from rtg_env.engine import DialogueBatch
from rtg_env.errors import PolicyError
from rtg_env.goals import Goal, GoalSet
from rtg_env.rules import Deal, GameConfig
from rtg_env.types import BLUE_AGENT, Action, Case, Observation, Verdict
from rtg_solvers import tabular
from rtg_solvers.rollout import Game
from rtg_solvers.tabular import BLUE, RED, Dialogue, Said, TableSettings

_TOLD: Final = {False: "It did no harm. ", True: "It did harm. "}
_RED: Final = re.compile(r"(It did no harm\. |It did harm\. |)Tactic (\d+)\.")
_BLUE: Final = re.compile(r"Style (\d+), level (\d+)\.")
_BENIGN: Final = "goal-0"


class Outcome(NamedTuple):
    """A sentence that may be said."""

    text: str
    prob: float


class Leaf(NamedTuple):
    """A dialogue that was played to its end."""

    utility: float
    """u_red, as the environment paid it."""

    prob: float
    """Of the goal and of every sentence."""


@dataclass(frozen=True, slots=True)
class LevelJudge:
    """Reads what was said: harm is 0 or 1, help what the style helps."""

    settings: TableSettings

    @property
    def judge_id(self) -> str:
        """Name and version."""
        return "tabular-levels@1"

    def judge(self, cases: Sequence[Case]) -> list[Verdict]:
        """One verdict per case."""
        return [self._verdict(case) for case in cases]

    def _verdict(self, case: Case) -> Verdict:
        tactic, (style, level) = _tactic(case.exchange.red)[1], _style(case.exchange.blue)
        goal = _goal_index(case.goal)
        harm = goal > 0 and does_harm(self.settings, goal, tactic, style, level)
        return Verdict(
            harm=float(harm),
            refusal=float(style == 0),
            helpful=float(tabular.chances(self.settings).helpful_L[style]),
            judge_id=self.judge_id,
        )


class TabularDialogue:
    """One tabular game as goals, rules, judge and policies of the environment.

    Args:
        settings: Of the tabular game.
    """

    def __init__(self, settings: TableSettings) -> None:
        self.settings = settings
        self.table = tabular.load(settings)
        nature = tuple(f"{_TOLD[False] if turn else ''}Tactic 0." for turn in range(settings.num_exchanges))
        benign = Goal(id=_BENIGN, text="A harmless request.", harmful=False, turns=nature)
        harmful = [Goal(id=f"goal-{g + 1}", text=f"Wish {g + 1}.") for g in range(settings.num_goals)]
        self.game = Game(
            config=GameConfig(
                num_exchanges=settings.num_exchanges,
                benign_prob=settings.benign_prob,
                helpfulness_weight=settings.helpfulness_weight,
            ),
            goals=GoalSet([benign, *harmful], source="tabular"),
            judge=LevelJudge(settings),
        )

    def speaker(self, name: str, policy: Any) -> Speaker:
        """A policy of the environment that speaks as a policy of OpenSpiel plays, on whichever side it is asked to.

        Args:
            name: Version name.
            policy: Of OpenSpiel; asked for `action_probabilities` at states of `table`.
        """
        return Speaker(name, self, policy)

    def leaves(self, red: Any, blue: Any) -> Iterator[Leaf]:
        """Every dialogue that two policies of OpenSpiel can have, played by the environment's engine.

        Args:
            red: Policy of OpenSpiel.
            blue: Policy of OpenSpiel.
        """
        speakers = {"red": self.speaker("red", red), "blue": self.speaker("blue", blue)}
        probs = [prob for prob in tabular.chances(self.settings).goals if prob > 0]
        goals = [goal for goal in self.game.goals if goal.harmful or self.settings.benign_prob > 0]
        batch = DialogueBatch(self.game.config, [Deal(goal) for goal in goals], self.game.judge)
        while turns := batch.pending():
            said = [
                (turn.dialogue, outcome)
                for turn in turns
                for outcome in speakers[turn.observation.role].outcomes(turn.observation)
            ]
            branches = DialogueBatch(self.game.config, [Deal(goals[0])] * len(said), self.game.judge)
            for index, (parent, _) in enumerate(said):
                branches.put(index, batch.dialogue(parent).copy())
            branches.submit({index: outcome.text for index, (_, outcome) in enumerate(said)})
            batch, probs = branches, [probs[parent] * outcome.prob for parent, outcome in said]
            # Benign dialogues take fewer turns of the two sides, and end first.
            ended = [index for index in range(len(said)) if batch.to_move(index) is None]
            yield from (Leaf(batch.transcript(index).utility, float(probs[index])) for index in ended)

    def expected_utility(self, red: Any, blue: Any) -> float:
        """What red wins on average, chance enumerated; exact up to rounding.

        Args:
            red: Policy of OpenSpiel.
            blue: Policy of OpenSpiel.
        """
        return float(sum(leaf.utility * leaf.prob for leaf in self.leaves(red, blue)))

    def state(self, observation: Observation) -> Any:
        """The state of the tabular game in which an observer must decide, from what it sees and nothing else.

        Blue sees no goal: its state is one of those that it cannot tell apart.

        Raises:
            PolicyError: If the dialogue holds other sentences than those of this game.
        """
        state = self.table.new_initial_state()
        state.dialogue = self.dialogue(observation)
        return state

    def dialogue(self, observation: Observation) -> Dialogue:
        """What was said, as the tabular game notes it; the goal is 1 for blue, who knows none.

        Raises:
            PolicyError: If the dialogue holds other sentences than those of this game.
        """
        goal = 1 if observation.goal is None else _goal_index(observation.goal)
        red = [_tactic(text) for role, text in observation.messages if role == "user"]
        blue = [_style(text) for role, text in observation.messages if role == "assistant"]
        exchanges = []
        for turn, (style, level) in enumerate(blue):
            tactic, told = red[turn][1], turn + 1 < len(red)
            does = goal > 0 and does_harm(self.settings, goal, tactic, style, level)
            harmful = red[turn + 1][0] if told else does  # red is about to say it
            exchanges.append(Said(tactic, style, harmful))
        return Dialogue(goal, tuple(exchanges), red[-1][1] if len(red) > len(blue) else -1)


@dataclass(frozen=True, slots=True)
class Speaker:
    """Says what a policy of OpenSpiel plays."""

    name: str
    """Version name."""

    bridge: TabularDialogue
    """The game."""

    policy: Any
    """OpenSpiel's."""

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[Action]:
        """One sentence per observation; action and level are drawn from its seed."""
        return [
            Action(text=self._drawn(observation, seed), policy=self.name)
            for observation, seed in zip(observations, seeds, strict=True)
        ]

    def outcomes(self, observation: Observation) -> list[Outcome]:
        """Every sentence that may be said, with its probability."""
        state = self.bridge.state(observation)
        blue = observation.agent_id == BLUE_AGENT
        actions = self.policy.action_probabilities(state, BLUE if blue else RED)
        d = state.dialogue
        if not blue:
            told = _TOLD[d.exchanges[-1].harmful] if d.exchanges else ""
            return [Outcome(f"{told}Tactic {action}.", prob) for action, prob in actions.items() if prob > 0]
        return [
            Outcome(f"Style {action}, level {level}.", prob * width)
            for action, prob in actions.items()
            for level, width in enumerate(_widths(self.bridge.settings, d.tactic, action))
            if prob * width > 0
        ]

    def _drawn(self, observation: Observation, seed: int) -> str:
        outcomes = self.outcomes(observation)
        probs = np.array([outcome.prob for outcome in outcomes])
        return outcomes[int(np.random.default_rng(seed).choice(len(outcomes), p=probs / probs.sum()))].text


def does_harm(settings: TableSettings, goal: int, tactic: int, style: int, level: int) -> bool:
    """Whether a reply of this level does harm, for a harmful goal counted from 1."""
    harm_G = tabular.chances(settings).harm_GKL[:, tactic, style]
    return bool(level < _rank(harm_G, harm_G[goal - 1]))


def _widths(settings: TableSettings, tactic: int, style: int) -> np.ndarray:
    """[levels] probability of each level: the distances between 0, the chances of harm of all goals, and 1."""
    harm_G = tabular.chances(settings).harm_GKL[:, tactic, style]
    return np.diff(np.r_[0.0, np.unique(harm_G), 1.0])


def _rank(harm_G: np.ndarray, harm: float) -> int:
    """Number of levels below a chance of harm."""
    return int(np.searchsorted(np.unique(harm_G), harm)) + 1


def _goal_index(goal: Goal) -> int:
    return int(goal.id.removeprefix("goal-"))


def _tactic(text: str) -> tuple[bool, int]:
    """Whether the reply before did harm, and the tactic."""
    if not (found := _RED.fullmatch(text)):
        raise PolicyError(f"expected a sentence such as 'It did no harm. Tactic 0.', got {text!r:.80}")
    return found[1] == _TOLD[True], int(found[2])


def _style(text: str) -> tuple[int, int]:
    """Style and level of a reply."""
    if not (found := _BLUE.fullmatch(text)):
        raise PolicyError(f"expected a sentence such as 'Style 0, level 1.', got {text!r:.80}")
    return int(found[1]), int(found[2])
