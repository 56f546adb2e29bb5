"""Losses of whole sequences: direct preference optimisation, and the balance conditions of GFlowNets.

All log-probabilities are sums over the learner's own tokens, the end-of-turn token that it sampled included, at
temperature 1 and without truncation.

`log_reward_S` is what the sampler should be proportional to, as a logarithm and already tempered: log R / tau. Its
target is the Gibbs distribution R^(1 / tau) / Z of each context; contexts (goal, history) have different Z and are
never compared with one another.

Letters: S sequences, N pairs of them.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from rtg_env.errors import ConfigError
from rtg_solvers.losses import check_same_shape

if TYPE_CHECKING:
    import torch


class PairLogps(NamedTuple):
    """Log-probabilities of preference pairs under one policy."""

    chosen_N: torch.Tensor
    """[N] of the preferred sequences."""

    rejected_N: torch.Tensor
    """[N] of the others, on the same prompts."""


def dpo_loss(
    policy: PairLogps, reference: PairLogps, *, beta: float = 0.1, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Direct preference optimisation, sigmoid loss (Rafailov et al. 2023, arXiv:2305.18290, equation 7).

    It is log 2 as long as policy and reference agree. The reference is the player at the start of the iteration, whose
    log-probabilities are computed once; switching an adapter off would give the base instead.

    Args:
        policy: Differentiable.
        reference: No gradient.
        beta: Price of divergence from the reference, above 0.
        label_smoothing: Share of pairs taken to be labelled wrongly, in [0, 0.5): conservative DPO (Mitchell 2023).

    Returns:
        [N]; the loss of a step is their sum over its number of pairs.
    """
    from torch.nn.functional import logsigmoid

    if not beta > 0.0 or not 0.0 <= label_smoothing < 0.5:
        raise ConfigError(
            f"expected beta > 0 and label_smoothing in [0, 0.5), got {beta!r} and {label_smoothing!r}; "
            "0.1 and 0 are usual"
        )
    margin_N = beta * _preference_N(policy, reference)
    return -(1.0 - label_smoothing) * logsigmoid(margin_N) - label_smoothing * logsigmoid(-margin_N)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceFigures:
    """How well a policy's implicit reward, beta times its log-ratio to the reference, ranks pairs."""

    accuracy: float
    """Share of pairs whose chosen sequence has the higher implicit reward; 0 when policy and reference agree."""

    margin: float
    """Mean implicit reward of the chosen less that of the rejected."""

    chosen_reward: float
    """Mean over pairs. Falls below 0 where training makes the chosen sequences less likely too."""

    rejected_reward: float
    """Mean over pairs."""

    num_pairs: int
    """N."""


def preference_figures(policy: PairLogps, reference: PairLogps, *, beta: float = 0.1) -> PreferenceFigures:
    """Figures to log beside `dpo_loss`; no gradient."""
    margin_N = beta * _preference_N(policy, reference).detach()
    return PreferenceFigures(
        accuracy=float((margin_N > 0).double().mean()),
        margin=float(margin_N.mean()),
        chosen_reward=beta * float((policy.chosen_N - reference.chosen_N).detach().mean()),
        rejected_reward=beta * float((policy.rejected_N - reference.rejected_N).detach().mean()),
        num_pairs=len(margin_N),
    )


def trajectory_balance_loss(logp_S: torch.Tensor, log_reward_S: torch.Tensor, log_z: torch.Tensor) -> torch.Tensor:
    """Squared residual of log Z + log P_F = log R / tau (Malkin et al. 2022, arXiv:2201.13259, equation 14).

    A sentence has one way to be written, so there is no backward policy. Samples may come from any policy with full
    support, without importance weights. All residuals are 0 exactly where P_F is the Gibbs distribution.

    Args:
        logp_S: [S] differentiable.
        log_reward_S: [S] no gradient.
        log_z: [S] each sequence's context's, or one number []: learned (differentiable), or `vargrad_log_z` of the
            whole step where it is trained in micro-batches.

    Returns:
        [S].
    """
    check_same_shape("log_reward_S", log_reward_S, logp_S)
    if log_z.dim():
        check_same_shape("log_z", log_z, logp_S)
    return (log_z + logp_S - log_reward_S.detach()).square()


