"""Advantages, KL and the policy gradient against hand values, enumeration and naive loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rtg_solvers.losses import kl_in_reward, leave_one_out, policy_gradient_loss


def test_leave_one_out_by_hand() -> None:
    # Group a: 1, 2, 6 -> 1 - 4, 2 - 3.5, 6 - 1.5; group b alone -> 0.
    found = leave_one_out(np.array([1.0, 2.0, 9.0, 6.0]), ["a", "a", "b", "a"])
    assert found == pytest.approx([-3.0, -1.5, 0.0, 4.5])


@given(st.lists(st.tuples(st.floats(-5, 5), st.integers(0, 3)), min_size=1, max_size=30))
def test_advantages_sum_to_zero_in_every_group(rows: list[tuple[float, int]]) -> None:
    rewards, groups = np.array([r for r, _ in rows]), [g for _, g in rows]
    advantages = leave_one_out(rewards, groups)
    for group in set(groups):
        assert sum(a for a, g in zip(advantages, groups, strict=True) if g == group) == pytest.approx(0.0, abs=1e-9)


def test_strong_opponents_do_not_leak_into_advantages() -> None:
    # The same skill against an easy (+10) and a hard opponent: within groups only the difference counts.
    found = leave_one_out(np.array([10.0, 11.0, 0.0, 1.0]), ["easy", "easy", "hard", "hard"])
    assert found == pytest.approx([-1.0, 1.0, -1.0, 1.0])


def test_kl_is_charged_per_nat() -> None:
    found = kl_in_reward(np.array([1.0, 1.0]), np.array([-2.0, -3.0]), np.array([-3.0, -3.0]), 0.1)
    assert found == pytest.approx([0.9, 1.0])


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
    parts = torch.cat(
        [
            policy_gradient_loss(logps[:2], mask[:2], advantages[:2], 5),
            policy_gradient_loss(logps[2:], mask[2:], advantages[2:], 5),
        ]
    )
    naive = -sum(float(advantages[s]) * sum(float(logps[s, t]) for t in range(7) if mask[s, t]) for s in range(5)) / 5
    assert torch.allclose(parts, whole)
    assert float(whole.sum()) == pytest.approx(naive, abs=1e-5)
