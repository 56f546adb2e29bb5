"""Many dialogues at once: ask `pending()`, answer `submit()`, until `done`.

The engine is the only place that holds the state of dialogues. It draws nothing: chance is dealt in, so that a
batch can be saved, restored and cloned at any moment without a random generator.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import numpy as np

from rtg_env import rules
from rtg_env.dialogue import SCHEMA_VERSION, Dialogue, Transcript
from rtg_env.errors import ConfigError, InvalidActionError, OrderError
from rtg_env.goals import GoalSet
from rtg_env.judges.base import Judge, judge_safely
from rtg_env.rules import Deal, GameConfig, GameState
from rtg_env.seeding import turn_seed
from rtg_env.types import BLUE_AGENT, Action, Case, Observation


class Turn(NamedTuple):
    """One agent of one dialogue that is asked to speak."""

    dialogue: int
    """Index in the batch."""

    observation: Observation
    """What the agent sees, and which agent it is."""

    policy: str
    """Version name of who plays it, as dealt; empty if the deal names nobody."""

    seed: int
    """All the randomness this sentence may use: it follows from the deal's seed and the place in the dialogue."""

    @property
    def agent_id(self) -> str:
        """Who is asked."""
        return self.observation.agent_id


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
        self._dialogues = [Dialogue.start(config, deal) for deal in deals]

    @classmethod
    def deal(
        cls, config: GameConfig, goals: GoalSet, judge: Judge, *, count: int, rng: np.random.Generator
    ) -> DialogueBatch:
        """A batch with `count` independent deals, each with a seed of its own."""
        deals = []
        for _ in range(count):
            goal = goals.draw(rng, benign_prob=config.benign_prob)
            deals.append(rules.draw_deal(config, goal, rng)._replace(seed=int(rng.integers(2**63))))
        return cls(config, deals, judge)

    def __len__(self) -> int:
        return len(self._dialogues)

    @property
    def done(self) -> bool:
        """Whether every dialogue is over."""
        return all(dialogue.mover is None for dialogue in self._dialogues)

    def pending(self) -> list[Turn]:
        """Every agent that is asked to speak now, at most one per dialogue, in the order of the batch."""
        return [_turn(index, dialogue) for index, dialogue in enumerate(self._dialogues) if dialogue.mover is not None]

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
        # Flat lists, not a list of tuples: objects that live through a batch cost more to collect than to make.
        dialogues: list[Dialogue] = []
        states: list[GameState] = []
        num_cases: list[int] = []
        asked: list[Case] = []
        for index, action in actions.items():
            dialogue, after = self._after(index, action)
            cases = dialogue.cases(after)
            dialogues.append(dialogue)
            states.append(after)
            num_cases.append(len(cases))
            asked += cases
        verdicts, begin = judge_safely(self.judge, asked), 0
        for dialogue, action, after, count in zip(dialogues, actions.values(), states, num_cases, strict=True):
            dialogue.advance(action, after, verdicts[begin : begin + count] if count else ())
            begin += count

    def observe(self, index: int, agent_id: str) -> Observation:
        """What an agent of one dialogue sees now, whoever is to speak."""
        return self._dialogues[index].observe(agent_id)

    def to_move(self, index: int) -> str | None:
        """Who speaks next in one dialogue, None when it is over."""
        return self._dialogues[index].mover

    def dialogue(self, index: int) -> Dialogue:
        """The books of one dialogue; change them by `submit` alone.

        Raises:
            OrderError: If there is no such dialogue.
        """
        return self._at(index)

    def put(self, index: int, dialogue: Dialogue) -> None:
        """Put a dialogue into a slot, over or not: a new one, or an earlier moment kept by `dialogue(index).copy()`."""
        self._at(index)
        self._dialogues[index] = dialogue

    def turn(self, index: int) -> Turn | None:
        """Who is asked to speak in one dialogue, None when it is over."""
        dialogue = self._at(index)
        return None if dialogue.mover is None else _turn(index, dialogue)

    def refill(self, index: int, deal: Deal) -> None:
        """Deal a new dialogue into a slot whose dialogue is over.

        Raises:
            OrderError: If it is not over, or there is no such slot.
        """
        if self._at(index).mover is not None:
            raise OrderError(f"expected dialogue {index} to be over before its slot is filled again, it goes on")
        self._dialogues[index] = Dialogue.start(self.config, deal)

    def transcript(self, index: int) -> Transcript:
        """One dialogue as far as it was played."""
        return self._dialogues[index].transcript()

    def transcripts(self) -> list[Transcript]:
        """All dialogues of the batch."""
        return [dialogue.transcript() for dialogue in self._dialogues]

    def clone(self) -> DialogueBatch:
        """An independent copy in the same state (states and verdicts are immutable, so this is cheap)."""
        twin = copy.copy(self)
        twin._dialogues = [dialogue.copy() for dialogue in self._dialogues]
        return twin

    def save(self) -> dict[str, object]:
        """The batch as JSON; goals by id, the judge and config not included."""
        return {"schema_version": SCHEMA_VERSION, "dialogues": [dialogue.save() for dialogue in self._dialogues]}

    @classmethod
    def restore(cls, saved: Mapping[str, object], config: GameConfig, goals: GoalSet, judge: Judge) -> DialogueBatch:
        """Inverse of `save`; continues exactly where it was.

        Raises:
            ConfigError: If the batch was saved by another release or for another team, or a goal is missing.
        """
        check_schema(saved)
        batch = cls(config, [], judge)
        index = {goal.id: goal for goal in goals}
        for entry in cast("list[dict[str, object]]", saved["dialogues"]):
            batch._dialogues.append(Dialogue.restore(entry, config, index))
        return batch

    def _at(self, index: int) -> Dialogue:
        if not 0 <= index < len(self._dialogues):
            raise OrderError(f"expected a dialogue index in 0..{len(self._dialogues) - 1}, got {index}")
        return self._dialogues[index]

    def _after(self, index: int, action: Action | str) -> tuple[Dialogue, GameState]:
        dialogue = self._at(index)
        try:
            return dialogue, rules.apply(self.config, dialogue.state, action)
        except InvalidActionError as error:
            raise InvalidActionError(f"dialogue {index}: {error}") from None


