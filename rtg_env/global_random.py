"""The global random generators: read, reseeded for a while and put back.

The only place of this project that touches them: to see whether anybody else uses them, and for libraries that do.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


def global_random_state() -> str:
    """The state of Python's and numpy's global generators, for comparisons."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 - it is the legacy state that is looked at
    return repr((random.getstate(), name, keys.tolist() if isinstance(keys, np.ndarray) else keys, rest))


@contextmanager
def disturbed_global_random(seed: int) -> Iterator[None]:
    """Reseed both for a while; they go on afterwards as if nothing had happened."""
    kept, kept_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - to put it back
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the point of this clause
    try:
        yield
    finally:
        random.setstate(kept)
        np.random.set_state(kept_numpy)  # noqa: NPY002 - as it was
