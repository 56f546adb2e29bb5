"""Settings of the optimizer; apart from the trainer, so that a config loads no torch."""

from __future__ import annotations

from dataclasses import dataclass

from rtg_env.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSettings:
    """AdamW on a policy's factors."""

    learning_rate: float = 5e-4
    """At least 0; 0 is the null run that changes nothing."""

    max_grad_norm: float = 1.0
    """Gradients of one policy are scaled down to this norm; above 0."""

    weight_decay: float = 0.0
    """Of AdamW, at least 0."""

    warmup_steps: int = 0
    """The learning rate rises linearly over this many steps, at least 0."""

    decay_steps: int = 0
    """It falls linearly to 0 until this step; 0 keeps it."""

    micro_batch: int = 16
    """Sequences in one forward and backward pass; at least 1. Does not change the result."""

    checkpointing: bool = False
    """Whether layers are computed again in the backward pass instead of kept: less memory, a third more time."""

    def __post_init__(self) -> None:
        """Refuse settings outside their range."""
        if not 0.0 <= self.learning_rate < float("inf"):
            raise ConfigError(f"learning_rate must be finite and >= 0, got {self.learning_rate!r}")
        if not self.max_grad_norm > 0 or self.micro_batch < 1:
            raise ConfigError(
                f"expected max_grad_norm > 0 and micro_batch >= 1, got {self.max_grad_norm} and {self.micro_batch}"
            )
        if not 0.0 <= self.weight_decay < float("inf") or self.warmup_steps < 0 or self.decay_steps < 0:
            raise ConfigError(
                "expected weight_decay, warmup_steps and decay_steps >= 0, "
                f"got {self.weight_decay}, {self.warmup_steps} and {self.decay_steps}"
            )

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        rising = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        falling = max(0.0, 1.0 - step / self.decay_steps) if self.decay_steps else 1.0
        return self.learning_rate * rising * falling
