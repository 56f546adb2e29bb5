"""From losses per token to the loss of a step: how sequences are weighed, and by totals of the whole step.

Each function divides by counts of the whole optimizer step, never of a micro-batch, so that the plain sum of its
results over all micro-batches is the loss, however the step was cut. Where one batch holds sequences of several
adapters, each sequence is divided by the counts of its own adapter: no adapter learns slower for its company.

Letters: S sequences, T tokens of the longest one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rtg_env.errors import ConfigError

if TYPE_CHECKING:
    import torch

Aggregation = Literal["sequence-sum", "sequence-mean", "token-mean", "constant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Counts of a whole step: one number each, or [S] tensors with the counts of each sequence's own adapter."""

    num_sequences: float | torch.Tensor
    """Of the step, those without advantage included."""

    num_tokens: float | torch.Tensor | None = None
    """Sampled tokens of all these sequences; needed for "token-mean"."""

    max_tokens: float | torch.Tensor | None = None
    """Most tokens that a sequence could have had; needed for "constant"."""

    def __post_init__(self) -> None:
        """Refuse counts below 1: they are of the whole step, which has something to learn from."""
        for name in ("num_sequences", "num_tokens", "max_tokens"):
            count = getattr(self, name)
            if count is not None and not (count if isinstance(count, int | float) else float(count.min())) >= 1:
                raise ConfigError(f"expected {name} of the whole step to be at least 1, got {count!r}")

    def rows(self, index: torch.Tensor | Sequence[int]) -> Totals:
        """The totals that belong to some of the sequences: those of a micro-batch."""
        return Totals(
            num_sequences=_rows(self.num_sequences, index),
            num_tokens=None if self.num_tokens is None else _rows(self.num_tokens, index),
            max_tokens=None if self.max_tokens is None else _rows(self.max_tokens, index),
        )


def step_totals(
    num_tokens_S: Sequence[int], adapters: Sequence[Hashable], *, max_tokens: float | None = None
) -> Totals:
    """Count a whole step, for each sequence over its own adapter.

    Args:
        num_tokens_S: [S] sampled tokens of every sequence of the step.
        adapters: [S] the adapter that each one trains.
        max_tokens: Most tokens that a sequence could have had.

    Returns:
        Totals with [S] tensors.
    """
    import torch

    sequences, tokens = Counter(adapters), Counter[Hashable]()
    for adapter, count in zip(adapters, num_tokens_S, strict=True):
        tokens[adapter] += count
    return Totals(
        num_sequences=torch.tensor([sequences[adapter] for adapter in adapters]),
        num_tokens=torch.tensor([tokens[adapter] for adapter in adapters]),
        max_tokens=max_tokens,
    )


def aggregate(loss_ST: torch.Tensor, mask_ST: torch.Tensor, how: Aggregation, totals: Totals) -> torch.Tensor:
    """What each sequence adds to the loss of the step.

    - "sequence-sum": tokens summed, mean over sequences; REINFORCE's, the gradient of an expected reward.
    - "sequence-mean": tokens averaged, mean over sequences; GRPO's. The tokens of a short sequence count more.
    - "token-mean": mean over all tokens of the step; DAPO's (arXiv:2503.14476, section 3.3).
    - "constant": tokens summed, divided by sequences times the most tokens possible; Dr. GRPO's (arXiv:2503.20783),
      "sequence-sum" in another unit.

    Args:
        loss_ST: [S, T].
        mask_ST: [S, T] 1 on sampled tokens; what stands under 0 is left out, whatever it is.
        how: One of the four.
        totals: Of the whole step, with [S] tensors for the sequences at hand where adapters differ.

    Returns:
        [S]; their plain sum over the micro-batches of a step is its loss.
    """
    if loss_ST.shape != mask_ST.shape:
        raise ConfigError(f"expected a mask of shape {tuple(loss_ST.shape)}, got {tuple(mask_ST.shape)}")
    total_S = loss_ST.masked_fill(mask_ST == 0, 0.0).sum(dim=1)
    result_S = total_S / _divisor(mask_ST.sum(dim=1).to(total_S), how, totals)
    if result_S.shape != total_S.shape:
        raise ConfigError(
            f"expected totals as numbers or of shape {tuple(total_S.shape)}, they spread to {tuple(result_S.shape)}; "
            "take the rows of this micro-batch with Totals.rows"
        )
    return result_S


def _divisor(num_tokens_S: torch.Tensor, how: Aggregation, totals: Totals) -> float | torch.Tensor:
    def count(name: str) -> float | torch.Tensor:
        found: float | torch.Tensor | None = getattr(totals, name)
        if found is None:
            raise ConfigError(f"expected Totals.{name} for {how!r}, got None; count it over the whole step")
        return found if isinstance(found, int | float) else found.to(num_tokens_S)

    match how:
        case "sequence-sum":
            return count("num_sequences")
        case "sequence-mean":
            return num_tokens_S.clamp(min=1) * count("num_sequences")
        case "token-mean":
            return count("num_tokens")
        case "constant":
            return count("num_sequences") * count("max_tokens")
    raise ConfigError(
        f"expected one of 'sequence-sum', 'sequence-mean', 'token-mean', 'constant', got {how!r}; "
        "'sequence-sum' is the gradient of the expected reward"
    )


def _rows(count: float | torch.Tensor, index: torch.Tensor | Sequence[int]) -> float | torch.Tensor:
    return count if isinstance(count, int | float) or count.ndim == 0 else count[index]
