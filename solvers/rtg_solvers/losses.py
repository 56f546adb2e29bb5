"""Advantages and losses: pure functions of rewards and log-probabilities.

Letters: S sentences, T tokens of the longest one.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def leave_one_out(rewards_S: np.ndarray, groups: Sequence[Hashable]) -> np.ndarray:
    """Reward minus the mean of the others in its group (RLOO, Kool et al. 2019).

    Groups must hold identical situations (goal, opponent, turn); a sentence alone in its group gets 0.

    Args:
        rewards_S: [S].
        groups: [S] labels.

    Returns:
        [S] advantages; they sum to 0 within each group.
    """
    rewards = np.asarray(rewards_S, dtype=float)
    members: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    advantages = np.zeros_like(rewards)
    for indices in members.values():
        if len(indices) > 1:
            own = rewards[indices]
            advantages[indices] = own - (own.sum() - own) / (len(indices) - 1)
    return advantages


def kl_in_reward(rewards_S: np.ndarray, logp_S: np.ndarray, reference_logp_S: np.ndarray, beta: float) -> np.ndarray:
    """Reward minus beta times the sampled log-ratio (k1), whose expectation is the reverse KL to the reference.

    Put into the reward its policy gradient is that of the true KL; as a loss term k1 would have none
    (arXiv:2510.01555).

    Args:
        rewards_S: [S].
        logp_S: [S] log-probability of each sentence under the policy that sampled it.
        reference_logp_S: [S] the same under the reference.
        beta: Weight, at least 0.
    """
    return np.asarray(rewards_S - beta * (logp_S - reference_logp_S))


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
    return -(advantage_S * (logp_ST * mask_ST).sum(dim=1)) / num_sentences
