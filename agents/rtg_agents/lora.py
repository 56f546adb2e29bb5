"""Shape of the adapters; apart from the backend, so that a config loads no torch."""

from __future__ import annotations

from dataclasses import dataclass

from rtg_env.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSettings:
    """Shape of the adapters: all linear layers, no dropout (dropout would make the first ratio differ from 1)."""

    rank: int = 16
    """Rank of the two factors, at least 1."""

    alpha: float = 32.0
    """The update is scaled by alpha / rank; above 0."""

    def __post_init__(self) -> None:
        """Refuse settings outside their range."""
        if self.rank < 1 or not 0 < self.alpha < float("inf"):
            raise ConfigError(f"expected LoRA rank >= 1 and a finite alpha > 0, got {self.rank} and {self.alpha}")
