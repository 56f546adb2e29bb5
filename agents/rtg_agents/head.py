"""From hidden states to what a language model says: log-probabilities of given ids, and draws.

The vocabulary head is the widest product and its logits the largest tensor of a small model, so it runs on the positions
that are asked for only, in chunks, in float32, and keeps no logits for the backward pass: the gradient of one
log-probability with respect to its hidden state is one vector, computed along with it.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple, cast

import torch

_CHUNK_BYTES: Final = {"cpu": 16 << 20, "cuda": 512 << 20}
"""Logits in one go: on a CPU what stays in reach of its caches, on a GPU what keeps it busy."""

_BLOCK: Final = 256


class Heard(NamedTuple):
    """What the head says about N positions."""

    logps: torch.Tensor
    """[N] log-probability of the id that followed."""

    entropies: torch.Tensor
    """[N] entropy of the distribution there, in nats; zeros unless asked for."""


def heard(
    head: torch.nn.Module,
    hidden_NH: torch.Tensor,
    ids_N: torch.Tensor,
    temperatures_N: torch.Tensor,
    *,
    entropy: bool = False,
) -> Heard:
    """Log-probabilities of ids at a temperature, differentiable with respect to the hidden states.

    Args:
        head: The frozen vocabulary head, a linear layer.
        hidden_NH: Hidden states before each id.
        ids_N: What followed.
        temperatures_N: Logits are divided by it.
        entropy: Whether to compute entropies as well.
    """
    logps, entropies = cast(
        "tuple[torch.Tensor, torch.Tensor]",
        _Heard.apply(hidden_NH, head.weight, getattr(head, "bias", None), ids_N, temperatures_N, entropy),  # type: ignore[no-untyped-call]
    )
    return Heard(logps, entropies)


class _Heard(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        ids: torch.Tensor,
        temperatures: torch.Tensor,
        entropy: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        count = len(ids)
        logps, entropies = (torch.zeros(count, device=hidden.device) for _ in range(2))
        needs = ctx.needs_input_grad[0]
        slopes = torch.empty_like(hidden) if needs else None
        entropy_slopes = torch.empty_like(hidden) if needs and entropy else None
        size = max(1, _CHUNK_BYTES.get(hidden.device.type, 64 << 20) // (4 * weight.shape[0]))
        for begin in range(0, count, size):
            part = slice(begin, begin + size)
            heat = temperatures[part, None]
            logits = torch.nn.functional.linear(hidden[part], weight, bias).float() / heat
            all_logps = logits - logits.logsumexp(-1, keepdim=True)
            logps[part] = all_logps.gather(-1, ids[part, None])[:, 0]
            if not (needs or entropy):
                continue
            probs = all_logps.exp()
            if slopes is not None:
                # d logp(i) / d hidden = (w_i - E w) / temperature
                slopes[part] = (weight[ids[part]] - probs.to(weight.dtype) @ weight) / heat
            if entropy:
                entropies[part] = -(probs * all_logps).sum(-1)
                if entropy_slopes is not None:
                    spread = -probs * (all_logps + entropies[part, None])
                    entropy_slopes[part] = (spread.to(weight.dtype) @ weight) / heat
        ctx.save_for_backward(slopes, entropy_slopes)
        return logps, entropies

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        slopes, entropy_slopes = ctx.saved_tensors
        grad = grads[0][:, None].to(slopes.dtype) * slopes
        if entropy_slopes is not None:
            grad = grad + grads[1][:, None].to(slopes.dtype) * entropy_slopes
        return grad, None, None, None, None, None


def draw(
    logits_BV: torch.Tensor, temperatures_B: torch.Tensor, uniforms_B: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw an id per row by inverting the distribution function: one uniform number decides one id.

    The function is summed in blocks first, so that only one block of each row is summed exactly: a third of the time of a
    running sum over the vocabulary.

    Args:
        logits_BV: Logits of the next id.
        temperatures_B: They are divided by it.
        uniforms_B: In [0, 1), float64.

    Returns:
        Ids [B] and their log-probabilities [B] in the whole distribution.
    """
    scaled = logits_BV.float() / temperatures_B[:, None]
    scaled -= scaled.amax(-1, keepdim=True)
    probs = scaled.exp()
    if missing := -probs.shape[1] % _BLOCK:
        probs = torch.nn.functional.pad(probs, (0, missing))
    blocks = probs.reshape(len(probs), -1, _BLOCK)
    upto = blocks.sum(-1).double().cumsum(-1)
    targets = uniforms_B.double() * upto[:, -1]
    which = torch.searchsorted(upto, targets[:, None], right=True).clamp(max=upto.shape[1] - 1)
    rows = torch.arange(len(probs), device=probs.device)
    within = blocks[rows, which[:, 0]].double().cumsum(-1)
    before = torch.where(which > 0, upto.gather(1, (which - 1).clamp(min=0)), 0.0)
    # The block's own sum was rounded to float32: stretch the rest onto its exact sum.
    total = upto.gather(1, which) - before
    rest = (targets[:, None] - before) / total * within[:, -1:]
    inner = torch.searchsorted(within, rest, right=True).clamp(max=_BLOCK - 1)
    # Rounding may point just past the last id with a chance in its block: step back onto it.
    last = torch.searchsorted(within, within[:, -1:].contiguous(), right=False)
    ids = (which * _BLOCK + torch.minimum(inner, last))[:, 0]
    return ids, scaled.gather(-1, ids[:, None])[:, 0] - upto[:, -1].log().float()
