"""Losses per token against hand values, naive loops, and gradients of objectives that are enumerated in full."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from rtg_env.errors import ConfigError
from rtg_solvers.advantages import kl_in_reward, leave_one_out, returns_to_go, turn_gae
from rtg_solvers.aggregation import Totals, aggregate
from rtg_solvers.losses import (
    Clipping,
    clipped_value_loss,
    entropy_loss,
    k2_loss,
    k3_estimate,
    k3_ratio_loss,
    ppo_loss,
    reinforce_loss,
    sft_loss,
    value_loss,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient(loss: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, parameters, retain_graph=True)[0]


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-12) -> bool:
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=0.0, atol=tolerance)


LOGP = -normal(3, 4, seed=1).abs()
OLD = LOGP + 0.3 * normal(3, 4, seed=2)
REFERENCE = LOGP + 0.5 * normal(3, 4, seed=3)
MASK = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]], dtype=torch.float64)
ADVANTAGE_S, ADVANTAGE_ST = normal(3, seed=4), normal(3, 4, seed=5)


# Hand values and naive loops


def test_the_clipped_surrogate_by_hand() -> None:
    # Ratios 1.5 and 0.5, clip 0.2 and 0.3. A > 0: min(1.5, 1.3), min(.5, .8); A < 0: min(-1.5, -1.3), min(-.5, -.8).
    logp = torch.log(torch.tensor([[1.5, 0.5]], dtype=torch.float64)).requires_grad_()
    old, mask, clipping = torch.zeros_like(logp), torch.ones_like(logp), Clipping(low=0.2, high=0.3)
    for advantage, losses, slopes in ((1.0, [-1.3, -0.5], [0.0, -0.5]), (-1.0, [1.5, 0.8], [1.5, 0.0])):
        loss = ppo_loss(logp, old, mask, torch.tensor([advantage]).double(), clipping)
        assert loss[0].tolist() == pytest.approx(losses)
        assert gradient(loss.sum(), logp)[0].tolist() == pytest.approx(slopes)


@pytest.mark.parametrize("advantage", [ADVANTAGE_S, ADVANTAGE_ST])
def test_the_clipped_surrogate_per_token_is_that_of_a_loop(advantage: torch.Tensor) -> None:
    found = ppo_loss(LOGP, OLD, MASK, advantage, Clipping(low=0.1, high=0.25))
    for s, t in itertools.product(range(3), range(4)):
        if MASK[s, t]:
            a = float(advantage[s] if advantage.dim() == 1 else advantage[s, t])
            ratio = math.exp(LOGP[s, t] - OLD[s, t])
            assert float(found[s, t]) == pytest.approx(-min(ratio * a, min(max(ratio, 0.9), 1.25) * a))


def test_one_ratio_per_sequence_is_the_geometric_mean_over_its_tokens() -> None:
    found = ppo_loss(LOGP, OLD, MASK, ADVANTAGE_S, Clipping(low=0.05, high=0.02, ratio="sequence"))
    for s in range(3):
        kept = [t for t in range(4) if MASK[s, t]]
        ratio = math.prod(math.exp(LOGP[s, t] - OLD[s, t]) for t in kept) ** (1 / len(kept))
        a = float(ADVANTAGE_S[s])
        expected = -min(ratio * a, min(max(ratio, 0.95), 1.02) * a)
        assert found[s, kept].tolist() == pytest.approx([expected] * len(kept))


@pytest.mark.parametrize("how", ["sequence-sum", "sequence-mean", "token-mean", "constant"])
def test_the_sequence_ratio_has_the_gradient_of_gspo(how) -> None:
    """The paper differentiates the ratio itself; ours gives each token its own share, which also takes A per token."""
    logp = LOGP.clone().requires_grad_()
    totals = Totals(num_sequences=3, num_tokens=7, max_tokens=5)
    ours = aggregate(ppo_loss(logp, OLD, MASK, ADVANTAGE_S, Clipping(ratio="sequence")), MASK, how, totals)
    ratio_S = (((logp - OLD) * MASK).sum(1) / MASK.sum(1)).exp()
    plain_S = -torch.minimum(ratio_S * ADVANTAGE_S, ratio_S.clamp(0.8, 1.2) * ADVANTAGE_S)
    theirs = aggregate(plain_S[:, None].expand(3, 4), MASK, how, totals)
    assert close(ours, theirs)
    assert close(gradient(ours.sum(), logp), gradient(theirs.sum(), logp))


def test_what_stands_under_the_mask_changes_neither_loss_nor_gradient() -> None:
    totals = Totals(num_sequences=3)
    for clipping in (Clipping(), Clipping(ratio="sequence")):
        results = []
        for filler in (0.0, -3.0, 50.0):
            logp = torch.where(MASK == 1, LOGP, filler).requires_grad_()
            loss = aggregate(ppo_loss(logp, OLD, MASK, ADVANTAGE_S, clipping), MASK, "sequence-sum", totals)
            results.append((loss.detach(), gradient(loss.sum(), logp)))
        for loss, slope in results[1:]:
            assert close(loss, results[0][0])
            assert close(slope, results[0][1])
        assert not results[0][1][MASK == 0].any()


def test_value_losses_by_hand() -> None:
    # Target 2. Moved from 0 to 1, held at 0.5: the larger of (1 - 2)^2 / 2 and (0.5 - 2)^2 / 2, and no gradient.
    # Moved from 0 to -1, held at -0.5: the larger is the plain one, 9 / 2, with gradient -3.
    value = torch.tensor([1.0, -1.0], dtype=torch.float64, requires_grad=True)
    old, target = torch.zeros(2, dtype=torch.float64), torch.full((2,), 2.0, dtype=torch.float64)
    assert value_loss(value, target).tolist() == pytest.approx([0.5, 4.5])
    loss = clipped_value_loss(value, old, target, clip=0.5)
    assert loss.tolist() == pytest.approx([1.125, 4.5])
    assert gradient(loss.sum(), value).tolist() == pytest.approx([0.0, -3.0])
    assert clipped_value_loss(value, old, target, clip=5.0).tolist() == pytest.approx([0.5, 4.5])


def test_entropy_by_hand() -> None:
    # Uniform over 4: log 4. One half and two quarters: 1.5 log 2. A barred token takes part in nothing.
    logits = torch.tensor([[[0.0, 0.0, 0.0, 0.0], [math.log(2), 0.0, 0.0, -math.inf]]], dtype=torch.float64)
    assert entropy_loss(logits)[0].tolist() == pytest.approx([-math.log(4), -1.5 * math.log(2)])


def test_a_barred_token_leaves_the_gradient_of_the_entropy_finite() -> None:
    logits = torch.tensor([[[0.3, -0.2, -math.inf]]], dtype=torch.float64, requires_grad=True)
    found = gradient(entropy_loss(logits).sum(), logits)[0, 0]
    two = torch.tensor([[[0.3, -0.2]]], dtype=torch.float64, requires_grad=True)
    expected = gradient(-torch.distributions.Categorical(logits=two).entropy().sum(), two)[0, 0]
    assert found.tolist() == pytest.approx([*expected.tolist(), 0.0])


def test_kl_terms_per_token_are_those_of_a_loop() -> None:
    for s, t in itertools.product(range(3), range(4)):
        p, q, old = (math.exp(x[s, t]) for x in (LOGP, REFERENCE, OLD))
        assert float(k2_loss(LOGP, REFERENCE)[s, t]) == pytest.approx(math.log(p / q) ** 2 / 2)
        assert float(k3_estimate(LOGP, REFERENCE)[s, t]) == pytest.approx(q / p - 1 - math.log(q / p))
        expected = p / old * (q / p - 1 - math.log(q / p))
        assert float(k3_ratio_loss(LOGP, OLD, REFERENCE)[s, t]) == pytest.approx(expected)


def test_negative_log_likelihood_is_the_cross_entropy_of_torch() -> None:
    logits, tokens = normal(3, 4, 5), torch.randint(5, (3, 4), generator=torch.Generator().manual_seed(0))
    logp = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    labels = tokens.masked_fill(MASK == 0, -100)
    found = aggregate(sft_loss(logp), MASK, "token-mean", Totals(num_sequences=3, num_tokens=7)).sum()
    assert float(found) == pytest.approx(float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.ravel())))


def test_nothing_diverges_from_itself() -> None:
    logp = LOGP.clone().requires_grad_()
    for loss in (k2_loss(logp, LOGP), k3_estimate(logp, LOGP), k3_ratio_loss(logp, LOGP, LOGP)):
        assert not loss.any()
        assert not gradient(loss.sum(), logp).any()


@pytest.mark.parametrize("clipping", [Clipping(), Clipping(low=1e-3, high=1e-3), Clipping(ratio="sequence")])
@pytest.mark.parametrize("how", ["sequence-sum", "sequence-mean"])
def test_the_first_step_of_ppo_is_reinforce(clipping: Clipping, how) -> None:
    """Old log-probabilities that are the very same tensor must not cancel the gradient."""
    logp = LOGP.clone().requires_grad_()
    totals = Totals(num_sequences=3)
    ppo = aggregate(ppo_loss(logp, logp, MASK, ADVANTAGE_S, clipping), MASK, how, totals)
    reinforce = aggregate(reinforce_loss(logp, ADVANTAGE_S), MASK, how, totals)
    assert close(gradient(ppo.sum(), logp), gradient(reinforce.sum(), logp))
    assert gradient(reinforce_loss(logp, ADVANTAGE_S).sum(), logp).any()
    ratios = -ppo_loss(logp, logp, MASK, torch.ones(3, dtype=torch.float64), clipping)
    assert close(ratios.detach(), torch.ones_like(LOGP))


def test_no_gradient_reaches_advantages_references_or_targets() -> None:
    logp = LOGP.clone().requires_grad_()
    given = [x.clone().requires_grad_() for x in (ADVANTAGE_S, OLD, REFERENCE, normal(3, 4))]
    advantage, old, reference, other = given
    loss = (
        ppo_loss(logp, old, MASK, advantage, Clipping())
        + reinforce_loss(logp, advantage)
        + k2_loss(logp, reference)
        + k3_ratio_loss(logp, old, reference)
        + clipped_value_loss(logp, old, other, clip=1.0)
    ).sum()
    assert torch.autograd.grad(loss, given, allow_unused=True) == (None, None, None, None)


def test_the_loss_of_a_step_is_reinforce_summed_over_tokens() -> None:
    found = aggregate(reinforce_loss(LOGP, ADVANTAGE_S), MASK, "sequence-sum", Totals(num_sequences=5)).sum()
    naive = -sum(float(ADVANTAGE_S[s] * LOGP[s, t]) for s in range(3) for t in range(4) if MASK[s, t]) / 5
    assert float(found) == pytest.approx(naive)


# The KL estimators on one categorical, all actions enumerated

LOGITS = torch.tensor([0.3, -0.2, 0.5, -1.0], dtype=torch.float64)
TARGET = torch.log_softmax(torch.tensor([0.0, 0.4, -0.3, 0.8], dtype=torch.float64), -1)


def expected_gradient(loss_of) -> torch.Tensor:
    """Mean over all actions, each with its probability, of the gradient that a sample of it would give."""
    logits = LOGITS.clone().requires_grad_()
    logp = torch.log_softmax(logits, -1)
    return gradient((logp.exp().detach() * loss_of(logp)).sum(), logits)


def kl_gradient(*, reverse: bool = True) -> torch.Tensor:
    logits = LOGITS.clone().requires_grad_()
    logp = torch.log_softmax(logits, -1)
    kl = (logp.exp() * (logp - TARGET)).sum() if reverse else (TARGET.exp() * (TARGET - logp)).sum()
    return gradient(kl, logits)


def test_k1_as_a_loss_teaches_nothing() -> None:
    assert close(expected_gradient(lambda logp: logp - TARGET), torch.zeros(4).double())
    assert kl_gradient().abs().max() > 0.05


def test_k1_in_the_reward_has_the_gradient_of_the_reverse_kl() -> None:
    def loss(logp: torch.Tensor) -> torch.Tensor:
        reward = kl_in_reward(np.zeros(4), logp.detach().numpy(), TARGET.numpy(), 1.0)
        return reinforce_loss(logp[:, None], torch.tensor(reward))[:, 0]

    assert close(expected_gradient(loss), kl_gradient())


def test_k2_as_a_loss_has_the_gradient_of_the_reverse_kl() -> None:
    assert close(expected_gradient(lambda logp: k2_loss(logp, TARGET)), kl_gradient())


def test_k3_as_a_loss_has_the_gradient_of_the_forward_kl_instead() -> None:
    found = expected_gradient(lambda logp: k3_estimate(logp, TARGET))
    assert not close(found, kl_gradient(), tolerance=0.02)
    assert close(found, kl_gradient(reverse=False))


def test_k3_times_the_ratio_has_the_gradient_of_the_reverse_kl() -> None:
    assert close(expected_gradient(lambda logp: k3_ratio_loss(logp, logp, TARGET)), kl_gradient())


def test_k3_times_the_ratio_is_exact_for_samples_of_an_older_policy() -> None:
    logits = LOGITS.clone().requires_grad_()
    logp, old = torch.log_softmax(logits, -1), torch.log_softmax(LOGITS + normal(4), -1)
    loss = (old.exp() * k3_ratio_loss(logp, old, TARGET)).sum()
    assert close(loss.detach(), (logp.exp() * (logp - TARGET)).sum().detach())
    assert close(gradient(loss, logits), kl_gradient())


@pytest.mark.parametrize("loss_of", [k2_loss, lambda logp, reference: k3_ratio_loss(logp, logp, reference)])
def test_kl_losses_of_whole_sequences_are_exact_and_those_of_tokens_forget_where_a_token_leads(loss_of) -> None:
    """Two tokens of two letters: the first decides how far the second will be from the reference."""
    parameters = normal(3, 2).requires_grad_()
    logp_S2, reference_S2 = two_letters(parameters), two_letters(normal(3, 2, seed=7))
    logp_S, reference_S = logp_S2.sum(1), reference_S2.sum(1)
    p_S = logp_S.exp().detach()
    exact = gradient((logp_S.exp() * (logp_S - reference_S)).sum(), parameters)
    of_sequences = gradient((p_S * loss_of(logp_S, reference_S)).sum(), parameters)
    of_tokens = gradient((p_S * loss_of(logp_S2, reference_S2).sum(1)).sum(), parameters)
    assert close(of_sequences, exact)
    assert not close(of_tokens[0], exact[0], tolerance=0.1)
    assert close(of_tokens[1:], exact[1:])


def two_letters(parameters: torch.Tensor) -> torch.Tensor:
    """[4, 2] log-probabilities of both tokens of aa, ab, ba, bb; the second is conditioned on the first."""
    table = torch.log_softmax(parameters, -1)
    return torch.stack([torch.stack([table[0, a], table[1 + a, b]]) for a in (0, 1) for b in (0, 1)])


# A game of two exchanges, enumerated: a sentence of two tokens, a random reply, a sentence of one token

DIALOGUES = list(itertools.product((0, 1), (0, 1), (0, 1), (0, 1)))
"""(first token, second token, reply, last token)."""

REPLY_PROB = torch.tensor([[0.3, 0.7], [0.9, 0.1], [0.5, 0.5], [0.2, 0.8]], dtype=torch.float64)
PAY_FIRST, PAY_LAST = normal(4, 2, seed=11), normal(4, 2, 2, seed=12)
BETA = 0.4


class TwoTurns:
    """Log-probabilities of every dialogue; parameters [11, 2]: 3 contexts in the first sentence, 8 in the last."""

    def __init__(self, parameters: torch.Tensor) -> None:
        table = torch.log_softmax(parameters, -1)
        first = two_letters(parameters[:3])
        self.first_D2 = torch.stack([first[2 * a + b] for a, b, _, _ in DIALOGUES])
        self.last_D1 = torch.stack([table[3 + 4 * a + 2 * b + y, c] for a, b, y, c in DIALOGUES])[:, None]
        self.turns_D2 = torch.stack([self.first_D2.sum(1), self.last_D1.sum(1)], dim=1)
        reply = torch.stack([REPLY_PROB[2 * a + b, y] for a, b, y, _ in DIALOGUES])
        self.prob_D = self.turns_D2.sum(1).exp() * reply


PAID = torch.stack([torch.stack([PAY_FIRST[2 * a + b, y], PAY_LAST[2 * a + b, y, c]]) for a, b, y, c in DIALOGUES])
PARAMETERS, BASE_GAME = normal(11, 2, seed=13), TwoTurns(normal(11, 2, seed=14))


def objective_gradient(parameters: torch.Tensor, beta: float) -> torch.Tensor:
    game = TwoTurns(parameters)
    return gradient((game.prob_D * (PAID - beta * (game.turns_D2 - BASE_GAME.turns_D2)).sum(1)).sum(), parameters)


def sentence_loss(game: TwoTurns, rows: list[int], advantage_S: np.ndarray, num_sequences: int) -> torch.Tensor:
    """[S] what the sentences of these dialogues add to the loss, turn by turn in each dialogue."""
    logp_ST = torch.stack(
        [x for d in rows for x in (game.first_D2[d], torch.cat([game.last_D1[d], game.last_D1.new_zeros(1)]))]
    )
    mask_ST = torch.tensor([[1.0, 1.0], [1.0, 0.0]], dtype=torch.float64).repeat(len(rows), 1)
    loss_ST = reinforce_loss(logp_ST, torch.tensor(advantage_S))
    return aggregate(loss_ST, mask_ST, "sequence-sum", Totals(num_sequences=num_sequences))


@pytest.mark.parametrize("beta", [0.0, BETA])
def test_leave_one_out_has_the_gradient_of_the_expected_reward(beta: float) -> None:
    """All 256 groups of two dialogues, each with its probability; credit flows back over the opponent's reply."""
    parameters = PARAMETERS.clone().requires_grad_()
    game = TwoTurns(parameters)
    pairs = list(itertools.product(range(16), repeat=2))
    rows = [d for pair in pairs for d in pair]
    shaped = kl_in_reward(
        PAID[rows].numpy().ravel(),
        game.turns_D2[rows].detach().numpy().ravel(),
        BASE_GAME.turns_D2[rows].numpy().ravel(),
        beta,
    )
    dialogues = [index for index in range(len(rows)) for _ in range(2)]
    places = [(index // 2, turn) for index in range(len(rows)) for turn in range(2)]
    advantages = leave_one_out(returns_to_go(shaped, dialogues), places)
    loss_S = sentence_loss(game, rows, advantages, num_sequences=2)
    prob = game.prob_D.detach()
    prob = (prob[:, None] * prob).flatten().repeat_interleave(4)
    assert close(gradient((prob * loss_S).sum(), parameters), -objective_gradient(parameters, beta))


@pytest.mark.parametrize("trace_decay", [0.0, 0.6, 1.0])
def test_turn_advantages_with_true_values_have_the_gradient_of_the_expected_reward(trace_decay: float) -> None:
    parameters = PARAMETERS.clone().requires_grad_()
    game = TwoTurns(parameters)
    prob = game.prob_D.detach()
    same_place = torch.tensor([[float(d[:3] == e[:3]) for e in DIALOGUES] for d in DIALOGUES]).double() * prob
    value_last = same_place @ PAID[:, 1] / same_place.sum(1)
    values = torch.stack([(prob * PAID.sum(1)).sum().expand(16), value_last], dim=1)
    dialogues = [d for d in range(16) for _ in range(2)]
    found = turn_gae(PAID.numpy().ravel(), values.numpy().ravel(), dialogues, last_values={}, trace_decay=trace_decay)
    loss_S = sentence_loss(game, list(range(16)), found.advantages_S, num_sequences=1)
    weighted = (prob.repeat_interleave(2) * loss_S).sum()
    assert close(gradient(weighted, parameters), -objective_gradient(parameters, 0.0))


def test_the_mean_over_tokens_is_not_the_gradient_of_the_expected_reward() -> None:
    """What the enumeration above would notice: sentences of two tokens count half."""
    parameters = PARAMETERS.clone().requires_grad_()
    game = TwoTurns(parameters)
    returns = returns_to_go(PAID.numpy().ravel(), [d for d in range(16) for _ in range(2)])
    prob = game.prob_D.detach().repeat_interleave(2)
    first = torch.stack([game.first_D2, torch.zeros(16, 2)], dim=1).flatten(0, 1)
    mask = torch.tensor([[1.0, 1.0], [0.0, 0.0]], dtype=torch.float64).repeat(16, 1)
    loss_S = aggregate(reinforce_loss(first, torch.tensor(returns)), mask, "sequence-mean", Totals(num_sequences=1))
    found, exact = gradient((prob * loss_S).sum(), parameters)[:3], -objective_gradient(parameters, 0.0)[:3]
    assert not close(found, exact, tolerance=0.01)
    assert close(2 * found, exact)


# Refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"low": 0.0}, "got low 0.0 and high 0.2"),
        ({"low": 1.2}, "got low 1.2"),
        ({"high": -0.1}, "high -0.1"),
        ({"high": float("nan")}, "high nan"),
        ({"ratio": "turn"}, "got 'turn'; 'token' is PPO's own"),
    ],
)
def test_clipping_outside_its_range_is_refused(settings, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Clipping(**settings)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: reinforce_loss(LOGP, normal(4)), r"per sequence \(3,\) or per token \(3, 4\), got \(4,\)"),
        (lambda: reinforce_loss(LOGP, normal(3, 1)), r"got \(3, 1\)"),
        (lambda: ppo_loss(LOGP, OLD[:, :1], MASK, ADVANTAGE_S, Clipping()), r"old_logp_ST of shape \(3, 4\)"),
        (lambda: ppo_loss(LOGP, OLD, MASK[:1], ADVANTAGE_S, Clipping()), r"mask_ST of shape \(3, 4\), got \(1, 4\)"),
        (lambda: k2_loss(LOGP, REFERENCE[0]), "reference_logp of shape"),
        (lambda: value_loss(normal(3), normal(3, 1)), r"target of shape \(3,\), got \(3, 1\)"),
        (lambda: clipped_value_loss(normal(3), normal(3), normal(3), clip=0.0), "above 0, got 0.0; take value_loss"),
    ],
)
def test_shapes_that_broadcasting_would_spread_are_refused(call, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()
