"""The average of several policies as one policy: updates of the weights added up, then factored anew.

The average of low-rank updates has up to the sum of their ranks; what fits into the new rank is kept, the largest part in
the sense of least squares. It is no mixture: a mixture draws one policy and keeps it for the dialogue (Fusion-PSRO,
arXiv:2405.21027, starts best responses from such averages).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch

from rtg_agents.bank import PolicyBank
from rtg_agents.lora import LoraSettings
from rtg_agents.policy import BASE
from rtg_agents.routing import Factors
from rtg_env.errors import PolicyError


class Fusion(NamedTuple):
    """An average of policies."""

    factors: dict[str, Factors]
    """By layer, in the shape that was asked for."""

    kept: float
    """Share of the average's squared size that fits into the rank, in [0, 1]; 1 of nothing."""


def fuse(bank: PolicyBank, weights: Mapping[str, float], shape: LoraSettings) -> Fusion:
    """Average policies.

    Args:
        bank: Holds them.
        weights: By version; the base adds nothing but its weight.
        shape: Of the result.

    Raises:
        PolicyError: If weights are not probabilities, or none of a policy but the base.
    """
    if not weights or min(weights.values()) < 0 or abs(sum(weights.values()) - 1.0) > 1e-6:
        raise PolicyError(f"expected weights of policies that are probabilities and sum to 1, got {dict(weights)}")
    parts = {version: weight for version, weight in weights.items() if version != BASE and weight > 0}
    if not parts:
        raise PolicyError("expected at least one policy beside the base to average; take `create` for a fresh one")
    own = {version: bank.factors(version) for version in parts}
    factors, kept, whole = {}, 0.0, 0.0
    for name in bank.layers:
        ups, downs = [], []
        for version, weight in parts.items():
            scaling = bank.shape(version).alpha / bank.shape(version).rank
            ups.append(weight * scaling * own[version][name].up.float())
            downs.append(own[version][name].down.float())
        factors[name], share, size = _factored(torch.cat(ups, 1), torch.cat(downs), shape)
        kept, whole = kept + share, whole + size
    return Fusion(factors, kept / whole if whole else 1.0)


def _factored(up: torch.Tensor, down: torch.Tensor, shape: LoraSettings) -> tuple[Factors, float, float]:
    """The best factors of a given rank for up @ down; the squares of its singular values that are kept, and of all."""
    left, inner_left = torch.linalg.qr(up)
    right, inner_right = torch.linalg.qr(down.T)
    u, values, vt = torch.linalg.svd(inner_left @ inner_right.T)
    count = min(shape.rank, len(values))
    root = (values[:count] * shape.rank / shape.alpha).sqrt()
    new_up = torch.zeros(up.shape[0], shape.rank, device=up.device)
    new_down = torch.zeros(shape.rank, down.shape[1], device=up.device)
    new_up[:, :count] = left @ u[:, :count] * root
    new_down[:count] = root[:, None] * (vt[:count] @ right.T)
    squares = values.square()
    return Factors(new_down, new_up), float(squares[:count].sum()), float(squares.sum())
