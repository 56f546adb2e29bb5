"""A linear layer that many policies share, and the route that says which row of a batch speaks for whom.

The base product is one for all rows. The low-rank products are one batched product per factor: rows in groups of one size
take `bmm` on the stacks as they lie, other shares `grouped_mm`. Weights are never gathered per row: that copies them and
halves the speed at 64 rows (Punica, Chen et al. 2023, arXiv:2310.18547, and S-LoRA, Sheng et al. 2023, arXiv:2311.03285,
wrote kernels for what these two products do).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.nn.functional import grouped_mm

from rtg_env.errors import PolicyError


@dataclass(frozen=True, slots=True)
class Factors:
    """One policy's update of one layer: `scaling * up @ down`."""

    down: torch.Tensor
    """[r, in], PEFT's lora_A."""

    up: torch.Tensor
    """[out, r], PEFT's lora_B."""


class Route:
    """Which slot each row of a batch speaks for, in the form that the products need.

    Args:
        slots: [B] slot per row.
        scalings: Scaling by slot.
        device: Where the batch is.
    """

    def __init__(self, slots: Sequence[int], scalings: Sequence[float], device: torch.device) -> None:
        self.num_rows = len(slots)
        order = sorted((row for row in range(len(slots)) if slots[row]), key=lambda row: slots[row])
        self.active = sorted({slots[row] for row in order})
        """Slots in use, the base's apart."""
        self.shares = [sum(slots[row] == slot for row in order) for slot in self.active]
        self.equal = len(set(self.shares)) == 1
        self.first = order[0] if order and order == list(range(order[0], order[0] + len(order))) else None
        """The first row of a policy, if all such rows stand together in the order of their slots; otherwise None."""
        self.order = None if self.first is not None else torch.tensor(order, dtype=torch.long, device=device)
        self.ends = torch.tensor(self.shares, dtype=torch.int32, device=device).cumsum(0, dtype=torch.int32)
        self.scaling = scalings[self.active[0]] if len({scalings[slot] for slot in self.active}) == 1 else None
        """One for all rows, if it is one."""
        self.scalings = torch.tensor([scalings[slots[row]] for row in order], device=device)
        self.trained: dict[int, str] = {}
        """Version by slot, of those that gradients are wanted for."""
        self._chosen: dict[tuple[int, str], torch.Tensor] = {}

    @property
    def num_adapted(self) -> int:
        """Rows that do not speak for the base."""
        return sum(self.shares)

    def choose(self, stack: torch.Tensor, layer: int, factor: str) -> torch.Tensor:
        """[G, ..] the stack's slots in use: where they lie if they are neighbours, otherwise copied once per route."""
        low, high = self.active[0], self.active[-1] + 1
        if high - low == len(self.active):
            return stack[low:high]
        if (layer, factor) not in self._chosen:
            self._chosen[layer, factor] = stack[torch.tensor(self.active, device=stack.device)]
        return self._chosen[layer, factor]

    def take(self, x: torch.Tensor) -> torch.Tensor:
        """[B, ..] -> the adapted rows, by slot."""
        return x[self.first : self.first + self.num_adapted] if self.first is not None else x[self.order]

    def add_in_place(self, y: torch.Tensor, x_RSI: torch.Tensor, down_GRI: torch.Tensor, up_GRO: torch.Tensor) -> bool:
        """Add the update to the base's output where it lies, the quick way; False if the shares do not allow it."""
        if not self.equal or self.first is None or self.scaling is None:
            return False
        groups = len(down_GRI)
        inner = torch.bmm(x_RSI.reshape(groups, -1, x_RSI.shape[-1]), down_GRI.transpose(1, 2))
        own = y[self.first : self.first + self.num_adapted].view(groups, -1, y.shape[-1])
        own.baddbmm_(inner, up_GRO, alpha=self.scaling)
        return True

    def product(self, x_RSI: torch.Tensor, down_GRI: torch.Tensor, up_GRO: torch.Tensor) -> torch.Tensor:
        """The update [rows, S, out] of the adapted rows."""
        rows, length, _ = x_RSI.shape
        groups, rank, _ = down_GRI.shape
        if self.equal:
            inner = torch.bmm(x_RSI.reshape(groups, -1, x_RSI.shape[-1]), down_GRI.transpose(1, 2))
        else:
            ends = self.ends * length
            inner = grouped_mm(x_RSI.reshape(rows * length, -1), down_GRI.transpose(1, 2), offs=ends)
        if self.scaling is not None:
            inner = inner * self.scaling
        else:
            scale = self.scalings.to(inner.dtype)[:, None, None]
            inner = (inner.reshape(rows, length, rank) * scale).reshape(inner.shape)
        outer = torch.bmm(inner, up_GRO) if self.equal else grouped_mm(inner, up_GRO, offs=ends)
        return outer.reshape(rows, length, -1)


