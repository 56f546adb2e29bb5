"""From preference pairs to optimizer steps: direct preference optimisation, and the log-probabilities that it compares.

Both sentences of a pair go through the model in one forward pass, in which their prompt is computed once
(`rtg_agents.packing`); the trainer keeps them in one micro-batch.

Letters: N pairs; columns [2] are the chosen and the rejected sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import torch

from rtg_solvers.sequence_losses import PairLogps, PreferenceFigures, dpo_loss, preference_figures
from rtg_solvers.trainer import StepFigures, Trainer

if TYPE_CHECKING:
    from rtg_agents.hf import Evaluated, TorchBackend
    from rtg_solvers.token_pairs import TokenPair

SCORED_TOGETHER: Final = 128
"""Pairs in one call: their hidden states are kept until it ends."""


class PreferenceStep(NamedTuple):
    """What one step did."""

    figures: StepFigures
    """Loss and gradient."""

    ranking: PreferenceFigures
    """How the policy ranked the step's pairs before it."""


def preference_step(
    trainer: Trainer, version: str, pairs: Sequence[TokenPair], reference_N2: np.ndarray, *, beta: float
) -> PreferenceStep:
    """One step of direct preference optimisation; the loss is the mean over pairs.

    Args:
        trainer: Of that policy.
        version: The policy.
        pairs: N of them, at least 1.
        reference_N2: [N, 2] log-probabilities of the sentences under the reference.
        beta: Price of divergence from the reference, above 0.
    """
    reference = torch.tensor(reference_N2, dtype=torch.float32)
    policy = torch.zeros(len(pairs), 2)

    def objective(said: Evaluated, places: Sequence[int]) -> torch.Tensor:
        # A pair is a unit: its chosen sentence stands at an even place, its rejected one right after it.
        own, logp_N2 = [place // 2 for place in places[::2]], _sums(said).reshape(-1, 2)
        policy[own] = logp_N2.detach().cpu()
        loss_N = dpo_loss(_columns(logp_N2), _columns(reference[own].to(logp_N2)), beta=beta) / len(pairs)
        return torch.stack([loss_N, torch.zeros_like(loss_N)], dim=1).flatten()

    sequences = [side for pair in pairs for side in pair.of(version)]
    units = [(2 * number, 2 * number + 1) for number in range(len(pairs))]
    figures = trainer.step(sequences, objective, units=units)[version]
    return PreferenceStep(figures, preference_figures(_columns(policy), _columns(reference), beta=beta))


def pair_logps(backend: TorchBackend, pairs: Sequence[TokenPair], version: str) -> np.ndarray:
    """[N, 2] log-probabilities of the sentences under a policy, without gradient."""
    found = np.zeros((len(pairs), 2))
    for begin in range(0, len(pairs), SCORED_TOGETHER):
        part = pairs[begin : begin + SCORED_TOGETHER]
        rows = backend.score([side for pair in part for side in pair.of(version)])
        found[begin : begin + len(part)] = np.array([sum(row) for row in rows]).reshape(-1, 2)
    return found


def mean_dpo_loss(policy_N2: np.ndarray, reference_N2: np.ndarray, *, beta: float) -> float:
    """Mean of `dpo_loss` over pairs of known log-probabilities."""
    return float(dpo_loss(*(_columns(torch.tensor(table)) for table in (policy_N2, reference_N2)), beta=beta).mean())


def _sums(said: Evaluated) -> torch.Tensor:
    return (said.logps * said.mask).sum(dim=1)


def _columns(logp_N2: torch.Tensor) -> PairLogps:
    return PairLogps(logp_N2[:, 0], logp_N2[:, 1])
