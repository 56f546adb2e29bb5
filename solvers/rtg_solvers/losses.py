"""Losses: pure functions of log-probabilities and advantages.

Letters: S sentences, T tokens of the longest one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def policy_gradient_loss(
    logp_ST: torch.Tensor, mask_ST: torch.Tensor, advantage_S: torch.Tensor, num_sentences: int
) -> torch.Tensor:
    """REINFORCE: minus the advantage-weighted log-probability of each sentence, summed over its tokens.

    Divided by the number of sentences of the whole step, not of a micro-batch, so that accumulation changes nothing and
    no sentence counts less for being long.

    Args:
        logp_ST: [S, T] differentiable.
        mask_ST: [S, T] 1 on sampled tokens.
        advantage_S: [S], no gradient.
        num_sentences: Of the whole step.
    """
    return -(advantage_S * (logp_ST * mask_ST).sum(dim=1)).sum() / num_sentences
