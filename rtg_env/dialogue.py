"""One dialogue in play, and what is left of it: verdicts, pay, the record.

The rules decide what happens (`rules.py`); a `Dialogue` keeps the books. It draws nothing and asks no judge.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import cast

import numpy as np

from rtg_env import rewards, rules
from rtg_env.goals import Goal
from rtg_env.rules import Deal, GameConfig, GameState
from rtg_env.text import well_formed
from rtg_env.types import BLUE_AGENT, Action, Case, Exchange, Message, Observation, Verdict, as_chat, role_of

SCHEMA_VERSION = 3


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


class Said(Sequence[Action]):
    """What one side has said up to this moment: a view, so that it costs nothing until it is read.

    Equal to the tuple of its actions, and pickled or copied as that tuple: nothing of the other side travels with it.

    Args:
        actions: Those of the dialogue, which may grow; nothing is ever taken away or exchanged.
        agent_id: Whose side.
    """

    __slots__ = ("_actions", "_agent_id", "_end")

    def __init__(self, actions: list[tuple[str, Action | str]], agent_id: str) -> None:
        self._actions = actions
        self._agent_id = agent_id
        self._end = len(actions)

    def __iter__(self) -> Iterator[Action]:
        role = role_of(self._agent_id)
        return (_as_spoken(said) for agent, said in islice(self._actions, self._end) if role_of(agent) == role)

    def __len__(self) -> int:
        role = role_of(self._agent_id)
        return sum(role_of(agent) == role for agent, _ in islice(self._actions, self._end))

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN204
        return tuple(self)[index]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Said | tuple):
            return NotImplemented
        return tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))

    def __reduce__(self) -> tuple[type[tuple[Action, ...]], tuple[tuple[Action, ...]]]:
        return tuple, (tuple(self),)


class Dialogue:
    """One dialogue in play.

    Args:
        config: The game.
        state: Where it stands; what was judged before must be booked with `book`.
    """

    # Stepped hundreds of thousands of times a second: what follows from the state is kept beside it.
    __slots__ = ("_actions", "_best", "_chat", "_utilities", "config", "mover", "paid", "state", "unscored", "verdicts")

    def __init__(self, config: GameConfig, state: GameState) -> None:
        self.config = config
        self.state = state
        self.mover = rules.to_move(config, state)
        """Agent that speaks next, None when the dialogue is over."""
        self.verdicts: list[Verdict] = []
        """One per exchange."""
        self.unscored = False
        """Whether a verdict has failed."""
        self.paid = 0.0
        """What red was paid for the exchanges that the last action completed; 0 once a verdict has failed."""
        self._utilities: list[float] = []
        self._actions: list[tuple[str, Action | str]] = []
        self._best = 0.0
        self._chat: tuple[Message, ...] = ()

    @classmethod
    def start(cls, config: GameConfig, deal: Deal) -> Dialogue:
        """A dialogue in which somebody speaks first."""
        return cls(config, rules.start(config, deal))

    @classmethod
    def recorded(cls, config: GameConfig, transcript: Transcript, verdicts: Sequence[Verdict]) -> Dialogue:
        """A dialogue as it was recorded, with these verdicts on its exchanges."""
        state = rules.start(config, Deal(goal=transcript.goal, red_order=transcript.red_order))
        for _, action in transcript.actions:
            state = rules.apply(config, state, action)
        dialogue = cls(config, state)
        dialogue._actions += transcript.actions
        for verdict in verdicts:
            dialogue.book(verdict)
        return dialogue

    def cases(self, after: GameState) -> Sequence[Case]:
        """What a judge must be asked before the dialogue may go on to `after`: one case per exchange that is completed."""
        before, exchanges = self.state.exchanges, after.exchanges
        if before is exchanges:
            return ()
        done, now = len(before), len(exchanges)
        if now == done + 1:
            return (tuple.__new__(Case, (after.deal.goal, exchanges)),)  # half the time of its own constructor
        return [Case(after.deal.goal, after.exchanges[:turn]) for turn in range(done + 1, now + 1)]

    def advance(self, action: Action | str, after: GameState, verdicts: Sequence[Verdict]) -> None:
        """Go on to the state after an action of the agent to move, with the verdicts on the exchanges it completed."""
        self._actions.append((self.mover, action))  # type: ignore[arg-type]  # somebody is to move; a cast is a call
        self.state = after
        self.mover = BLUE_AGENT if after.pending is not None else rules.to_move(self.config, after)
        self.paid = 0.0
        for verdict in verdicts:
            self.book(verdict)

    def book(self, verdict: Verdict) -> None:
        """Add the verdict on an exchange and pay for it."""
        self.verdicts.append(verdict)
        if not verdict.valid:
            self.unscored = True
        if self.unscored:
            self.paid = 0.0
            return
        config = self.config
        utility = rewards.exchange_utility(config, self.state.deal.goal, verdict)
        self._utilities.append(utility)
        self.paid += rewards.payment(config, self._utilities, self._best)
        if utility > self._best:  # noqa: PLR1730 - `max` costs more than the rest of this method
            self._best = utility

    @property
    def num_sentences(self) -> int:
        """Sentences that agents have said; nature's do not count, nor those that a spent budget left empty."""
        return len(self._actions)

    def reseed(self, seed: int) -> None:
        """Have everything that is sampled from here on drawn anew."""
        self.state = self.state._replace(deal=self.state.deal._replace(seed=seed))

    def observe(self, agent_id: str) -> Observation:
        """What an agent sees now, whoever is to speak."""
        return rules.observe(self.config, self.state, agent_id, Said(self._actions, agent_id))

    def chat(self) -> tuple[Message, ...]:
        """What everybody sees; a sentence becomes a message once, so that a turn costs the same however late it comes."""
        _, exchanges, pending, _, _ = self.state
        chat, answered = self._chat, 2 * len(exchanges)
        if pending is not None and len(chat) == answered:
            self._chat = chat = (*chat, Message(role="user", content=pending))
        elif len(chat) != answered + (pending is not None):  # blue has answered, or nobody looked for a while
            self._chat = chat = as_chat(exchanges, pending, chat)
        return chat

    def copy(self) -> Dialogue:
        """An independent copy in the same state."""
        twin = Dialogue(self.config, self.state)
        twin.verdicts, twin._actions = list(self.verdicts), list(self._actions)
        twin.unscored, twin.paid = self.unscored, self.paid
        twin._utilities, twin._best = list(self._utilities), self._best
        return twin

    def transcript(self) -> Transcript:
        """The dialogue as far as it was played."""
        deal, exchanges = self.state.deal, self.state.exchanges
        utilities = () if self.unscored else tuple(self._utilities)
        scored = bool(utilities) and self.mover is None
        return Transcript(
            goal=deal.goal,
            red_order=deal.red_order,
            exchanges=exchanges,
            verdicts=tuple(self.verdicts),
            actions=tuple((agent, _as_spoken(action)) for agent, action in self._actions),
            utilities=utilities,
            payments=tuple(rewards.payments(self.config, utilities)),
            utility=rewards.dialogue_utility(self.config, utilities) if scored else float("nan"),
            unscored=self.unscored,
        )

    def save(self) -> dict[str, object]:
        """The dialogue as JSON; the goal by id, the config not included."""
        return {
            "state": rules.state_to_json(self.state),
            "verdicts": [verdict_to_json(verdict) for verdict in self.verdicts],
            "actions": [[agent, asdict(_as_spoken(action))] for agent, action in self._actions],
        }

    @classmethod
    def restore(cls, saved: Mapping[str, object], config: GameConfig, goals: Mapping[str, Goal]) -> Dialogue:
        """Inverse of `save`.

        Raises:
            ConfigError: If it was played by another team, or the goal is not in `goals`.
        """
        state = rules.state_from_json(cast("dict[str, object]", saved["state"]), goals)
        rules.start(config, state.deal)  # refuses a deal for another number of red members
        dialogue = cls(config, state)
        for item in cast("list[dict[str, object]]", saved["verdicts"]):
            dialogue.book(verdict_from_json(item))
        dialogue._actions += [
            (agent, action_from_json(item))
            for agent, item in cast("list[tuple[str, dict[str, object]]]", saved["actions"])
        ]
        return dialogue


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
