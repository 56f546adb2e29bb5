"""One seed per run; every component, unit and dialogue derives its own from it by name."""

from __future__ import annotations

import zlib

import numpy as np


def rng_for(seed: int, *key: str | int) -> np.random.Generator:
    """A generator for one named piece of work, independent of all others and of the order of work.

    Args:
        seed: Seed of the run.
        key: Names and numbers that identify the work, such as ("train", "red", iteration, step).
    """
    spawn_key = tuple(part if isinstance(part, int) else zlib.crc32(part.encode()) for part in key)
    return np.random.default_rng(np.random.SeedSequence(entropy=seed, spawn_key=spawn_key))


def draw_seed(rng: np.random.Generator) -> int:
    """A seed for one dialogue or adapter, in [0, 2**63)."""
    return int(rng.integers(2**63))
