"""Balance conditions on a game that can be enumerated: 4 letters and an end, up to 4 letters, two contexts.

The target is p(x | c) = R(x | c) / Z(c), with Z's four nats apart; distances are total variation over all 340 sentences.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import numpy as np
import pytest
import torch

from rtg_solvers.advantages import leave_one_out
from rtg_solvers.replay import Kept, ReplayBuffer, ReplaySettings
from rtg_solvers.sequence_losses import pairwise_balance_loss, trajectory_balance_loss, vargrad_loss

END, LONGEST = 4, 4
SENTENCES = [letters for length in range(1, LONGEST + 1) for letters in product(range(END), repeat=length)]
PREFIXES = {prefix: index for index, prefix in enumerate([(), *[s for s in SENTENCES if len(s) < LONGEST]])}


class Toy(NamedTuple):
    """Rewards, and where each sentence's decisions are."""

    log_rewards: np.ndarray
    """[C, N] of each sentence."""

    places: np.ndarray
    """[N, T] index into the flat logits of each decision."""

    used: np.ndarray
    """[N, T] 1 where there is a decision: the end is one, but for the longest."""


def toy(seed: int = 0) -> Toy:
    rng = np.random.default_rng(seed)
    rewards = np.stack([rng.normal(size=len(SENTENCES)), 4.0 + 1.5 * rng.normal(size=len(SENTENCES))])
    places, used = np.zeros((len(SENTENCES), LONGEST + 1), int), np.zeros((len(SENTENCES), LONGEST + 1))
    for n, sentence in enumerate(SENTENCES):
        decisions = [*sentence, *([END] if len(sentence) < LONGEST else [])]
        for t, choice in enumerate(decisions):
            places[n, t] = 5 * PREFIXES[sentence[:t]] + choice
            used[n, t] = 1.0
    return Toy(rewards, places, used)


def logps(game: Toy, logits: torch.Tensor) -> torch.Tensor:
    """[C, N] of every sentence; the end is barred at the beginning."""
    barred = logits.clone()
    barred[:, 0, END] = -torch.inf
    flat = barred.log_softmax(-1).reshape(len(logits), -1)
    return (flat[:, torch.tensor(game.places)] * torch.tensor(game.used)).sum(-1)


def target(game: Toy) -> np.ndarray:
    weights = np.exp(game.log_rewards - game.log_rewards.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def distance(game: Toy, logits: torch.Tensor) -> float:
    return float(0.5 * np.abs(logps(game, logits).exp().detach().numpy() - target(game)).sum(axis=1).max())


def draw(game: Toy, logits: torch.Tensor, rng: np.random.Generator, count: int, temperature: float) -> np.ndarray:
    """[C, count] sentences, every decision at a temperature."""
    with torch.no_grad():
        probs = logps(game, logits / temperature).exp().numpy()
    return np.stack([rng.choice(len(SENTENCES), size=count, p=row / row.sum()) for row in probs])


def learn(
    objective: str, *, steps: int, replay: bool, seed: int = 0, start: torch.Tensor | None = None, rate: float = 0.05
) -> tuple[Toy, torch.Tensor, torch.Tensor]:
    """Logits, and the learned log Z of each context."""
    game, rng = toy(), np.random.default_rng(seed)
    logits = torch.zeros(2, len(PREFIXES), 5, dtype=torch.float64) if start is None else start.clone()
    logits.requires_grad_()
    log_z = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([{"params": [logits]}, {"params": [log_z], "lr": 0.1}], lr=rate)
    buffer = ReplayBuffer(ReplaySettings(capacity=2 * len(SENTENCES), edit_share=0.0, max_cosine=1.0), num_contexts=2)
    added: set[tuple[int, int]] = set()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps) + 1e-4
        hot = 1.0 if rng.random() < 0.5 else float(rng.uniform(0.5, 2.0))
        chosen = draw(game, logits, rng, 32, hot if replay else 1.0)
        if replay:
            for c, n in [(c, int(n)) for c, row in enumerate(chosen) for n in row]:
                if (c, n) not in added:
                    added.add((c, n))
                    score = float(np.exp(game.log_rewards[c, n] - 10.0))
                    buffer.add([Kept(str(c), (), (n,), "", score, np.zeros(1))])
            if step % 2 and len(buffer.contexts(16)) == 2:
                groups = {g[0].context: g for g in buffer.draw(rng, num_groups=2, group_size=16)}
                chosen = np.stack([[kept.token_ids[0] for kept in groups[str(c)]] for c in range(2)])
        labels = np.repeat(np.arange(2), chosen.shape[1])
        own = logps(game, logits)[labels, chosen.reshape(-1)]
        rewards = torch.tensor(game.log_rewards[labels, chosen.reshape(-1)])
        loss = loss_of(objective, own, rewards, labels, log_z)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return game, logits.detach(), log_z.detach()


