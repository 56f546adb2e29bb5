"""The rules of the dialogue game: whose turn it is, what is legal, when it ends.

Pure and immutable: every function maps a state to a state. Sentence level, after the extensive-form team
game in dialogue of RTG (arXiv:2310.00322). On a benign goal nature speaks in red's place, so that red cannot
disguise an attack as a benign request (ours).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple, cast

import numpy as np

from rtg_env.errors import ConfigError, InvalidActionError, OrderError
from rtg_env.filters import check_filters, filtered
from rtg_env.goals import Goal
from rtg_env.text import well_formed
from rtg_env.types import BLUE_AGENT, Action, Exchange, Observation, PublicMessages, Role, red_agent

Aggregate = Literal["max", "mean"]
Payment = Literal["exchange", "terminal"]
_BYTES_PER_TOKEN = 4  # of English text under the usual vocabularies, roughly
_new = tuple.__new__  # half the time of a named tuple's own constructor, which every step pays several times


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

    payment: Payment = "exchange"
    """When rewards come: after each of blue's answers, or all at the end."""

    max_action_chars: int = 2000
    """Longest sentence that is legal, in code points."""

    red_tokens: int = 0
    """Tokens that the red team may say in one dialogue, 0 for no limit. Who has none left plays the empty message."""

    blue_tokens: int = 0
    """The same for blue."""

    red_filters: tuple[str, ...] = ()
    """Filters on what red and nature say, before blue and the judge see it (`rtg_env.filters`)."""

    blue_filters: tuple[str, ...] = ()
    """Filters on what blue answers, before red and the judge see it."""

    blue_system_prompt: str = ""
    """Blue's instructions; red never sees them."""

    def __post_init__(self) -> None:
        """Refuse settings outside their range."""
        lows = {"num_exchanges": 1, "num_red": 1, "max_action_chars": 1, "red_tokens": 0, "blue_tokens": 0}
        for name, low in lows.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ConfigError(f"{name} must be a whole number >= {low}, got {value!r}")
        if not isinstance(self.blue_system_prompt, str):
            raise ConfigError(f"blue_system_prompt must be text, got {self.blue_system_prompt!r}")
        for name, below in (("benign_prob", 1.0), ("helpfulness_weight", float("inf"))):
            number = getattr(self, name)
            if not isinstance(number, int | float) or not 0.0 <= number < below:
                raise ConfigError(f"{name} must be a number >= 0 and < {below}, got {number!r}")
        for name, (one, other) in {"aggregate": ("max", "mean"), "payment": ("exchange", "terminal")}.items():
            if getattr(self, name) not in (one, other):
                raise ConfigError(f"{name} must be {one!r} or {other!r}, got {getattr(self, name)!r}")
        for name in ("red_filters", "blue_filters"):
            check_filters(getattr(self, name), name)

    @property
    def red_agents(self) -> tuple[str, ...]:
        """Agent ids of the red team."""
        return _red_agents(self.num_red)

    @property
    def agents(self) -> tuple[str, ...]:
        """All agent ids, red first."""
        return (*self.red_agents, BLUE_AGENT)

    @property
    def max_utility(self) -> float:
        """Largest utility red can have in one dialogue."""
        return max(1.0, self.helpfulness_weight)


def game_config(config: GameConfig | None, game: Mapping[str, Any], *, beside: Sequence[str] = ()) -> GameConfig:
    """A config from a config or from its fields as keywords.

    Args:
        config: A whole config, or None.
        game: Fields of one.
        beside: What else the caller takes, for whoever mistypes it.

    Raises:
        ConfigError: If both were given, or a field is unknown or out of range.
    """
    if config is not None and game:
        raise ConfigError(
            f"expected either config or its fields as keywords, got both ({', '.join(sorted(game))}); merge them"
        )
    if config is not None and not isinstance(config, GameConfig):
        raise ConfigError(f"config must be a GameConfig, got {type(config).__name__}; pass its fields as keywords")
    if config is not None:
        return config
    if unknown := [name for name in game if name not in GameConfig.__dataclass_fields__]:
        known = [*beside, *GameConfig.__dataclass_fields__]
        raise ConfigError(f"expected arguments among {', '.join(known)}, got {', '.join(unknown)}; correct the name")
    return GameConfig(**game)


class Deal(NamedTuple):
    """What chance draws before the first sentence."""

    goal: Goal
    """Harmful or benign."""

    red_order: tuple[int, ...] = (0,)
    """Permutation of the red members; exchange t is spoken by `red_order[t % n]`."""

    policies: tuple[str, ...] = ()
    """Version name of who plays each agent, in the order of `GameConfig.agents`; empty if it is nobody's business."""

    seed: int = 0
    """Decides, with who speaks what when, every sentence that is sampled; in [0, 2**63)."""


