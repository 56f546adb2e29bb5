"""Policies on disk, in PEFT's file format: what is saved here loads in PEFT and vLLM, and plain LoRA of PEFT loads here."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rtg_agents.bank import PolicyBank
from rtg_agents.lora import LoraSettings
from rtg_agents.routing import Factors
from rtg_env.errors import ModelError

_FILE: Final = "adapter_model.safetensors"
_CONFIG: Final = "adapter_config.json"
_PREFIX: Final = "base_model.model."
_PLAIN: Final[Mapping[str, tuple[object, ...]]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (False, None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "layer_replication": (None, []),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, [], {}),
}
"""What a config may say: anything else is not a sum of low-rank updates of linear layers."""


def write_adapter(
    bank: PolicyBank, version: str, folder: Path, *, model_id: str, extra: Mapping[str, str] | None = None
) -> None:
    """Write a version; the folder appears complete or not at all.

    Args:
        bank: Holds the version.
        version: Which one.
        folder: Where to; replaced if it exists.
        model_id: Named as the base.
        extra: Further text files by name, written along with it.

    Raises:
        PolicyError: If there is no such version, or it is the base.
        OSError: If it cannot be written.
    """
    factors, shape = bank.factors(version), bank.shape(version)
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        tensors = {}
        for name, own in factors.items():
            tensors[f"{_PREFIX}{name}.lora_A.weight"] = own.down.float().cpu().contiguous()
            tensors[f"{_PREFIX}{name}.lora_B.weight"] = own.up.float().cpu().contiguous()
        save_file(tensors, scratch / _FILE)
        _config(bank, shape, model_id).save_pretrained(str(scratch))
        for name, text in (extra or {}).items():
            (scratch / name).write_text(text, encoding="utf-8")
        scratch.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(scratch, folder)
    except SafetensorError as error:  # how safetensors reports a full disk
        raise OSError(str(error)) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def read_adapter(bank: PolicyBank, folder: Path, *, model_id: str) -> tuple[dict[str, Factors], LoraSettings]:
    """Factors and shape of a saved adapter.

    Raises:
        ModelError: If the folder holds no plain safetensors LoRA adapter that fits the base model.
    """
    if not (folder / _FILE).is_file():
        raise ModelError(f"expected {_FILE} in {folder}, it is not there (other formats are never loaded)")
    try:
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / _FILE)
        for key, allowed in _PLAIN.items():
            if config.get(key, allowed[0]) not in allowed:
                raise ModelError(f"{key} is {config[key]!r}, only plain LoRA of linear layers is supported")
        return _factors(bank, config, tensors)
    except (
        OSError,
        ValueError,
        RuntimeError,
        KeyError,
        TypeError,
        AttributeError,
        SafetensorError,
        ModelError,
    ) as error:
        raise ModelError(f"expected an adapter of {model_id} in {folder}, it does not fit: {error}") from error


def _factors(
    bank: PolicyBank, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> tuple[dict[str, Factors], LoraSettings]:
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        layer, _, which = name.removeprefix(_PREFIX).rpartition(".lora_")
        if not name.startswith(_PREFIX) or which not in ("A.weight", "B.weight") or layer not in bank.layers:
            raise ModelError(f"{name} is no factor of one of its linear layers")
        if not torch.isfinite(tensor).all():
            raise ModelError(f"{name} holds NaN or infinity")
        found.setdefault(layer, {})[which[0]] = tensor.float()
    if not found:
        raise ModelError("it holds no factors")
    shape = LoraSettings(rank=max(own["A"].shape[0] for own in found.values()), alpha=_alpha(config, ""))
    factors = {}
    for layer, own in found.items():
        rank = own["A"].shape[0]
        # One scaling per version: what a layer scales differently goes into its second factor.
        ratio = _scaling(config, layer, rank) / (shape.alpha / shape.rank)
        missing = shape.rank - rank
        down = torch.nn.functional.pad(own["A"], (0, 0, 0, missing))
        up = torch.nn.functional.pad(own["B"], (0, missing))
        factors[layer] = Factors(down, up if ratio == 1.0 else up * ratio)
    return factors, shape


def _scaling(config: Mapping[str, Any], layer: str, rank: int) -> float:
    return _alpha(config, layer) / (rank**0.5 if config.get("use_rslora") else rank)


def _alpha(config: Mapping[str, Any], layer: str) -> float:
    from peft.utils.other import get_pattern_key

    patterns: dict[str, float] = config.get("alpha_pattern") or {}
    return float(patterns.get(get_pattern_key(list(patterns), layer), config["lora_alpha"]))


def _config(bank: PolicyBank, shape: LoraSettings, model_id: str) -> Any:
    import peft
    from transformers.pytorch_utils import Conv1D

    alpha: Any = int(shape.alpha) if float(shape.alpha).is_integer() else shape.alpha
    return peft.LoraConfig(
        r=shape.rank,
        lora_alpha=alpha,
        target_modules=sorted({name.rpartition(".")[2] for name in bank.layers}),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
        fan_in_fan_out=all(isinstance(layer.base, Conv1D) for layer in bank.layers.values()),
        base_model_name_or_path=model_id,
        inference_mode=True,
    )
