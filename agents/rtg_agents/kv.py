"""Keys and values of what a model has read: rows of a batch, and the views that are kept between turns.

`Rows` is the cache of one batch: every row has columns of its own, so that rows of any length stand side by side, a new
token is written in place and a finished row makes room for another. `Views` keeps what was computed for a (policy,
view of a dialogue) and finds the longest known beginning of a new prompt, whoever asks: an entry depends on nothing but
the policy's values and the ids.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from transformers.cache_utils import Cache, CacheLayerMixin

_BLOCK: Final = 16
_MAX_RIVALS: Final = 8
"""Entries that are compared for one beginning, the latest ones."""

KeyValues = list[tuple[torch.Tensor, torch.Tensor]]
"""Per layer: keys and values [heads, L, size] of one view."""


class _Layer(CacheLayerMixin):  # type: ignore[no-untyped-call]  # untyped in transformers
    """Keys and values of one layer, [rows, heads, columns, size]."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, rows: Rows) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in transformers
        self._rows = rows

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        rows, columns = self._rows.num_rows, self._rows.num_columns
        # Not `empty`: a masked column still meets a zero weight, and 0 * NaN is NaN.
        self.keys = key_states.new_zeros(rows, key_states.shape[1], columns, key_states.shape[3])
        self.values = value_states.new_zeros(rows, value_states.shape[1], columns, value_states.shape[3])
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        count, width = len(key_states), self._rows.width
        rows, columns = self._rows.places
        self.keys[rows, :, columns] = key_states.transpose(1, 2)
        self.values[rows, :, columns] = value_states.transpose(1, 2)
        return self.keys[:count, :, :width], self.values[:count, :, :width]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._rows.width, 0

    def get_seq_length(self) -> int:
        return self._rows.width

    def get_max_length(self) -> int:
        return self._rows.num_columns


class Rows(Cache):
    """Keys and values of a batch.

    Args:
        num_layers: Of the model.
        num_rows: Most rows.
        num_columns: Most tokens of a row.
    """

    def __init__(self, num_layers: int, num_rows: int, num_columns: int) -> None:
        self.num_rows = num_rows
        self.num_columns = num_columns
        self.width = 0
        """Columns that the forward pass looks at."""
        self.places: tuple[torch.Tensor, torch.Tensor] = (torch.empty(0), torch.empty(0))
        """Row [B, 1] and column [B, S] of each new token."""
        self._own = [_Layer(self) for _ in range(num_layers)]
        super().__init__(layers=list(self._own))

    def place(self, columns_BS: torch.Tensor, width: int) -> None:
        """Say where the next forward pass writes: row b's token s into column [b, s]."""
        self.places = torch.arange(len(columns_BS), device=columns_BS.device)[:, None], columns_BS
        self.width = width

    def read(self, row: int, columns: slice | torch.Tensor) -> KeyValues:
        """Some columns of a row; a slice is no copy and changes with the row."""
        return [(layer.keys[row][:, columns], layer.values[row][:, columns]) for layer in self._own]

    def write(self, row: int, view: KeyValues, length: int) -> None:
        """Put the first `length` tokens of a view at the beginning of a row."""
        for layer, (keys, values) in zip(self._own, view, strict=True):
            if not layer.is_initialized:
                layer.lazy_initialization(keys[None], values[None])
            layer.keys[row, :, :length] = keys[:, :length]
            layer.values[row, :, :length] = values[:, :length]

    def keep(self, rows: torch.Tensor) -> None:
        """Move these rows to the front, in this order."""
        for layer in self._own:
            layer.keys[: len(rows)] = layer.keys[rows]
            layer.values[: len(rows)] = layer.values[rows]


class Found(NamedTuple):
    """The longest known beginning of a prompt."""

    length: int
    """In tokens; 0 if nothing is known."""

    view: KeyValues
    """At least that long."""


