"""DPO and the balance conditions against hand values, loops, and games in which every sequence is enumerated."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from rtg_env.errors import ConfigError
from rtg_solvers.advantages import leave_one_out
from rtg_solvers.aggregation import Totals, aggregate
from rtg_solvers.losses import reinforce_loss
from rtg_solvers.sequence_losses import (
    PairLogps,
    dpo_loss,
    pairwise_balance_loss,
    preference_figures,
    trajectory_balance_loss,
    vargrad_log_z,
    vargrad_loss,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient(loss: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, parameters, retain_graph=True)[0]


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-12) -> bool:
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=0.0, atol=tolerance)


# Preferences

POLICY = PairLogps(-normal(6, seed=1).abs() * 9, -normal(6, seed=2).abs() * 9)
REFERENCE = PairLogps(-normal(6, seed=3).abs() * 9, -normal(6, seed=4).abs() * 9)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_preference_loss_is_log_two_before_the_first_step(label_smoothing: float) -> None:
    loss = dpo_loss(POLICY, POLICY, label_smoothing=label_smoothing)
    assert loss.tolist() == pytest.approx([math.log(2)] * 6)
    assert preference_figures(POLICY, POLICY).margin == 0.0


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_preference_loss_is_that_of_a_loop(label_smoothing: float) -> None:
    found = dpo_loss(POLICY, REFERENCE, beta=0.3, label_smoothing=label_smoothing)
    for n in range(6):
        chosen = math.exp(POLICY.chosen_N[n] - REFERENCE.chosen_N[n])
        rejected = math.exp(POLICY.rejected_N[n] - REFERENCE.rejected_N[n])
        prob = chosen**0.3 / (chosen**0.3 + rejected**0.3)
        expected = -(1 - label_smoothing) * math.log(prob) - label_smoothing * math.log(1 - prob)
        assert float(found[n]) == pytest.approx(expected)


def test_preference_training_raises_the_chosen_and_not_the_reference() -> None:
    tensors = [x.clone().requires_grad_() for x in (*POLICY, *REFERENCE)]
    loss = dpo_loss(PairLogps(*tensors[:2]), PairLogps(*tensors[2:])).sum()
    chosen, rejected, *references = torch.autograd.grad(loss, tensors, allow_unused=True)
    assert (chosen < 0).all()
    assert close(rejected, -chosen)
    assert references == [None, None]


def test_preference_loss_survives_huge_margins() -> None:
    pair, base = PairLogps(torch.tensor([0.0]), torch.tensor([1e5])), PairLogps(torch.zeros(1), torch.zeros(1))
    assert dpo_loss(pair, base, beta=0.1).tolist() == pytest.approx([1e4])


def test_preference_figures_by_hand() -> None:
    # Log-ratios: chosen 2, -1, 0; rejected 1, 1, 0. Margins 1, -2, 0 in nats; only the first is ranked rightly.
    policy = PairLogps(torch.tensor([-1.0, -3.0, -2.0]), torch.tensor([-1.0, -1.0, -2.0]))
    reference = PairLogps(torch.tensor([-3.0, -2.0, -2.0]), torch.tensor([-2.0, -2.0, -2.0]))
    found = preference_figures(policy, reference, beta=0.5)
    assert (found.accuracy, found.num_pairs) == (pytest.approx(1 / 3), 3)
    assert found.margin == pytest.approx(0.5 * -1 / 3)
    assert (found.chosen_reward, found.rejected_reward) == (pytest.approx(0.5 / 3), pytest.approx(1 / 3))


# Balance: sentences of two letters out of three, their log-rewards arbitrary

SENTENCES = list(itertools.product(range(3), range(3)))
LOG_REWARD = 2 * normal(9, seed=21)
LOG_Z = LOG_REWARD.logsumexp(0)


def sentence_logps(parameters: torch.Tensor) -> torch.Tensor:
    """[9] from [4, 3] logits: of the first letter, and of the second after each first."""
    table = torch.log_softmax(parameters, -1)
    return torch.stack([table[0, a] + table[1 + a, b] for a, b in SENTENCES])


def gibbs_parameters() -> torch.Tensor:
    by_first = LOG_REWARD.reshape(3, 3)
    return torch.cat([by_first.logsumexp(1)[None], by_first])


def test_balance_residuals_by_hand() -> None:
    # (1 - 2 - 0.5)^2, (1 - 3 + 1)^2; a number or one per sequence.
    logp, log_reward = torch.tensor([-2.0, -3.0]), torch.tensor([0.5, -1.0])
    for log_z in (torch.tensor(1.0), torch.tensor([1.0, 1.0])):
        assert trajectory_balance_loss(logp, log_reward, log_z).tolist() == pytest.approx([2.25, 1.0])


def test_the_gibbs_distribution_is_a_fixed_point_of_the_balance() -> None:
    parameters, log_z = gibbs_parameters().requires_grad_(), LOG_Z.clone().requires_grad_()
    logp = sentence_logps(parameters)
    loss = trajectory_balance_loss(logp, LOG_REWARD, log_z)
    assert float(loss.detach().max()) < 1e-24
    assert gradient(loss.sum(), parameters).abs().max() < 1e-12
    assert float(vargrad_loss(logp, LOG_REWARD, [0] * 9).detach().max()) < 1e-24
    assert float(pairwise_balance_loss(logp, LOG_REWARD, [0] * 9).detach().max()) < 1e-24


@pytest.mark.parametrize("method", ["learned", "vargrad", "pairwise"])
def test_minimising_the_balance_ends_at_the_gibbs_distribution(method: str) -> None:
    """Off-policy: every sentence counts the same, whatever the policy thinks of it; log Z comes out right too."""
    parameters, log_z = normal(4, 3, seed=22).requires_grad_(), torch.zeros((), dtype=torch.float64).requires_grad_()
    optimizer = torch.optim.LBFGS([parameters, log_z], max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        logp = sentence_logps(parameters)
        loss_of = {
            "learned": lambda: trajectory_balance_loss(logp, LOG_REWARD, log_z).mean(),
            "vargrad": lambda: vargrad_loss(logp, LOG_REWARD, [0] * 9).mean(),
            "pairwise": lambda: pairwise_balance_loss(logp, LOG_REWARD, [0] * 9, min_gap=0.1).mean(),
        }
        loss = loss_of[method]()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        logp = sentence_logps(parameters)
    assert close(logp.exp(), (LOG_REWARD - LOG_Z).exp(), tolerance=1e-5)
    estimate = log_z.detach() if method == "learned" else vargrad_log_z(logp, LOG_REWARD, [0] * 9)[0]
    assert float(estimate) == pytest.approx(float(LOG_Z), abs=1e-4)


def test_contexts_keep_their_own_normaliser() -> None:
    """Two goals four nats apart, each sampled from its own Gibbs distribution: nothing is left to learn."""
    logp = torch.cat([LOG_REWARD - LOG_Z] * 2)
    log_reward = torch.cat([LOG_REWARD, LOG_REWARD - 4])
    contexts = ["easy"] * 9 + ["hard"] * 9
    order = torch.randperm(18, generator=torch.Generator().manual_seed(0)).tolist()
    arguments = logp[order], log_reward[order], [contexts[i] for i in order]
    expected = [float(LOG_Z) - 4 * (context == "hard") for context in arguments[2]]
    assert vargrad_log_z(*arguments).tolist() == pytest.approx(expected)
    assert float(vargrad_loss(*arguments).max()) < 1e-20
    assert float(pairwise_balance_loss(*arguments).max()) < 1e-20
    pooled = vargrad_loss(logp, log_reward, ["any"] * 18)
    assert pooled.tolist() == pytest.approx([4.0] * 18)


def test_the_estimated_normaliser_carries_no_gradient_and_needs_none() -> None:
    """The residuals of a context sum to 0, so the gradient is that of the variance, log Z differentiated too."""
    logp = normal(5, seed=23).requires_grad_()
    log_reward = normal(5, seed=24)
    assert not vargrad_log_z(logp, log_reward, [0] * 5).requires_grad
    loss = vargrad_loss(logp, log_reward, [0] * 5).mean()
    variance = (log_reward - logp).var(correction=0)
    assert float(loss.detach()) == pytest.approx(float(variance.detach()))
    assert close(gradient(loss, logp), gradient(variance, logp))


def test_a_sample_alone_in_its_context_teaches_nothing() -> None:
    logp = normal(3).requires_grad_()
    loss = vargrad_loss(logp, normal(3, seed=1), ["a", "b", "c"])
    assert close(gradient(loss.sum(), logp), torch.zeros(3).double())
    assert pairwise_balance_loss(logp, normal(3, seed=1), ["a", "b", "c"]).shape == (0,)


def test_micro_batches_share_the_normaliser_of_the_step() -> None:
    logp, log_reward, contexts = normal(8, seed=25), normal(8, seed=26), list("abababab")
    log_z = vargrad_log_z(logp, log_reward, contexts)
    parts = [trajectory_balance_loss(logp[i : i + 3], log_reward[i : i + 3], log_z[i : i + 3]) for i in (0, 3, 6)]
    assert close(torch.cat(parts), vargrad_loss(logp, log_reward, contexts))


def test_pairs_by_hand() -> None:
    # Excess log P_F - log R: a 0, 3, 4; b -1. Of a's pairs one differs by 0.4 in log R; b has none. 3^2 and 4^2.
    log_reward = torch.tensor([1.0, 2.0, 2.4, 7.0])
    logp = torch.tensor([1.0, 5.0, 6.4, 6.0])
    assert pairwise_balance_loss(logp, log_reward, "aaab").tolist() == pytest.approx([9.0, 16.0])
    assert pairwise_balance_loss(logp, log_reward, "aaab", min_gap=0.3).tolist() == pytest.approx([9.0, 16.0, 1.0])
    assert pairwise_balance_loss(logp, log_reward, "aaab", min_gap=2.0).tolist() == []


def test_without_a_bound_pairs_are_twice_the_sample_variance() -> None:
    logp, log_reward = normal(7, seed=27).requires_grad_(), normal(7, seed=28)
    pairs = pairwise_balance_loss(logp, log_reward, [0] * 7, min_gap=0.0)
    assert len(pairs) == 21
    twice = 2 * (log_reward - logp).var(correction=1)
    assert float(pairs.detach().mean()) == pytest.approx(float(twice.detach()))
    assert close(gradient(pairs.mean(), logp), gradient(twice, logp))


@pytest.mark.parametrize("group_size", [2, 4])
def test_vargrad_is_soft_reinforce_sample_by_sample(group_size: int) -> None:
    """REINFORCE with leave-one-out on log R / tau - log P_F, times 2 (G - 1) / G."""
    logp = normal(3 * group_size, seed=29).requires_grad_()
    log_reward, groups = normal(3 * group_size, seed=30), [i % 3 for i in range(3 * group_size)]
    advantages = leave_one_out((log_reward - logp.detach()).numpy(), groups)
    mask = torch.ones(3 * group_size, 1)
    soft = aggregate(
        reinforce_loss(logp[:, None], torch.tensor(advantages)),
        mask,
        "sequence-sum",
        Totals(num_sequences=3 * group_size),
    ).sum()
    balance = vargrad_loss(logp, log_reward, groups).mean()
    factor = 2 * (group_size - 1) / group_size
    assert close(gradient(balance, logp), factor * gradient(soft, logp))


@pytest.mark.parametrize("group_size", [2, 3])
def test_vargrad_on_policy_descends_the_kl_to_the_gibbs_distribution(group_size: int) -> None:
    """All groups of sentences, each with its probability: 2 (G - 1) / G times the gradient of KL(P_F | R / Z)."""
    parameters = normal(4, 3, seed=31).requires_grad_()
    logp = sentence_logps(parameters)
    kl = (logp.exp() * (logp - (LOG_REWARD - LOG_Z))).sum()
    groups = torch.tensor(list(itertools.product(range(9), repeat=group_size)))
    labels = [index for index in range(len(groups)) for _ in range(group_size)]
    loss_S = vargrad_loss(logp[groups.ravel()], LOG_REWARD[groups.ravel()], labels)
    prob = logp.detach()[groups].sum(1).exp()
    expected = (prob * loss_S.reshape(-1, group_size).mean(1)).sum()
    assert float(prob.sum()) == pytest.approx(1.0)
    factor = 2 * (group_size - 1) / group_size
    assert close(gradient(expected, parameters), factor * gradient(kl, parameters))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dpo_loss(POLICY, REFERENCE, beta=0.0), "beta > 0 .* got 0.0 and 0.0; 0.1 and 0 are usual"),
        (lambda: dpo_loss(POLICY, REFERENCE, label_smoothing=0.5), "got 0.1 and 0.5"),
        (lambda: dpo_loss(POLICY, PairLogps(normal(6), normal(6, 1))), r"shape \(6,\), got \(6, 1\)"),
        (lambda: pairwise_balance_loss(normal(2), normal(2), "aa", min_gap=-1.0), "min_gap >= 0, got -1.0"),
        (lambda: vargrad_loss(normal(2), normal(2), "a"), "1 contexts for 2 sequences"),
        (lambda: vargrad_loss(normal(2), normal(2, 1), "aa"), r"log_reward_S of shape \(2,\), got \(2, 1\)"),
        (lambda: trajectory_balance_loss(normal(2), normal(2), normal(2, 1)), r"log_z of shape \(2,\)"),
    ],
)
def test_contradictory_arguments_are_refused(call, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()
