"""Sentence vectors: a small encoder that needs no model, and a cache for any encoder."""

from __future__ import annotations

import re
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import numpy as np

from rtg_env.errors import ConfigError
from rtg_env.judges.base import Encoder
from rtg_env.text import well_formed

_WORD: Final = re.compile(r"\w+")
_MAX_CHARS: Final = 6000


class HashingEncoder:
    """Signed hashed bags of words (Weinberger et al. 2009, arXiv:0902.2206) as unit rows: where texts share words.

    Args:
        size: Length of a vector, at least 1.
    """

    def __init__(self, size: int = 32) -> None:
        if size < 1:
            raise ConfigError(f"size must be >= 1, got {size}")
        self.size = size

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """[N, size] float32, unit rows; zeros for a text without words."""
        rows = np.zeros((len(texts), self.size), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in _WORD.findall(well_formed(text[:_MAX_CHARS]).lower()):
                code = zlib.crc32(word.encode())
                row[(code >> 1) % self.size] += 1.0 if code & 1 else -1.0
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        return rows / np.where(norms > 0, norms, 1.0).astype(np.float32)


class CachedEncoder:
    """Encodes each text once, as long as it is remembered; what is new goes to the encoder in one call.

    Args:
        encoder: Computes the vectors.
        capacity: Texts that are remembered, at least 1; those that were not asked for the longest are forgotten first.
    """

    def __init__(self, encoder: Encoder, capacity: int = 10_000) -> None:
        if capacity < 1:
            raise ConfigError(f"capacity must be >= 1, got {capacity}")
        self._encoder = encoder
        self._capacity = capacity
        self._rows: OrderedDict[str, np.ndarray] = OrderedDict()

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """[N, D] float32, unit rows; [0, 0] for no texts as long as D is not known.

        Raises:
            ConfigError: If the encoder returns anything but one row of D finite numbers for each text.
        """
        new = list(dict.fromkeys(text for text in texts if text not in self._rows))
        if new:
            self._rows.update(zip(new, self._encoded(new), strict=True))
        width = next(iter(self._rows.values()), np.zeros(0)).size
        rows = np.array([self._rows[text] for text in texts], dtype=np.float32).reshape(len(texts), width)
        for text in texts:
            self._rows.move_to_end(text)
        while len(self._rows) > self._capacity:
            self._rows.popitem(last=False)
        return rows

    def _encoded(self, texts: list[str]) -> np.ndarray:
        rows = np.array(self._encoder.encode(texts), dtype=np.float32)  # a copy: an encoder may fill its array again
        known = next(iter(self._rows.values()), None)
        expected = [len(texts), "D" if known is None else known.size]
        fits = rows.ndim == 2 and len(rows) == len(texts) and (known is None or rows.shape[1] == known.size)
        if not fits or not np.isfinite(rows).all():
            raise ConfigError(
                f"expected {expected} finite numbers from {type(self._encoder).__name__}, "
                f"got {list(rows.shape)}{' with NaN or infinity' if fits else ''}; mend the encoder"
            )
        return rows