@dataclass(eq=False)
class _Entry:
    policy: Hashable
    ids: np.ndarray
    view: KeyValues
    marks: list[int]

    @property
    def num_bytes(self) -> int:
        return sum(keys.nbytes + values.nbytes for keys, values in self.view)


class Views:
    """Views that were computed, the least recently used given up first.

    Args:
        max_bytes: Most memory for keys and values; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._entries: OrderedDict[int, _Entry] = OrderedDict()
        # Dictionaries for their order and quick removal: a system prompt is the beginning of very many entries.
        self._marks: dict[int, dict[int, None]] = {}
        """Entries by each beginning of whole blocks."""
        self._ends: dict[int, dict[int, None]] = {}
        """Entries by their longest beginning of whole blocks."""
        self._next = 0

    def __len__(self) -> int:
        return len(self._entries)

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._marks.clear()
        self._ends.clear()
        self.num_bytes = 0

    def find(self, policy: Hashable, ids: Sequence[int]) -> Found:
        """The longest known beginning of a prompt, one id of it left to be read (its logits are wanted).

        Beginnings of fewer than 16 tokens are not looked for. Where more than 8 entries have the same 16, 32, .. first
        tokens of the prompt, the latest of them are compared: up to 15 tokens more than necessary are then read.
        """
        wanted = np.asarray(ids)
        best, found = 0, None
        for mark in reversed(_marks(policy, ids)):
            for number in islice(reversed(self._marks.get(mark, {})), _MAX_RIVALS):
                entry = self._entries[number]
                length = _agreement(entry.ids, wanted) if entry.policy == policy else 0
                if length > best:
                    best, found = length, number
            if found is not None:
                break
        best = min(best, len(ids) - 1)
        if found is None or best <= 0:
            return Found(0, [])
        self._entries.move_to_end(found)
        return Found(best, self._entries[found].view)

    def put(self, policy: Hashable, ids: Sequence[int], view: KeyValues) -> None:
        """Keep a copy of a view; those that it continues are given up."""
        entry = _Entry(policy, np.asarray(ids), view, _marks(policy, ids))
        if not entry.marks or entry.num_bytes > self.max_bytes:
            return
        entry.view = [(keys.clone(), values.clone()) for keys, values in view]
        for number in {earlier for mark in entry.marks for earlier in self._ends.get(mark, ())}:
            if self._contains(entry, self._entries[number]):
                self._drop(number)
        for index, mark in self._places(entry):
            index.setdefault(mark, {})[self._next] = None
        self._entries[self._next] = entry
        self._next += 1
        self.num_bytes += entry.num_bytes
        while self.num_bytes > self.max_bytes:
            self._drop(next(iter(self._entries)))

    def _contains(self, entry: _Entry, other: _Entry) -> bool:
        return entry.policy == other.policy and _agreement(entry.ids, other.ids) == len(other.ids)

    def _drop(self, number: int) -> None:
        entry = self._entries.pop(number)
        self.num_bytes -= entry.num_bytes
        for index, mark in self._places(entry):
            numbers = index.get(mark, {})
            numbers.pop(number, None)
            if not numbers:
                index.pop(mark, None)

    def _places(self, entry: _Entry) -> list[tuple[dict[int, dict[int, None]], int]]:
        """Where an entry is listed."""
        return [*((self._marks, mark) for mark in entry.marks), (self._ends, entry.marks[-1])]


def _marks(policy: Hashable, ids: Sequence[int]) -> list[int]:
    """A hash of each beginning of whole blocks."""
    mark, marks = hash(policy), []
    for end in range(_BLOCK, len(ids) + 1, _BLOCK):
        mark = hash((mark, *ids[end - _BLOCK : end]))
        marks.append(mark)
    return marks


def _agreement(one: np.ndarray, other: np.ndarray) -> int:
    length = min(len(one), len(other))
    differ = np.flatnonzero(one[:length] != other[:length])
    return int(differ[0]) if len(differ) else length
