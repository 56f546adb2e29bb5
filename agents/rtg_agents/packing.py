"""Token sequences into packs, in which every common beginning stands once.

The sequences of a pack form a trie; its nodes, in depth-first order, are the tokens that go through the model. A node
sees its ancestors and itself, and its position is its depth, so that every sequence is computed as if it stood alone:
a system prompt, a few-shot context, the prompt of a group of samples cost one pass, and nothing is padded within a pack.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

_PASS_COST: Final = 96
"""What a pass costs beside its tokens, in tokens: the weights are read anyway (measured on two cores)."""

_STRETCH: Final = 4
"""How far a pack may outgrow its aim for the sake of what its sequences share: attention within it costs its square."""


@dataclass(frozen=True, slots=True, eq=False)
class Pack:
    """Some sequences as one row of a batch."""

    ids: np.ndarray
    """[N] token of each node."""

    positions: np.ndarray
    """[N] depth of each node, from 0."""

    parents: np.ndarray
    """[N] node before it; -1 for a first token."""

    members: tuple[int, ...]
    """Which sequences are in it, by their index in what was packed."""

    paths: tuple[np.ndarray, ...]
    """Per member, the node of each of its tokens [L]."""

    def sees(self) -> np.ndarray:
        """[N, N] whether a node (row) attends to another (column): its ancestors and itself."""
        seen = np.zeros((len(self.ids), len(self.ids)), dtype=bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node] = seen[parent]
            seen[node, node] = True
        return seen


def pack(sequences: Sequence[Sequence[int]], max_tokens: int) -> list[Pack]:
    """Pack sequences (all of one policy), neighbours in lexicographic order together.

    Args:
        sequences: Token ids, none empty.
        max_tokens: Aim at packs of at most this many nodes. A longer sequence is packed with those that share more with
            it than they add, up to four times as many: a new pack would compute the common beginning again.
    """
    order = sorted(range(len(sequences)), key=lambda index: tuple(sequences[index]))
    packs = []
    open_: list[int] = []
    size = 0
    for index in order:
        own = len(sequences[index])
        fresh = own - (common_prefix(sequences[open_[-1]], sequences[index]) if open_ else 0)
        most = max_tokens if fresh >= own - fresh else _STRETCH * max_tokens
        if open_ and fresh and size + fresh > most:
            packs.append(_built(sequences, open_))
            open_, size, fresh = [], 0, own
        open_.append(index)
        size += fresh
    if open_:
        packs.append(_built(sequences, open_))
    return packs


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of what two sequences begin with."""
    for index, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return index
    return min(len(one), len(other))


def _built(sequences: Sequence[Sequence[int]], members: Sequence[int]) -> Pack:
    ids: list[int] = []
    positions: list[int] = []
    parents: list[int] = []
    paths: list[np.ndarray] = []
    for number, member in enumerate(members):
        own = sequences[member]
        shared = common_prefix(sequences[members[number - 1]], own) if number else 0
        begin = len(ids)
        path = np.empty(len(own), dtype=np.int64)
        if shared:
            path[:shared] = paths[-1][:shared]
        path[shared:] = np.arange(begin, begin + len(own) - shared)
        paths.append(path)
        ids += own[shared:]
        positions += range(shared, len(own))
        parents += [int(path[place - 1]) if place else -1 for place in range(shared, len(own))]
    return Pack(np.array(ids), np.array(positions), np.array(parents), tuple(members), tuple(paths))


def batches(packs: Sequence[Pack], max_tokens: int) -> Iterator[list[int]]:
    """Indices of packs that go through the model together: at most `max_tokens`, and little padding.

    Packs are taken from the shortest on; a longer one begins a new batch when padding the others to its length would
    cost more than a pass of its own.
    """
    order = sorted(range(len(packs)), key=lambda index: len(packs[index].ids))
    batch: list[int] = []
    for index in order:
        length = len(packs[index].ids)
        padding = len(batch) * (length - len(packs[batch[-1]].ids)) if batch else 0
        if batch and (padding > _PASS_COST or (len(batch) + 1) * length > max_tokens):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
