"""Gymnasium views: one seat of the game is the learner's, policies play the others.

    env = gymnasium.make("RedTeam/Attack-v0", opponents=my_blue)
    envs = gymnasium.make_vec("RedTeam/Defend-v0", num_envs=64, opponents=Pool(reds, probs))

`Attack-v0` seats the learner as a red member, `Defend-v0` as blue; actions are text (or an `Action` with its tokens),
observations what the agent sees in the PettingZoo environment. A step is one sentence of the learner and everything that
the others answer to it; its reward is what the learner was paid on the way, so that a loss that an opponent's sentence
causes is credited, and what teammates have won before a member's first turn comes with its first step: the rewards of a
dialogue add up to the learner's utility.

Every view is a `View` over one `Table`, so that the vectorised environments play what the single ones play: with the
same seed, slot i of a vector plays the dialogues of a single environment that was seeded with seed + i.

Version history: v0, first rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from rtg_env.dialogue import Transcript
from rtg_env.errors import ConfigError, InvalidActionError
from rtg_env.goals import GoalSet, given_goals
from rtg_env.judges.base import Judge, default_judge
from rtg_env.limits import Limits
from rtg_env.rendering import RENDER_MODES, as_text, dialogue_lines, write
from rtg_env.rules import GameConfig, game_config
from rtg_env.spaces import UnicodeText, observation_space_of
from rtg_env.table import Opponents, Outcome, Table
from rtg_env.types import BLUE_AGENT, Action, Observation, red_agent

Seen = TypeVar("Seen")
Done = TypeVar("Done")


class View(Protocol[Seen, Done]):
    """How a learner sees its seat and acts from it. Whatever it remembers is kept per slot."""

    @property
    def observation_space(self) -> spaces.Space[Seen]:
        """Of one slot."""
        ...

    @property
    def action_space(self) -> spaces.Space[Done]:
        """Of one slot."""
        ...

    def begin(self, slot: int) -> None:
        """A new dialogue was dealt."""
        ...

    def keep(self, slot: int) -> Any:
        """What is remembered, for `restore`; immutable."""
        ...

    def restore(self, slot: int, kept: Any) -> None:
        """Remember what was kept, because what happened since is undone."""
        ...

    def say(self, slot: int, action: Done) -> Action | str | None:
        """From an action to a sentence; None while the sentence is not finished.

        Raises:
            InvalidActionError: If it is not in the action space.
        """
        ...

    def observe(self, slots: Sequence[int]) -> list[Seen]:
        """What the learner sees in each slot; new objects each time."""
        ...

    def info(self, slot: int) -> dict[str, Any]:
        """What it is told beside; JSON."""
        ...


class TextView:
    """Sentences in, the agent's own observation of the dialogue out.

    Args:
        table: The dialogues.
    """

    def __init__(self, table: Table) -> None:
        self._table = table
        self.observation_space = observation_space_of(table.config, table.learner)
        self.action_space = UnicodeText(table.config.max_action_chars)

    def begin(self, slot: int) -> None:
        """Nothing is remembered."""

    def say(self, slot: int, action: Action | str) -> Action | str:
        """As it is; the rules check it."""
        if action is None:
            raise InvalidActionError(f"action must be text, got None in slot {slot}; pass a str")
        return action

    def keep(self, slot: int) -> None:
        """Nothing is remembered."""

    def restore(self, slot: int, kept: None) -> None:
        """Nothing is remembered."""

    def observe(self, slots: Sequence[int]) -> list[dict[str, Any]]:
        """Messages, turn and the private part, as in the PettingZoo environment, in new objects."""
        return [_as_dict(self._table.observe(slot)) for slot in slots]

    def info(self, slot: int) -> dict[str, Any]:
        """Nothing."""
        del slot
        return {}


def _as_dict(observation: Observation) -> dict[str, Any]:
    messages = tuple({"role": role, "content": content} for role, content in observation.messages)
    seen: dict[str, Any] = {"messages": messages, "turn": observation.turn}
    if observation.goal is None:
        return {**seen, "system_prompt": observation.system_prompt}
    return {**seen, "goal": observation.goal.text, "reasoning": observation.reasoning}


class Stepper(Generic[Seen]):
    """Plays the steps of a view, for one slot or many."""

    def __init__(self, table: Table, view: View[Seen, Any]) -> None:
        self.table = table
        self.view = view

    def reset(
        self,
        slots: Sequence[int],
        options: Mapping[str, Any] | None,
        seeds: Mapping[int, int | None] | None = None,
    ) -> tuple[list[Seen], list[dict[str, Any]]]:
        """Observations and infos of new dialogues; if one cannot be dealt, those before go on."""
        self.table.deal(slots, options, seeds)
        for slot in slots:
            self.view.begin(slot)
        return self.view.observe(slots), [self.info(slot) for slot in slots]

    def play(self, actions: Mapping[int, Any]) -> dict[int, Outcome]:
        """What one action in each of these slots leads to."""
        self.table.check_order(actions)
        with self.memory(actions):
            said = {slot: self.view.say(slot, action) for slot, action in actions.items()}
            outcomes = self.table.say({slot: sentence for slot, sentence in said.items() if sentence is not None})
        return {slot: outcomes.get(slot, _NOTHING_YET) for slot in actions}

    @contextmanager
    def memory(self, slots: Iterable[int]) -> Iterator[None]:
        """If anything raises inside, the view remembers of these slots what it did before."""
        kept = {slot: self.view.keep(slot) for slot in slots}
        try:
            yield
        except BaseException:
            for slot, remembered in kept.items():
                self.view.restore(slot, remembered)
            raise

    def info(self, slot: int) -> dict[str, Any]:
        """What every learner is told; red also what it is after, everybody the utility once the dialogue is over."""
        dialogue = self.table.dialogue(slot)
        goal = dialogue.state.deal.goal
        told: dict[str, Any] = {"unscored": dialogue.unscored, "redrawn": self.table.redrawn(slot)}
        if self.table.role == "red":
            told |= {"goal_id": goal.id, "harmful": goal.harmful}
        if dialogue.mover is None and not dialogue.unscored:
            told["utility"] = dialogue.transcript().utility
        return {**told, **self.view.info(slot)}


_NOTHING_YET = Outcome(0.0, False, False)


class SeatEnv(gym.Env[Seen, Done]):
    """One dialogue at a time.

    Args:
        table: With one slot.
        view: Over that table.
        render_mode: "human" writes each sentence to the terminal, "ansi" makes `render()` return the dialogue.
    """

    metadata = {"render_modes": list(RENDER_MODES), "render_fps": 1}  # noqa: RUF012 - Gymnasium declares it so

    def __init__(self, table: Table, view: View[Seen, Done], render_mode: str | None = None) -> None:
        if render_mode is not None and render_mode not in RENDER_MODES:
            raise ConfigError(f"render_mode must be None or one of {RENDER_MODES}, got {render_mode!r}")
        self._play = Stepper(table, view)
        self.view = view
        self.observation_space = view.observation_space
        self.action_space = view.action_space
        self.render_mode = render_mode
        self._rendered = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Seen, dict[str, Any]]:
        """Deal a new dialogue.

        Args:
            seed: Restarts the environment's own generator; None goes on with it.
            options: `goal` (a `Goal`) or `goal_id`; `opponents`, for this dialogue; other keys are ignored.

        If it raises, the dialogue before goes on.

        Raises:
            ConfigError: If there is no such goal, or opponents are none.
            JudgeError: If the judge keeps failing before the learner's first turn.
            PolicyError: If an opponent breaks its contract.
        """
        seen, infos = self._play.reset([0], options, {0: seed})
        self.np_random = self._play.table.rng(0)
        self._np_random_seed = self._play.table.seed_of(0)
        self._rendered = 0
        self._render_new()
        return seen[0], infos[0]

    def step(self, action: Done) -> tuple[Seen, float, bool, bool, dict[str, Any]]:
        """One action, and what the others answer.

        Raises:
            OrderError: Before `reset`, or after the dialogue was over.
            InvalidActionError: If the action is not legal; nothing has happened then.
        """
        outcome = self._play.play({0: action})[0]
        self._render_new()
        return self.view.observe([0])[0], *outcome, self._play.info(0)

    def set_opponents(self, opponents: Opponents) -> None:
        """Seat others from the next dialogue on; `options` of `reset` are for one dialogue alone.

        Raises:
            ConfigError: If a seat has no policy, or what is given is none.
        """
        self._play.table.set_opponents(opponents)

    def transcript(self) -> Transcript:
        """The dialogue with verdicts and pay, as far as it was played."""
        return self._play.table.transcript(0)

    def action_masks(self) -> np.ndarray:
        """[K] bool: which actions are legal now, as MaskablePPO of sb3-contrib asks for it; for discrete actions only.

        Raises:
            ConfigError: If the view has no such mask.
        """
        mask = getattr(self.view, "mask", None)
        if mask is None:
            raise ConfigError(f"expected a view with discrete actions, {type(self.view).__name__} takes any text")
        return np.asarray(mask(0), dtype=bool)

    def render(self) -> str | None:
        """The dialogue so far, safe for a terminal; None (and nothing new is written) in human mode."""
        if self.render_mode != "ansi":
            return None
        return as_text(dialogue_lines(self._play.table.dialogue(0)))

    def _render_new(self) -> None:
        if self.render_mode == "human":
            lines = dialogue_lines(self._play.table.dialogue(0))
            write(as_text(lines[self._rendered :]) + "\n")
            self._rendered = len(lines)


TextEnv = SeatEnv[dict[str, Any], Action | str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Replier:
    """Who sits on the other side until somebody else is named: asks for the goal, and refuses whatever is asked."""

    name: str = "default"

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[Action]:
        del seeds
        return [
            Action(text=o.goal.text if o.goal else "I cannot help with that.", policy=self.name) for o in observations
        ]


def attack(config: GameConfig | None = None, *, render_mode: str | None = None, **settings: Any) -> TextEnv:
    """`RedTeam/Attack-v0`: the learner is a red member, on harmful goals.

    Args:
        config: The game; or pass its fields as keywords (`num_exchanges=2`).
        render_mode: None, "human" or "ansi".
        settings: `opponents` (`Opponents`: who plays blue, and the other red members; default: a script that refuses),
            `member` (index of the red member that learns; 0), `goals` (what chance draws from; the built-in set),
            `judge` (the offline judge A), `limits` (when a dialogue is truncated; never), and fields of `GameConfig`.
    """
    table = attack_table(1, config, **settings)
    return SeatEnv(table, TextView(table), render_mode)


def defend(config: GameConfig | None = None, *, render_mode: str | None = None, **settings: Any) -> TextEnv:
    """`RedTeam/Defend-v0`: the learner is blue; nature speaks on benign goals.

    Arguments are those of `attack`, but for `member`; `opponents` play red, by default a script that asks for the goal.
    """
    table = defend_table(1, config, **settings)
    return SeatEnv(table, TextView(table), render_mode)


def attack_table(num_slots: int, config: GameConfig | None = None, *, member: int = 0, **settings: Any) -> Table:
    """Dialogues with a learner in red's seat; settings as for `attack`."""
    return _table(red_agent(member), num_slots, config, **settings)


def defend_table(num_slots: int, config: GameConfig | None = None, **settings: Any) -> Table:
    """Dialogues with a learner in blue's seat; settings as for `defend`."""
    return _table(BLUE_AGENT, num_slots, config, **settings)


def _table(
    learner: str,
    num_slots: int,
    config: GameConfig | None,
    *,
    opponents: Opponents | None = None,
    goals: GoalSet | None = None,
    judge: Judge | None = None,
    limits: Limits | None = None,
    **game: Any,
) -> Table:
    return Table(
        learner,
        game_config(config, game, beside=("opponents", "goals", "judge", "limits", "render_mode")),
        goals=given_goals(goals),
        judge=default_judge() if judge is None else judge,
        opponents=_Replier() if opponents is None else opponents,
        num_slots=num_slots,
        limits=limits,
    )