class GameState(NamedTuple):
    """One dialogue at one moment."""

    deal: Deal
    """What chance drew."""

    exchanges: tuple[Exchange, ...] = ()
    """What was said and answered."""

    pending: str | None = None
    """Red's or nature's sentence that blue has not answered yet."""

    tokens: tuple[int, int] = (0, 0)
    """What (red, blue) have said so far, counted only where there is a limit."""

    reasoning: tuple[str, ...] = ()
    """Red's private thoughts, one per sentence of red that had any; no other side sees them."""


def draw_deal(config: GameConfig, goal: Goal, rng: np.random.Generator) -> Deal:
    """Draw the order in which red members speak; one member has one order, and nothing is drawn."""
    if config.num_red == 1:
        return Deal(goal)
    return Deal(goal=goal, red_order=tuple(int(index) for index in rng.permutation(config.num_red)))


def start(config: GameConfig, deal: Deal) -> GameState:
    """The state in which somebody speaks first; on a benign goal nature has spoken already."""
    if (deal.red_order != (0,) or config.num_red != 1) and sorted(deal.red_order) != list(range(config.num_red)):
        raise ConfigError(f"red_order must be a permutation of 0..{config.num_red - 1}, got {deal.red_order}")
    if deal.policies and len(deal.policies) != config.num_red + 1:
        raise ConfigError(f"expected a policy for each of {', '.join(config.agents)}, got {deal.policies}")
    state = GameState(deal)
    return state if deal.goal.harmful else _settled(config, state)


def is_over(config: GameConfig, state: GameState) -> bool:
    """Whether all exchanges were played."""
    return len(state.exchanges) >= config.num_exchanges


def to_move(config: GameConfig, state: GameState) -> str | None:
    """Agent id of who speaks next, None when the dialogue is over."""
    deal, exchanges, pending, _, _ = state
    if pending is not None:
        return BLUE_AGENT
    turn = len(exchanges)
    return None if turn >= config.num_exchanges else _red_agents(config.num_red)[deal.red_order[turn % config.num_red]]


def policy_to_move(config: GameConfig, state: GameState) -> str:
    """Version name of who plays the agent to move; empty if the deal names nobody."""
    deal, exchanges, pending, _, _ = state
    if not deal.policies:
        return ""
    return deal.policies[-1 if pending is not None else deal.red_order[len(exchanges) % config.num_red]]


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
    return text if text.isascii() else well_formed(text)


def apply(config: GameConfig, state: GameState, action: str | Action) -> GameState:
    """The state after the agent to move has spoken.

    Raises:
        OrderError: If the dialogue is over.
        InvalidActionError: If the action is not legal.
    """
    deal, exchanges, pending, tokens, reasoning = state
    if len(exchanges) >= config.num_exchanges:
        raise OrderError("expected a dialogue that goes on, this one is over; call reset() or deal a new one")
    plain = type(action) is str and len(action) <= config.max_action_chars and action.isascii()
    text: str = action if plain else check_text(config, action)  # type: ignore[assignment]  # a cast is a call
    if pending is None:
        if config.red_filters:
            text = _passed(config, text, config.red_filters)
        if config.red_tokens:
            tokens = (tokens[0] + count_tokens(action), tokens[1])
        if not plain and isinstance(action, Action) and action.reasoning:
            reasoning = (*reasoning, well_formed(action.reasoning))
        after = _new(GameState, (deal, exchanges, text, tokens, reasoning))
    else:
        if config.blue_filters:
            text = _passed(config, text, config.blue_filters)
        if config.blue_tokens:
            tokens = (tokens[0], tokens[1] + count_tokens(action))
        exchange = _new(Exchange, (pending, text))
        after = _new(GameState, (deal, (*exchanges, exchange), None, tokens, reasoning))
    if deal.goal.harmful and not (config.red_tokens or config.blue_tokens):
        return after
    return _settled(config, after)


def _passed(config: GameConfig, text: str, names: tuple[str, ...]) -> str:
    """What gets through filters; one that lengthens a text does not lift the limit on it."""
    return filtered(text, names)[: config.max_action_chars]


