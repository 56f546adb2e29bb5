"""Many dialogues at once: ask `pending()`, answer `submit()`, until `done`.

The engine is the only place that holds the state of dialogues. It draws nothing: chance is dealt in, so that a
batch can be saved, restored and cloned at any moment without a random generator.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import NamedTuple, cast

import numpy as np

from rtg_env import rewards, rules
from rtg_env.errors import ConfigError, InvalidActionError, OrderError
from rtg_env.goals import Goal, GoalSet
from rtg_env.judges.base import Judge, judge_safely
from rtg_env.rules import Deal, GameConfig, GameState
from rtg_env.text import well_formed
from rtg_env.types import Action, Case, Exchange, Observation, Verdict

SCHEMA_VERSION = 1


class Turn(NamedTuple):
    """One agent of one dialogue that is asked to speak."""

    dialogue: int
    """Index in the batch."""

    observation: Observation
    """What the agent sees."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcript:
    """One dialogue with its verdicts and pay."""

    goal: Goal
    """What red wanted."""

    red_order: tuple[int, ...]
    """Order in which red members spoke."""

    exchanges: tuple[Exchange, ...]
    """What was said."""

    verdicts: tuple[Verdict, ...]
    """One per exchange."""

    actions: tuple[tuple[str, Action], ...]
    """(agent id, action) in the order they were taken; nature's sentences are no actions."""

    utilities: tuple[float, ...]
    """Red's utility of each exchange alone; empty if the dialogue is unscored."""

    payments: tuple[float, ...]
    """What red was paid after each exchange; empty if the dialogue is unscored."""

    utility: float
    """u_red; NaN if the dialogue is unscored or not over."""

    unscored: bool
    """Whether a verdict failed. Such a dialogue is counted and never paid."""


@dataclass(slots=True)
class _Dialogue:
    state: GameState
    verdicts: list[Verdict] = field(default_factory=list)
    actions: list[tuple[str, Action]] = field(default_factory=list)

    @property
    def unscored(self) -> bool:
        return any(not verdict.valid for verdict in self.verdicts)


class DialogueBatch:
    """Plays a batch of dialogues by the rules and has their exchanges judged, all at once.

    Args:
        config: The game.
        deals: What chance drew, one per dialogue.
        judge: Asked once per `submit`, about all exchanges that it completed.
    """

    def __init__(self, config: GameConfig, deals: Sequence[Deal], judge: Judge) -> None:
        self.config = config
        self.judge = judge
        self._dialogues = [_Dialogue(rules.start(config, deal)) for deal in deals]

    @classmethod
    def deal(
        cls, config: GameConfig, goals: GoalSet, judge: Judge, *, count: int, rng: np.random.Generator
    ) -> DialogueBatch:
        """A batch with `count` independent deals."""
        deals = []
        for _ in range(count):
            goal = goals.draw(rng, benign_prob=config.benign_prob)
            deals.append(rules.draw_deal(config, goal, rng))
        return cls(config, deals, judge)

    def __len__(self) -> int:
        return len(self._dialogues)

    @property
    def done(self) -> bool:
        """Whether every dialogue is over."""
        return all(rules.is_over(self.config, dialogue.state) for dialogue in self._dialogues)

    def pending(self) -> list[Turn]:
        """Every agent that is asked to speak now, at most one per dialogue, in the order of the batch."""
        turns = []
        for index, dialogue in enumerate(self._dialogues):
            agent = rules.to_move(self.config, dialogue.state)
            if agent is not None:
                turns.append(Turn(index, rules.observe(self.config, dialogue.state, agent)))
        return turns

    def submit(self, actions: Mapping[int, Action | str]) -> None:
        """Play one sentence in each of the named dialogues and judge the exchanges that this completes.

        Nothing is played if one action is illegal, or if the judge breaks its protocol.

        Args:
            actions: Sentence by index of the dialogue; a subset of `pending()` is fine.

        Raises:
            InvalidActionError: If an action is not text or too long; the message names the dialogue.
            OrderError: If a dialogue is over or unknown.
            JudgeError: If the judge returns something that is not a list of verdicts.
        """
        after = {index: self._after(index, action) for index, action in actions.items()}
        completed = [
            index for index in after if len(after[index].exchanges) > len(self._dialogues[index].state.exchanges)
        ]
        cases = [Case(goal=after[index].deal.goal, exchanges=after[index].exchanges) for index in completed]
        verdicts = dict(zip(completed, judge_safely(self.judge, cases), strict=True))
        for index, action in actions.items():
            dialogue = self._dialogues[index]
            agent = cast("str", rules.to_move(self.config, dialogue.state))
            dialogue.actions.append((agent, _as_spoken(action)))
            dialogue.state = after[index]
            if index in verdicts:
                dialogue.verdicts.append(verdicts[index])

    def observe(self, index: int, agent_id: str) -> Observation:
        """What an agent of one dialogue sees now, whoever is to speak."""
        return rules.observe(self.config, self._dialogues[index].state, agent_id)

    def to_move(self, index: int) -> str | None:
        """Who speaks next in one dialogue, None when it is over."""
        return rules.to_move(self.config, self._dialogues[index].state)

    def transcript(self, index: int) -> Transcript:
        """One dialogue as far as it was played."""
        dialogue = self._dialogues[index]
        goal = dialogue.state.deal.goal
        utilities: tuple[float, ...] = ()
        if not dialogue.unscored:
            utilities = tuple(rewards.exchange_utility(self.config, goal, verdict) for verdict in dialogue.verdicts)
        scored = bool(utilities) and rules.is_over(self.config, dialogue.state)
        return Transcript(
            goal=goal,
            red_order=dialogue.state.deal.red_order,
            exchanges=dialogue.state.exchanges,
            verdicts=tuple(dialogue.verdicts),
            actions=tuple(dialogue.actions),
            utilities=utilities,
            payments=tuple(rewards.payments(self.config, utilities)),
            utility=rewards.dialogue_utility(self.config, utilities) if scored else float("nan"),
            unscored=dialogue.unscored,
        )

    def transcripts(self) -> list[Transcript]:
        """All dialogues of the batch."""
        return [self.transcript(index) for index in range(len(self))]

    def clone(self) -> DialogueBatch:
        """An independent copy in the same state (states and verdicts are immutable, so this is cheap)."""
        twin = copy.copy(self)
        twin._dialogues = [
            _Dialogue(dialogue.state, list(dialogue.verdicts), list(dialogue.actions)) for dialogue in self._dialogues
        ]
        return twin

    def save(self) -> dict[str, object]:
        """The batch as JSON; goals by id, the judge and config not included."""
        return {
            "schema_version": SCHEMA_VERSION,
            "dialogues": [
                {
                    "state": rules.state_to_json(dialogue.state),
                    "verdicts": [verdict_to_json(verdict) for verdict in dialogue.verdicts],
                    "actions": [[agent, asdict(action)] for agent, action in dialogue.actions],
                }
                for dialogue in self._dialogues
            ],
        }

    @classmethod
    def restore(cls, saved: Mapping[str, object], config: GameConfig, goals: GoalSet, judge: Judge) -> DialogueBatch:
        """Inverse of `save`; continues exactly where it was.

        Raises:
            ConfigError: If the batch was saved by another release or for another team, or a goal is missing.
        """
        if saved.get("schema_version") != SCHEMA_VERSION:
            raise ConfigError(
                f"expected a saved batch of schema version {SCHEMA_VERSION}, got {saved.get('schema_version')!r}; "
                "restore it with the release that saved it"
            )
        batch = cls(config, [], judge)
        index = {goal.id: goal for goal in goals}
        for entry in cast("list[dict[str, object]]", saved["dialogues"]):
            state = rules.state_from_json(cast("dict[str, object]", entry["state"]), index)
            rules.start(config, state.deal)  # refuses a deal for another number of red members
            verdicts = [verdict_from_json(item) for item in cast("list[dict[str, object]]", entry["verdicts"])]
            actions = [
                (agent, action_from_json(item))
                for agent, item in cast("list[tuple[str, dict[str, object]]]", entry["actions"])
            ]
            batch._dialogues.append(_Dialogue(state, verdicts, actions))
        return batch

    def _after(self, index: int, action: Action | str) -> GameState:
        if not 0 <= index < len(self._dialogues):
            raise OrderError(f"expected a dialogue index in 0..{len(self._dialogues) - 1}, got {index}")
        try:
            return rules.apply(self.config, self._dialogues[index].state, action)
        except InvalidActionError as error:
            raise InvalidActionError(f"dialogue {index}: {error}") from None


