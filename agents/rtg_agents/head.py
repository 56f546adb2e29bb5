"""From hidden states to what a language model says: log-probabilities of given ids, and draws.

The vocabulary head is the widest product and its logits the largest tensor of a small model, so it runs on the positions
that are asked for only, in chunks, in float32, and keeps no logits for the backward pass: the gradient of one
log-probability with respect to its hidden state is one vector, computed along with it.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple, cast

import numpy as np
import torch
from torch.autograd.function import once_differentiable

_CHUNK_BYTES: Final = {"cpu": 16 << 20, "cuda": 512 << 20}
"""Logits in one go: on a CPU what stays in reach of its caches, on a GPU what keeps it busy."""

_BLOCK: Final = 256


class Heard(NamedTuple):
    """What the head says about N positions."""

    logps: torch.Tensor
    """[N] log-probability of the id that followed."""

    entropies: torch.Tensor
    """[N] entropy of the distribution there, in nats; zeros unless asked for."""


class Barred(NamedTuple):
    """Ids that may not follow at some positions: the others share their probability."""

    where: torch.Tensor
    """[N] bool."""

    ids: torch.Tensor
    """Barred there."""


def heard(
    head: torch.nn.Module,
    hidden_NH: torch.Tensor,
    ids_N: torch.Tensor,
    temperatures_N: torch.Tensor,
    *,
    entropy: bool = False,
    barred: Barred | None = None,
) -> Heard:
    """Log-probabilities of ids at a temperature, differentiable with respect to the hidden states.

    Args:
        head: The frozen vocabulary head, a linear layer.
        hidden_NH: Hidden states before each id.
        ids_N: What followed.
        temperatures_N: Logits are divided by it.
        entropy: Whether to compute entropies as well.
        barred: Ids that may not follow at some positions; the log-probability of such an id there is -inf.
    """
    logps, entropies = cast(
        "tuple[torch.Tensor, torch.Tensor]",
        _Heard.apply(hidden_NH, head.weight, getattr(head, "bias", None), ids_N, temperatures_N, entropy, barred),  # type: ignore[no-untyped-call]
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
        barred: Barred | None,
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
            if barred is not None:
                logits[barred.where[part].nonzero(), barred.ids] = -torch.inf
            all_logps = logits - logits.logsumexp(-1, keepdim=True)
            logps[part] = all_logps.gather(-1, ids[part, None])[:, 0]
            if not (needs or entropy):
                continue
            probs = all_logps.exp()
            if slopes is not None:
                # d logp(i) / d hidden = (w_i - E w) / temperature
                slopes[part] = (weight[ids[part]] - probs.to(weight.dtype) @ weight) / heat
            if entropy:
                # 0 log 0 is 0.
                all_logps = torch.where(probs > 0, all_logps, torch.zeros_like(all_logps))
                entropies[part] = -(probs * all_logps).sum(-1)
                if entropy_slopes is not None:
                    spread = -probs * (all_logps + entropies[part, None])
                    entropy_slopes[part] = (spread.to(weight.dtype) @ weight) / heat
        ctx.save_for_backward(slopes, entropy_slopes)
        return logps, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        slopes, entropy_slopes = ctx.saved_tensors
        grad = grads[0][:, None].to(slopes.dtype) * slopes
        if entropy_slopes is not None:
            grad = grad + grads[1][:, None].to(slopes.dtype) * entropy_slopes
        return grad, None, None, None, None, None, None


def noise_width(vocab_size: int) -> int:
    """Numbers that one draw takes."""
    return -(-vocab_size // _BLOCK) + _BLOCK


def noise(seed: int, num_positions: int, vocab_size: int) -> torch.Tensor:
    """Gumbel noise [positions, width] of one request, counted from its seed: position t is the same however many follow."""
    uniform = np.random.default_rng(seed).random((num_positions, noise_width(vocab_size)))
    with np.errstate(divide="ignore"):  # a 0 becomes -inf: never drawn
        return torch.from_numpy(-np.log(-np.log(uniform))).float()


def draw(
    logits_BV: torch.Tensor, temperatures_B: torch.Tensor, noise_BW: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw an id per row by the Gumbel-max trick, in two levels: a block of ids, then an id of the block.

    Exact, with a few hundred noise numbers a row instead of one per id. Rounding changes a draw only where the two best
    come within rounding of each other; inverting the distribution function with one number would also change it wherever
    that number falls among ids less probable than the rounding error of a running sum (about one draw in 300 at the
    temperature 1 with 49,152 ids, measured).

    Args:
        logits_BV: Logits of the next id.
        temperatures_B: They are divided by it.
        noise_BW: Standard Gumbel noise, `noise_width(V)` numbers a row.

    Returns:
        Ids [B] and their log-probabilities [B] in the whole distribution.
    """
    scaled = logits_BV.float() - logits_BV.amax(-1, keepdim=True)
    scaled /= temperatures_B[:, None]  # of differences: at a low temperature the logits themselves would overflow
    if missing := -scaled.shape[1] % _BLOCK:
        scaled = torch.nn.functional.pad(scaled, (0, missing), value=-torch.inf)
    blocks = scaled.reshape(len(scaled), -1, _BLOCK)
    masses = blocks.exp().sum(-1)
    count = blocks.shape[1]
    which = (masses.log() + noise_BW[:, :count]).argmax(-1)
    inner = (blocks[torch.arange(len(blocks), device=blocks.device), which] + noise_BW[:, count:]).argmax(-1)
    ids = which * _BLOCK + inner
    return ids, scaled.gather(-1, ids[:, None])[:, 0] - masses.sum(-1).log()