def vargrad_log_z(logp_S: torch.Tensor, log_reward_S: torch.Tensor, contexts: Sequence[Hashable]) -> torch.Tensor:
    """Estimate log Z by the mean of log R / tau - log P_F over the samples of each context.

    VarGrad (Richter et al. 2020, arXiv:2010.10436; for GFlowNets Zhang et al. 2023, arXiv:2302.05446). Four samples per
    context or more; a sample alone in its context has residual 0 and teaches nothing.

    Args:
        logp_S: [S].
        log_reward_S: [S].
        contexts: [S] labels.

    Returns:
        [S] without gradient.
    """
    import torch

    check_same_shape("log_reward_S", log_reward_S, logp_S)
    gap_S = (log_reward_S - logp_S).detach()
    index_S = torch.tensor(_numbered(contexts, len(gap_S)), device=gap_S.device)
    num_contexts = int(index_S.max()) + 1
    sums = gap_S.new_zeros(num_contexts).index_add(0, index_S, gap_S)
    return (sums / index_S.bincount(minlength=num_contexts))[index_S]


def vargrad_loss(logp_S: torch.Tensor, log_reward_S: torch.Tensor, contexts: Sequence[Hashable]) -> torch.Tensor:
    """`trajectory_balance_loss` with `vargrad_log_z`: its mean is the variance of log R / tau - log P_F in a context.

    On-policy the gradient of its mean over G samples is 2 (G - 1) / G times that of REINFORCE with leave-one-out on
    log R / tau - log P_F (soft REINFORCE), sample by sample.

    Args:
        logp_S: [S] differentiable.
        log_reward_S: [S] no gradient.
        contexts: [S] labels; the samples of one context must all be here.

    Returns:
        [S].
    """
    return trajectory_balance_loss(logp_S, log_reward_S, vargrad_log_z(logp_S, log_reward_S, contexts))


def pairwise_balance_loss(
    logp_S: torch.Tensor, log_reward_S: torch.Tensor, contexts: Sequence[Hashable], *, min_gap: float = 0.5
) -> torch.Tensor:
    """Squared differences of log P_F - log R / tau between samples of one context, so that log Z cancels.

    Stable-GFN (Kwon et al. 2026, arXiv:2605.00553). Pairs whose log-rewards hardly differ are left out: there the
    difference is mostly the judge's noise. Over all pairs the mean is twice the sample variance that VarGrad minimises.
    Where the remaining pairs do not connect all samples, the Gibbs distribution is not the only minimum.

    Args:
        logp_S: [S] differentiable.
        log_reward_S: [S] no gradient.
        contexts: [S] labels.
        min_gap: Only pairs whose log-rewards differ by more than this, at least 0.

    Returns:
        [N], one for each pair (unordered), maybe none; the loss of a step is their sum over its number of pairs.
    """
    import torch

    if not min_gap >= 0.0:
        raise ConfigError(f"expected min_gap >= 0, got {min_gap!r}; 0 leaves out ties only")
    check_same_shape("log_reward_S", log_reward_S, logp_S)
    reward_S = log_reward_S.detach()
    index_S = torch.tensor(_numbered(contexts, len(logp_S)), device=logp_S.device)
    wanted_SS = (index_S[:, None] == index_S) & ((reward_S[:, None] - reward_S).abs() > min_gap)
    first_N, second_N = wanted_SS.triu(diagonal=1).nonzero(as_tuple=True)
    excess_S = logp_S - reward_S
    return (excess_S[first_N] - excess_S[second_N]).square()


def _preference_N(policy: PairLogps, reference: PairLogps) -> torch.Tensor:
    """[N] log-ratio of the chosen less that of the rejected."""
    for found in (policy.rejected_N, *reference):
        check_same_shape("log-probabilities of pairs", found, policy.chosen_N)
    return (policy.chosen_N - reference.chosen_N.detach()) - (policy.rejected_N - reference.rejected_N.detach())


def _numbered(contexts: Sequence[Hashable], count: int) -> list[int]:
    """Each label as the number of its first appearance among labels."""
    if len(contexts) != count:
        raise ConfigError(f"expected one context per sequence, got {len(contexts)} contexts for {count} sequences")
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(context, len(numbers)) for context in contexts]
