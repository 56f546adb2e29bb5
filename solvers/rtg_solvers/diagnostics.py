"""Figures to log beside a loss: do sampler and trainer agree, how much is clipped, how far is the reference.

Every figure travels with its number of tokens, so that those of micro-batches can be averaged by it.

Letters: S sequences, T tokens of the longest one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rtg_env.errors import ConfigError
from rtg_solvers.losses import Clipping, k3_estimate, log_ratio

if TYPE_CHECKING:
    import torch

MISMATCH_GATE: Final = 1.05
"""Largest `Mismatch.mean_factor` at which sampled log-probabilities may stand for recomputed ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """How far log-probabilities recorded when sampling are from the same policy's, computed again.

    They differ by kernels, precision, quantisation and stale weights; were they equal, the first step would have
    every ratio 1.
    """

    mean_abs_log_ratio: float
    """Mean |d| in nats, d the difference of a token's two log-probabilities."""

    mean_factor: float
    """Mean exp|d|, at least 1: the factor by which the two probabilities of a token differ."""

    num_tokens: int
    """Tokens counted."""

    @property
    def acceptable(self) -> bool:
        """Whether `mean_factor` is within `MISMATCH_GATE`; NaN is not."""
        return self.mean_factor <= MISMATCH_GATE


def mismatch(logp_ST: torch.Tensor, sampled_logp_ST: torch.Tensor, mask_ST: torch.Tensor) -> Mismatch:
    """Compare recomputed with recorded log-probabilities.

    Args:
        logp_ST: [S, T] recomputed, under the policy that sampled.
        sampled_logp_ST: [S, T] recorded.
        mask_ST: [S, T] 1 on sampled tokens, at least one.
    """
    gap = _kept(logp_ST - sampled_logp_ST, mask_ST).abs()
    return Mismatch(mean_abs_log_ratio=float(gap.mean()), mean_factor=float(gap.exp().mean()), num_tokens=gap.numel())


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipFigures:
    """Share of tokens whose gradient the clipped surrogate stops."""

    low: float
    """Ratio under 1 - low with a negative advantage."""

    high: float
    """Ratio over 1 + high with a positive advantage."""

    num_tokens: int
    """Tokens counted."""


def clip_figures(
    logp_ST: torch.Tensor,
    old_logp_ST: torch.Tensor,
    mask_ST: torch.Tensor,
    advantage: torch.Tensor,
    clipping: Clipping,
) -> ClipFigures:
    """Count what `ppo_loss` clips; the same arguments, no gradient."""
    ratio_ST = log_ratio(logp_ST.detach(), old_logp_ST, mask_ST, clipping).exp()
    sign_ST = (advantage if advantage.dim() == logp_ST.dim() else advantage.unsqueeze(1)).expand_as(logp_ST)
    low = _kept((ratio_ST < 1.0 - clipping.low) & (sign_ST < 0), mask_ST)
    high = _kept((ratio_ST > 1.0 + clipping.high) & (sign_ST > 0), mask_ST)
    return ClipFigures(low=float(low.double().mean()), high=float(high.double().mean()), num_tokens=low.numel())


@dataclass(frozen=True, slots=True, kw_only=True)
class KLFigures:
    """Two estimates of the mean KL per token to a reference, in nats, from samples of the policy."""

    k1: float
    """Mean log-ratio: unbiased, noisy, may be negative."""

    k3: float
    """Mean of `k3_estimate`: unbiased and never negative; one token that only the reference likes can dominate it."""

    num_tokens: int
    """Tokens counted."""


def kl_figures(logp_ST: torch.Tensor, reference_logp_ST: torch.Tensor, mask_ST: torch.Tensor) -> KLFigures:
    """Estimate the KL from the sampling policy to the reference.

    Args:
        logp_ST: [S, T] under the policy that sampled.
        reference_logp_ST: [S, T].
        mask_ST: [S, T] 1 on sampled tokens, at least one.
    """
    logp, reference = _kept(logp_ST, mask_ST), _kept(reference_logp_ST, mask_ST)
    return KLFigures(
        k1=float((logp - reference).mean()),
        k3=float(k3_estimate(logp, reference).mean()),
        num_tokens=logp.numel(),
    )


def _kept(values_ST: torch.Tensor, mask_ST: torch.Tensor) -> torch.Tensor:
    """Values of sampled tokens, flat, no gradient."""
    if values_ST.shape != mask_ST.shape or not bool((mask_ST != 0).any()):
        raise ConfigError(
            f"expected a mask of shape {tuple(values_ST.shape)} with a sampled token, got {tuple(mask_ST.shape)} "
            f"with {int((mask_ST != 0).sum())}"
        )
    return values_ST.detach()[mask_ST != 0]
