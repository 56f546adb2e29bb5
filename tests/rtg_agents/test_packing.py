"""Packs against a trie of Python tuples."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtg_agents.packing import Pack, batches, common_prefix, pack

NO_LIMIT = 1 << 30

# Few ids and short lengths: beginnings are shared, sequences repeat, some are beginnings of others.
SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9).map(tuple), max_size=12)


def prefixes(sequences) -> set[tuple[int, ...]]:
    return {tuple(one[:end]) for one in sequences for end in range(1, len(one) + 1)}


def spelled(one: Pack, node: int) -> tuple[int, ...]:
    """What is read from a first token down to a node."""
    ids: list[int] = []
    while node >= 0:
        ids.append(int(one.ids[node]))
        node = int(one.parents[node])
    return tuple(reversed(ids))


def of_size(size: int) -> Pack:
    nodes = np.arange(size)
    return Pack(nodes, nodes, nodes - 1, (0,), (nodes,))


def test_a_small_trie_worked_by_hand() -> None:
    # In order 4 | 5 | 5 6 7 | 5 6 8 9: six nodes, of which 5 and 6 stand once.
    (one,) = pack([(5, 6, 7), (5, 6, 8, 9), (5,), (4,)], NO_LIMIT)
    assert one.ids.tolist() == [4, 5, 6, 7, 8, 9]
    assert one.positions.tolist() == [0, 0, 1, 2, 2, 3]
    assert one.parents.tolist() == [-1, -1, 1, 2, 2, 4]
    assert one.members == (3, 2, 0, 1)
    assert [path.tolist() for path in one.paths] == [[0], [1], [1, 2, 3], [1, 2, 4, 5]]
    assert one.sees().astype(int).tolist() == [
        [1, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 0, 0],
        [0, 1, 1, 0, 1, 0],
        [0, 1, 1, 0, 1, 1],
    ]


def test_a_full_pack_is_closed_and_the_next_one_repeats_the_beginning() -> None:
    # 1 2 3 and 1 4 5 are five nodes; 1 6 7 would add two and repeats one.
    first, second = pack([(1, 2, 3), (1, 4, 5), (1, 6, 7)], 5)
    assert (first.ids.tolist(), first.members) == ([1, 2, 3, 4, 5], (0, 1))
    assert (second.ids.tolist(), second.members) == ([1, 6, 7], (2,))


@given(SEQUENCES, st.integers(1, 30))
def test_the_path_of_a_member_spells_its_sequence(sequences, limit: int) -> None:
    for one in pack(sequences, limit):
        for member, path in zip(one.members, one.paths, strict=True):
            assert tuple(one.ids[path]) == sequences[member] == spelled(one, int(path[-1]))


@given(SEQUENCES, st.integers(1, 30))
def test_positions_are_depths(sequences, limit: int) -> None:
    for one in pack(sequences, limit):
        assert one.positions.tolist() == [len(spelled(one, node)) - 1 for node in range(len(one.ids))]


@given(SEQUENCES, st.integers(1, 30))
def test_a_node_sees_what_stands_before_it_in_its_own_sequences(sequences, limit: int) -> None:
    for one in pack(sequences, limit):
        texts = [spelled(one, node) for node in range(len(one.ids))]
        assert one.sees().tolist() == [[text[: len(other)] == other for other in texts] for text in texts]


@given(SEQUENCES, st.integers(1, 30))
def test_no_beginning_stands_twice_in_a_pack(sequences, limit: int) -> None:
    for one in pack(sequences, limit):
        assert len(one.ids) == len(prefixes(sequences[member] for member in one.members))


@given(SEQUENCES)
def test_without_a_limit_there_is_one_pack(sequences) -> None:
    assert len(pack(sequences, NO_LIMIT)) == bool(sequences)


@given(SEQUENCES, st.integers(1, 30))
def test_every_sequence_is_in_one_pack(sequences, limit: int) -> None:
    members = [member for one in pack(sequences, limit) for member in one.members]
    assert sorted(members) == list(range(len(sequences)))


@given(SEQUENCES, st.integers(1, 12))
def test_a_pack_outgrows_the_limit_only_for_what_its_sequences_share(sequences, limit: int) -> None:
    for one in pack(sequences, limit):
        kinds = sorted({sequences[member] for member in one.members})
        assert len(one.ids) <= 4 * limit or len(kinds) == 1
        begun = len(kinds[0])
        for before, own in itertools.pairwise(kinds):
            fresh = len(own) - common_prefix(before, own)
            begun += fresh
            assert begun <= limit or fresh < len(own) - fresh


def test_samples_of_a_long_prompt_share_it_beyond_the_limit() -> None:
    prompt = tuple(range(300))
    (one,) = pack([(*prompt, 1000 + number) for number in range(16)], 256)
    assert len(one.ids) == 316
    packs = pack([(*prompt, *range(1000 * number, 1000 * number + 100)) for number in range(1, 17)], 256)
    assert [len(one.ids) for one in packs] == [1000, 1000, 500]


@given(SEQUENCES, st.integers(1, 12))
def test_equal_sequences_share_one_path_of_whatever_length(sequences, limit: int) -> None:
    found: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
    for number, one in enumerate(pack(sequences, limit)):
        for member, path in zip(one.members, one.paths, strict=True):
            found.setdefault(sequences[member], set()).add((number, *path.tolist()))
    assert all(len(paths) == 1 for paths in found.values())


@given(st.lists(st.integers(0, 1), max_size=6), st.lists(st.integers(0, 1), max_size=6))
def test_a_common_beginning_is_the_longest_that_both_have(one: list[int], other: list[int]) -> None:
    shorter = min(len(one), len(other))
    assert common_prefix(one, other) == max(end for end in range(shorter + 1) if one[:end] == other[:end])


@pytest.mark.parametrize(
    ("sizes", "limit", "expected"),
    [
        ([100, 10, 12, 300], 1000, [[1, 2], [0], [3]]),  # two rows padded by 88 cost 176 tokens, a pass costs 96
        ([10, 106], 1000, [[0, 1]]),  # 96 tokens of padding, as much as a pass
        ([10, 107], 1000, [[0], [1]]),
        ([12, 10, 11], 35, [[1, 2], [0]]),  # three rows of 12 are 36
        ([12, 10, 11], 36, [[1, 2, 0]]),
        ([50, 40], 30, [[1], [0]]),
        ([], 30, []),
    ],
)
def test_packs_of_like_length_go_together(sizes: list[int], limit: int, expected: list[list[int]]) -> None:
    assert list(batches([of_size(size) for size in sizes], limit)) == expected


@given(st.lists(st.integers(1, 400), max_size=20), st.integers(1, 2000))
def test_every_pack_is_in_one_batch_that_keeps_the_limit_unless_it_is_alone(sizes: list[int], limit: int) -> None:
    found = list(batches([of_size(size) for size in sizes], limit))
    assert sorted(index for batch in found for index in batch) == list(range(len(sizes)))
    assert all(len(batch) == 1 or len(batch) * max(sizes[index] for index in batch) <= limit for batch in found)
