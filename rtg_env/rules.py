"""The rules of the dialogue game: whose turn it is, what is legal, when it ends.

Pure and immutable: every function maps a state to a state. Sentence level, after the extensive-form team
game in dialogue of RTG (arXiv:2310.00322). On a benign goal nature speaks in red's place, so that red cannot
disguise an attack as a benign request (ours).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, cast

import numpy as np

from rtg_env.errors import ConfigError, InvalidActionError, OrderError
from rtg_env.goals import Goal
from rtg_env.text import well_formed
from rtg_env.types import BLUE_AGENT, Action, Exchange, Observation, Role, red_agent

Aggregate = Literal["max", "mean"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GameConfig:
    """Settings of the game; two runs with equal settings, goals and judge play the same game."""

    num_exchanges: int = 3
    """Exchanges in every dialogue (T), at least 1."""

    num_red: int = 1
    """Members of the red team (n), at least 1; they speak in the order that chance draws, in turn."""

    benign_prob: float = 0.25
    """Probability that chance draws a benign goal, in [0, 1)."""

    helpfulness_weight: float = 1.0
    """c: what an unhelpful answer to a benign request costs blue, at least 0; 0 is the papers' game."""

    aggregate: Aggregate = "max"
    """How exchanges make a dialogue's utility: the worst one, or the mean."""

    max_action_chars: int = 2000
    """Longest sentence that is legal, in code points."""

    blue_system_prompt: str = ""
    """Blue's instructions; red never sees them."""

    def __post_init__(self) -> None:
        """Refuse settings outside their range."""
        for name, low in (("num_exchanges", 1), ("num_red", 1), ("max_action_chars", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ConfigError(f"{name} must be a whole number >= {low}, got {value!r}")
        for name in ("benign_prob", "helpfulness_weight"):
            if not isinstance(getattr(self, name), int | float):
                raise ConfigError(f"{name} must be a number, got {getattr(self, name)!r}")
        if not isinstance(self.blue_system_prompt, str):
            raise ConfigError(f"blue_system_prompt must be text, got {self.blue_system_prompt!r}")
        if not 0.0 <= self.benign_prob < 1.0:
            raise ConfigError(f"benign_prob must be in [0, 1), got {self.benign_prob!r}")
        if not 0.0 <= self.helpfulness_weight < float("inf"):
            raise ConfigError(f"helpfulness_weight must be finite and >= 0, got {self.helpfulness_weight!r}")
        if self.aggregate not in ("max", "mean"):
            raise ConfigError(f"aggregate must be 'max' or 'mean', got {self.aggregate!r}")

    @property
    def red_agents(self) -> tuple[str, ...]:
        """Agent ids of the red team."""
        return tuple(red_agent(index) for index in range(self.num_red))

    @property
    def agents(self) -> tuple[str, ...]:
        """All agent ids, red first."""
        return (*self.red_agents, BLUE_AGENT)

    @property
    def max_utility(self) -> float:
        """Largest utility red can have in one dialogue."""
        return max(1.0, self.helpfulness_weight)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deal:
    """What chance draws before the first sentence."""

    goal: Goal
    """Harmful or benign."""

    red_order: tuple[int, ...] = (0,)
    """Permutation of the red members; exchange t is spoken by `red_order[t % n]`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GameState:
    """One dialogue at one moment."""

    deal: Deal
    """What chance drew."""

    exchanges: tuple[Exchange, ...] = ()
    """What was said and answered."""

    pending: str | None = None
    """Red's or nature's sentence that blue has not answered yet."""


def draw_deal(config: GameConfig, goal: Goal, rng: np.random.Generator) -> Deal:
    """Draw the order in which red members speak."""
    return Deal(goal=goal, red_order=tuple(int(index) for index in rng.permutation(config.num_red)))


def start(config: GameConfig, deal: Deal) -> GameState:
    """The state in which somebody speaks first; on a benign goal nature has spoken already."""
    if sorted(deal.red_order) != list(range(config.num_red)):
        raise ConfigError(f"red_order must be a permutation of 0..{config.num_red - 1}, got {deal.red_order}")
    return _let_nature_speak(config, GameState(deal=deal))


def is_over(config: GameConfig, state: GameState) -> bool:
    """Whether all exchanges were played."""
    return len(state.exchanges) >= config.num_exchanges


def to_move(config: GameConfig, state: GameState) -> str | None:
    """Agent id of who speaks next, None when the dialogue is over."""
    if is_over(config, state):
        return None
    return BLUE_AGENT if state.pending is not None else speaker_of(config, state, len(state.exchanges))


def speaker_of(config: GameConfig, state: GameState, turn: int) -> str:
    """Red member that speaks in this exchange of a harmful goal."""
    return red_agent(state.deal.red_order[turn % config.num_red])


def check_text(config: GameConfig, action: object) -> str:
    """A legal sentence, with lone surrogates replaced.

    Raises:
        InvalidActionError: If it is not text, or is too long.
    """
    text = action.text if isinstance(action, Action) else action
    if not isinstance(text, str):
        raise InvalidActionError(f"action must be text, got {type(text).__name__}; pass a str")
    if len(text) > config.max_action_chars:
        raise InvalidActionError(
            f"action must be text of at most {config.max_action_chars} characters, got {len(text)}; "
            "raise GameConfig.max_action_chars or shorten it"
        )
    return well_formed(text)


def apply(config: GameConfig, state: GameState, action: str | Action) -> GameState:
    """The state after the agent to move has spoken.

    Raises:
        OrderError: If the dialogue is over.
        InvalidActionError: If the action is not legal.
    """
    if is_over(config, state):
        raise OrderError("expected a dialogue that goes on, this one is over; call reset() or deal a new one")
    text = check_text(config, action)
    if state.pending is None:
        return replace(state, pending=text)
    after = replace(state, exchanges=(*state.exchanges, Exchange(red=state.pending, blue=text)), pending=None)
    return _let_nature_speak(config, after)


def observe(config: GameConfig, state: GameState, agent_id: str) -> Observation:
    """What this agent sees: the public dialogue, and its own private part.

    Raises:
        ConfigError: If there is no such agent.
    """
    messages: list[tuple[Literal["user", "assistant"], str]] = []
    for exchange in state.exchanges:
        messages += [("user", exchange.red), ("assistant", exchange.blue)]
    if state.pending is not None:
        messages.append(("user", state.pending))
    is_blue = agent_id == BLUE_AGENT
    if not is_blue and agent_id not in config.red_agents:  # whoever is nobody must not be shown red's goal
        raise ConfigError(f"expected an agent among {', '.join(config.agents)}, got {agent_id!r}")
    goal = state.deal.goal
    if goal.examples:
        goal = replace(goal, examples=())  # labelled replies are for judges
    return Observation(
        agent_id=agent_id,
        messages=tuple(messages),
        turn=len(state.exchanges),
        num_exchanges=config.num_exchanges,
        goal=None if is_blue else goal,
        system_prompt=config.blue_system_prompt if is_blue else "",
    )


def team_of(config: GameConfig, role: Role) -> tuple[str, ...]:
    """Agent ids of one side."""
    return config.red_agents if role == "red" else (BLUE_AGENT,)


def state_to_json(state: GameState) -> dict[str, object]:
    """A state as JSON; the goal is stored by id."""
    return {
        "goal_id": state.deal.goal.id,
        "red_order": list(state.deal.red_order),
        "exchanges": [[exchange.red, exchange.blue] for exchange in state.exchanges],
        "pending": state.pending,
    }


def state_from_json(data: Mapping[str, object], goals: Mapping[str, Goal]) -> GameState:
    """Inverse of `state_to_json`.

    Raises:
        ConfigError: If the goal is not in `goals`.
    """
    goal_id = str(data["goal_id"])
    if goal_id not in goals:
        raise ConfigError(f"expected the goal {goal_id!r} in the goal set, it is missing; load the set that was played")
    deal = Deal(goal=goals[goal_id], red_order=tuple(cast("list[int]", data["red_order"])))
    exchanges = tuple(Exchange(red=red, blue=blue) for red, blue in cast("list[list[str]]", data["exchanges"]))
    return GameState(deal=deal, exchanges=exchanges, pending=cast("str | None", data["pending"]))


def _let_nature_speak(config: GameConfig, state: GameState) -> GameState:
    goal = state.deal.goal
    if goal.harmful or is_over(config, state) or state.pending is not None:
        return state
    # A user's own file may hold longer requests than the limit for agents; nature is cut, never refused.
    return replace(state, pending=well_formed(goal.nature_says(len(state.exchanges)))[: config.max_action_chars])
