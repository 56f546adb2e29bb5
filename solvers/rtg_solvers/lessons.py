"""What one side learns from played dialogues: token sequences, and what each sentence in them is credited with.

A dialogue is one sequence per side (`rtg_agents.sequences`), so that a learner runs over every id once; a sentence is a
sampled range of it, and carries its own advantage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rtg_agents.policy import TokenSequence
from rtg_agents.sequences import recorded_sequences
from rtg_env.transcripts import Played
from rtg_env.types import Role


class Sentence(NamedTuple):
    """One sentence of the learner, with its credit."""

    sequence: int
    """Index of the sequence that it is a range of."""

    num_tokens: int
    """Ids that were sampled."""

    logp: float
    """Log-probability when it was sampled."""

    reward: float
    """What its side was paid from its exchange on."""

    group: tuple[int, int]
    """Group of its dialogue and its exchange; the baseline compares within it."""

    dialogue: int
    """Index of its dialogue."""

    logps: tuple[float, ...] = ()
    """Log-probability of each id when it was sampled."""


@dataclass(frozen=True, slots=True)
class Lessons:
    """What there is to learn from."""

    sequences: tuple[TokenSequence, ...]
    """One or more per dialogue."""

    sentences: tuple[Sentence, ...]
    """Sequence by sequence, range by range."""

    broken_share: float
    """Share of the later sentences whose prompt does not begin with what was read and said before."""

    def column(self, name: str) -> np.ndarray:
        """[N] one field of all sentences."""
        return np.array([getattr(sentence, name) for sentence in self.sentences])

    def per_sentence(self, logps: Sequence[Sequence[float]]) -> np.ndarray:
        """[N] sums over each sentence, of what is given per sampled id of each sequence."""
        return np.array([float(sum(logps[sequence][ids])) for sequence, ids in self.places])

    @property
    def places(self) -> list[tuple[int, slice]]:
        """Of each sentence, its sequence and its range among the ids sampled there."""
        taken, found = [0] * len(self.sequences), []
        for sentence in self.sentences:
            begin = taken[sentence.sequence]
            taken[sentence.sequence] = begin + sentence.num_tokens
            found.append((sentence.sequence, slice(begin, begin + sentence.num_tokens)))
        return found

    @property
    def sampled_logps(self) -> np.ndarray:
        """[S, T] log-probability of each sampled id under the policy that sampled it; 0 beyond."""
        table = np.zeros((len(self.sequences), self._width))
        for (sequence, ids), sentence in zip(self.places, self.sentences, strict=True):
            table[sequence, ids] = sentence.logps
        return table

    @property
    def first_ids(self) -> np.ndarray:
        """[S, T] bool: the first id of each sentence, where its situation is valued."""
        table = np.zeros((len(self.sequences), self._width), dtype=bool)
        for sequence, ids in self.places:
            table[sequence, ids.start] = True
        return table

    @property
    def _width(self) -> int:
        return max((sequence.num_sampled for sequence in self.sequences), default=0)

    def per_token(self, values_N: np.ndarray) -> np.ndarray:
        """[S, T] each sentence's value at each of its sampled ids; 0 beyond."""
        spread = np.zeros((len(self.sequences), self._width))
        for (sequence, ids), value in zip(self.places, values_N, strict=True):
            spread[sequence, ids] = value
        return spread


def collect_lessons(played: Sequence[Played], role: Role, version: str, group_size: int) -> Lessons:
    """The learner's sentences in scored dialogues, each credited with the return from its exchange on.

    Args:
        played: In the order they were drawn: groups stand together.
        role: Side that learns.
        version: Its policy.
        group_size: Dialogues per group.
    """
    sign = 1.0 if role == "red" else -1.0
    scored = [index for index, item in enumerate(played) if not item.transcript.unscored]
    found = recorded_sequences([played[index].transcript for index in scored], role, version)
    sentences = []
    for number, (tokens, sources) in enumerate(found.sequences):
        for (begin, end), source in zip(tokens.spans, sources, strict=True):
            dialogue = scored[source.dialogue]
            sentences.append(
                Sentence(
                    sequence=number,
                    num_tokens=end - begin,
                    logp=sum(source.logps),
                    reward=sign * sum(played[dialogue].transcript.payments[source.turn :]),
                    group=(dialogue // group_size, source.turn),
                    dialogue=dialogue,
                    logps=source.logps,
                )
            )
    return Lessons(tuple(item.tokens for item in found.sequences), tuple(sentences), found.broken_share)


def flat_share(advantages: np.ndarray, groups: Sequence[tuple[int, int]]) -> float:
    """Share of groups in which every advantage is 0: they teach nothing."""
    useful = {group for group, advantage in zip(groups, advantages, strict=True) if advantage}
    return 1.0 - len(useful) / len(set(groups))
