"""Diversity as shaping: what red's best response is paid beside the game, for saying what its population does not.

It never enters a payoff cell. The bonus of a dialogue is added to the return of each of red's sentences in it, that of
`policy` to the sentence's own. A bonus that does not vanish on the members moves the equilibrium, by at most its weight
times its range; it is annealed to 0. None of them is claimed to help: each has an off switch, and is off by default.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from rtg_agents.policy import BASE
from rtg_agents.population import Member
from rtg_env.encoding import HashingEncoder
from rtg_env.errors import ConfigError
from rtg_env.transcripts import Played, TranscriptStore
from rtg_solvers.diversity import Bonus, NgramHistory, annealed, history_bonus, member_bonus, sample_bonus

Selection = Literal["none", "cardinality", "response"]
"""How the most diverse checkpoint is found: `expected_cardinality` with it, or `response_diversity` of it."""

_FEATURES: Final = 1024
"""Hashed words: cheap, and other than the sentence embeddings that diversity is reported with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiversitySettings:
    """Which bonus red is paid, and how red's member is chosen among checkpoints."""

    bonus: Bonus = "none"
    """`member`: distance from the nearest member's mean sentence; `history`: from the 16 nearest past sentences; `policy`:
    log ratio to the nearest member that is a model; `sample`: distance from the nearest past sentence and from past
    n-grams, standardised."""

    weight: float = 0.1
    """Utility per unit of the bonus (of cosine, nat or standard deviation), at least 0; with `select`, also the utility
    by which a more diverse checkpoint may be worse than the best one."""

    annealed: bool = True
    """Whether the weight falls to 0 in the last iteration."""

    select: Selection = "none"
    """Choose red's member among checkpoints by its payoff row; `none` takes the last one."""

    candidates: int = 2
    """Checkpoints to choose among, evenly spaced over the second half of training, the last one among them; at least
    2."""

    select_dialogues: int = 16
    """Common deals on which each of them plays each blue member, at least 1."""

    def __post_init__(self) -> None:
        """Refuse settings outside their range."""
        if not 0.0 <= self.weight < float("inf"):
            raise ConfigError(f"diversity weight must be finite and >= 0, got {self.weight!r}")
        if self.candidates < 2 or self.select_dialogues < 1:
            raise ConfigError(
                f"expected candidates >= 2 and select_dialogues >= 1, got {self.candidates} and "
                f"{self.select_dialogues}; to choose nothing set select to none"
            )

    def weight_in(self, iteration: int, iterations: int) -> float:
        """The bonus's weight in one iteration of a run."""
        return 0.0 if self.bonus == "none" else self._left(iteration, iterations)

    def tolerance_in(self, iteration: int, iterations: int) -> float:
        """What diversity may cost the choice among checkpoints in one iteration of a run, in utility."""
        return 0.0 if self.select == "none" else self._left(iteration, iterations)

    def _left(self, iteration: int, iterations: int) -> float:
        return annealed(self.weight, iteration, iterations) if self.annealed else self.weight


class DiversityBonus:
    """Bonuses of one best response's dialogues, by what is said in them.

    Args:
        bonus: Which one; not `policy`, which reads probabilities (`rtg_solvers.diversity.policy_bonus`).
        members: Versions of red's population.
        store: Holds their dialogues.
    """

    def __init__(self, bonus: Bonus, members: Sequence[str], store: TranscriptStore) -> None:
        self._bonus = bonus
        self._encoder = HashingEncoder(_FEATURES)
        self._ngrams = NgramHistory()
        self._history: list[np.ndarray] = []
        for version in members:
            self.remember(_dialogues(store, version))
        self._members = np.array([rows.mean(axis=0) for rows in self._history])

    def of(self, played: Sequence[Played]) -> np.ndarray:
        """[D] bonus of each dialogue, in units of cosine, of `sample` in standard deviations; mean 0."""
        features = self._encoder.encode(_texts(played))
        if self._bonus == "member":
            return member_bonus(features, self._members)
        past = np.concatenate(self._history) if self._history else np.zeros((0, _FEATURES))
        if self._bonus == "history":
            return history_bonus(features, past)
        return sample_bonus(features, past, np.array([self._ngrams.bleu(text) for text in _texts(played)]))

    def remember(self, played: Sequence[Played]) -> None:
        """Make dialogues part of the history."""
        if not played:
            return
        self._history.append(self._encoder.encode(_texts(played)))
        if self._bonus == "sample":
            self._ngrams.add(_texts(played))


def with_probabilities(members: Sequence[Member]) -> dict[str, str]:
    """Those that are models, and their name at the backend; scripts and tactics have no token probabilities."""
    models = [member for member in members if member.kind in ("base", "adapter")]
    return {member.version: BASE if member.kind == "base" else member.version for member in models}


def _texts(played: Sequence[Played]) -> list[str]:
    """What red says in each dialogue."""
    return [" ".join(exchange.red for exchange in item.transcript.exchanges) for item in played]


def _dialogues(store: TranscriptStore, version: str) -> list[Played]:
    """What a member said in payoff cells, on harmful goals."""
    names = [name for name in store.block_names() if name.startswith(f"cell/{version}/")]
    return [item for name in names for item in store.block(name) if item.transcript.goal.harmful]
