"""An independent way to compute a policy: its update added to the weights of a fresh model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from rtg_agents.bank import PolicyBank
from rtg_agents.policy import BASE
from tests.tiny import tiny_model


def shake(holder, version: str, seed: int, size: float = 0.3) -> None:
    """Give a policy some effect: a fresh one starts as the base."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in holder.parameters(version).values():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def added_up(bank: PolicyBank, version: str, family: str = "llama") -> Callable[[torch.Tensor], torch.Tensor]:
    """From ids [B, L] to logits [B, L, V]: one policy, no cache; gradients reach the bank's parameters."""
    model = tiny_model(family)
    weights = {}
    if version != BASE:
        own, shape = bank.parameters(version), bank.shape(version)
        for name in bank.layers:
            layer = model.get_submodule(name)
            update = own[f"{name}.lora_B.weight"] @ own[f"{name}.lora_A.weight"] * (shape.alpha / shape.rank)
            weights[f"{name}.weight"] = layer.weight.detach() + (update.T if isinstance(layer, Conv1D) else update)
    return lambda ids: functional_call(model, weights, (ids,), {"use_cache": False}).logits
