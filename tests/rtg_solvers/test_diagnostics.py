"""Figures beside the losses: hand values, and that they count what the losses do."""

from __future__ import annotations

import math

import pytest
import torch

from rtg_env.errors import ConfigError
from rtg_solvers.diagnostics import MISMATCH_GATE, Mismatch, clip_figures, kl_figures, mismatch
from rtg_solvers.losses import Clipping, ppo_loss

MASK = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])


def test_mismatch_by_hand() -> None:
    # Differences log 2, -log 2 and 0 on three tokens: the mean of 2, 2 and 1.
    sampled = torch.tensor([[-1.0, -2.0, 9.0], [-3.0, 9.0, 9.0]])
    recomputed = sampled + torch.tensor([[math.log(2), -math.log(2), 0.0], [0.0, 5.0, math.inf]])
    found = mismatch(recomputed, sampled, MASK)
    assert found.mean_abs_log_ratio == pytest.approx(2 / 3 * math.log(2))
    assert (found.mean_factor, found.num_tokens) == (pytest.approx(5 / 3), 3)
    assert not found.acceptable


def test_a_policy_agrees_with_itself() -> None:
    logp = -torch.rand(2, 3, generator=torch.Generator().manual_seed(0))
    assert mismatch(logp, logp, MASK) == Mismatch(mean_abs_log_ratio=0.0, mean_factor=1.0, num_tokens=3)
    assert mismatch(logp, logp, MASK).acceptable


@pytest.mark.parametrize(("factor", "acceptable"), [(MISMATCH_GATE, True), (1.051, False), (math.nan, False)])
def test_the_gate_lets_five_percent_pass_and_no_nan(factor: float, acceptable: bool) -> None:
    assert Mismatch(mean_abs_log_ratio=0.0, mean_factor=factor, num_tokens=1).acceptable is acceptable


@pytest.mark.parametrize("clipping", [Clipping(low=0.1, high=0.3), Clipping(low=0.1, high=0.1, ratio="sequence")])
@pytest.mark.parametrize("per_token", [True, False])
def test_clipped_tokens_are_those_without_gradient(clipping: Clipping, per_token: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    logp = torch.randn(6, 5, generator=generator, dtype=torch.float64).requires_grad_()
    old = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    mask = (torch.arange(5) < torch.tensor([5, 1, 3, 4, 2, 5])[:, None]).double()
    advantage = torch.randn(*((6, 5) if per_token else (6,)), generator=generator, dtype=torch.float64)
    ppo_loss(logp, old, mask, advantage, clipping).sum().backward()
    silent = ((logp.grad == 0) & (mask == 1)).double()
    positive = ((advantage if per_token else advantage[:, None]) > 0).expand(6, 5)
    found = clip_figures(logp, old, mask, advantage, clipping)
    assert found.num_tokens == 20
    assert found.low == pytest.approx(float((silent * ~positive).sum()) / 20)
    assert found.high == pytest.approx(float((silent * positive).sum()) / 20)
    assert found.low > 0
    assert found.high > 0


def test_kl_estimates_by_hand() -> None:
    # Ratios reference / policy 2, 1/2, 1: k1 sums to 0; k3 is 2 - 1 - log 2, 1/2 - 1 + log 2 and 0.
    logp = torch.zeros(2, 3, dtype=torch.float64)
    reference = torch.tensor([[math.log(2), -math.log(2), 7.0], [0.0, 7.0, 7.0]], dtype=torch.float64)
    found = kl_figures(logp, reference, MASK)
    assert found.k1 == pytest.approx(0.0)
    assert (found.k3, found.num_tokens) == (pytest.approx(0.5 / 3), 3)


def test_both_kl_estimates_have_the_kl_as_their_mean() -> None:
    """All actions of a categorical, in proportion to their probabilities: k1 has the sign that makes it the reverse KL."""
    policy, reference = torch.tensor([0.5, 0.25, 0.25]).double(), torch.tensor([0.2, 0.2, 0.6]).double()
    samples = torch.tensor([[0, 0, 1, 2]])
    kl = float((policy * (policy / reference).log()).sum())
    found = kl_figures(policy.log()[samples], reference.log()[samples], torch.ones(1, 4))
    assert (found.k1, found.k3) == (pytest.approx(kl), pytest.approx(kl))


def test_nothing_is_measured_on_nothing() -> None:
    with pytest.raises(ConfigError, match=r"shape \(2, 3\) with a sampled token, got \(2, 3\) with 0"):
        mismatch(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(ConfigError, match=r"got \(3,\)"):
        kl_figures(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(3))