def _turn(index: int, dialogue: Dialogue) -> Turn:
    config, state = dialogue.config, dialogue.state
    mover: str = dialogue.mover  # type: ignore[assignment]  # somebody is to move; a cast is a call
    seed = turn_seed(state.deal.seed, len(state.exchanges), mover == BLUE_AGENT)
    policy = rules.policy_to_move(config, state) if state.deal.policies else ""
    return tuple.__new__(Turn, (index, dialogue.observe(mover), policy, seed))  # half the time of its own constructor


def check_schema(saved: Mapping[str, object]) -> None:
    """Refuse what another release has saved.

    Raises:
        ConfigError: With both versions.
    """
    if saved.get("schema_version") != SCHEMA_VERSION:
        raise ConfigError(
            f"expected a saved batch of schema version {SCHEMA_VERSION}, got {saved.get('schema_version')!r}; "
            "restore it with the release that saved it"
        )


def replay(config: GameConfig, transcript: Transcript, judge: Judge) -> Transcript:
    """Play a recorded dialogue again, sentence by sentence, under a judge (the same one or another).

    The rules are followed again, so that a record of another game is refused; `rescore` is for many at once.
    """
    deal = Deal(goal=transcript.goal, red_order=transcript.red_order)
    batch = DialogueBatch(config, [deal], judge)
    for _, action in transcript.actions:
        batch.submit({0: action})
    return batch.transcript(0)


def rescore(config: GameConfig, transcripts: Sequence[Transcript], judge: Judge) -> list[Transcript]:
    """Recorded dialogues under another judge: verdicts and pay are new, every sentence stays; one call of the judge."""
    prefixes = [(t, t.exchanges[: turn + 1]) for t in transcripts for turn in range(len(t.exchanges))]
    verdicts = iter(judge_safely(judge, [Case(t.goal, exchanges) for t, exchanges in prefixes]))
    return [
        Dialogue.recorded(config, transcript, [next(verdicts) for _ in transcript.exchanges]).transcript()
        for transcript in transcripts
    ]
