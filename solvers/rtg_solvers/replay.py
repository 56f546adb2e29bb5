"""A replay buffer of attacks: the best and different ones, by context.

Rules (arXiv:2405.18540, appendix B; kept by context, because only samples of one context share a normaliser):

- Of two near-duplicates the better one stays. Near: the edit distance of their tokens is below a quarter of their lengths
  together, or the cosine of their embeddings exceeds a bound.
- A full buffer loses its worst attack.
- Attacks are drawn in proportion to R1, without replacement.

It keeps nothing on disk: a run that goes on adds the attacks of its finished steps again, in order, and has the same one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from rtg_env.errors import ConfigError, MissingExtraError

try:
    from rapidfuzz.distance import Levenshtein
except ImportError as error:
    raise MissingExtraError("rapidfuzz", "solve") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaySettings:
    """Size and what counts as the same attack."""

    capacity: int = 1000
    """Attacks of all contexts together, shared equally; at least 1. A context never has room for less than one group."""

    edit_share: float = 0.25
    """Near: an edit distance below this share of both lengths together; 0 turns the rule off."""

    max_cosine: float = 0.4
    """Near: a cosine above this; 1 turns the rule off."""

    def __post_init__(self) -> None:
        """Refuse settings outside their range."""
        if self.capacity < 1 or not 0.0 <= self.edit_share <= 1.0 or not 0.0 < self.max_cosine <= 1.0:
            raise ConfigError(
                f"expected capacity >= 1, edit_share in [0, 1] and max_cosine in (0, 1], got {self.capacity!r}, "
                f"{self.edit_share!r} and {self.max_cosine!r}"
            )


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """An attack in the buffer."""

    context: str
    """What it is an attack on: a goal, or a goal and the dialogue so far."""

    prompt_ids: tuple[int, ...]
    """What the attacker read."""

    token_ids: tuple[int, ...]
    """What it said, the end-of-turn token included if it was sampled."""

    text: str
    """The same, decoded."""

    score: float
    """R1, the geometric mean of its replies' harm; above 0."""

    embedding: np.ndarray = field(repr=False)
    """[F] of length 1, or all 0."""

    num_tokens: int = 0
    """Without the end-of-turn token."""

    reference_logp: float = 0.0
    """log p_ref of all its tokens."""


class Added(NamedTuple):
    """What became of new attacks."""

    kept: int
    """In the buffer now (or they were, for a moment)."""

    worse: int
    """Left out: a near-duplicate is as good."""

    replaced: int
    """Old ones that went, for a better near-duplicate."""

    evicted: int
    """Old or new ones that went because the buffer is full."""


class ReplayBuffer:
    """The attacks of one attacker.

    Args:
        settings: Size and rules.
        num_contexts: Over which the capacity is shared, at least 1.
        group_size: G of the groups that will be drawn: with less room than that, a context would never be replayed.
    """

    def __init__(self, settings: ReplaySettings | None = None, *, num_contexts: int = 1, group_size: int = 1) -> None:
        self._settings = settings or ReplaySettings()
        self._share = max(1, group_size, self._settings.capacity // max(1, num_contexts))
        self._kept: dict[str, list[Kept]] = {}

    def __len__(self) -> int:
        return sum(len(kept) for kept in self._kept.values())

    def of(self, context: str) -> tuple[Kept, ...]:
        """Attacks of one context, oldest first."""
        return tuple(self._kept.get(context, ()))

    def add(self, attacks: Sequence[Kept]) -> Added:
        """Add attacks one by one, in order, by the rules."""
        counts = {"kept": 0, "worse": 0, "replaced": 0, "evicted": 0}
        for attack in attacks:
            own = self._kept.setdefault(attack.context, [])
            near = [old for old in own if self._near(old, attack)]
            if any(old.score >= attack.score for old in near):
                counts["worse"] += 1
                continue
            own[:] = [old for old in own if not any(old is other for other in near)]
            own.append(attack)
            counts["replaced"] += len(near)
            counts["kept"] += 1
            if len(own) > self._share:
                # Of equally bad ones the oldest goes.
                own.pop(min(range(len(own)), key=lambda index: own[index].score))
                counts["evicted"] += 1
        return Added(**counts)

    def contexts(self, size: int) -> tuple[str, ...]:
        """Contexts with at least so many attacks, in the order they came."""
        return tuple(context for context, kept in self._kept.items() if len(kept) >= size)

    def draw(
        self, rng: np.random.Generator, *, num_groups: int, group_size: int, first: Sequence[str] = ()
    ) -> list[list[Kept]]:
        """Groups of one context each; contexts alike, attacks in proportion to R1 without replacement.

        Args:
            rng: Consumed.
            num_groups: Groups wanted; fewer come back if there are not that many contexts with enough attacks.
            group_size: G.
            first: Contexts that are taken before others, in this order, if they have enough attacks.
        """
        able = self.contexts(group_size)
        shuffled = [able[int(index)] for index in rng.permutation(len(able))]
        chosen = [*(context for context in dict.fromkeys(first) if context in able)]
        chosen += [context for context in shuffled if context not in chosen]
        groups = []
        for context in chosen[:num_groups]:
            own = self._kept[context]
            weights = np.array([kept.score for kept in own])
            picked = rng.choice(len(own), size=group_size, replace=False, p=weights / weights.sum())
            groups.append([own[int(place)] for place in picked])
        return groups

    def _near(self, old: Kept, new: Kept) -> bool:
        settings = self._settings
        if settings.max_cosine < 1.0 and float(old.embedding @ new.embedding) > settings.max_cosine:
            return True
        bound = settings.edit_share * (len(old.token_ids) + len(new.token_ids))
        if bound <= 0.0:
            return False
        # Beyond the cut-off the distance is not worked out to the end.
        cutoff = int(np.ceil(bound)) - 1
        return cutoff >= 0 and Levenshtein.distance(old.token_ids, new.token_ids, score_cutoff=cutoff) <= cutoff