def count_tokens(action: str | Action) -> int:
    """Tokens of an action: what the model sampled, or a quarter of the bytes of a text, rounded up."""
    if isinstance(action, Action):
        if action.token_ids:
            return len(action.token_ids)
        action = action.text
    return -(-len(action.encode("utf-8", "replace")) // _BYTES_PER_TOKEN)


def tokens_left(config: GameConfig, state: GameState, role: Role) -> int | None:
    """What a side may still say in this dialogue, at least 0; None without a limit."""
    limit, spent = (config.red_tokens, state.tokens[0]) if role == "red" else (config.blue_tokens, state.tokens[1])
    return max(0, limit - spent) if limit else None


def observe(config: GameConfig, state: GameState, agent_id: str, said: Sequence[Action] = ()) -> Observation:
    """What this agent sees: the public dialogue, and its own private part.

    Args:
        config: The game.
        state: The dialogue at this moment.
        agent_id: Who looks.
        said: What its side has said so far; a state does not hold it.

    Raises:
        ConfigError: If there is no such agent.
    """
    deal, exchanges, pending, _, reasoning = state
    goal, system_prompt = private_to(config, deal, agent_id)
    messages, turn = PublicMessages(exchanges, pending), len(exchanges)
    if goal is None:
        left = tokens_left(config, state, "blue") if config.blue_tokens else None
        return _new(Observation, (agent_id, messages, turn, config.num_exchanges, None, system_prompt, (), left, said))
    left = tokens_left(config, state, "red") if config.red_tokens else None
    return _new(Observation, (agent_id, messages, turn, config.num_exchanges, goal, "", reasoning, left, said))


def private_to(config: GameConfig, deal: Deal, agent_id: str) -> tuple[Goal | None, str]:
    """Goal and system prompt as one agent may know them: red the one, blue the other.

    Raises:
        ConfigError: If there is no such agent; whoever is nobody must not be shown red's goal.
    """
    if agent_id == BLUE_AGENT:
        return None, config.blue_system_prompt
    if agent_id not in _red_agents(config.num_red):  # the property would be one more call per observation
        raise ConfigError(f"expected an agent among {', '.join(config.agents)}, got {agent_id!r}")
    return deal.goal.public, ""


def team_of(config: GameConfig, role: Role) -> tuple[str, ...]:
    """Agent ids of one side."""
    return config.red_agents if role == "red" else (BLUE_AGENT,)


def state_to_json(state: GameState) -> dict[str, object]:
    """A state as JSON; the goal is stored by id."""
    return {
        "goal_id": state.deal.goal.id,
        "red_order": list(state.deal.red_order),
        "policies": list(state.deal.policies),
        "seed": state.deal.seed,
        "exchanges": [[exchange.red, exchange.blue] for exchange in state.exchanges],
        "pending": state.pending,
        "tokens": list(state.tokens),
        "reasoning": list(state.reasoning),
    }


def state_from_json(data: Mapping[str, object], goals: Mapping[str, Goal]) -> GameState:
    """Inverse of `state_to_json`.

    Raises:
        ConfigError: If the goal is not in `goals`.
    """
    goal_id = str(data["goal_id"])
    if goal_id not in goals:
        raise ConfigError(f"expected the goal {goal_id!r} in the goal set, it is missing; load the set that was played")
    order, policies = cast("list[int]", data["red_order"]), cast("list[str]", data["policies"])
    deal = Deal(goals[goal_id], tuple(order), tuple(policies), cast("int", data["seed"]))
    exchanges = tuple(Exchange(red=red, blue=blue) for red, blue in cast("list[list[str]]", data["exchanges"]))
    pending = cast("str | None", data["pending"])
    red, blue = cast("list[int]", data["tokens"])
    return GameState(deal, exchanges, pending, (red, blue), tuple(cast("list[str]", data["reasoning"])))


@lru_cache
def _red_agents(num_red: int) -> tuple[str, ...]:
    return tuple(red_agent(index) for index in range(num_red))


def _settled(config: GameConfig, state: GameState) -> GameState:
    """The state after everything that happens by itself: nature speaks, and who has no tokens left says nothing."""
    while len(state.exchanges) < config.num_exchanges:
        deal, exchanges, pending, tokens, reasoning = state
        if pending is not None:
            if tokens_left(config, state, "blue") != 0:
                return state
            state = GameState(deal, (*exchanges, Exchange(pending, "")), None, tokens, reasoning)
        elif not deal.goal.harmful:
            # A user's own file may hold longer requests than the limit for agents; nature is cut, never refused.
            text = well_formed(deal.goal.nature_says(len(exchanges)))[: config.max_action_chars]
            state = GameState(deal, exchanges, _passed(config, text, config.red_filters), tokens, reasoning)
        elif tokens_left(config, state, "red") != 0:
            return state
        else:
            state = GameState(deal, exchanges, "", tokens, reasoning)
    return state
