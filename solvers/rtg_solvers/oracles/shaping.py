"""Diversity as shaping: what red's best response is paid beside the game, for saying what its population does not.

It never enters a payoff cell. The bonus of a dialogue is added to the return of each of red's sentences in it. A bonus
that does not vanish on the members moves the equilibrium, by at most its weight times its range; it is annealed to 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from rtg_env.encoding import HashingEncoder
from rtg_env.errors import ConfigError
from rtg_env.transcripts import Played, TranscriptStore
from rtg_solvers.diversity import Bonus, annealed, history_bonus, member_bonus

_FEATURES: Final = 1024
"""Hashed words: cheap, and other than the sentence embeddings that diversity is reported with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiversitySettings:
    """Which bonus red is paid."""

    bonus: Bonus = "none"
    """`member`: distance from the nearest member's mean sentence; `history`: from the 16 nearest past sentences."""

    weight: float = 0.1
    """Utility per unit of cosine, at least 0."""

    annealed: bool = True
    """Whether the weight falls to 0 in the last iteration."""

    def __post_init__(self) -> None:
        """Refuse settings outside their range."""
        if not 0.0 <= self.weight < float("inf"):
            raise ConfigError(f"diversity weight must be finite and >= 0, got {self.weight!r}")

    def weight_in(self, iteration: int, iterations: int) -> float:
        """The weight of one iteration of a run."""
        if self.bonus == "none":
            return 0.0
        return annealed(self.weight, iteration, iterations) if self.annealed else self.weight


class DiversityBonus:
    """Bonuses of one best response's dialogues.

    Args:
        bonus: Which one.
        members: Versions of red's population.
        store: Holds their dialogues.
    """

    def __init__(self, bonus: Bonus, members: Sequence[str], store: TranscriptStore) -> None:
        self._bonus = bonus
        self._encoder = HashingEncoder(_FEATURES)
        spoken = {version: self._features(_dialogues(store, version)) for version in members}
        self._members = np.array([rows.mean(axis=0) for rows in spoken.values() if len(rows)])
        self._history = [rows for rows in spoken.values() if len(rows)]

    def of(self, played: Sequence[Played]) -> np.ndarray:
        """[D] bonus of each dialogue, in units of cosine; mean 0."""
        features = self._features(played)
        if self._bonus == "member":
            return member_bonus(features, self._members)
        past = np.concatenate(self._history) if self._history else np.zeros((0, _FEATURES))
        return history_bonus(features, past)

    def remember(self, played: Sequence[Played]) -> None:
        """Make dialogues part of the history."""
        self._history.append(self._features(played))

    def _features(self, played: Sequence[Played]) -> np.ndarray:
        return self._encoder.encode([" ".join(e.red for e in item.transcript.exchanges) for item in played])


def _dialogues(store: TranscriptStore, version: str) -> list[Played]:
    """What a member said in payoff cells, on harmful goals."""
    names = [name for name in store.block_names() if name.startswith(f"cell/{version}/")]
    return [item for name in names for item in store.block(name) if item.transcript.goal.harmful]
