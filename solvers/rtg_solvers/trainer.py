"""One small training loop for one adapter: gradients by micro-batches, clipping, Adam, exact save and resume."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rtg_agents.hf import TorchBackend
from rtg_agents.policy import Scored
from rtg_env.errors import RunError
from rtg_solvers.losses import policy_gradient_loss
from rtg_solvers.optimizer import OptimizerSettings

_LOG = logging.getLogger(__name__)
_STATE: Final = "state.json"
_TENSORS: Final = "state.safetensors"


@dataclass(frozen=True, slots=True)
class StepFigures:
    """What one optimizer step did."""

    loss: float
    """Of the whole step."""

    grad_norm: float
    """Before clipping."""


class AdapterTrainer:
    """Trains one adapter of a backend.

    Args:
        backend: Holds the adapter; everything else in it stays frozen.
        version: Name of the adapter.
        settings: Of the optimizer.
    """

    def __init__(self, backend: TorchBackend, version: str, settings: OptimizerSettings) -> None:
        self._backend = backend
        self._version = version
        self._settings = settings
        self._parameters = backend.parameters(version)
        self._optimizer = torch.optim.Adam(list(self._parameters.values()), lr=settings.learning_rate)
        self.steps_done = 0

    def step(self, sentences: Sequence[Scored], advantages: np.ndarray) -> StepFigures:
        """One policy-gradient step; sentences whose advantage is 0 cost nothing and are left out.

        Args:
            sentences: [S].
            advantages: [S].
        """
        # Equal prompts side by side: the backend encodes each once per micro-batch.
        useful = sorted(
            (int(i) for i in np.flatnonzero(advantages)),
            key=lambda i: (len(sentences[i].prompt_ids), sentences[i].prompt_ids),
        )
        self._optimizer.zero_grad(set_to_none=True)
        loss = 0.0
        for begin in range(0, len(useful), self._settings.micro_batch):
            rows = useful[begin : begin + self._settings.micro_batch]
            loss += self._backward([sentences[row] for row in rows], advantages[rows], len(sentences))
        norm = 0.0
        if useful:
            norm = float(torch.nn.utils.clip_grad_norm_(list(self._parameters.values()), self._settings.max_grad_norm))
            self._optimizer.step()
        self.steps_done += 1
        return StepFigures(loss=loss, grad_norm=norm)

    def _backward(self, sentences: Sequence[Scored], advantages: np.ndarray, total: int) -> float:
        for parameter in self._parameters.values():
            parameter.requires_grad_(True)
        logps, mask = self._backend.logps(self._version, sentences)
        loss = policy_gradient_loss(logps, mask, torch.tensor(advantages, dtype=logps.dtype), total)
        loss.backward()  # type: ignore[no-untyped-call]  # untyped in torch
        return float(loss.detach())

    def save(self, folder: Path) -> None:
        """Write factors and optimizer state; the folder is complete or as it was before."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            tensors = {f"parameter/{name}": p.detach().contiguous() for name, p in self._parameters.items()}
            for name, parameter in self._parameters.items():
                state = self._optimizer.state.get(parameter, {})
                tensors |= {f"{key}/{name}": value.contiguous() for key, value in state.items() if key != "step"}
            save_file(tensors, scratch / _TENSORS)
            (scratch / _STATE).write_text(json.dumps({"steps_done": self.steps_done, "updates": self._updates()}))
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
            tensors = load_file(folder / _TENSORS)
            steps_done, updates = int(state["steps_done"]), float(state["updates"])
            missing = [name for name in self._parameters if f"parameter/{name}" not in tensors]
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            _LOG.warning("%s is damaged (%s): training begins anew, played dialogues are kept", folder, error)
            return False
        if missing:
            _LOG.warning("%s lacks %s: training begins anew, played dialogues are kept", folder, missing[0])
            return False
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(tensors[f"parameter/{name}"])
                if f"exp_avg/{name}" in tensors:
                    self._optimizer.state[parameter] = {
                        "step": torch.tensor(updates),
                        "exp_avg": tensors[f"exp_avg/{name}"].clone(),
                        "exp_avg_sq": tensors[f"exp_avg_sq/{name}"].clone(),
                    }
        self.steps_done = steps_done
        return True

    def _updates(self) -> int:
        """Adam's own step count: steps without a useful sentence do not advance it."""
        state = self._optimizer.state.get(next(iter(self._parameters.values())), {})
        return int(state["step"]) if state else 0
