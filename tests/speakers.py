"""Policies and encoders for tests of the Gymnasium views: all they do is drawn by the seed they are given."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rtg_env.types import Action, Observation

TERSE = ("No.", "", "{goal} Sure.", "Grüße 你好 🙂")
REPLIES = ("No.", "", "Sure, here it is.", "{goal} {reply} {0} %s", "Grüße, 你好 🙂", "long " * 90, "a\ud800b")
NOTES = ("", "plain", "opener", "My own thought.")


class Talker:
    """Says one of a few sentences; as red it notes something, at times the name of a tactic."""

    def __init__(self, name: str = "talker", replies: Sequence[str] = REPLIES) -> None:
        self.name = name
        self.replies = replies
        self.num_calls = 0

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[Action]:
        self.num_calls += 1
        return [self._say(observation, seed) for observation, seed in zip(observations, seeds, strict=True)]

    def _say(self, observation: Observation, seed: int) -> Action:
        rng = np.random.default_rng(seed)
        text = self.replies[int(rng.integers(len(self.replies)))]
        note = NOTES[int(rng.integers(len(NOTES)))] if observation.role == "red" else ""
        return Action(text=text, policy=self.name, reasoning=note)


class Unwell:
    """Raises in the calls that it is told to, otherwise says what another policy says."""

    name = "unwell"

    def __init__(self, *fails_at: int, inner: Talker | None = None) -> None:
        self.fails_at = fails_at
        self.inner = inner or Talker()
        self.num_calls = 0

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[Action]:
        self.num_calls += 1
        if self.num_calls - 1 in self.fails_at:
            raise ConnectionError("the server is down")
        return self.inner.act(observations, seeds)
