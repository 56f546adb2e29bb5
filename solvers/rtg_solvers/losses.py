"""Losses per token: pure, differentiable functions of log-probabilities; `aggregation` makes one number of them.

All log-probabilities are of the sampled tokens at the temperature they were sampled with. Under mask 0 they must be
finite (the backend writes 0); nothing there counts. "Old" means: under the policy that sampled the tokens.

Letters: S sequences (sentences of the learner), T tokens of the longest one, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from rtg_env.errors import ConfigError

if TYPE_CHECKING:
    import torch

_RATIOS: Final = ("token", "sequence")


@dataclass(frozen=True, slots=True, kw_only=True)
class Clipping:
    """How far PPO's probability ratio may carry a gradient, and what it is a ratio of."""

    low: float = 0.2
    """The ratio counts from 1 - low; in (0, 1]."""

    high: float = 0.2
    """The ratio counts up to 1 + high; above 0. DAPO (arXiv:2503.14476) takes 0.28 with low 0.2."""

    ratio: Literal["token", "sequence"] = "token"
    """Of each token, or one per sequence: the geometric mean over its tokens (GSPO, arXiv:2507.18071, which clips at
    about 3e-4)."""

    def __post_init__(self) -> None:
        """Refuse ranges that would clip nothing or everything, and unknown ratios."""
        if not 0.0 < self.low <= 1.0 or not self.high > 0.0:
            raise ConfigError(
                f"expected clipping with 0 < low <= 1 and high > 0, got low {self.low!r} and high {self.high!r}; "
                "both are distances from the ratio 1, 0.2 is usual"
            )
        if self.ratio not in _RATIOS:
            raise ConfigError(f"expected ratio to be one of {_RATIOS}, got {self.ratio!r}; 'token' is PPO's own")


