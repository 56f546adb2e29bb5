"""What one side learns from played dialogues: token sequences, and what each sentence in them is credited with.

A dialogue is one sequence per side (`rtg_agents.sequences`), so that a learner runs over every id once; a sentence is a
sampled range of it, and carries its own advantage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rtg_agents.policy import TokenSequence
from rtg_agents.sequences import recorded_sequences
from rtg_env.transcripts import Played
from rtg_env.types import Role
from rtg_solvers.aggregation import Totals, aggregate
from rtg_solvers.losses import reinforce_loss

if TYPE_CHECKING:
    import torch

    from rtg_agents.hf import Evaluated
    from rtg_solvers.trainer import StepFigures, Trainer


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
        taken, sums = [0] * len(self.sequences), []
        for sentence in self.sentences:
            begin = taken[sentence.sequence]
            taken[sentence.sequence] = begin + sentence.num_tokens
            sums.append(float(sum(logps[sentence.sequence][begin : begin + sentence.num_tokens])))
        return np.array(sums)

    def per_token(self, values_N: np.ndarray) -> np.ndarray:
        """[S, T] each sentence's value at each of its sampled ids; 0 beyond."""
        width = max((sequence.num_sampled for sequence in self.sequences), default=0)
        spread, taken = np.zeros((len(self.sequences), width)), [0] * len(self.sequences)
        for sentence, value in zip(self.sentences, values_N, strict=True):
            begin = taken[sentence.sequence]
            taken[sentence.sequence] = begin + sentence.num_tokens
            spread[sentence.sequence, begin : begin + sentence.num_tokens] = value
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
                )
            )
    return Lessons(tuple(item.tokens for item in found.sequences), tuple(sentences), found.broken_share)


def reinforce(trainer: Trainer, lessons: Lessons, advantages_N: np.ndarray) -> StepFigures | None:
    """One step of REINFORCE on one policy; sequences whose advantages are all 0 cost nothing and are left out.

    Args:
        trainer: Of that policy.
        lessons: What it said.
        advantages_N: [N] one per sentence.

    Returns:
        Figures, or None if every advantage was 0.
    """
    import torch

    weights_ST = lessons.per_token(advantages_N)
    useful = np.flatnonzero(weights_ST.any(axis=1))
    weights = torch.tensor(weights_ST[useful], dtype=torch.float32)
    totals = Totals(num_sequences=len(lessons.sentences))

    def objective(said: Evaluated, places: Sequence[int]) -> torch.Tensor:
        own = weights[list(places), : said.logps.shape[1]].to(said.logps.device)
        return aggregate(reinforce_loss(said.logps, own), said.mask, "sequence-sum", totals)

    figures = trainer.step([lessons.sequences[int(index)] for index in useful], objective)
    return next(iter(figures.values()), None)


def flat_share(advantages: np.ndarray, groups: Sequence[tuple[int, int]]) -> float:
    """Share of groups in which every advantage is 0: they teach nothing."""
    useful = {group for group, advantage in zip(groups, advantages, strict=True) if advantage}
    return 1.0 - len(useful) / len(set(groups))
