"""The dialogue game as a PettingZoo environment with text actions.

    env = rtg_env.env(num_exchanges=2)
    env.reset(seed=0)
    for agent in env.agent_iter():
        observation, reward, termination, truncation, info = env.last()
        env.step(None if termination or truncation else my_agents[agent](observation))

`red_0 .. red_{n-1}` and `blue_0` speak in turn. On a benign goal nature speaks instead of red: then red only watches.
Rewards come after each of blue's answers and are zero-sum between the teams.

Observations are dicts: everybody sees `messages` (a tuple of {"role", "content"}; the user is red or nature) and
`turn`; red also sees its `goal` and its own earlier `reasoning`, blue its `system_prompt`. Infos hold `unscored` (a
judge failed; rewards of this dialogue mean nothing, discard it), and red's also `goal_id` and `harmful`.

Version history: v0, first rules.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, cast

import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from pettingzoo import AECEnv
from pettingzoo.utils.conversions import turn_based_aec_to_parallel_wrapper
from pettingzoo.utils.env import AECIterable

from rtg_env import rewards, rules
from rtg_env.dialogue import SCHEMA_VERSION, Dialogue, Transcript
from rtg_env.engine import check_schema
from rtg_env.errors import ConfigError, InvalidActionError, OrderError
from rtg_env.goals import Goal, GoalSet, given_goals, named_goal
from rtg_env.judges.base import Judge, default_judge, judge_safely
from rtg_env.limits import Limits, given_limits
from rtg_env.rendering import RENDER_MODES, as_text, dialogue_lines, write
from rtg_env.rules import GameConfig, game_config
from rtg_env.spaces import UnicodeText, observation_space_of
from rtg_env.types import BLUE_AGENT, Action


class raw_env(AECEnv[str, dict[str, Any], "str | Action | None"]):
    """The environment without wrappers; it checks order and actions itself (wrappers cost 20x to 80x, measured).

    Args:
        config: The game; or pass its fields as keywords (`num_exchanges=2`).
        goals: What chance draws from; default: the built-in set.
        judge: Scores blue's answers; default: the offline judge A.
        limits: When a dialogue is truncated: calls or seconds; default: never.
        render_mode: "human" writes each sentence to the terminal, "ansi" makes `render()` return the dialogue.
        game: Fields of `GameConfig`.

    Raises:
        ConfigError: If a setting is wrong.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - PettingZoo declares it so
        "name": "dialogue_v0",
        "render_modes": list(RENDER_MODES),
        "is_parallelizable": True,
        "render_fps": 1,
    }

    def __init__(
        self,
        config: GameConfig | None = None,
        *,
        goals: GoalSet | None = None,
        judge: Judge | None = None,
        limits: Limits | None = None,
        render_mode: str | None = None,
        **game: Any,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # PettingZoo does not annotate it
        if render_mode is not None and render_mode not in RENDER_MODES:
            raise ConfigError(f"render_mode must be None or one of {RENDER_MODES}, got {render_mode!r}")
        self.config = game_config(config, game, beside=("goals", "judge", "limits", "render_mode"))
        self.goals = given_goals(goals)
        self.judge = default_judge() if judge is None else judge
        self.limits = given_limits(limits)
        self._limited = self.limits != Limits()
        self.render_mode = render_mode
        self.possible_agents = list(self.config.agents)
        self.agents: list[str] = []
        self._observation_spaces = {agent: observation_space_of(self.config, agent) for agent in self.possible_agents}
        self._action_spaces = {agent: UnicodeText(self.config.max_action_chars) for agent in self.possible_agents}
        self._zeros = dict.fromkeys(self.possible_agents, 0.0)
        self._ongoing = dict.fromkeys(self.possible_agents, False)
        self._dialogue: Dialogue | None = None
        self._rng: np.random.Generator | None = None
        self._begun = 0.0
        self._rendered = 0

    def observation_space(self, agent: str) -> spaces.Dict:
        """Space of what this agent sees."""
        return self._observation_spaces[agent]

    def action_space(self, agent: str) -> UnicodeText:
        """Any text up to the limit."""
        return self._action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        """Deal a new dialogue.

        Args:
            seed: Restarts the environment's own generator; None goes on with it.
            options: `goal` (a `Goal`) or `goal_id` fixes the goal; other keys are ignored.

        Raises:
            ConfigError: If there is no such goal; the dialogue before goes on then.
        """
        if seed is not None or self._rng is None:
            self._rng, _ = seeding.np_random(seed)
        goal = named_goal(self.goals, options) if options else None
        if goal is None:
            goal = self.goals.draw(self._rng, benign_prob=self.config.benign_prob)
        deal = rules.draw_deal(self.config, goal, self._rng)
        dialogue = Dialogue.start(self.config, deal)
        self._sit_down(dialogue)
        self.agents = list(self.possible_agents)
        self.rewards = self._zeros.copy()
        self._cumulative_rewards = self._zeros.copy()
        self.terminations = self._ongoing.copy()
        self.truncations = self._ongoing.copy()
        self.infos = self._new_infos(deal.goal, unscored=False)
        self.agent_selection = cast("str", dialogue.mover)
        if self._limited:
            self._begun = self.limits.begin()
        if self.render_mode == "human":
            self._render_new()

    def step(self, action: str | Action | None) -> None:
        """Let the selected agent speak.

        Args:
            action: The sentence (an empty one is legal), or None for an agent whose dialogue is over.

        Raises:
            OrderError: Before `reset`, or after the last agent has left.
            InvalidActionError: If the action is not text or too long; nothing has happened then.
        """
        dialogue = self._dialogue
        if dialogue is None or not self.agents:
            raise self._not_ready()
        agent = self.agent_selection
        if self.terminations[agent] or self.truncations[agent]:
            if action is not None:
                raise InvalidActionError(
                    f"action of {agent} must be None, its dialogue is over; got {type(action).__name__}"
                )
            self._leave(agent)
            return
        if action is None:
            raise InvalidActionError(f"action must be text, got None, but the dialogue of {agent} goes on; pass a str")
        after = rules.apply(dialogue.config, dialogue.state, action)
        verdicts = judge_safely(self.judge, cases) if (cases := dialogue.cases(after)) else ()
        dialogue.advance(action, after, verdicts)
        self._cumulative_rewards[agent] = 0.0
        self.rewards = self._zeros.copy()
        if verdicts:
            self._pay(dialogue)
        if dialogue.mover is None:
            self.terminations = dict.fromkeys(self.agents, True)
            self.agent_selection = self.agents[0]
        elif self._limited and self.limits.reached(dialogue.num_sentences, self._begun):
            self.truncations = dict.fromkeys(self.agents, True)
            self.agent_selection = self.agents[0]
        else:
            self.agent_selection = dialogue.mover
        if self.render_mode == "human":
            self._render_new()

    def last(self, observe: bool = True) -> tuple[dict[str, Any] | None, float, bool, bool, dict[str, Any]]:
        """Observation, reward since its last turn, termination, truncation and info of the selected agent.

        Raises:
            OrderError: Before `reset`, or after the last agent has left.
        """
        if not self.agents:
            raise self._not_ready()
        agent = self.agent_selection
        return (
            self.observe(agent) if observe else None,
            self._cumulative_rewards[agent],
            self.terminations[agent],
            self.truncations[agent],
            self.infos[agent].copy(),  # a caller that writes into it must not take back the flag `unscored`
        )

    def agent_iter(self, max_iter: int = 2**63) -> AECIterable[str, dict[str, Any], str | Action | None]:
        """The selected agents, one after another; call `step` once for each.

        Raises:
            OrderError: Before `reset`.
        """
        self._dealt()
        return super().agent_iter(max_iter)

    def observe(self, agent: str) -> dict[str, Any]:
        """What this agent sees now.

        Raises:
            ConfigError: If there is no such agent.
        """
        dialogue = self._dialogue or self._dealt()
        state = dialogue.state
        seen: dict[str, Any] = {"messages": dialogue.chat(), "turn": len(state.exchanges)}
        if agent == BLUE_AGENT:
            seen["system_prompt"] = dialogue.config.blue_system_prompt
        elif agent in self._ongoing:
            seen["goal"], seen["reasoning"] = state.deal.goal.text, state.reasoning
        else:
            raise ConfigError(f"expected an agent among {', '.join(self.possible_agents)}, got {agent!r}")
        return seen

    def render(self) -> str | None:
        """The dialogue so far, safe for a terminal; None (and nothing new is written) in human mode."""
        if self.render_mode != "ansi":
            return None
        return as_text(dialogue_lines(self._dealt()))

    def close(self) -> None:
        """Nothing is held open."""

    def transcript(self) -> Transcript:
        """The dialogue with verdicts and pay, as far as it was played."""
        return self._dealt().transcript()

    def get_state(self) -> dict[str, Any]:
        """The environment at this moment as JSON: dialogue, rewards, generator; goals by id, the judge not included.

        Raises:
            OrderError: Before `reset`.
        """
        return {
            "schema_version": SCHEMA_VERSION,
            "config": asdict(self.config),
            "dialogue": self._dealt().save(),
            "generator": cast("np.random.Generator", self._rng).bit_generator.state,
            "agents": list(self.agents),
            "agent_selection": self.agent_selection,
            "truncated": any(self.truncations.values()),
            "rewards": dict(self.rewards),
            "cumulative_rewards": dict(self._cumulative_rewards),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that `get_state` has returned, here or in another process; a limit on time begins anew.

        Raises:
            ConfigError: If another release saved it, for another game, or its goal is not among the goals.
        """
        check_schema(state)
        if _as_json(state.get("config")) != _as_json(asdict(self.config)):
            raise ConfigError(f"expected a state of the game {self.config}, got one of {state.get('config')}")
        dialogue = Dialogue.restore(state["dialogue"], self.config, {goal.id: goal for goal in self.goals})
        rng = np.random.default_rng()
        rng.bit_generator.state = state["generator"]
        self._sit_down(dialogue)
        self._rng = rng
        self.agents = list(state["agents"])
        self.agent_selection = state["agent_selection"]
        self.rewards = dict(state["rewards"])
        self._cumulative_rewards = dict(state["cumulative_rewards"])
        self.terminations = dict.fromkeys(self.agents, dialogue.mover is None)
        self.truncations = dict.fromkeys(self.agents, bool(state["truncated"]))
        self._begun = self.limits.begin()
        self.infos = self._new_infos(dialogue.state.deal.goal, unscored=dialogue.unscored)

    def clone(self) -> raw_env:
        """An independent environment in the same state, with the same goals and the same judge."""
        twin = copy.copy(self)
        twin._dialogue = self._dialogue and self._dialogue.copy()
        twin._rng = copy.deepcopy(self._rng)
        twin.agents = list(self.agents)
        for name in ("rewards", "_cumulative_rewards", "terminations", "truncations", "infos"):
            if hasattr(self, name):
                setattr(twin, name, copy.deepcopy(getattr(self, name)))
        return twin

    def _dealt(self) -> Dialogue:
        if self._dialogue is None:
            raise self._not_ready()
        return self._dialogue

    def _not_ready(self) -> OrderError:
        if self._dialogue is None:
            return OrderError(
                "expected reset() before anything else, the environment was never reset; call env.reset(seed=0)"
            )
        return OrderError("expected a dialogue that goes on, all agents have left; call reset()")

    def _sit_down(self, dialogue: Dialogue) -> None:
        self._dialogue = dialogue
        self._rendered = 0

    def _pay(self, dialogue: Dialogue) -> None:
        """Rewards of a step in which blue has answered."""
        if dialogue.unscored:
            self.infos = self._new_infos(dialogue.state.deal.goal, unscored=True)
        if dialogue.paid:
            self.rewards = rewards.team_rewards(self.config, dialogue.paid)
            for agent, reward in self.rewards.items():
                self._cumulative_rewards[agent] += reward

    def _leave(self, agent: str) -> None:
        """The dead step of an agent whose dialogue is over: it gets no reward and is asked nothing any more."""
        self.agents.remove(agent)
        del self._cumulative_rewards[agent], self.terminations[agent], self.truncations[agent], self.infos[agent]
        self.rewards = dict.fromkeys(self.agents, 0.0)
        if self.agents:
            self.agent_selection = self.agents[0]

    def _new_infos(self, goal: Goal, *, unscored: bool) -> dict[str, dict[str, Any]]:
        red = {"unscored": unscored, "goal_id": goal.id, "harmful": goal.harmful}
        return {agent: red.copy() if agent != BLUE_AGENT else {"unscored": unscored} for agent in self.agents}

    def _render_new(self) -> None:
        lines = dialogue_lines(self._dealt())
        write(as_text(lines[self._rendered :]) + "\n")
        self._rendered = len(lines)


class parallel_env(turn_based_aec_to_parallel_wrapper):  # type: ignore[type-arg]
    """The same game as a PettingZoo parallel environment: the actions of all but the active agent are ignored.

    `infos[agent]["active_agent"]` names who speaks next. Arguments are those of `raw_env`.
    """

    def __init__(self, config: GameConfig | None = None, **kwargs: Any) -> None:
        super().__init__(raw_env(config, **kwargs))
        self.agents: list[str] = []

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Deal a new dialogue; observations and infos of all agents."""
        self.aec_env.reset(seed=seed, options=options)
        self.agents = list(self.aec_env.agents)
        return {agent: self.aec_env.observe(agent) for agent in self.agents}, self._infos()

    def step(
        self, actions: dict[str, str | Action | None]
    ) -> tuple[dict[str, Any], dict[str, float], dict[str, bool], dict[str, bool], dict[str, Any]]:
        """Let the active agent speak; five empty dicts once the dialogue is over (upstream returns four)."""
        if not self.agents:
            self.aec_env.observe(BLUE_AGENT)  # raises if there was no reset yet
            return {}, {}, {}, {}, {}
        active = self.aec_env.agent_selection
        if active not in actions:
            raise InvalidActionError(
                f"expected an action of the active agent {active}, got actions of {sorted(actions)}"
            )
        self.aec_env.step(actions[active])
        observations = {agent: self.aec_env.observe(agent) for agent in self.agents}
        result = (
            observations,
            dict(self.aec_env.rewards),
            dict(self.aec_env.terminations),
            dict(self.aec_env.truncations),
        )
        infos = self._infos()
        if any(result[2].values()) or any(result[3].values()):
            while self.aec_env.agents:
                self.aec_env.step(None)
        self.agents = list(self.aec_env.agents)
        return (*result, infos)

    def _infos(self) -> dict[str, Any]:
        active = self.aec_env.agent_selection
        return {agent: {**self.aec_env.infos[agent], "active_agent": active} for agent in self.agents}


def env(config: GameConfig | None = None, **kwargs: Any) -> raw_env:
    """The environment to use. It checks order, types and lengths itself, so no wrapper is put around it.

    Arguments are those of `raw_env`.
    """
    return raw_env(config, **kwargs)


def _as_json(data: object) -> object:
    return json.loads(json.dumps(data))
