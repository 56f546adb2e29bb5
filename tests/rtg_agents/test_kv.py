"""Kept views against a list that is searched from end to end, and rows against plain tensors."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rtg_agents import kv
from rtg_agents.kv import KeyValues, Rows, Views

BYTES = 8
"""Of one token of `view_of`: a key and a value, one head, one number each."""

NO_LIMIT = 1 << 30


def view_of(ids, mark: float = 0.0) -> KeyValues:
    """One layer whose keys are the ids, so that a view says what it is of."""
    keys = torch.tensor(ids, dtype=torch.float32).reshape(1, -1, 1)
    return [(keys, torch.full_like(keys, mark))]


def ids_of(view: KeyValues, length: int) -> list[int]:
    return [int(value) for value in view[0][0][0, :length, 0]]


def agreement(one, other) -> int:
    length = 0
    while length < min(len(one), len(other)) and one[length] == other[length]:
        length += 1
    return length


class Kept(NamedTuple):
    policy: str
    ids: tuple[int, ...]
    serial: int


class Searched:
    """What `Views` promises while no beginning has more than eight entries, by looking at all of them."""

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self.kept: list[Kept] = []
        self.serial = 0

    def num_tokens(self) -> int:
        return sum(len(one.ids) for one in self.kept)

    def find(self, policy: str, ids: tuple[int, ...]) -> int:
        known = [(agreement(one.ids, ids), one.serial, one) for one in self.kept if one.policy == policy]
        length, _, best = max(known, default=(0, 0, None))
        if best is None or length < 16:
            return 0
        self.kept.remove(best)
        self.kept.append(best)
        return min(length, len(ids) - 1)

    def put(self, policy: str, ids: tuple[int, ...]) -> None:
        if not 16 <= len(ids) <= self.max_tokens:
            return
        self.kept = [one for one in self.kept if one.policy != policy or ids[: len(one.ids)] != one.ids]
        self.kept.append(Kept(policy, ids, self.serial))
        self.serial += 1
        while self.num_tokens() > self.max_tokens:
            del self.kept[0]


PIECES = [(7,) * 5, (8,) * 11, (7, 8) * 8, (8,) * 16, (7,) * 21]
IDS = st.lists(st.sampled_from(PIECES), min_size=1, max_size=5).map(lambda pieces: sum(pieces, ()))
POLICIES = st.sampled_from(["red", "blue"])
CALLS = st.lists(st.tuples(st.sampled_from(["put", "find", "find"]), POLICIES, IDS), max_size=24)


def at_most_eight_puts(calls) -> bool:
    return sum(call == "put" for call, _, _ in calls) <= 8


def follow(calls, max_tokens: int) -> None:
    """Make the same calls to both and compare."""
    views, searched = Views(max_tokens * BYTES), Searched(max_tokens)
    for call, policy, ids in calls:
        if call == "put":
            views.put(policy, ids, view_of(ids, mark=len(policy)))
            searched.put(policy, ids)
        else:
            length, view = views.find(policy, ids)
            assert length == searched.find(policy, ids)
            if length:
                assert ids_of(view, length) == list(ids[:length])
                assert float(view[0][1][0, 0, 0]) == len(policy)
        assert views.num_bytes == searched.num_tokens() * BYTES <= views.max_bytes
        assert len(views) == len(searched.kept)


@given(CALLS.filter(at_most_eight_puts))
def test_the_longest_known_beginning_is_found(calls) -> None:
    follow(calls, NO_LIMIT)


@given(CALLS.filter(at_most_eight_puts), st.integers(0, 150))
def test_the_least_recently_used_views_are_given_up_when_memory_is_short(calls, max_tokens: int) -> None:
    follow(calls, max_tokens)


@given(st.lists(IDS, max_size=40), st.lists(IDS, min_size=1, max_size=5))
def test_among_any_number_of_views_the_beginning_is_the_longest_in_whole_blocks(known, wanted) -> None:
    views, searched = Views(NO_LIMIT), Searched(NO_LIMIT)
    for ids in known:
        views.put("red", ids, view_of(ids))
        searched.put("red", ids)
    assert len(views) == len(searched.kept)
    for ids in wanted:
        best, (length, view) = searched.find("red", ids), views.find("red", ids)
        assert best // 16 * 16 <= length <= best
        assert ids_of(view, length) == list(ids[:length]) if length else not view


def test_blocks_are_compared_to_the_last_id() -> None:
    views = Views(NO_LIMIT)
    views.put("red", range(40), view_of(range(40)))
    assert views.find("red", [*range(35), 0, 0]).length == 35
    assert views.find("red", [*range(16), 0]).length == 16
    assert views.find("red", [*range(15), 0, 0]).length == 0
    assert views.find("red", range(40)).length == 39  # the last id is read again: its logits are wanted
    assert views.find("red", range(41)).length == 40
    assert views.find("red", range(16)).length == 15
    assert views.find("red", range(15)).length == 0


def test_a_view_serves_one_policy_and_one_revision() -> None:
    views = Views(NO_LIMIT)
    views.put(("red", 1), range(32), view_of(range(32)))
    assert views.find(("red", 1), range(33)).length == 32
    assert views.find(("red", 2), range(33)).length == 0
    assert views.find(("blue", 1), range(33)).length == 0


def test_a_view_that_goes_on_from_another_takes_its_place() -> None:
    views = Views(NO_LIMIT)
    views.put("red", range(20), view_of(range(20)))
    views.put("blue", range(20), view_of(range(20)))
    views.put("red", [*range(20), 5], view_of([*range(20), 5]))
    assert (len(views), views.num_bytes) == (2, (20 + 21) * BYTES)
    views.put("red", [*range(20), 5], view_of([*range(20), 5]))
    assert (len(views), views.num_bytes) == (2, (20 + 21) * BYTES)
    views.put("red", [*range(20), 6], view_of([*range(20), 6]))
    assert (len(views), views.num_bytes) == (3, (20 + 21 + 21) * BYTES)


def test_a_view_that_goes_on_takes_the_place_of_one_that_many_have_followed() -> None:
    views = Views(NO_LIMIT)
    group = [(*range(32), sample) for sample in range(20)]
    for ids in group:
        views.put("red", ids, view_of(ids))
    for ids in group:
        views.put("red", (*ids, 99), view_of((*ids, 99)))
    assert (len(views), views.num_bytes) == (20, 20 * 34 * BYTES)


def test_a_view_stays_known_when_many_that_began_like_it_are_gone() -> None:
    views, large = Views(400 * BYTES), range(1000, 1340)
    views.put("red", range(48), view_of(range(48)))
    for sample in range(100, 110):
        views.put("red", (*range(32), sample), view_of((*range(32), sample)))
    assert views.find("red", range(49)).length == 48
    views.put("red", large, view_of(large))
    assert len(views) == 2
    assert views.find("red", (*range(32), 5)).length == 32


def test_nothing_is_kept_without_memory() -> None:
    views = Views(0)
    views.put("red", range(32), view_of(range(32)))
    assert (len(views), views.num_bytes) == (0, 0)
    assert views.find("red", range(33)) == (0, [])


def test_a_view_that_is_larger_than_the_memory_drives_nothing_out() -> None:
    views = Views(32 * BYTES)
    views.put("red", range(32), view_of(range(32)))
    views.put("red", range(100, 133), view_of(range(100, 133)))
    assert views.find("red", range(33)).length == 32
    assert views.num_bytes == 32 * BYTES


def test_all_is_forgotten_at_once() -> None:
    views = Views(NO_LIMIT)
    views.put("red", range(32), view_of(range(32)))
    views.clear()
    assert (len(views), views.num_bytes, views.find("red", range(33)).length) == (0, 0, 0)
    views.put("red", range(32), view_of(range(32)))
    assert views.find("red", range(33)).length == 32


def test_equal_hashes_of_different_views_do_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv, "hash", lambda value: 0, raising=False)
    views = Views(3 * 40 * BYTES)
    known = [("red", (*range(16), *[end] * 20)) for end in range(12)] + [("blue", (*range(36),))]
    for policy, ids in known:
        views.put(policy, ids, view_of(ids, mark=len(policy)))
        assert views.num_bytes == len(views) * 36 * BYTES
    assert len(views) == 3
    for policy, ids in known:
        length, view = views.find(policy, (*ids, 0))
        assert ids_of(view, length) == list(ids[:length]) if length else not view
        assert not length or float(view[0][1][0, 0, 0]) == len(policy)
    assert views.find("blue", range(37)).length == 36
    views.put("blue", range(50), view_of(range(50)))
    assert views.num_bytes == (36 + 50) * BYTES  # blue's own is continued, one of red's has to go


def test_a_kept_view_does_not_change_with_the_row_it_came_from() -> None:
    views, rows = Views(NO_LIMIT), Rows(1, 2, 40)
    rows.write(1, view_of(range(40)), 40)
    views.put("red", range(32), rows.read(1, slice(0, 32)))
    rows.write(1, view_of([0] * 40), 40)
    assert views.num_bytes == 32 * BYTES
    assert ids_of(views.find("red", range(33)).view, 32) == list(range(32))
    assert ids_of(rows.read(1, slice(0, 32)), 32) == [0] * 32


# Rows


def some(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_new_tokens_are_written_where_they_were_placed() -> None:
    heads, size = 2, 3
    rows, expected = Rows(2, 3, 7), torch.zeros(2, 2, 3, heads, 7, size)
    for columns in (torch.tensor([[0, 1], [0, 1], [0, 1]]), torch.tensor([[2, 3], [1, 2]]), torch.tensor([[6]])):
        width = int(columns.max()) + 1
        rows.place(columns, width)
        for layer in range(2):
            keys, values = some(*columns.shape, heads, size) + layer, some(*columns.shape, heads, size) - layer
            seen = rows.update(keys.transpose(1, 2), values.transpose(1, 2), layer)
            for row, places in enumerate(columns.tolist()):
                for token, column in enumerate(places):
                    expected[0, layer, row, :, column] = keys[row, token]
                    expected[1, layer, row, :, column] = values[row, token]
            for found, own in zip(seen, expected[:, layer], strict=True):
                assert torch.equal(found, own[: len(columns), :, :width])
        assert rows.get_seq_length() == width


def test_a_view_is_written_at_the_beginning_of_a_row_and_read_back() -> None:
    view = [(some(2, 5, 3) + layer, some(2, 5, 3) - layer) for layer in range(2)]
    rows = Rows(2, 3, 7)
    rows.write(1, view, 4)
    for (keys, values), (own_keys, own_values) in zip(rows.read(1, slice(0, 7)), view, strict=True):
        for found, own in ((keys, own_keys), (values, own_values)):
            assert torch.equal(found[:, :4], own[:, :4])
            assert not found[:, 4:].any()  # a masked column is multiplied by 0: it must hold numbers
    chosen = torch.tensor([3, 0, 2])
    for (keys, _), (own_keys, _) in zip(rows.read(1, chosen), view, strict=True):
        assert torch.equal(keys, own_keys[:, chosen])
    assert not any(keys.any() or values.any() for row in (0, 2) for keys, values in rows.read(row, slice(0, 7)))


@pytest.mark.parametrize("kept", [[2], [1, 3], [3, 0, 1], [0, 1, 2, 3], [1, 0]])
def test_kept_rows_move_to_the_front(kept: list[int]) -> None:
    rows = Rows(1, 4, 3)
    for row in range(4):
        rows.write(row, view_of([10 * row, 10 * row + 1, 10 * row + 2]), 3)
    rows.keep(torch.tensor(kept))
    assert [ids_of(rows.read(row, slice(0, 3)), 1) for row in range(len(kept))] == [[10 * row] for row in kept]
