"""One seat at the table: a learner plays one agent, policies play the others, in many dialogues at once.

The core of every Gymnasium view, single or vectorised. All dialogues that wait for the same policy, or for policies that
share a model, are asked in one call, and all exchanges that are completed are judged in one call.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple, cast

import numpy as np
from gymnasium.utils import seeding

from rtg_env import rules
from rtg_env.dialogue import Dialogue, Transcript
from rtg_env.engine import DialogueBatch, Turn
from rtg_env.errors import ConfigError, InvalidActionError, JudgeError, OrderError, PolicyError
from rtg_env.goals import Goal, GoalSet, named_goal
from rtg_env.judges.base import Judge
from rtg_env.limits import Limits, given_limits
from rtg_env.policies import Asked, Policy, answers, within_limit
from rtg_env.rules import Deal, GameConfig
from rtg_env.seeding import turn_seed
from rtg_env.transcripts import Played
from rtg_env.types import BLUE_AGENT, Action, Observation, Role, role_of

_REDRAWS: Final = 3
_MAX_DEALS: Final = 100
_NOTHING: Final = Goal(id="nothing", text="Nothing was dealt yet.")


@dataclass(frozen=True, slots=True)
class Pool:
    """Policies of which chance draws one for each dialogue: a population and its mixture."""

    policies: Sequence[Policy]
    """At least one."""

    probs: Sequence[float] | None = None
    """Probability of each; None for equal ones."""

    def __post_init__(self) -> None:
        """Refuse an empty pool, things that are no policies, and numbers that are no probabilities.

        Both lists are copied: a population that grows later needs a new pool, as it needs a new mixture.
        """
        if not isinstance(self.policies, Sequence):
            raise ConfigError(
                f"expected a list of policies in a pool, got {type(self.policies).__name__}; put it into a list"
            )
        object.__setattr__(self, "policies", tuple(self.policies))
        if not self.policies:
            raise ConfigError("expected at least one policy in a pool, got none; add one")
        for policy in self.policies:
            _check_policy(policy)
        if self.probs is None:
            return
        try:
            probs = np.asarray(self.probs, dtype=float)
        except (TypeError, ValueError):
            probs = np.empty(0)
        if probs.shape != (len(self.policies),) or not (probs >= 0).all() or abs(probs.sum() - 1.0) > 1e-6:
            raise ConfigError(
                f"expected {len(self.policies)} probabilities >= 0 that sum to 1, got {self.probs!r:.200}; "
                "give one for each policy"
            )
        object.__setattr__(self, "probs", tuple(probs.tolist()))

    def draw(self, rng: np.random.Generator) -> Policy:
        """One policy."""
        if len(self.policies) == 1:
            return self.policies[0]
        probs = None if self.probs is None else np.asarray(self.probs, dtype=float) / np.sum(self.probs)
        return self.policies[int(rng.choice(len(self.policies), p=probs))]


Opponents = Policy | Pool | Sequence[Policy] | Mapping[str, Policy | Pool | Sequence[Policy]]
"""Who plays the other seats: one policy or pool for all of them, or one by agent id (`red_1`) or side (`red`, `blue`)."""


class Outcome(NamedTuple):
    """What a sentence of the learner has led to, up to its next turn."""

    reward: float
    """What the learner was paid; its first sentence also brings what was paid before, so that pays add up to its utility."""

    terminated: bool
    """Whether the dialogue is over."""

    truncated: bool
    """Whether a limit, or a judge that kept failing, has ended it."""


@dataclass(slots=True)
class _Slot:
    """What is kept of a dialogue beside its books."""

    players: Mapping[str, Policy] = field(default_factory=dict)
    rng: np.random.Generator | None = None
    seed: int = -1
    begun: float = 0.0
    redrawn: int = 0
    owed: float = 0.0
    dealt: bool = False
    goes_on: bool = False


class Table:
    """Dialogues in which one agent is the learner.

    When a judge fails, everything since the learner's sentence is drawn again with other seeds, up to three times; after
    that the dialogue is truncated, so that no learner is ever paid for a verdict that does not exist.

    Limits end a dialogue from the learner's first sentence on: a deal cannot end one.

    Args:
        learner: Agent id of the learner.
        config: The game. A red learner meets harmful goals only: on benign ones nature speaks in its place.
        goals: What chance draws from.
        judge: Scores blue's answers.
        opponents: Who plays the other seats.
        num_slots: Dialogues at a time.
        limits: When a dialogue is truncated.

    Raises:
        ConfigError: If a setting is wrong, a seat has no policy, or the learner would not speak in every dialogue.
    """

    def __init__(
        self,
        learner: str,
        config: GameConfig,
        *,
        goals: GoalSet,
        judge: Judge,
        opponents: Opponents,
        num_slots: int = 1,
        limits: Limits | None = None,
    ) -> None:
        if learner not in config.agents:
            raise ConfigError(f"expected a learner among {', '.join(config.agents)}, got {learner!r}")
        if learner != BLUE_AGENT and config.num_exchanges < config.num_red:
            raise ConfigError(
                f"expected num_exchanges >= num_red, so that {learner} speaks in every dialogue, "
                f"got {config.num_exchanges} < {config.num_red}"
            )
        if num_slots < 1:
            raise ConfigError(f"expected at least one dialogue at a time, got {num_slots}")
        self.learner = learner
        self.role: Role = role_of(learner)
        self.config = config
        self.goals = goals
        self.judge = judge
        self.limits = self._enough(given_limits(limits))
        self._benign_prob = 0.0 if self.role == "red" else config.benign_prob
        self._pools = self._seated(opponents)
        nothing = Deal(goal=_NOTHING, red_order=tuple(range(config.num_red)))
        self._batch = DialogueBatch(config, [nothing] * num_slots, judge)
        self._slots = [_Slot() for _ in range(num_slots)]

    def __len__(self) -> int:
        return len(self._slots)

    def rng(self, slot: int) -> np.random.Generator:
        """The generator of one slot; a slot that was never seeded gets one from the operating system."""
        return self._slots[slot].rng or self.seed(slot, None)

    def seed(self, slot: int, seed: int | None) -> np.random.Generator:
        """Restart the generator of one slot."""
        rng, drawn = seeding.np_random(seed)
        self._slots[slot] = replace(self._slots[slot], rng=rng, seed=drawn)
        return rng

    def seed_of(self, slot: int) -> int:
        """The seed of the generator of one slot; drawn by the operating system if nobody gave one, -1 before that."""
        return self._slots[slot].seed

    @contextmanager
    def all_or_nothing(self, slots: Iterable[int], *, generators: bool = False) -> Iterator[Mapping[int, Dialogue]]:
        """If anything raises inside, the dialogues of these slots are as they were.

        Args:
            slots: Which.
            generators: Whether their generators are too: it costs more than all the rest.

        Yields:
            Their dialogues as they are now, for whoever wants to go back by itself.
        """
        kept = {slot: self._batch.dialogue(slot).copy() for slot in slots}
        notes = {slot: replace(self._slots[slot]) for slot in kept}
        rngs = [note.rng for note in notes.values() if generators and note.rng is not None]
        states = [rng.bit_generator.state for rng in rngs]
        try:
            yield kept
        except BaseException:
            for slot, dialogue in kept.items():
                self._batch.put(slot, dialogue)
                self._slots[slot] = notes[slot]
            for rng, state in zip(rngs, states, strict=True):
                rng.bit_generator.state = state
            raise

    def deal(
        self,
        slots: Iterable[int],
        options: Mapping[str, Any] | None = None,
        seeds: Mapping[int, int | None] | None = None,
    ) -> None:
        """Deal new dialogues and let the others speak until it is the learner's turn.

        If anything raises, nothing has changed.

        Args:
            slots: Which; each draws from its own generator.
            options: `goal` or `goal_id` fixes the goal, `opponents` who plays the other seats; others are ignored.
            seeds: Restart the generators of some of them first; None goes on.

        Raises:
            ConfigError: If an option is wrong, or the learner's side has no tokens for it to speak.
            JudgeError: If the judge keeps failing before the learner's first turn.
            PolicyError: If a policy breaks its contract.
        """
        options = options or {}
        goal = named_goal(self.goals, options)
        if goal is not None and not goal.harmful and self.role == "red":
            raise ConfigError(f"expected a harmful goal for a learner in red's seat, {goal.id!r} is benign")
        pools = self._pools if options.get("opponents") is None else self._seated(options["opponents"])
        waiting = list(slots)
        with self.all_or_nothing(waiting, generators=True):
            for slot, seed in (seeds or {}).items():
                if seed is not None:
                    self.seed(slot, seed)
            failures = dict.fromkeys(waiting, 0)
            for _ in range(_MAX_DEALS):
                for slot in waiting:
                    self._deal_one(slot, goal, pools)
                for slot, paid in self._advance(waiting, limited=False).items():
                    self._slots[slot].owed, self._slots[slot].redrawn = paid, failures[slot]
                    failures[slot] += self.unscored(slot)
                waiting = [slot for slot in waiting if self._batch.to_move(slot) is None or self.unscored(slot)]
                if not waiting:
                    return
            raise self._never_asked(waiting)

    def set_opponents(self, opponents: Opponents) -> None:
        """Seat others from the next deals on.

        Raises:
            ConfigError: If a seat has no policy, or what is given is none; those before stay then.
        """
        self._pools = self._seated(opponents)

    def say(self, actions: Mapping[int, Action | str]) -> dict[int, Outcome]:
        """Let the learner speak in some slots, and the others answer, up to its next turn.

        If anything raises, no dialogue has moved.

        Raises:
            OrderError: If a slot has no dialogue that goes on.
            InvalidActionError: If a sentence is not legal.
            PolicyError: If a policy breaks its contract.
        """
        self.check_order(actions)
        with self.all_or_nothing(actions) as kept:
            return self._said(actions, kept)

    def check_order(self, slots: Iterable[int]) -> None:
        """Refuse to go on where nothing goes on.

        Raises:
            OrderError: If a slot has no dialogue that goes on.
        """
        for slot in slots:
            if not self._slots[slot].goes_on:
                raise OrderError(f"expected a dialogue that goes on in slot {slot}, there is none; call reset()")

    def observe(self, slot: int) -> Observation:
        """What the learner sees in one slot."""
        return self._dialogue(slot).observe(self.learner)

    def dialogue(self, slot: int) -> Dialogue:
        """The books of one slot."""
        return self._dialogue(slot)

    def transcript(self, slot: int) -> Transcript:
        """The dialogue of one slot as far as it was played."""
        return self._dialogue(slot).transcript()

    def played(self, slot: int) -> Played:
        """The same with who plays it (`learner` is the learner) and its seed."""
        dialogue = self._dialogue(slot)
        deal = dialogue.state.deal
        *reds, blue = deal.policies
        red = reds[0] if len(set(reds)) == 1 else "+".join(reds)
        return Played(red=red, blue=blue, seed=deal.seed, transcript=dialogue.transcript())

    def unscored(self, slot: int) -> bool:
        """Whether a verdict has failed in this slot, and all redraws of it."""
        return self._dialogue(slot).unscored

    def redrawn(self, slot: int) -> int:
        """How often something was drawn again in this dialogue, or all of it, because the judge had failed."""
        return self._slots[slot].redrawn

    def _said(self, actions: Mapping[int, Action | str], kept: Mapping[int, Dialogue]) -> dict[int, Outcome]:
        paid: dict[int, float] = {}
        waiting = dict(actions)
        for attempt in range(_REDRAWS + 1):
            paid |= self._submit(waiting)
            for slot, more in self._advance(list(waiting)).items():
                paid[slot] += more
            waiting = {slot: action for slot, action in waiting.items() if self.unscored(slot)}
            if not waiting or attempt == _REDRAWS:
                break
            for slot in waiting:
                self._slots[slot].redrawn += 1
                again = kept[slot].copy()
                again.reseed(turn_seed(again.state.deal.seed, attempt + 1, False))
                self._batch.put(slot, again)
        return {slot: self._outcome(slot, paid[slot]) for slot in actions}

    def _outcome(self, slot: int, paid_to_red: float) -> Outcome:
        mover = self._batch.to_move(slot)
        paid_to_red += self._slots[slot].owed
        self._slots[slot].owed = 0.0
        reward = paid_to_red if self.role == "red" else -paid_to_red
        outcome = Outcome(reward + 0.0, mover is None, mover is not None and self._stopped(slot))
        if self.unscored(slot):
            outcome = Outcome(0.0, False, True)
        elif mover not in (None, self.learner):  # a limit has stopped the others; no clock may take that back
            outcome = outcome._replace(truncated=True)
        self._slots[slot].goes_on = not (outcome.terminated or outcome.truncated)
        return outcome

    def _stopped(self, slot: int) -> bool:
        return self.limits.reached(self._batch.dialogue(slot).num_sentences, self._slots[slot].begun)

    def _submit(self, actions: Mapping[int, Action | str]) -> dict[int, float]:
        self._batch.submit(actions)
        return {slot: self._batch.dialogue(slot).paid for slot in actions}

    def _advance(self, slots: Iterable[int], *, limited: bool = True) -> dict[int, float]:
        """Let the others speak in these slots until it is the learner's turn; what red was paid on the way."""
        paid = dict.fromkeys(slots, 0.0)
        while turns := [turn for slot in paid if (turn := self._turn_of_others(slot, limited)) is not None]:
            for slot, more in self._submit(self._speak(turns)).items():
                paid[slot] += more
        return paid

    def _turn_of_others(self, slot: int, limited: bool) -> Turn | None:
        dialogue = self._batch.dialogue(slot)
        if dialogue.mover in (None, self.learner) or dialogue.unscored or (limited and self._stopped(slot)):
            return None
        return self._batch.turn(slot)

    def _speak(self, turns: Sequence[Turn]) -> dict[int, Action | str]:
        """One call for each policy, or for all that share what computes them, whatever the number of dialogues."""
        waiting: dict[int, tuple[Policy, list[Turn]]] = {}
        for turn in turns:
            policy = self._slots[turn.dialogue].players[turn.agent_id]
            waiting.setdefault(id(policy), (policy, []))[1].append(turn)
        asked = [
            Asked(policy, [turn.observation for turn in members], [turn.seed for turn in members])
            for policy, members in waiting.values()
        ]
        actions: dict[int, Action | str] = {}
        for (policy, members), said in zip(waiting.values(), answers(asked), strict=True):
            for turn, action in zip(members, said, strict=True):
                actions[turn.dialogue] = self._legal(policy, within_limit(action, self.config.max_action_chars))
        return actions

    def _legal(self, policy: Policy, action: Action) -> Action:
        try:
            rules.check_text(self.config, action)
        except InvalidActionError as error:  # the learner must not take it for its own
            raise PolicyError(f"expected policy {policy.name} to keep to the rules: {error}") from None
        return action

    def _deal_one(self, slot: int, goal: Goal | None, pools: Mapping[str, Pool]) -> None:
        rng = self.rng(slot)
        goal = goal or self.goals.draw(rng, benign_prob=self._benign_prob)
        deal = rules.draw_deal(self.config, goal, rng)
        drawn: dict[tuple[Role, int], Policy] = {}  # seats of a side that share a pool share one draw: a joint one
        players = {}
        for agent, pool in pools.items():
            key = role_of(agent), id(pool)
            if key not in drawn:
                drawn[key] = pool.draw(rng)
            players[agent] = drawn[key]
        names = tuple(players[agent].name if agent in players else "learner" for agent in self.config.agents)
        dialogue = Dialogue.start(self.config, deal._replace(policies=names, seed=int(rng.integers(2**63))))
        self._batch.put(slot, dialogue)
        begun, seed = self.limits.begin(), self._slots[slot].seed
        self._slots[slot] = _Slot(players, rng, seed, begun, dealt=True, goes_on=True)

    def _never_asked(self, slots: Sequence[int]) -> ConfigError | JudgeError:
        failed = [verdict for slot in slots for verdict in self._batch.dialogue(slot).verdicts if not verdict.valid]
        if failed:
            return JudgeError(
                f"expected verdicts on what is said before the first turn of {self.learner}, the judge failed in "
                f"{_MAX_DEALS} deals ({failed[0].raw.get('error', '')}); mend the judge"
            )
        return ConfigError(
            f"expected {self.learner} to have a turn, {_MAX_DEALS} deals were over before it; give its side more tokens"
        )

    def _enough(self, limits: Limits) -> Limits:
        """Limits that leave the learner a sentence, whatever the order that chance draws."""
        before = 1 if self.role == "blue" else 2 * (self.config.num_red - 1)
        if limits.calls is not None and limits.calls <= before:
            raise ConfigError(
                f"expected limits.calls >= {before + 1}, so that {self.learner} speaks in every dialogue, "
                f"got {limits.calls}"
            )
        return limits

    def _dialogue(self, slot: int) -> Dialogue:
        if not self._slots[slot].dealt:
            raise OrderError(
                "expected reset() before anything else, the environment was never reset; call reset(seed=0)"
            )
        return self._batch.dialogue(slot)

    def _seated(self, opponents: Opponents) -> dict[str, Pool]:
        """The pool of every seat but the learner's.

        Raises:
            ConfigError: If a seat has none, or a key is no seat.
        """
        if not isinstance(opponents, Mapping):
            everybody = _as_pool(opponents)
            opponents = {"red": everybody, "blue": everybody}
        given: Mapping[str, object] = opponents
        seats = (*self.config.agents, "red", "blue")
        for key in given:
            if key not in seats or key == self.learner:
                others = ", ".join(seat for seat in seats if seat != self.learner)
                why = "the learner sits there" if key == self.learner else "there is no such seat"
                raise ConfigError(f"expected opponents for seats among {others}, got {key!r}; {why}")
        pools = {key: _as_pool(value) for key, value in given.items()}
        seated = {}
        for agent in self.config.agents:
            if agent == self.learner:
                continue
            pool = pools.get(agent) or pools.get(role_of(agent))
            if pool is None:
                raise ConfigError(
                    f"expected a policy for {agent}, got opponents for {', '.join(given) or 'nobody'}; "
                    f"name one under {agent!r} or {role_of(agent)!r}"
                )
            seated[agent] = pool
        return seated


def _as_pool(value: object) -> Pool:
    if isinstance(value, Pool):
        return value
    if isinstance(value, Sequence) and not isinstance(value, str):
        return Pool(value)
    return Pool((cast("Policy", value),))


def _check_policy(policy: object) -> None:
    is_policy = callable(getattr(policy, "act", None)) and isinstance(getattr(policy, "name", None), str)
    if isinstance(policy, type) or not is_policy:
        found = f"the class {policy.__name__}" if isinstance(policy, type) else type(policy).__name__
        raise ConfigError(
            f"expected policies with a name and act(observations, seeds), got {found}; pass objects that have both"
        )