def replay(config: GameConfig, transcript: Transcript, judge: Judge) -> Transcript:
    """Play a recorded dialogue again, sentence by sentence, under a judge (the same one or another)."""
    deal = Deal(goal=transcript.goal, red_order=transcript.red_order)
    batch = DialogueBatch(config, [deal], judge)
    for _, action in transcript.actions:
        batch.submit({0: action})
    return batch.transcript(0)


def _as_spoken(action: Action | str) -> Action:
    kept = action if isinstance(action, Action) else Action(text=action)
    text = well_formed(kept.text)
    return kept if text == kept.text else replace(kept, text=text)


def verdict_to_json(verdict: Verdict) -> dict[str, object]:
    """A verdict as JSON; the numbers of a failed one become null."""
    numbers = {
        name: float(getattr(verdict, name)) if verdict.valid else None for name in ("harm", "refusal", "helpful")
    }
    raw = {str(name): _raw_part(part) for name, part in verdict.raw.items()}
    return {**numbers, "valid": verdict.valid, "judge_id": verdict.judge_id, "raw": raw}


def _raw_part(part: object) -> float | str:
    """Finite numbers and text as they are; whatever else a judge keeps there, as text (JSON has no NaN)."""
    if isinstance(part, int | float | np.number) and math.isfinite(part):
        return float(part)
    return str(part)


def verdict_from_json(data: Mapping[str, object]) -> Verdict:
    """Inverse of `verdict_to_json`."""
    raw = cast("dict[str, float | str]", data["raw"])
    if not data["valid"]:
        return replace(Verdict.failed(str(data["judge_id"]), ""), raw=raw)
    harm, refusal, helpful = (float(cast("float", data[name])) for name in ("harm", "refusal", "helpful"))
    return Verdict(harm=harm, refusal=refusal, helpful=helpful, judge_id=str(data["judge_id"]), raw=raw)


def action_from_json(data: Mapping[str, object]) -> Action:
    """Inverse of `dataclasses.asdict` on an action."""
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
    return Action(**fields)  # type: ignore[arg-type]  # the keys are the field names that asdict wrote
