"""Sentence embeddings through sentence-transformers, for judges and measures that ask for an `Encoder`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rtg_agents.models import quiet_transformers
from rtg_env.errors import MissingExtraError, ModelError


class SentenceEncoder:
    """A sentence-transformers model as an `Encoder`.

    Args:
        folder: Model folder (see `rtg_agents.models.resolve_encoder`).
        batch_size: Texts per forward call.

    Raises:
        MissingExtraError: If sentence-transformers is not installed.
        ModelError: If the folder cannot be loaded.
    """

    def __init__(self, folder: Path, *, batch_size: int = 64) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise MissingExtraError("sentence_transformers", "judges") from error
        try:
            with quiet_transformers():
                self._model = SentenceTransformer(
                    str(folder),
                    device="cpu",
                    local_files_only=True,
                    trust_remote_code=False,
                    model_kwargs={"use_safetensors": True},
                )
        except (OSError, ValueError) as error:
            raise ModelError(
                f"expected a sentence-transformers model in {folder}, it cannot be loaded: {error}"
            ) from error
        self._batch_size = batch_size

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """[N, D] float32 array of unit rows."""
        rows = self._model.encode(
            list(texts),
            batch_size=self._batch_size,
            normalize_embeddings=True,
            show_progress_bar=False,
            convert_to_numpy=True,
        )
        return np.asarray(rows, dtype=np.float32)
