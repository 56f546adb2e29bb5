"""One seat at the table: a learner plays one agent, policies play the others, in many dialogues at once.

The core of every Gymnasium view, single or vectorised. All dialogues that wait for the same policy are asked in one
call, and all exchanges that are completed are judged in one call.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, cast

import numpy as np
from gymnasium.utils import seeding

from rtg_env import rules
from rtg_env.dialogue import Dialogue, Transcript
from rtg_env.engine import DialogueBatch, Turn
from rtg_env.errors import ConfigError, OrderError
from rtg_env.goals import Goal, GoalSet, named_goal
from rtg_env.judges.base import Judge
from rtg_env.limits import Limits
from rtg_env.policies import Policy, checked_actions, within_limit
from rtg_env.rules import Deal, GameConfig
from rtg_env.seeding import turn_seed
from rtg_env.types import BLUE_AGENT, Action, Observation, Role, role_of

_REDRAWS: Final = 3
_MAX_DEALS: Final = 100


@dataclass(frozen=True, slots=True)
class Pool:
    """Policies of which chance draws one for each dialogue: a population and its mixture."""

    policies: Sequence[Policy]
    """At least one."""

    probs: Sequence[float] | None = None
    """Probability of each; None for equal ones."""

    def __post_init__(self) -> None:
        """Refuse an empty pool, things that are no policies, and numbers that are no probabilities."""
        if not self.policies:
            raise ConfigError("expected at least one policy in a pool, got none")
        for policy in self.policies:
            if not (callable(getattr(policy, "act", None)) and isinstance(getattr(policy, "name", None), str)):
                raise ConfigError(
                    f"expected policies with a name and act(observations, seeds), got {type(policy).__name__}"
                )
        if self.probs is None:
            return
        probs = np.asarray(self.probs, dtype=float)
        if probs.shape != (len(self.policies),) or not (probs >= 0).all() or abs(probs.sum() - 1.0) > 1e-6:
            raise ConfigError(
                f"expected {len(self.policies)} probabilities >= 0 that sum to 1, got {list(self.probs)}; "
                "give one for each policy"
            )

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
    """What the learner was paid."""

    terminated: bool
    """Whether the dialogue is over."""

    truncated: bool
    """Whether a limit, or a judge that kept failing, has ended it."""


class Table:
    """Dialogues in which one agent is the learner.

    When a judge fails, everything since the learner's sentence is drawn again with other seeds, up to three times; after
    that the dialogue is truncated, so that no learner is ever paid for a verdict that does not exist.

    Args:
        learner: Agent id of the learner.
        config: The game. A red learner meets harmful goals only: on benign ones nature speaks in its place.
        goals: What chance draws from.
        judge: Scores blue's answers.
        opponents: Who plays the other seats.
        num_slots: Dialogues at a time.
        limits: When a dialogue is truncated.

    Raises:
        ConfigError: If a setting is wrong, a seat has no policy, or the learner would never speak.
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
        self.learner = learner
        self.role: Role = role_of(learner)
        self.config = config
        self.goals = goals
        self.judge = judge
        self.limits = limits or Limits()
        self._benign_prob = 0.0 if self.role == "red" else config.benign_prob
        self._pools = self._seated(opponents)
        nothing = Deal(goal=goals[0], red_order=tuple(range(config.num_red)))
        self._batch = DialogueBatch(config, [nothing] * num_slots, judge)
        self._players: list[Mapping[str, Policy]] = [{}] * num_slots
        self._rngs: list[np.random.Generator | None] = [None] * num_slots
        self._begun = [0.0] * num_slots
        self._redrawn = [0] * num_slots
        self._dealt = [False] * num_slots
        self._num_slots = num_slots

    def __len__(self) -> int:
        return self._num_slots

    def rng(self, slot: int) -> np.random.Generator:
        """The generator of one slot; a slot that was never seeded gets one from the operating system."""
        return self._rngs[slot] or self.seed(slot, None)

    def seed(self, slot: int, seed: int | None) -> np.random.Generator:
        """Restart the generator of one slot."""
        rng, _ = seeding.np_random(seed)
        self._rngs[slot] = rng
        return rng

    def deal(self, slots: Iterable[int], options: Mapping[str, Any] | None = None) -> None:
        """Deal new dialogues and let the others speak until it is the learner's turn.

        Args:
            slots: Which; each draws from its own generator.
            options: `goal` or `goal_id` fixes the goal, `opponents` who plays the other seats; others are ignored.

        Raises:
            ConfigError: If an option is wrong; nothing has changed then.
        """
        options = options or {}
        goal = named_goal(self.goals, options)
        if goal is not None and not goal.harmful and self.role == "red":
            raise ConfigError(f"expected a harmful goal for a learner in red's seat, {goal.id!r} is benign")
        pools = self._pools if options.get("opponents") is None else self._seated(options["opponents"])
        waiting = list(slots)
        for _ in range(_MAX_DEALS):
            if not waiting:
                return
            for slot in waiting:
                self._deal_one(slot, goal, pools)
            self._advance(waiting)
            waiting = [slot for slot in waiting if self._batch.to_move(slot) is None or self.unscored(slot)]
        raise ConfigError(
            f"expected {self.learner} to have a turn, {_MAX_DEALS} deals were over before it or could not be judged; "
            "give its side more tokens or mend the judge"
        )

    def say(self, actions: Mapping[int, Action | str]) -> dict[int, Outcome]:
        """Let the learner speak in some slots, and the others answer, up to its next turn.

        If anything raises, no dialogue has moved.

        Raises:
            OrderError: If a slot has no dialogue that goes on.
            InvalidActionError: If a sentence is not legal.
            PolicyError: If a policy breaks its contract.
        """
        for slot in actions:
            if not self._dealt[slot] or self._batch.to_move(slot) is None:
                raise OrderError(f"expected a dialogue that goes on in slot {slot}, there is none; call reset()")
        kept = {slot: self._batch.dialogue(slot).copy() for slot in actions}
        try:
            return self._said(actions, kept)
        except BaseException:
            for slot, dialogue in kept.items():
                self._batch.put(slot, dialogue)
            raise

    def observe(self, slot: int) -> Observation:
        """What the learner sees in one slot."""
        return self._dialogue(slot).observe(self.learner)

    def dialogue(self, slot: int) -> Dialogue:
        """The books of one slot."""
        return self._dialogue(slot)

    def transcript(self, slot: int) -> Transcript:
        """The dialogue of one slot as far as it was played."""
        return self._dialogue(slot).transcript()

    def unscored(self, slot: int) -> bool:
        """Whether a verdict has failed in this slot, and all redraws of it."""
        return self._dialogue(slot).unscored

    def redrawn(self, slot: int) -> int:
        """How often something was drawn again in this dialogue because the judge had failed."""
        return self._redrawn[slot]

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
                self._redrawn[slot] += 1
                again = kept[slot].copy()
                again.reseed(turn_seed(again.state.deal.seed, attempt + 1, False))
                self._batch.put(slot, again)
        return {slot: self._outcome(slot, paid[slot]) for slot in actions}

    def _outcome(self, slot: int, paid_to_red: float) -> Outcome:
        if self.unscored(slot):
            return Outcome(0.0, False, True)
        reward = paid_to_red if self.role == "red" else -paid_to_red
        terminated = self._batch.to_move(slot) is None
        return Outcome(reward + 0.0, terminated, not terminated and self._stopped(slot))

    def _stopped(self, slot: int) -> bool:
        return self.limits.reached(self._dialogue(slot).num_sentences, self._begun[slot])

    def _submit(self, actions: Mapping[int, Action | str]) -> dict[int, float]:
        self._batch.submit(actions)
        return {slot: self._dialogue(slot).paid for slot in actions}

    def _advance(self, slots: Iterable[int]) -> dict[int, float]:
        """Let the others speak in these slots until it is the learner's turn; what red was paid on the way."""
        paid = dict.fromkeys(slots, 0.0)
        while turns := [
            turn
            for slot in paid
            if (turn := self._batch.turn(slot)) is not None
            and turn.agent_id != self.learner
            and not self.unscored(slot)
            and not self._stopped(slot)
        ]:
            for slot, more in self._submit(self._speak(turns)).items():
                paid[slot] += more
        return paid

    def _speak(self, turns: Sequence[Turn]) -> dict[int, Action | str]:
        """One call for each policy, whatever the number of dialogues."""
        asked: dict[int, tuple[Policy, list[Turn]]] = {}
        for turn in turns:
            policy = self._players[turn.dialogue][turn.agent_id]
            asked.setdefault(id(policy), (policy, []))[1].append(turn)
        actions: dict[int, Action | str] = {}
        for policy, members in asked.values():
            said = policy.act([turn.observation for turn in members], [turn.seed for turn in members])
            for turn, action in zip(members, checked_actions(policy, said, len(members)), strict=True):
                actions[turn.dialogue] = within_limit(action, self.config.max_action_chars)
        return actions

    def _deal_one(self, slot: int, goal: Goal | None, pools: Mapping[str, Pool]) -> None:
        rng = self.rng(slot)
        goal = goal or self.goals.draw(rng, benign_prob=self._benign_prob)
        deal = rules.draw_deal(self.config, goal, rng)
        drawn: dict[int, Policy] = {}  # seats that share a pool share one draw, so that a team is drawn jointly
        players = {}
        for agent, pool in pools.items():
            if id(pool) not in drawn:
                drawn[id(pool)] = pool.draw(rng)
            players[agent] = drawn[id(pool)]
        names = tuple(players[agent].name if agent in players else "learner" for agent in self.config.agents)
        dialogue = Dialogue.start(self.config, deal._replace(policies=names, seed=int(rng.integers(2**63))))
        self._batch.put(slot, dialogue)
        self._players[slot] = players
        self._begun[slot] = self.limits.begin()
        self._redrawn[slot] = 0
        self._dealt[slot] = True

    def _dialogue(self, slot: int) -> Dialogue:
        if not self._dealt[slot]:
            raise OrderError(
                "expected reset() before anything else, the environment was never reset; call reset(seed=0)"
            )
        return self._batch.dialogue(slot)

    def _seated(self, opponents: Opponents) -> dict[str, Pool]:
        """The pool of every seat but the learner's.

        Raises:
            ConfigError: If a seat has none, or a key is no seat.
        """
        given = opponents if isinstance(opponents, Mapping) else {"red": opponents, "blue": opponents}
        seats = (*self.config.agents, "red", "blue")
        for key in given:
            if key not in seats or key == self.learner:
                others = ", ".join(seat for seat in seats if seat != self.learner)
                raise ConfigError(f"expected opponents for seats among {others}, got {key!r}")
        pools = {key: _as_pool(value) for key, value in given.items()}
        seated = {}
        for agent in self.config.agents:
            if agent == self.learner:
                continue
            pool = pools.get(agent) or pools.get(role_of(agent))
            if pool is None:
                raise ConfigError(f"expected a policy for {agent}, got opponents for {', '.join(given) or 'nobody'}")
            seated[agent] = pool
        return seated


def _as_pool(value: object) -> Pool:
    if isinstance(value, Pool):
        return value
    if isinstance(value, Sequence) and not isinstance(value, str):
        return Pool(tuple(value))
    return Pool((cast("Policy", value),))
