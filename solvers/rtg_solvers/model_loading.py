"""The model of a run, loaded as its config says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rtg_agents.models import resolve_model
from rtg_agents.progress import Progress
from rtg_solvers.methods.common import RunConfig

if TYPE_CHECKING:
    from rtg_agents.hf import TorchBackend


def load_backend(
    config: RunConfig, progress: Progress, *, offline: bool, cache_dir: Path | None, model: str = ""
) -> TorchBackend:
    """The base model of a run, without its adapters.

    Args:
        config: Says which model, on which device, in which type, and the shape of adapters.
        progress: Told of fetching and loading.
        offline: Never fetch anything.
        cache_dir: Where fetched models are kept; none: the default place.
        model: Another model than the run's own.

    Raises:
        ConfigError: If there is no such device.
        ModelError: If the model cannot be found or loaded.
    """
    from rtg_agents.hf import TorchBackend

    name = model or config.model
    folder = resolve_model(name, offline=offline, cache_dir=cache_dir, progress=progress)
    progress.message(f"Loading {name} ..")
    return TorchBackend.load(folder, model_id=name, lora=config.lora, device=config.device, dtype=config.dtype)
