"""The Gymnasium views, many dialogues at a time: one call per policy and one of the judge for all of them.

    envs = gymnasium.make_vec("RedTeam/Attack-v0", num_envs=64, opponents=my_blue)

A dialogue that ends is followed by a new one in the same step (`AutoresetMode.SAME_STEP`), so that no step of a batch is
spent on waiting; `infos["final_obs"]` and `infos["final_info"]` hold the end. Text comes back as tuples of str: gymnasium's
own `AsyncVectorEnv` returns zeros in its place with its default shared memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set, Sized
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array

from rtg_env.dialogue import Transcript
from rtg_env.errors import ConfigError, InvalidActionError
from rtg_env.rendering import as_text, dialogue_lines
from rtg_env.rules import GameConfig
from rtg_env.table import Opponents, Outcome, Table
from rtg_env.transcripts import Played
from rtg_env.views import SeatEnv, Stepper, TextView, View, attack_table, defend_table


class SlotStep(NamedTuple):
    """What one step has led to in one slot."""

    observation: Any
    """Where the next action starts: in a new dialogue if this one has ended."""

    outcome: Outcome
    """Reward, and whether the dialogue has ended."""

    info: dict[str, Any]
    """Of the dialogue that goes on."""

    final_obs: Any
    """Last observation of the dialogue that has ended; None if it goes on."""

    final_info: dict[str, Any] | None
    """Last info of the dialogue that has ended; None if it goes on."""


class SeatVectorEnv(gym.vector.VectorEnv[Any, Any, Any]):
    """Many dialogues in lock step, each at its own turn.

    Args:
        table: With one slot per dialogue.
        view: Over that table.
        render_mode: None, or "ansi": `render()` returns every dialogue.
    """

    metadata = {**SeatEnv.metadata, "render_modes": ["ansi"], "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(self, table: Table, view: View[Any, Any], render_mode: str | None = None) -> None:
        if render_mode not in (None, "ansi"):
            raise ConfigError(f"render_mode must be None or 'ansi' for many dialogues, got {render_mode!r}")
        self.num_envs = len(table)
        self.view = view
        self.render_mode = render_mode
        self.single_observation_space = view.observation_space
        self.single_action_space = view.action_space
        self.observation_space = batch_space(view.observation_space, self.num_envs)
        self.action_space = batch_space(view.action_space, self.num_envs)
        self._play = Stepper(table, view)
        self._finished: list[Played] = []

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Deal new dialogues.

        Args:
            seed: Of slot 0, slot i gets seed + i; or one per slot; None goes on with each slot's generator.
            options: As for one dialogue; `reset_mask` ([N] bool) deals to some slots alone.

        Raises:
            ConfigError: If an option is wrong, or the seeds or the mask do not fit.
        """
        options = dict(options or {})
        slots = self._masked(options.pop("reset_mask", None))
        seeds = self._seeds(seed)
        _, told = self._play.reset(slots, options, {slot: seeds[slot] for slot in slots})
        self._finished = []
        infos: dict[str, Any] = {}
        for slot, info in zip(slots, told, strict=True):
            infos = self._add_info(infos, info, slot)
        return self._batched(self.view.observe(range(self.num_envs))), infos

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One action in every slot.

        Args:
            actions: [N] one per slot, in the order of slots.

        Raises:
            InvalidActionError: If there are not N, or one is not legal; nothing has happened then.
            OrderError: Before `reset`.
            PolicyError: If an opponent breaks its contract, in these dialogues or the next; nothing has happened then.
        """
        infos: dict[str, Any] = {}
        seen = []
        steps = self.step_slots(actions)
        for slot, step in enumerate(steps):
            seen.append(step.observation)
            if step.final_info is not None:
                infos = self._add_info(infos, {"final_obs": step.final_obs, "final_info": step.final_info}, slot)
            infos = self._add_info(infos, step.info, slot)
        rewards = np.array([step.outcome.reward for step in steps], dtype=np.float64)
        terminated = np.array([step.outcome.terminated for step in steps])
        truncated = np.array([step.outcome.truncated for step in steps])
        return self._batched(seen), rewards, terminated, truncated, infos

    def step_slots(self, actions: Any) -> list[SlotStep]:
        """The same step, slot by slot.

        Raises:
            InvalidActionError: If there are not N actions, or one is not legal; nothing has happened then.
            OrderError: Before `reset`.
            PolicyError: If an opponent breaks its contract, in these dialogues or the next; nothing has happened then.
        """
        unordered = isinstance(actions, str | bytes | Mapping | Set) or not isinstance(actions, Sized)
        if unordered or len(actions) != self.num_envs:
            raise InvalidActionError(f"expected {self.num_envs} actions, one per slot, got {actions!r:.80}")
        slots = range(self.num_envs)
        with self._play.memory(slots), self._play.table.all_or_nothing(slots):
            return self._stepped(actions)

    def _stepped(self, actions: Any) -> list[SlotStep]:
        outcomes = self._play.play(dict(enumerate(actions)))
        slots = range(self.num_envs)
        seen = self.view.observe(slots)
        over = [slot for slot in slots if outcomes[slot].terminated or outcomes[slot].truncated]
        final = {slot: (seen[slot], self._play.info(slot)) for slot in over}
        finished = [self._play.table.played(slot) for slot in over]
        if over:
            for slot, observation in zip(over, self._play.reset(over, None)[0], strict=True):
                seen[slot] = observation
        self._finished = finished
        return [
            SlotStep(seen[slot], outcomes[slot], self._play.info(slot), *final.get(slot, (None, None)))
            for slot in slots
        ]

    def set_opponents(self, opponents: Opponents) -> None:
        """Seat others from the next dialogues on; those that go on keep theirs.

        Raises:
            ConfigError: If a seat has no policy, or what is given is none.
        """
        self._play.table.set_opponents(opponents)

    def finished(self) -> list[Transcript]:
        """The dialogues that the last step has ended, in the order of their slots."""
        return [item.transcript for item in self._finished]

    def played(self) -> list[Played]:
        """The same with who played them (`learner` is the learner) and with which seeds, as stores keep dialogues."""
        return list(self._finished)

    def transcripts(self) -> list[Transcript]:
        """The dialogue of every slot as far as it was played; a step that ends one has dealt a new one already."""
        return [self._play.table.transcript(slot) for slot in range(self.num_envs)]

    def action_masks(self) -> np.ndarray:
        """[N, K] bool: which actions are legal now; for views with discrete actions only.

        Raises:
            ConfigError: If the view has no such mask.
        """
        mask = getattr(self.view, "mask", None)
        if mask is None:
            raise ConfigError(f"expected a view with discrete actions, {type(self.view).__name__} takes any text")
        return np.stack([mask(slot) for slot in range(self.num_envs)])

    def render(self) -> tuple[str, ...] | None:
        """Every dialogue so far, safe for a terminal."""
        if self.render_mode is None:
            return None
        return tuple(as_text(dialogue_lines(self._play.table.dialogue(slot))) for slot in range(self.num_envs))

    def _batched(self, seen: Sequence[Any]) -> Any:
        space = self.single_observation_space
        empty: Any = create_empty_array(space, self.num_envs)
        return concatenate(space, seen, empty)

    def _seeds(self, seed: int | Sequence[int | None] | None) -> Sequence[int | None]:
        if seed is None or isinstance(seed, int):
            return [None if seed is None else seed + slot for slot in range(self.num_envs)]
        if isinstance(seed, str) or not isinstance(seed, Sequence) or len(seed) != self.num_envs:
            raise ConfigError(f"expected one seed, or a list of {self.num_envs}, one per dialogue, got {seed!r:.80}")
        return seed

    def _masked(self, mask: Any) -> list[int]:
        if mask is None:
            return list(range(self.num_envs))
        chosen = np.asarray(mask)
        if chosen.shape != (self.num_envs,) or chosen.dtype != np.bool_ or not chosen.any():
            raise ConfigError(f"expected reset_mask to be {self.num_envs} booleans, one of them true, got {mask!r:.80}")
        return [int(slot) for slot in np.flatnonzero(chosen)]


def attack_vector(
    num_envs: int = 1, config: GameConfig | None = None, *, render_mode: str | None = None, **settings: Any
) -> SeatVectorEnv:
    """`RedTeam/Attack-v0` with many dialogues; settings as for `rtg_env.views.attack`."""
    table = attack_table(num_envs, config, **settings)
    return SeatVectorEnv(table, TextView(table), render_mode)


def defend_vector(
    num_envs: int = 1, config: GameConfig | None = None, *, render_mode: str | None = None, **settings: Any
) -> SeatVectorEnv:
    """`RedTeam/Defend-v0` with many dialogues; settings as for `rtg_env.views.defend`."""
    table = defend_table(num_envs, config, **settings)
    return SeatVectorEnv(table, TextView(table), render_mode)
