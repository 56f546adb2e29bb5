"""Settings of the optimizer; apart from the trainer, so that a config loads no torch."""

from __future__ import annotations

from dataclasses import dataclass

from rtg_env.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSettings:
    """Adam on the adapter's factors."""

    learning_rate: float = 5e-4
    """At least 0; 0 is the null run that changes nothing."""

    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; above 0."""

    micro_batch: int = 16
    """Sentences in one forward and backward pass; at least 1. Does not change the result."""

    def __post_init__(self) -> None:
        """Refuse settings outside their range."""
        if not 0.0 <= self.learning_rate < float("inf"):
            raise ConfigError(f"learning_rate must be finite and >= 0, got {self.learning_rate!r}")
        if not self.max_grad_norm > 0 or self.micro_batch < 1:
            raise ConfigError(
                f"expected max_grad_norm > 0 and micro_batch >= 1, got {self.max_grad_norm} and {self.micro_batch}"
            )