class Router:
    """Holds the route of the forward pass that is going on; one for all layers."""

    def __init__(self) -> None:
        self.route: Route | None = None


class BankLinear(nn.Module):
    """A linear layer of the base with the stacks of all policies.

    Args:
        base: Any callable that maps [.., in] to [.., out]; frozen.
        size: (in, out).
        router: Says who speaks.
        name: Path in the model, as PEFT writes it.
        like: Gives the stacks their type and device.
    """

    def __init__(self, base: nn.Module, size: tuple[int, int], router: Router, name: str, like: torch.Tensor) -> None:
        super().__init__()
        self.base = base
        self.size = size
        self.name = name
        self._router = router
        self.down: torch.Tensor = like.new_zeros(0, 0, size[0])
        """A[n, rank, in]."""
        self.up: torch.Tensor = like.new_zeros(0, 0, size[1])
        """B[n, rank, out], transposed."""
        self.trained: dict[str, Factors] = {}
        """Parameters of the versions that are, or were, trained."""

    def __getattr__(self, name: str) -> Any:
        """Attributes of the base layer (`weight`, `bias`, `nf`), which some models look at."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The base's output, plus each row's own update."""
        y: torch.Tensor = self.base(x)
        route = self._router.route
        if route is None:
            raise PolicyError("expected a forward pass within `bank.routed(..)`, nobody said which policies speak")
        if not route.active:
            return y
        if x.shape[0] != route.num_rows:
            raise PolicyError(f"expected a batch of {route.num_rows} rows as routed, got {x.shape[0]}")
        own = route.take(x.reshape(route.num_rows, -1, self.size[0]))
        factors = self._factors(route, x.dtype)
        if not torch.is_grad_enabled() and route.add_in_place(y, own, *factors):
            return y
        update = route.product(own, *factors)
        return self._added(y, update.reshape(-1, *y.shape[1:]), route)

    def _factors(self, route: Route, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        if not (route.trained and torch.is_grad_enabled()):
            return route.choose(self.down, id(self), "down"), route.choose(self.up, id(self), "up")
        rank = self.down.shape[1]
        down, up = [], []
        for slot in route.active:
            if slot in route.trained:
                own = self.trained[route.trained[slot]]
                down.append(_padded(own.down, rank).to(dtype))
                up.append(_padded(own.up.T, rank).to(dtype))
            else:
                down.append(self.down[slot])
                up.append(self.up[slot])
        return torch.stack(down), torch.stack(up)

    def _added(self, y: torch.Tensor, update: torch.Tensor, route: Route) -> torch.Tensor:
        if route.first is None:
            return y.index_add(0, cast("torch.Tensor", route.order), update)
        if route.num_adapted == route.num_rows:
            return y + update if torch.is_grad_enabled() else y.add_(update)
        end = route.first + route.num_adapted
        if torch.is_grad_enabled():
            return torch.cat([y[: route.first], y[route.first : end] + update, y[end:]])
        y[route.first : end] += update
        return y


def _padded(factor: torch.Tensor, rank: int) -> torch.Tensor:
    missing = rank - factor.shape[0]
    return factor if not missing else nn.functional.pad(factor, (0, 0, 0, missing))
