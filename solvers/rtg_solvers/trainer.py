"""One small training loop for any number of policies at once: micro-batches, clipping and Adam per policy, exact resume.

A step is given every sequence of every policy and an objective that says what each of them adds to its policy's loss.
Policies share nothing but the frozen base, so the gradients of one batch are those of separate ones; what would couple
them (the gradient norm, the optimizer, the totals that a loss is divided by) is kept apart.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rtg_agents.hf import Evaluated, TorchBackend
from rtg_agents.policy import TokenSequence
from rtg_env.errors import PolicyError, RunError
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


class Trainer:
    """Trains policies of a backend.

    Args:
        backend: Holds them; everything else in it stays frozen.
        versions: Which ones.
        settings: Of the optimizer.
        values: Whether each policy gets a value head, a linear map of the last hidden state (PPO).
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
        if values:
            size, device = int(backend.bank.model.config.hidden_size), backend.bank.device
            for own in self._parameters.values():
                own["value.weight"] = torch.nn.Parameter(torch.zeros(size, device=device))
                own["value.bias"] = torch.nn.Parameter(torch.zeros(1, device=device))
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
            units: Places that must meet in one micro-batch, such as the pairs of a preference loss; default: none.
            entropy: Whether the objective reads entropies.

        Returns:
            Figures by version, of those that had sequences.

        Raises:
            PolicyError: If no sequence is of a policy in training.
        """
        trained = [version for version in self._parameters if any(s.policy == version for s in sequences)]
        if sequences and not trained:
            raise PolicyError(f"expected sequences of {', '.join(self._parameters)}, got some of {sequences[0].policy}")
        for version in trained:
            self._optimizers[version].zero_grad(set_to_none=True)
        losses = dict.fromkeys(trained, 0.0)
        with self._backend.bank.checkpointed() if self._settings.checkpointing else nullcontext():
            for places in self._micro_batches(sequences, units or [[place] for place in range(len(sequences))]):
                chosen = [sequences[place] for place in places]
                said = self._backend.evaluate(chosen, trained=trained, entropy=entropy, hidden=self._values)
                loss_S = objective(self._with_values(said, chosen), places)
                loss_S.sum().backward()  # type: ignore[no-untyped-call]  # untyped in torch
                for sequence, loss in zip(chosen, loss_S.tolist(), strict=True):
                    if sequence.policy in losses:
                        losses[sequence.policy] += loss
        figures = {version: StepFigures(losses[version], self._update(version)) for version in trained}
        self.steps_done += 1
        return figures

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
        heads = [self._parameters[sequence.policy] for sequence in sequences]
        weights = torch.stack([own["value.weight"] for own in heads])
        biases = torch.stack([own["value.bias"] for own in heads])
        values = torch.einsum("sth,sh->st", said.hidden.float(), weights) + biases
        return replace(said, values=values * said.mask)

    def _update(self, version: str) -> float:
        own = list(self._parameters[version].values())
        norm = float(torch.nn.utils.clip_grad_norm_(own, self._settings.max_grad_norm))
        for group in self._optimizers[version].param_groups:
            group["lr"] = self._settings.rate(self.steps_done)
        self._optimizers[version].step()
        return norm

    # Save and resume

    def save(self, folder: Path) -> None:
        """Write parameters, optimizers and generators; the folder is complete or as it was before."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
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
            shutil.rmtree(scratch, ignore_errors=True)

    def resume(self, folder: Path) -> bool:
        """Go on from a checkpoint, exactly; False if there is none, or it is damaged: training then begins anew.

        A kill between the two renames of `save` leaves only the previous checkpoint, under its own hidden name.
        """
        old = folder.with_name(f".{folder.name}-old")
        if not folder.exists() and old.exists():
            os.replace(old, folder)
        if not (folder / _STATE).is_file():
            return False
        try:
            state = json.loads((folder / _STATE).read_text())
            tensors = load_file(folder / _TENSORS, device=str(self._backend.bank.device))
            steps_done = int(state["steps_done"])
            updates = {version: int(state["updates"][version]) for version in self._parameters}
            streams = {name: state["generators"][name] for name in self._generators}
            wanted = [f"parameter/{version}/{name}" for version, own in self._parameters.items() for name in own]
            wanted += [
                f"{moment}/{version}/{name}"
                for version, own in self._parameters.items()
                if updates[version]
                for name in own
                for moment in _MOMENTS
            ]
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            _LOG.warning("%s is damaged (%s): training begins anew, played dialogues are kept", folder, error)
            return False
        if missing := [name for name in wanted if name not in tensors]:
            _LOG.warning("%s lacks %s: training begins anew, played dialogues are kept", folder, missing[0])
            return False
        self._restore(tensors, updates)
        for name, rng in self._generators.items():
            rng.bit_generator.state = streams[name]
        self.steps_done = steps_done
        return True

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
