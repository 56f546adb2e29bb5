"""One small training loop for any number of policies at once: micro-batches, clipping and Adam per policy, exact resume.

A step is given every sequence of every policy and an objective that says what each of them adds to its policy's loss.
Policies share nothing but the frozen base, so the gradients of one batch are those of separate ones; what would couple
them (the gradient norm, the optimizer, the totals that a loss is divided by) is kept apart.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rtg_agents.hf import Evaluated, TorchBackend
from rtg_agents.policy import TokenSequence
from rtg_env.errors import ConfigError, PolicyError, RunError
from rtg_solvers.optimizer import OptimizerSettings

_LOG = logging.getLogger(__name__)
_STATE: Final = "state.json"
_TENSORS: Final = "state.safetensors"
_MOMENTS: Final = ("exp_avg", "exp_avg_sq")

Objective = Callable[[Evaluated, Sequence[int]], torch.Tensor]
"""From what the policies say about some sequences, and their places in the step, to what each adds to the loss [S].

Totals that a loss is divided by are those of the whole step: then micro-batches change nothing.
"""


@dataclass(frozen=True, slots=True)
class StepFigures:
    """What one optimizer step did to one policy."""

    loss: float
    """Of the whole step."""

    grad_norm: float
    """Before clipping."""


class _Checkpoint(NamedTuple):
    """What `Trainer.save` wrote, found to fit."""

    steps_done: int
    updates: dict[str, int]
    streams: dict[str, Any]
    tensors: dict[str, torch.Tensor]


class Trainer:
    """Trains policies of a backend.

    Args:
        backend: Holds them; everything else in it stays frozen.
        versions: Which ones.
        settings: Of the optimizer.
        values: Whether each policy gets a value head, a linear map of the last hidden state (PPO); the values of
            sequences of others, such as references, are 0.
        generators: Random generators whose state is saved and restored along with the optimizer's.
    """

    def __init__(
        self,
        backend: TorchBackend,
        versions: Sequence[str],
        settings: OptimizerSettings,
        *,
        values: bool = False,
        generators: Mapping[str, np.random.Generator] | None = None,
    ) -> None:
        self._backend = backend
        self._settings = settings
        self._values = values
        self._generators = dict(generators or {})
        self._parameters = {version: dict(backend.parameters(version)) for version in versions}
        self._no_head: dict[str, torch.Tensor] = {}
        if values:
            shapes = {"value.weight": int(backend.bank.model.config.hidden_size), "value.bias": 1}
            self._no_head = {name: torch.zeros(size, device=backend.bank.device) for name, size in shapes.items()}
            for own in self._parameters.values():
                own.update({name: torch.nn.Parameter(zeros.clone()) for name, zeros in self._no_head.items()})
        self._optimizers = {
            version: torch.optim.AdamW(
                list(own.values()), lr=settings.learning_rate, weight_decay=settings.weight_decay
            )
            for version, own in self._parameters.items()
        }
        self.steps_done = 0

    def step(
        self,
        sequences: Sequence[TokenSequence],
        objective: Objective,
        *,
        units: Sequence[Sequence[int]] | None = None,
        entropy: bool = False,
    ) -> dict[str, StepFigures]:
        """One step of every policy that has sequences.

        Args:
            sequences: Of all policies; leave out what adds nothing to a loss.
            objective: What each adds.
            units: Places that must meet in one micro-batch, such as the pairs of a preference loss; places in none
                stand alone.
            entropy: Whether the objective reads entropies.

        Returns:
            Figures by version, of those that had sequences.

        Raises:
            PolicyError: If no sequence is of a policy in training, or a loss or gradient is not finite: then no
                policy has moved.
            ConfigError: If a place is in two units.
        """
        trained = [version for version in self._parameters if any(s.policy == version for s in sequences)]
        if sequences and not trained:
            raise PolicyError(f"expected sequences of {', '.join(self._parameters)}, got some of {sequences[0].policy}")
        for version in trained:
            self._optimizers[version].zero_grad(set_to_none=True)
        losses = dict.fromkeys(trained, 0.0)
        with self._backend.bank.checkpointed() if self._settings.checkpointing else nullcontext():
            for places in self._micro_batches(sequences, _all_units(len(sequences), units or ())):
                chosen = [sequences[place] for place in places]
                said = self._backend.evaluate(chosen, trained=trained, entropy=entropy, hidden=self._values)
                loss_S = objective(self._with_values(said, chosen), places)
                if any(sequence.policy in losses for sequence in chosen):
                    loss_S.sum().backward()  # type: ignore[no-untyped-call]  # untyped in torch
                for sequence, loss in zip(chosen, loss_S.tolist(), strict=True):
                    if sequence.policy in losses:
                        losses[sequence.policy] += loss
        figures = {version: StepFigures(losses[version], self._clipped(version)) for version in trained}
        for version, figure in figures.items():
            if not math.isfinite(figure.loss + figure.grad_norm):
                raise PolicyError(
                    f"expected a finite loss and gradient of {version} in step {self.steps_done}, got {figure}; "
                    "nothing was changed: look for rewards that are not finite, or lower the learning rate"
                )
        for version in trained:
            self._update(version)
        self.steps_done += 1
        return figures

    def values(self, sequences: Sequence[TokenSequence]) -> np.ndarray:
        """[S, T] what value heads make of the situation before each sampled id, without gradients."""
        with torch.no_grad():
            said = self._with_values(self._backend.evaluate(sequences, hidden=True), sequences)
        if said.values is None:
            raise PolicyError("expected a trainer with value heads, this one has none; pass values=True")
        return np.asarray(said.values.cpu().numpy())

    def _micro_batches(self, sequences: Sequence[TokenSequence], units: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Units in batches; those of one policy with a common beginning side by side, which is then computed once."""
        order = sorted(units, key=lambda unit: (sequences[unit[0]].policy, sequences[unit[0]].ids))
        places: list[int] = []
        for unit in order:
            if places and len(places) + len(unit) > self._settings.micro_batch:
                yield places
                places = []
            places = [*places, *unit]
        if places:
            yield places

    def _with_values(self, said: Evaluated, sequences: Sequence[TokenSequence]) -> Evaluated:
        if not self._values or said.hidden is None:
            return said
        heads = [self._parameters.get(sequence.policy, self._no_head) for sequence in sequences]
        weights = torch.stack([own["value.weight"] for own in heads])
        biases = torch.stack([own["value.bias"] for own in heads])
        values = torch.einsum("sth,sh->st", said.hidden.float(), weights) + biases
        return replace(said, values=values * said.mask)

    def _clipped(self, version: str) -> float:
        own = list(self._parameters[version].values())
        return float(torch.nn.utils.clip_grad_norm_(own, self._settings.max_grad_norm))

    def _update(self, version: str) -> None:
        for group in self._optimizers[version].param_groups:
            group["lr"] = self._settings.rate(self.steps_done)
        self._optimizers[version].step()

    # Save and resume

    def save(self, folder: Path) -> None:
        """Write parameters, optimizers and generators; the folder is complete or as it was before.

        Raises:
            RunError: If it cannot be written.
        """
        scratch: Path | None = None
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
            save_file(self._tensors(), scratch / _TENSORS)
            state = {
                "steps_done": self.steps_done,
                "updates": {version: self._updates(version) for version in self._parameters},
                "generators": {name: rng.bit_generator.state for name, rng in self._generators.items()},
            }
            (scratch / _STATE).write_text(json.dumps(state))
            old = folder.with_name(f".{folder.name}-old")
            shutil.rmtree(old, ignore_errors=True)
            if folder.exists():
                os.replace(folder, old)
            os.replace(scratch, folder)
            shutil.rmtree(old, ignore_errors=True)
        except (OSError, SafetensorError) as error:  # safetensors reports a full disk as its own error
            raise RunError(
                f"expected to write a checkpoint into {folder}: {error}; free space and run the same command again"
            ) from error
        finally:
            if scratch is not None:
                shutil.rmtree(scratch, ignore_errors=True)

    def resume(self, folder: Path) -> bool:
        """Go on from a checkpoint, exactly; False if there is none, or it is damaged: training then begins anew.

        A kill between the two renames of `save` leaves only the previous checkpoint, under its own hidden name.
        """
        old = folder.with_name(f".{folder.name}-old")
        if not folder.exists() and old.exists():
            os.replace(old, folder)
        if not folder.exists():
            return False
        try:
            found = self._read(folder)
        except (OSError, ValueError, KeyError, TypeError, OverflowError, SafetensorError) as error:
            _LOG.warning("%s is damaged (%s): training begins anew, played dialogues are kept", folder, error)
            return False
        self._restore(found.tensors, found.updates)
        for name, rng in self._generators.items():
            rng.bit_generator.state = found.streams[name]
        self.steps_done = found.steps_done
        return True

    def _read(self, folder: Path) -> _Checkpoint:
        """A checkpoint, all of it checked before anything is taken over."""
        state = json.loads((folder / _STATE).read_text())
        tensors = load_file(folder / _TENSORS, device=str(self._backend.bank.device))
        updates = {version: int(state["updates"][version]) for version in self._parameters}
        streams = {name: state["generators"][name] for name in self._generators}
        for name, rng in self._generators.items():
            copy.deepcopy(rng.bit_generator).state = streams[name]
        for version, own in self._parameters.items():
            for name, parameter in own.items():
                for kind in ("parameter", *(_MOMENTS if updates[version] else ())):
                    tensor = tensors.get(f"{kind}/{version}/{name}")
                    if tensor is None or tensor.shape != parameter.shape:
                        raise ValueError(f"it lacks {kind}/{version}/{name} of shape {list(parameter.shape)}")
        return _Checkpoint(int(state["steps_done"]), updates, streams, tensors)

    def _tensors(self) -> dict[str, torch.Tensor]:
        tensors = {}
        for version, own in self._parameters.items():
            state: Mapping[Any, Any] = self._optimizers[version].state
            for name, parameter in own.items():
                tensors[f"parameter/{version}/{name}"] = parameter.detach().contiguous()
                for moment in _MOMENTS if parameter in state else ():
                    tensors[f"{moment}/{version}/{name}"] = state[parameter][moment].contiguous()
        return tensors

    def _restore(self, tensors: Mapping[str, torch.Tensor], updates: Mapping[str, int]) -> None:
        with torch.no_grad():
            for version, own in self._parameters.items():
                for name, parameter in own.items():
                    parameter.copy_(tensors[f"parameter/{version}/{name}"])
                    if updates[version]:
                        self._optimizers[version].state[parameter] = {
                            "step": torch.tensor(float(updates[version])),
                            # In the parameter's own layout: the second factor lies transposed.
                            **{
                                m: torch.empty_like(parameter).copy_(tensors[f"{m}/{version}/{name}"]) for m in _MOMENTS
                            },
                        }

    def _updates(self, version: str) -> int:
        """Adam's own step count: steps without a sequence of this policy do not advance it."""
        state: Mapping[Any, Any] = self._optimizers[version].state.get(
            next(iter(self._parameters[version].values())), {}
        )
        return int(state["step"]) if state else 0


def _all_units(count: int, units: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """The units, and one of its own for each other place."""
    named = [place for unit in units for place in unit]
    if len(set(named)) != len(named):
        raise ConfigError(f"expected each place in one unit at most, got {[list(unit) for unit in units]}")
    return [*units, *([place] for place in sorted(set(range(count)).difference(named)))]
