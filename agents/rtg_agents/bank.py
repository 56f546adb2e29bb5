"""The policy bank: one frozen base model and any number of LoRA policies, all of them in one batch.

Every linear layer of the base (but the vocabulary head) gets two stacks: `A[n, rank, in]` and `B[n, rank, out]`, one slot
per policy; B lies transposed, which is how the product reads it. Slot 0 is zero for ever: the base policy, so that a
reference is a row like any other. A forward pass is told which slot each row of the batch speaks for (`routing`).

A version never changes its name, and its values only through `parameters`, which trainers use.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any, Final, cast

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from rtg_agents.lora import LoraSettings
from rtg_agents.policy import BASE
from rtg_agents.routing import BankLinear, Factors, Route, Router
from rtg_env.errors import ModelError, PolicyError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_RANK_STEP: Final = 8
"""Ranks are padded to a multiple of it: grouped products want rows of 16 bytes, in two bytes a number too."""

_FIRST_SLOTS: Final = 8


class PolicyBank:
    """Policies over one base model. The model is changed in place: its linear layers become `BankLinear`.

    Args:
        model: A causal language model of transformers, in evaluation mode; frozen here.
        lora: Shape of new policies.
    """

    def __init__(self, model: PreTrainedModel, lora: LoraSettings) -> None:
        self.model: Any = model.eval().requires_grad_(False)  # type: ignore[no-untyped-call]  # untyped in transformers
        self.lora = lora
        self._router = Router()
        self._slots: dict[str, int] = {BASE: 0}
        self._free: list[int] = []
        self._shape: dict[str, LoraSettings] = {}
        self._next_revision = count(1)
        self._revisions: dict[str, int] = {BASE: 0}
        self._seen: dict[str, float] = {}
        """Checksums of the versions that are, or were, trained."""
        self._rank = 0
        self._capacity = 0
        self.layers: dict[str, BankLinear] = _wrapped(model, self._router)
        self._grow(_FIRST_SLOTS, _ceil(lora.rank))

    @property
    def versions(self) -> tuple[str, ...]:
        """Names in the order they were added, the base first."""
        return tuple(self._slots)

    @property
    def device(self) -> torch.device:
        """Where the base is."""
        return cast("torch.device", self.model.device)

    def slot(self, version: str) -> int:
        """Slot of a version.

        Raises:
            PolicyError: If there is no such version.
        """
        if version not in self._slots:
            raise PolicyError(
                f"expected a policy version among {', '.join(self.versions)}, got {version!r}; add it first"
            )
        return self._slots[version]

    def shape(self, version: str) -> LoraSettings:
        """Rank and alpha of a version; of the base, those of a policy of rank 1 that is never used."""
        return self._shape[version]

    # Who there is

    def create(self, version: str, *, seed: int) -> None:
        """Add a fresh policy: A is drawn from `seed`, B is zero, so that it starts as the base policy."""
        generator = torch.Generator().manual_seed(seed)
        rank = self.lora.rank
        factors = {}
        for name, layer in self.layers.items():
            bound = (1.0 / layer.size[0]) ** 0.5  # as kaiming_uniform_(a=sqrt(5)), PEFT's own choice
            down = torch.empty(rank, layer.size[0]).uniform_(-bound, bound, generator=generator)
            factors[name] = Factors(down, torch.zeros(layer.size[1], rank))
        self.add(version, factors, self.lora)

    def copy(self, source: str, version: str) -> None:
        """Add a version that starts as another one (an SFT or previous-iteration start); later changes are its own."""
        self.add(version, self.factors(source), self.shape(source))

    def add(self, version: str, factors: Mapping[str, Factors], shape: LoraSettings) -> None:
        """Add a version with given factors; layers that are not named get none.

        Raises:
            PolicyError: If the name is taken or empty.
            ModelError: If factors do not fit the layers.
        """
        self.check_new(version)
        self._check(factors, shape)
        if not self._free or _ceil(shape.rank) > self._rank:
            capacity = self._capacity if self._free else 2 * self._capacity
            self._grow(capacity, max(self._rank, _ceil(shape.rank)))
        slot = self._free.pop(0)
        with torch.no_grad():
            for name, layer in self.layers.items():
                layer.down[slot].zero_()
                layer.up[slot].zero_()
                if name in factors:
                    layer.down[slot, : shape.rank] = factors[name].down
                    layer.up[slot, : shape.rank] = factors[name].up.T
        self._slots[version], self._shape[version] = slot, shape
        self._revisions[version] = next(self._next_revision)

    def check_new(self, version: str) -> None:
        """Refuse a name that is taken, or that PEFT could not carry.

        Raises:
            PolicyError: With the name.
        """
        if version in self._slots or "." in version or not version:
            raise PolicyError(
                f"expected a new version name without dots, got {version!r}; versions are never overwritten"
            )

    def drop(self, version: str) -> None:
        """Forget a version; its slot is used again.

        Raises:
            PolicyError: If there is no such version, or it is the base.
        """
        slot = self.slot(version)
        if slot == 0:
            raise PolicyError("expected a policy to drop, got the base, which stays")
        for layer in self.layers.values():
            layer.trained.pop(version, None)
        del self._slots[version], self._shape[version], self._revisions[version]
        self._seen.pop(version, None)
        self._free.append(slot)

    def factors(self, version: str) -> dict[str, Factors]:
        """Copies of a version's factors by layer, in the shape of its own rank."""
        self.refresh([version])
        slot, rank = self._adapter(version), self._shape[version].rank
        return {
            name: Factors(layer.down[slot, :rank].clone(), layer.up[slot, :rank].T.contiguous())
            for name, layer in self.layers.items()
        }

    # Who speaks

    def route(self, versions: Sequence[str], *, trained: Sequence[str] = ()) -> Route:
        """The way through the layers for a batch; good until a version is added.

        Args:
            versions: [B] who speaks in each row.
            trained: Versions whose parameters are to get gradients.
        """
        route = Route([self.slot(version) for version in versions], self._scalings(), self.device)
        route.trained = {self._adapter(version): version for version in trained}
        for version in trained:
            if version not in self._seen:
                self.parameters(version)
        return route

    @contextmanager
    def routed(self, route: Route) -> Iterator[None]:
        """Forward passes of the batch that a route was made for.

        Keep it open until after `backward` if gradients are checkpointed: layers are then computed again.
        """
        before, self._router.route = self._router.route, route
        try:
            yield
        finally:
            self._router.route = before

    # Training

    @contextmanager
    def checkpointed(self) -> Iterator[None]:
        """Layers keep no intermediate results for the backward pass, which computes them again, under the same route."""
        from torch.utils.checkpoint import checkpoint

        def again(function: Callable[..., Any], *args: Any) -> Any:
            route = cast("Route", self._router.route)

            def routed(*inner: Any) -> Any:
                with self.routed(route):
                    return function(*inner)

            return checkpoint(routed, *args, use_reentrant=False)

        blocks: list[Any] = [
            module for module in self.model.modules() if isinstance(module, GradientCheckpointingLayer)
        ]
        if not blocks:
            raise ModelError(f"expected a model with gradient checkpointing, {type(self.model).__name__} has none")
        for block in blocks:
            # Of the block alone: what is inside, dropout above all, stays in evaluation mode.
            block.training = block.gradient_checkpointing = True
            block._gradient_checkpointing_func = again
        try:
            yield
        finally:
            for block in blocks:
                block.training = block.gradient_checkpointing = False

    def parameters(self, version: str) -> dict[str, nn.Parameter]:
        """A version's own tensors by PEFT's names, in a fixed order; float32 whatever the base is.

        In a float32 bank they lie in the stacks; otherwise `refresh` copies what has changed into them.
        """
        slot, rank = self._adapter(version), self._shape[version].rank
        found: dict[str, nn.Parameter] = {}
        for name, layer in self.layers.items():
            if version not in layer.trained:
                down, up = layer.down[slot, :rank].float(), layer.up[slot, :rank].float().T
                layer.trained[version] = Factors(nn.Parameter(down), nn.Parameter(up))
            own = layer.trained[version]
            found[f"{name}.lora_A.weight"] = cast("nn.Parameter", own.down)
            found[f"{name}.lora_B.weight"] = cast("nn.Parameter", own.up)
        self._seen.setdefault(version, math.nan)
        return found

    def refresh(self, versions: Sequence[str]) -> tuple[int, ...]:
        """Bring the stacks up to date with what was trained.

        Returns:
            The revision of each version: it differs whenever the version's values differ, and from those of all others,
            dropped ones of the same name among them. Caches of what a version computed are good for one revision.
        """
        return tuple(self._revision(version) for version in versions)

    def _revision(self, version: str) -> int:
        self.slot(version)
        if version not in self._seen:
            return self._revisions[version]
        tensors = [tensor.detach() for tensor in self.parameters(version).values()]
        norms = torch.stack(torch._foreach_norm(tensors)).double()
        sums = torch.stack([tensor.sum() for tensor in tensors]).double()
        weights = torch.arange(1, len(tensors) + 1, dtype=torch.float64, device=sums.device)
        mark = float((norms * weights).sum() + (sums * weights.flip(0)).sum())
        if mark != self._seen[version]:
            self._seen[version], self._revisions[version] = mark, next(self._next_revision)
            self._publish(version)
        return self._revisions[version]

    def _publish(self, version: str) -> None:
        slot, rank = self._slots[version], self._shape[version].rank
        with torch.no_grad():
            for layer in self.layers.values():
                own = layer.trained[version]
                if own.down.data_ptr() != layer.down[slot].data_ptr():
                    layer.down[slot, :rank] = own.down
                    layer.up[slot, :rank] = own.up.T

    # Storage

    def _adapter(self, version: str) -> int:
        slot = self.slot(version)
        if slot == 0:
            raise PolicyError(f"expected an adapter among {', '.join(self.versions[1:]) or 'none'}, got the base")
        return slot

    def _scalings(self) -> list[float]:
        scalings = [0.0] * self._capacity
        for version, shape in self._shape.items():
            scalings[self._slots[version]] = shape.alpha / shape.rank
        return scalings

    def _check(self, factors: Mapping[str, Factors], shape: LoraSettings) -> None:
        for name, own in factors.items():
            if name not in self.layers:
                raise ModelError(f"expected layers of {type(self.model).__name__}, it has no linear layer {name}")
            wide, tall = self.layers[name].size
            if own.down.shape != (shape.rank, wide) or own.up.shape != (tall, shape.rank):
                raise ModelError(
                    f"expected factors [{shape.rank}, {wide}] and [{tall}, {shape.rank}] for {name}, "
                    f"got {list(own.down.shape)} and {list(own.up.shape)}"
                )

    def _grow(self, capacity: int, rank: int) -> None:
        with torch.no_grad():
            for layer in self.layers.values():
                for which in ("down", "up"):
                    old = getattr(layer, which)
                    new = old.new_zeros(capacity, rank, old.shape[2])
                    new[: old.shape[0], : old.shape[1]] = old
                    setattr(layer, which, new)
        self._free += range(max(self._capacity, 1), capacity)
        self._capacity, self._rank = capacity, rank
        self._point_parameters()

    def _point_parameters(self) -> None:
        """Have the parameters of a float32 bank lie in the new stacks; optimizers keep them as they are."""
        for layer in self.layers.values():
            for version, own in layer.trained.items():
                slot, rank = self._slots[version], self._shape[version].rank
                if layer.down.dtype == torch.float32:
                    own.down.data = layer.down[slot, :rank]
                    own.up.data = layer.up[slot, :rank].T


def _ceil(rank: int) -> int:
    return -(-rank // _RANK_STEP) * _RANK_STEP


def _wrapped(model: PreTrainedModel, router: Router) -> dict[str, BankLinear]:
    """Replace every linear layer but the vocabulary head."""
    from transformers.pytorch_utils import Conv1D

    head = cast("Any", model).get_output_embeddings()
    like = next(model.parameters())
    found = {}
    for name, module in list(model.named_modules()):
        if module is head:
            continue
        if isinstance(module, Conv1D):
            size = module.weight.shape[0], module.weight.shape[1]
        elif hasattr(module, "in_features") and hasattr(module, "out_features"):  # quantised ones too
            size = int(module.in_features), int(module.out_features)
        else:
            continue
        parent, _, leaf = name.rpartition(".")
        found[name] = BankLinear(module, size, router, name, like)
        setattr(model.get_submodule(parent), leaf, found[name])
    if not found:
        raise ModelError(f"expected linear layers in {type(model).__name__}, it has none")
    return found
