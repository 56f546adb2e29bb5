"""What must hold in every iteration before a player learns from preferences.

The player begins as its reference, the player at the start of this iteration; that one is a trained adapter and no longer
the base; and the loss, computed with the reference's stored log-probabilities, is log 2. A reference that is the base by
mistake (an adapter switched off) passes for one iteration, the first, and is wrong in all others.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rtg_agents.policy import BASE
from rtg_env.errors import PolicyError

if TYPE_CHECKING:
    from rtg_agents.hf import TorchBackend
    from rtg_solvers.token_pairs import TokenPair

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class StartCheck:
    """What was found before the first step; everything here was within its tolerance."""

    loss: float
    """Of `dpo_loss` with scored log-probabilities, log 2 = 0.693 within 1e-3 (2e-2 on a base of less than float32)."""

    reference_gap: float
    """Greatest difference of one id's log-probability between player and reference: below 1e-4 nats (2e-2)."""

    base_gap: float | None
    """The same between reference and base: above 1e-6; None where the reference is the base or has learned nothing."""


def check_start(
    backend: TorchBackend,
    version: str,
    reference: str,
    pairs: Sequence[TokenPair],
    reference_N2: np.ndarray,
    *,
    beta: float,
    num_compared: int = 16,
) -> StartCheck:
    """Compare a player that has not learned yet with its reference, and that with the base.

    Args:
        backend: Holds all three.
        version: The player.
        reference: What it is to begin as.
        pairs: N of them. The loss is that of as many of the first as were scored in one call, so that player and reference go
            through the model in the same packs: in others, bfloat16 rounds a sentence of 30 ids otherwise by 0.2 nats.
        reference_N2: [N, 2] the reference's log-probabilities that the loss is to be computed with.
        beta: Of the loss.
        num_compared: So many of the first pairs are compared id by id.

    Raises:
        PolicyError: If the player is not the reference, or the reference acts as the base though it has learned.
    """
    from rtg_solvers.preference_updates import SCORED_TOGETHER, mean_dpo_loss, pair_logps

    found = {name: _scored(backend, pairs[:num_compared], name) for name in dict.fromkeys((version, reference, BASE))}
    tolerance = 1e-4 if _is_exact(backend) else 2e-2
    gap = _gap(found[version], found[reference])
    if not gap <= tolerance:
        raise PolicyError(
            f"expected {version} to begin as {reference}, an id's log-probability differs by {gap:.3g} nats (at most "
            f"{tolerance:g}); nothing was saved: was {version} trained before? Run the same command in a new process"
        )
    base_gap = _gap(found[reference], found[BASE]) if _has_learned(backend, reference) else None
    if base_gap is not None and not base_gap > 1e-6:
        raise PolicyError(
            f"expected {reference} to differ from the base model, which it has learned to, but its log-probabilities are "
            "the base's; nothing was saved: its adapter is not applied"
        )
    if base_gap is None and reference != BASE:
        _LOG.warning("%s: its reference %s is an adapter that has learned nothing yet", version, reference)
    mine_N2 = pair_logps(backend, pairs[:SCORED_TOGETHER], version)
    loss = mean_dpo_loss(mine_N2, reference_N2[:SCORED_TOGETHER], beta=beta)
    check_log_two(version, loss, 1e-3 if _is_exact(backend) else 2e-2)
    return StartCheck(loss=loss, reference_gap=gap, base_gap=base_gap)


def check_first_step(version: str, loss: float, backend: TorchBackend, *, beta: float) -> None:
    """Refuse a first training step whose loss is not log 2.

    Training packs otherwise than scoring. On a base of less than float32 the two sides of a pair then differ by a quarter of a
    nat at random: the tolerance there is what one nat in all pairs would make.

    Raises:
        PolicyError: With the loss.
    """
    check_log_two(version, loss, 1e-3 if _is_exact(backend) else max(2e-2, beta / 2))


def check_log_two(version: str, loss: float, tolerance: float) -> None:
    """Refuse a loss of direct preference optimisation before the first step that is not log 2.

    Raises:
        PolicyError: With the loss.
    """
    if not abs(loss - math.log(2)) <= tolerance:
        raise PolicyError(
            f"expected the loss of {version} before its first step to be log 2 = {math.log(2):.4f} within {tolerance:g}, "
            f"got {loss:.4f}; nothing was saved: the player and what the reference was scored with are not one policy"
        )


def _is_exact(backend: TorchBackend) -> bool:
    """Whether packs of other sizes round alike, but for the last digits: not below float32."""
    import torch

    return next(backend.bank.model.parameters()).dtype in (torch.float32, torch.float64)


def _has_learned(backend: TorchBackend, version: str) -> bool:
    """Whether a version's update of the base is not zero."""
    return version != BASE and any(
        bool(own.up.any()) and bool(own.down.any()) for own in backend.bank.factors(version).values()
    )


def _scored(backend: TorchBackend, pairs: Sequence[TokenPair], version: str) -> list[tuple[float, ...]]:
    """Each policy alone, so that all go through the model in the same packs."""
    return backend.score([side for pair in pairs for side in pair.of(version)])


def _gap(one: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> float:
    """Greatest difference of one id; infinite if one is not finite."""
    wide = np.abs(np.concatenate([np.subtract(*rows) for rows in zip(one, other, strict=True)]))
    return float(wide.max()) if np.isfinite(wide).all() else float("inf")
