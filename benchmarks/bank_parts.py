"""Parts that the benchmarks of the policy bank share: policies that differ, and decoding without the rest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from rtg_agents import TorchBackend
from rtg_agents.generation import Job, Reader, _Batch
from rtg_agents.kv import Views


def versions(count: int) -> list[str]:
    """Names of policies."""
    return [f"red_{index:02d}@v1" for index in range(count)]


def fill(backend: TorchBackend, count: int) -> None:
    """Add policies that differ."""
    for index, version in enumerate(versions(count)):
        backend.create(version, seed=index)
        generator = torch.Generator(backend.bank.device).manual_seed(index)
        with torch.no_grad():
            for parameter in backend.parameters(version).values():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator, device=parameter.device))
    backend.bank.refresh(versions(count))


def shares(counts: Sequence[int]) -> list[str]:
    """Policy of each row."""
    return [version for version, count in zip(versions(len(counts)), counts, strict=True) for _ in range(count)]


class Decoder:
    """Decodes rows whose prompts were read before: the part of generation that repeats."""

    def __init__(self, backend: TorchBackend, who: Sequence[str], tokens: int, *, prompt: int, highest_id: int) -> None:
        rng = np.random.default_rng(0)
        self.jobs = [
            Job(
                version=version,
                key=version,
                prompt=tuple(int(token) for token in rng.integers(3, highest_id, prompt)),
                temperature=1.0,
                max_new_tokens=tokens + 2,
                seed=index,
            )
            for index, version in enumerate(who)
        ]
        self._tokens = tokens
        self._batch = _Batch(backend.bank, backend.forward, len(who), prompt + tokens + 2)
        reader = Reader(backend.bank, backend.forward, Views(0), max_tokens=4096, pack_tokens=256)
        with torch.no_grad():
            reader.read(self.jobs, lambda index, rows, place, _: self._batch.seat(index, self.jobs[index], rows, place))

    @torch.no_grad()
    def __call__(self) -> None:
        """The same tokens again, from the same prompts."""
        batch = self._batch
        for row, job in enumerate(self.jobs):
            batch._lengths[row] = len(job.prompt)
        for _ in range(self._tokens):
            batch.draw(range(batch.height), batch.forward())
