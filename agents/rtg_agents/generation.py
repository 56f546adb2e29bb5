"""Sampling sentences for many policies at once: rows of one batch, each with its own policy, prompt, length and noise.

A prompt goes through the model once, whoever shares it: what was read in earlier turns comes from `Views`, cold prompts are
packed so that common beginnings stand once, and equal prompts are one. Then all rows are decoded together, one token a
pass; a row that has ended makes room for a request that waits.

Each request draws with noise of its own, counted from its seed and the position: what a row says does not depend on its
neighbours, up to floating-point ties.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, cast

import numpy as np
import torch

from rtg_agents.head import draw, noise, noise_width
from rtg_agents.kv import KeyValues, Rows, Views
from rtg_agents.packing import Pack, batches, pack
from rtg_agents.policy import BASE

if TYPE_CHECKING:
    from rtg_agents.bank import PolicyBank
    from rtg_agents.routing import Route

_COMPACT_BELOW: Final = 0.75
"""Ended rows are dropped from the batch when the live share falls below this and nobody waits."""

_REFILL_ABOVE: Final = 0.125
"""Waiting requests are let in when this share of the batch is free: prompts are read together, not one by one."""


@dataclass(slots=True, eq=False)
class Job:
    """One sentence to be sampled, and as far as it was."""

    version: str
    """Who speaks."""

    key: Hashable
    """Under which its keys and values are kept: version and revision."""

    prompt: tuple[int, ...]
    """What is read."""

    temperature: float
    """Of the draw."""

    max_new_tokens: int
    """Most ids."""

    seed: int
    """Of its noise."""

    min_new_tokens: int = 0
    """Before so many ids none may end the sentence."""

    token_ids: list[int] = field(default_factory=list)
    """What was sampled."""

    logps: list[float] = field(default_factory=list)
    """Log-probability of each."""


class Place(NamedTuple):
    """Where the keys and values of a prompt stand after it was read."""

    row: int
    columns: slice | torch.Tensor


class Forward:
    """The model on a batch with keys and values; counts what it costs.

    Args:
        bank: Policies and model.
    """

    def __init__(self, bank: PolicyBank) -> None:
        self._bank = bank
        self._body = cast("torch.nn.Module", bank.model.base_model)
        self._head = bank.model.get_output_embeddings()
        self._dtype = next(bank.model.parameters()).dtype
        self.device = bank.device
        self.vocab_size = int(self._head.weight.shape[0])
        self.num_layers = int(bank.model.config.num_hidden_layers)
        self.num_tokens = 0
        """Fed so far, padding included."""

    def hidden(self, ids: torch.Tensor, positions: torch.Tensor, sees: torch.Tensor, rows: Rows | None) -> torch.Tensor:
        """Last hidden states [B, S, H] of new ids [B, S].

        Args:
            ids: New tokens.
            positions: Theirs.
            sees: [B, S, L] whether a new token attends to a column.
            rows: Where keys and values are and go (`Rows.place` said in which columns); None keeps none.
        """
        self.num_tokens += ids.numel()
        # Added to the attention weights, not boolean: that is right under every attention implementation.
        mask = torch.zeros(sees.shape, dtype=self._dtype, device=sees.device)
        mask.masked_fill_(~sees, torch.finfo(self._dtype).min)
        result = self._body(
            input_ids=ids,
            attention_mask=mask[:, None],
            position_ids=positions,
            past_key_values=rows,
            use_cache=rows is not None,
        )
        return cast("torch.Tensor", result.last_hidden_state)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[B, H] -> [B, V] in float32."""
        return cast("torch.Tensor", self._head(hidden).float())