def loss_of(
    objective: str, own: torch.Tensor, rewards: torch.Tensor, labels: np.ndarray, log_z: torch.Tensor
) -> torch.Tensor:
    contexts = labels.tolist()
    if objective == "vargrad":
        return vargrad_loss(own, rewards, contexts).mean()
    if objective == "tb":
        return trajectory_balance_loss(own, rewards, log_z[torch.tensor(labels)]).mean()
    if objective == "pairwise":
        return pairwise_balance_loss(own, rewards, contexts, min_gap=0.0).mean()
    if objective == "parity":
        return -(own * rewards).mean()
    credit = torch.tensor(leave_one_out((rewards - own.detach()).numpy(), contexts))
    return -(own * credit).mean()


@pytest.mark.parametrize("objective", ["vargrad", "tb", "pairwise"])
def test_balance_reaches_the_reward_in_both_contexts_under_replay(objective: str) -> None:
    game, logits, log_z = learn(objective, steps=3000, replay=True)
    assert distance(game, logits) < 0.05
    if objective == "tb":
        np.testing.assert_allclose(log_z.numpy(), np.log(np.exp(game.log_rewards).sum(axis=1)), atol=0.05)


def test_soft_reinforce_reaches_it_too_on_its_own_samples() -> None:
    game, logits, _ = learn("soft", steps=3000, replay=False)
    assert distance(game, logits) < 0.08


def test_reinforce_without_entropy_collapses() -> None:
    game, logits, _ = learn("parity", steps=1500, replay=False)
    probs = logps(game, logits).exp().numpy()
    # In the context of positive rewards it pushes whatever it says: almost all mass on a few sentences.
    entropy = -(probs * np.log(np.maximum(probs, 1e-300))).sum(axis=1)
    wanted = -(target(game) * np.log(target(game))).sum(axis=1)
    assert np.sort(probs[1])[-5:].sum() > 0.9
    assert entropy[1] < 0.5 * wanted[1]


def test_one_normaliser_for_two_contexts_loses_the_weaker_one() -> None:
    # The mistake that contexts are there to prevent: VarGrad's mean over both.
    game, rng = toy(), np.random.default_rng(0)
    logits = torch.zeros(2, len(PREFIXES), 5, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.05)
    for _ in range(600):
        chosen = rng.integers(len(SENTENCES), size=(2, 32))  # as from a buffer
        own = logps(game, logits)[[0] * 32 + [1] * 32, chosen.reshape(-1)]
        rewards = torch.tensor(game.log_rewards[[0] * 32 + [1] * 32, chosen.reshape(-1)])
        loss = vargrad_loss(own, rewards, [0] * 64).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert distance(game, logits.detach()) > 0.3


def test_soft_reinforce_has_vargrads_gradient_on_its_own_samples() -> None:
    game, rng = toy(), np.random.default_rng(0)
    start = torch.tensor(rng.normal(size=(2, len(PREFIXES), 5)))
    chosen = draw(game, start, rng, 8, 1.0)
    labels = np.repeat(np.arange(2), 8)
    gradients = []
    for objective in ("vargrad", "soft"):
        logits = start.clone().requires_grad_()
        own = logps(game, logits)[labels, chosen.reshape(-1)]
        rewards = torch.tensor(game.log_rewards[labels, chosen.reshape(-1)])
        loss_of(objective, own, rewards, labels, torch.zeros(2)).backward()
        gradients.append(logits.grad)
    # 2 (G - 1) / G with G = 8.
    torch.testing.assert_close(gradients[0], gradients[1] * 2 * 7 / 8)
