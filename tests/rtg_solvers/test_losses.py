"""The policy gradient against hand values, enumeration and naive loops."""

from __future__ import annotations

import pytest
import torch

from rtg_solvers.advantages import kl_in_reward
from rtg_solvers.losses import policy_gradient_loss


def test_the_expected_gradient_is_that_of_the_true_objective() -> None:
    """A bandit, enumerated: sum_a p(a) A(a) grad log p(a) is the gradient of sum_a p(a) r(a) - beta KL."""
    logits = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64, requires_grad=True)
    reference = torch.log_softmax(torch.tensor([0.0, 0.4, -0.3], dtype=torch.float64), -1)
    reward, beta = torch.tensor([1.0, 0.2, 0.6], dtype=torch.float64), 0.3
    logp = torch.log_softmax(logits, -1)
    objective = (logp.exp() * (reward - beta * (logp - reference))).sum()
    (expected,) = torch.autograd.grad(objective, logits)
    p = torch.log_softmax(logits, -1).exp().detach()
    shaped = kl_in_reward(reward.numpy(), logp.detach().numpy(), reference.numpy(), beta)
    found = torch.zeros(3, dtype=torch.float64)
    for arm in range(3):
        logp_ST = torch.log_softmax(logits, -1)[arm].reshape(1, 1)
        loss = policy_gradient_loss(logp_ST, torch.ones(1, 1), torch.tensor([shaped[arm]]), 1)
        (gradient,) = torch.autograd.grad(loss, logits)
        found += -p[arm] * gradient
    assert found.numpy() == pytest.approx(expected.numpy(), abs=1e-12)


def test_padding_and_micro_batches_do_not_change_the_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    logps = torch.randn(5, 7, generator=generator)
    mask = (torch.rand(5, 7, generator=generator) > 0.3).float()
    advantages = torch.randn(5, generator=generator)
    whole = policy_gradient_loss(logps, mask, advantages, 5)
    parts = policy_gradient_loss(logps[:2], mask[:2], advantages[:2], 5) + policy_gradient_loss(
        logps[2:], mask[2:], advantages[2:], 5
    )
    naive = -sum(float(advantages[s]) * sum(float(logps[s, t]) for t in range(7) if mask[s, t]) for s in range(5)) / 5
    assert float(parts) == pytest.approx(float(whole), abs=1e-6)
    assert float(whole) == pytest.approx(naive, abs=1e-5)