class Reader:
    """Reads prompts: cold ones packed, those that go on from a known view row by row.

    Args:
        bank: Policies.
        forward: The model.
        views: What is known.
        max_tokens: Most tokens in one pass.
        pack_tokens: Aim of a pack; attention within it costs its square.
    """

    def __init__(self, bank: PolicyBank, forward: Forward, views: Views, *, max_tokens: int, pack_tokens: int) -> None:
        self._bank = bank
        self._forward = forward
        self._views = views
        self._max_tokens = max_tokens
        self._pack_tokens = pack_tokens

    def read(self, jobs: Sequence[Job], deliver: Callable[[int, Rows, Place, torch.Tensor], None]) -> None:
        """Read the prompts of jobs.

        Args:
            jobs: Any number; equal prompts of one policy are read once.
            deliver: Called once per job with its index, the rows, its place there and its logits [V].
        """
        same: dict[tuple[Hashable, tuple[int, ...]], list[int]] = {}
        for index, job in enumerate(jobs):
            same.setdefault((job.key, job.prompt), []).append(index)
        cold: dict[Hashable, list[list[int]]] = {}
        warm: list[tuple[int, list[int], KeyValues]] = []
        for (key, prompt), indices in same.items():
            length, view = self._views.find(key, prompt)
            if length:
                warm.append((length, indices, view))
            else:
                cold.setdefault(key, []).append(indices)
        packs: list[tuple[Pack, list[list[int]]]] = []
        for groups in cold.values():
            prompts = [jobs[indices[0]].prompt for indices in groups]
            packs += [(one, [groups[member] for member in one.members]) for one in pack(prompts, self._pack_tokens)]
        for chosen in batches([one for one, _ in packs], self._max_tokens):
            self._read_packs(jobs, [packs[index] for index in chosen], deliver)
        # Of like length together: what is padded is computed in vain.
        warm.sort(key=lambda item: len(jobs[item[1][0]].prompt) - item[0])
        size = max(1, self._max_tokens // max((len(jobs[i[0]].prompt) - n for n, i, _ in warm), default=1))
        for begin in range(0, len(warm), size):
            self._read_on(jobs, warm[begin : begin + size], deliver)

    def _read_packs(
        self,
        jobs: Sequence[Job],
        packs: Sequence[tuple[Pack, list[list[int]]]],
        deliver: Callable[[int, Rows, Place, torch.Tensor], None],
    ) -> None:
        batch = PackBatch([one for one, _ in packs], self._forward.device)
        rows = Rows(self._forward.num_layers, len(packs), batch.width)
        rows.place(torch.arange(batch.width, device=self._forward.device).expand(len(packs), -1), batch.width)
        with self._bank.routed(self._bank.route([jobs[groups[0][0]].version for _, groups in packs])):
            hidden = self._forward.hidden(batch.ids, batch.positions, batch.sees, rows)
        ends = [(row, int(path[-1])) for row, (one, _) in enumerate(packs) for path in one.paths]
        logits = self._forward.logits(hidden[[row for row, _ in ends], [node for _, node in ends]])
        found = iter(logits)
        for row, (one, groups) in enumerate(packs):
            for path, indices in zip(one.paths, groups, strict=True):
                place, own = Place(row, torch.as_tensor(path, device=self._forward.device)), next(found)
                for index in indices:
                    deliver(index, rows, place, own)

    def _read_on(
        self,
        jobs: Sequence[Job],
        items: Sequence[tuple[int, list[int], KeyValues]],
        deliver: Callable[[int, Rows, Place, torch.Tensor], None],
    ) -> None:
        device = self._forward.device
        prompts = [jobs[indices[0]].prompt for _, indices, _ in items]
        known = torch.tensor([length for length, _, _ in items], device=device)
        fresh = [prompt[length:] for prompt, (length, _, _) in zip(prompts, items, strict=True)]
        longest = max(len(ids) for ids in fresh)
        columns = known[:, None] + torch.arange(longest, device=device)
        width = int(columns.max()) + 1
        rows = Rows(self._forward.num_layers, len(items), width)
        for row, (length, _, view) in enumerate(items):
            rows.write(row, view, length)
        rows.place(columns, width)
        ids = torch.tensor([[*new, *[0] * (longest - len(new))] for new in fresh], device=device)
        sees = torch.arange(width, device=device) <= columns[:, :, None]
        last = torch.tensor([len(new) - 1 for new in fresh], device=device)
        positions = torch.minimum(columns, (known + last)[:, None])  # what is padded must not leave the model's context
        with self._bank.routed(self._bank.route([jobs[indices[0]].version for _, indices, _ in items])):
            hidden = self._forward.hidden(ids, positions, sees, rows)
        logits = self._forward.logits(hidden[torch.arange(len(items), device=device), last])
        for row, (_, indices, _) in enumerate(items):
            for index in indices:
                deliver(index, rows, Place(row, slice(0, len(prompts[row]))), logits[row])


class PackBatch:
    """Packs as one padded batch: ids, positions [B, N] and who sees whom [B, N, N].

    Args:
        packs: Any number.
        device: Where to.
    """

    def __init__(self, packs: Sequence[Pack], device: torch.device) -> None:
        self.width = max(len(one.ids) for one in packs)
        ids = np.zeros((len(packs), self.width), dtype=np.int64)
        positions = np.zeros_like(ids)
        sees = np.zeros((len(packs), self.width, self.width), dtype=bool)
        sees[:, range(self.width), range(self.width)] = True  # padding sees itself: a softmax over nothing is NaN
        for row, one in enumerate(packs):
            size = len(one.ids)
            ids[row, :size], positions[row, :size] = one.ids, one.positions
            sees[row, :size, :size] = one.sees()
        self.ids, self.positions, self.sees = (torch.from_numpy(array).to(device) for array in (ids, positions, sees))


class Generation:
    """Samples sentences for jobs, in place.

    Args:
        bank: Policies.
        forward: The model.
        reader: Reads prompts.
        views: Finished rows are kept there.
        end_ids: What ends a sentence.
        max_rows: Most rows in one batch.
    """

    def __init__(
        self,
        bank: PolicyBank,
        forward: Forward,
        reader: Reader,
        views: Views,
        *,
        end_ids: frozenset[int],
        max_rows: int,
    ) -> None:
        self._bank = bank
        self._forward = forward
        self._reader = reader
        self._views = views
        self._end_ids = end_ids
        self._max_rows = max_rows

    @torch.no_grad()
    def run(self, jobs: Sequence[Job]) -> None:
        """Sample until every job has ended."""
        waiting = _Waiting(jobs, self._bank)
        if not jobs:
            return
        longest = max(len(job.prompt) + job.max_new_tokens for job in jobs)
        batch = _Batch(self._bank, self._forward, min(self._max_rows, len(jobs)), longest)
        while waiting or batch.num_live:
            if waiting and batch.num_free >= (_REFILL_ABOVE * batch.num_rows if batch.num_live else 1):
                self._admit(batch, waiting)
                continue  # some may have ended with their first id, and others wait
            if not waiting:
                batch.compact()
            self._record(batch, range(batch.height), batch.forward())

    def _admit(self, batch: _Batch, waiting: _Waiting) -> None:
        rows, chosen = [], []
        for row in batch.free_rows():
            if waiting:
                rows.append(row)
                chosen.append(waiting.next(batch.versions[row]))
        logits: list[torch.Tensor] = [torch.empty(0)] * len(chosen)

        def deliver(index: int, source: Rows, place: Place, own: torch.Tensor) -> None:
            batch.seat(rows[index], chosen[index], source, place)
            logits[index] = own

        self._reader.read(chosen, deliver)
        self._record(batch, rows, torch.stack(logits))

    def _record(self, batch: _Batch, rows: Sequence[int], logits: torch.Tensor) -> None:
        """Draw the next id of these rows and see which have ended."""
        ids, logps = batch.draw(rows, self._barred(batch, rows, logits))
        for row, token, logp in zip(rows, ids, logps, strict=True):
            job = batch.jobs[row]
            if job is None:
                continue  # ended before, still in the batch
            job.token_ids.append(token)
            job.logps.append(logp)
            if token in self._end_ids or len(job.token_ids) >= job.max_new_tokens:
                read = (*job.prompt, *job.token_ids[:-1])
                self._views.put(job.key, read, batch.rows.read(row, slice(0, len(read))))
                batch.leave(row)

    def _barred(self, batch: _Batch, rows: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
        """The logits, those of end ids -inf where a sentence may not end yet."""
        jobs = [batch.jobs[row] for row in rows]
        early = [place for place, job in enumerate(jobs) if job and len(job.token_ids) < job.min_new_tokens]
        if early:
            logits = logits.clone()
            logits[torch.tensor(early)[:, None], torch.tensor(sorted(self._end_ids))] = -torch.inf
        return logits


class _Waiting:
    """Jobs that are not in the batch yet, policy by policy."""

    def __init__(self, jobs: Sequence[Job], bank: PolicyBank) -> None:
        self._queues: dict[str, deque[Job]] = {}
        for job in sorted(jobs, key=lambda job: bank.slot(job.version)):
            self._queues.setdefault(job.version, deque()).append(job)

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def next(self, version: str) -> Job:
        """The next job, of this policy if there is one: rows of a policy then stay side by side."""
        queue = self._queues.get(version) or next(iter(self._queues.values()))
        job = queue.popleft()
        if not queue:
            del self._queues[job.version]
        return job


class _Batch:
    """The rows that are decoded together. The first `height` rows go through the model, dead ones among them."""

    def __init__(self, bank: PolicyBank, forward: Forward, num_rows: int, num_columns: int) -> None:
        self._bank = bank
        self._forward = forward
        self.num_rows = num_rows
        self.height = 0
        self.rows = Rows(forward.num_layers, num_rows, num_columns)
        self.jobs: list[Job | None] = [None] * num_rows
        self.versions = [BASE] * num_rows
        """Who speaks, or spoke last, in each row."""
        self._route: Route | None = None
        width = noise_width(forward.vocab_size)
        self._noise: list[torch.Tensor] = [torch.zeros(1, width, device=forward.device)] * num_rows
        self._lengths = [1] * num_rows
        """Tokens of each row, the one that is read next included."""
        self._next_ids = torch.zeros(num_rows, dtype=torch.long, device=forward.device)

    @property
    def num_live(self) -> int:
        return sum(job is not None for job in self.jobs)

    @property
    def num_free(self) -> int:
        return self.num_rows - self.num_live

    def free_rows(self) -> list[int]:
        return [row for row, job in enumerate(self.jobs) if job is None]

    def seat(self, row: int, job: Job, source: Rows, place: Place) -> None:
        """Let a job take a row, with what was read of its prompt."""
        self.rows.write(row, source.read(place.row, place.columns), len(job.prompt))
        drawn = noise(job.seed, job.max_new_tokens, self._forward.vocab_size)
        self.jobs[row], self._noise[row], self._lengths[row] = job, drawn.to(self._forward.device), len(job.prompt)
        if self.versions[row] != job.version or row >= self.height:
            self.versions[row], self._route = job.version, None
        self.height = max(self.height, row + 1)

    def leave(self, row: int) -> None:
        self.jobs[row], self._lengths[row] = None, 1

    def compact(self) -> None:
        """Drop dead rows when they are many; the others keep their order."""
        live = [row for row, job in enumerate(self.jobs) if job is not None]
        if len(live) >= _COMPACT_BELOW * self.height:
            return
        index = torch.tensor(live, device=self._forward.device)
        self.rows.keep(index)
        self._next_ids = self._next_ids[index]
        self.jobs = [self.jobs[row] for row in live]
        self.versions = [self.versions[row] for row in live]
        self._noise = [self._noise[row] for row in live]
        self._lengths = [self._lengths[row] for row in live]
        self.num_rows = self.height = len(live)
        self._route = None

    def forward(self) -> torch.Tensor:
        """Read one more id in every row; the logits [height, V] of the next."""
        columns = torch.tensor(self._lengths[: self.height], device=self._forward.device)[:, None] - 1
        width = max(self._lengths[: self.height])
        self.rows.place(columns, width)
        sees = torch.arange(width, device=columns.device) <= columns[:, :, None]
        if self._route is None:
            self._route = self._bank.route(self.versions[: self.height])
        with self._bank.routed(self._route):
            hidden = self._forward.hidden(self._next_ids[: self.height, None], columns, sees, self.rows)
        return self._forward.logits(hidden[:, 0])

    def draw(self, rows: Sequence[int], logits: torch.Tensor) -> tuple[list[int], list[float]]:
        """The next id of each of these rows and its log-probability; it is read by the next `forward`."""
        temperatures, drawn = [], []
        for row in rows:
            job = self.jobs[row]
            temperatures.append(job.temperature if job else 1.0)
            drawn.append(self._noise[row][len(job.token_ids) if job else 0])
            self._lengths[row] += job is not None
        ids, logps = draw(logits, torch.tensor(temperatures, device=logits.device), torch.stack(drawn))
        self._next_ids[list(rows)] = ids
        return ids.tolist(), logps.tolist()