def sft_loss(logp_ST: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of given tokens.

    Args:
        logp_ST: [S, T] differentiable.

    Returns:
        [S, T]; usually aggregated as "token-mean".
    """
    return -logp_ST


def reinforce_loss(logp_ST: torch.Tensor, advantage: torch.Tensor) -> torch.Tensor:
    """Minus the advantage times the log-probability (Williams 1992); on-policy samples only.

    Args:
        logp_ST: [S, T] differentiable.
        advantage: [S] or [S, T], no gradient.

    Returns:
        [S, T]; "sequence-sum" makes its gradient that of the expected reward.
    """
    return -_per_token(advantage, logp_ST) * logp_ST


def ppo_loss(
    logp_ST: torch.Tensor,
    old_logp_ST: torch.Tensor,
    mask_ST: torch.Tensor,
    advantage: torch.Tensor,
    clipping: Clipping,
) -> torch.Tensor:
    """Clipped surrogate (Schulman et al. 2017, arXiv:1707.06347, equation 7), for samples of a slightly older policy.

    With one ratio per sequence this is GSPO (Zheng et al. 2025, arXiv:2507.18071) in the form it calls GSPO-token: the
    same value and gradient where an advantage holds for the whole sequence, and advantages per token are possible.

    Args:
        logp_ST: [S, T] differentiable.
        old_logp_ST: [S, T]; passing `logp_ST` itself is the first step, with every ratio 1.
        mask_ST: [S, T] 1 on sampled tokens.
        advantage: [S] or [S, T], no gradient.
        clipping: Range of the ratio, and whether it is per token or per sequence.

    Returns:
        [S, T]; at ratio 1 its gradient is that of `reinforce_loss`.
    """
    advantage_ST = _per_token(advantage, logp_ST)
    ratio_ST = log_ratio(logp_ST, old_logp_ST, mask_ST, clipping).exp()
    clipped_ST = ratio_ST.clamp(1.0 - clipping.low, 1.0 + clipping.high)
    return -(ratio_ST * advantage_ST).minimum(clipped_ST * advantage_ST)


def value_loss(value: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Half the squared error of a value head.

    Args:
        value: [S] (or any shape) differentiable.
        target: The same shape: `TurnAdvantages.returns_S`, or returns to go.

    Returns:
        The same shape.
    """
    check_same_shape("target", target, value)
    return 0.5 * (value - target.detach()).square()


def clipped_value_loss(
    value: torch.Tensor, old_value: torch.Tensor, target: torch.Tensor, *, clip: float
) -> torch.Tensor:
    """The larger of the plain loss and that of a value held within `clip` of the old one.

    From OpenAI's PPO code; not in the paper. It only ever raises the loss, and stops the gradient where the value has
    moved more than `clip` towards its target.

    Args:
        value: [S] (or any shape) differentiable.
        old_value: The same shape: the value when the sentences were sampled.
        target: The same shape.
        clip: In units of the value, above 0.
    """
    if not clip > 0.0:
        raise ConfigError(f"expected a value clip above 0, got {clip!r}; take value_loss for no clipping")
    check_same_shape("old_value", old_value, value)
    held = old_value.detach() + (value - old_value.detach()).clamp(-clip, clip)
    return value_loss(value, target).maximum(value_loss(held, target))


def entropy_loss(logits_STV: torch.Tensor) -> torch.Tensor:
    """Minus the entropy of each next-token distribution, in nats: times a weight and added, it is an entropy bonus.

    Args:
        logits_STV: [S, T, V] differentiable, already divided by the temperature; -inf bars a token.

    Returns:
        [S, T], at most 0. The gradient leaves out that a token also changes the entropies after it.
    """
    logp_STV = logits_STV.log_softmax(dim=-1)
    # A barred token has 0 * -inf otherwise, and its NaN would reach every gradient.
    finite_STV = logp_STV.masked_fill(logp_STV.isneginf(), 0.0)
    return (logp_STV.exp() * finite_STV).sum(dim=-1)


def k2_loss(logp: torch.Tensor, reference_logp: torch.Tensor) -> torch.Tensor:
    """Half the squared log-ratio (Schulman 2020): on-policy its expected gradient is that of the reverse KL.

    This holds for the distribution whose log-probabilities are given (arXiv:2510.01555). Given summed ones [S] it is
    the KL of whole sequences, as with `kl_in_reward`; given tokens [S, T] each token answers for its own KL only, not
    for where it leads, and the gradient is that of the per-token KLs along the sampled prefixes held fixed.

    Args:
        logp: [S] or [S, T] differentiable.
        reference_logp: The same shape, no gradient.

    Returns:
        The same shape.
    """
    check_same_shape("reference_logp", reference_logp, logp)
    return 0.5 * (logp - reference_logp.detach()).square()


def k3_estimate(logp: torch.Tensor, reference_logp: torch.Tensor) -> torch.Tensor:
    """Never negative, unbiased estimate of the reverse KL (Schulman 2020). For logging only.

    As a loss its gradient is biased: that of the forward KL, since only the summand is differentiated and not the
    distribution it is averaged over (arXiv:2510.01555). Take `kl_in_reward`, `k2_loss` or `k3_ratio_loss` to train.

    Args:
        logp: [S] or [S, T].
        reference_logp: The same shape.

    Returns:
        The same shape, at least 0.
    """
    check_same_shape("reference_logp", reference_logp, logp)
    gap = reference_logp - logp
    return gap.expm1() - gap


def k3_ratio_loss(logp: torch.Tensor, old_logp: torch.Tensor, reference_logp: torch.Tensor) -> torch.Tensor:
    """`k3_estimate` times the differentiable probability ratio: exact in value and gradient, off-policy too.

    The correction of DeepSeek-V3.2 (arXiv:2512.02556). What is said of tokens and sequences at `k2_loss` holds here.

    Args:
        logp: [S] or [S, T] differentiable.
        old_logp: The same shape; `logp` itself on-policy.
        reference_logp: The same shape.

    Returns:
        The same shape, at least 0.
    """
    check_same_shape("old_logp", old_logp, logp)
    return (logp - old_logp.detach()).exp() * k3_estimate(logp, reference_logp.detach())


def log_ratio(
    logp_ST: torch.Tensor, old_logp_ST: torch.Tensor, mask_ST: torch.Tensor, clipping: Clipping
) -> torch.Tensor:
    """[S, T] logarithm of the ratio that is clipped, 0 under mask 0.

    One per sequence has the same value at every token of it, and each token's own gradient.
    """
    check_same_shape("old_logp_ST", old_logp_ST, logp_ST)
    check_same_shape("mask_ST", mask_ST, logp_ST)
    change_ST = (logp_ST - old_logp_ST.detach()).masked_fill(mask_ST == 0, 0.0)
    if clipping.ratio == "token":
        return change_ST
    mean_S1 = change_ST.detach().sum(dim=1, keepdim=True) / mask_ST.sum(dim=1, keepdim=True).clamp(min=1)
    return (mean_S1 + change_ST - change_ST.detach()).masked_fill(mask_ST == 0, 0.0)


def _per_token(advantage: torch.Tensor, logp_ST: torch.Tensor) -> torch.Tensor:
    """[S, 1] or [S, T], without gradient; refuses what broadcasting would accept and spread wrongly."""
    if advantage.shape not in (logp_ST.shape, logp_ST.shape[:1]):
        raise ConfigError(
            f"expected an advantage per sequence {tuple(logp_ST.shape[:1])} or per token {tuple(logp_ST.shape)}, "
            f"got {tuple(advantage.shape)}"
        )
    return (advantage if advantage.dim() == logp_ST.dim() else advantage.unsqueeze(1)).detach()


def check_same_shape(name: str, found: torch.Tensor, model: torch.Tensor) -> None:
    """Refuse what broadcasting would accept: [S] against [S, 1] would give every pair of sequences."""
    if found.shape != model.shape:
        raise ConfigError(f"expected {name} of shape {tuple(model.shape)}, got {tuple(found.shape)}")
