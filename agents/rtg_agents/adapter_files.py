"""Policies on disk, in PEFT's file format: what is saved here loads in PEFT and vLLM, and plain LoRA of PEFT loads here."""

from __future__ import annotations

import json
import math
import os
import re
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
    "use_qalora": (False, None),
    "alora_invocation_tokens": (None,),
    "velora_config": (None,),
    "monteclora_config": (None,),
    "use_bdlora": (None,),
    "arrow_config": (None,),
    "kasa_config": (None,),
    # The other ways of PEFT to begin change the base model's weights: the factors alone are another policy.
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal", "mica"),
}
"""What a config may say: anything else is not a sum of low-rank updates of linear layers."""

_MAX_CONFIG_BYTES: Final = 1 << 20

_SLOW_PATTERN: Final = re.compile(r"\([^()]*[*+{].*\)[*+{?]|(?:.*[*+{]){5}", re.DOTALL)
"""Regular expressions that may take for ever: a repeated group that repeats something, or many repetitions."""


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
        return _factors(bank, _plain_config(folder / _CONFIG), load_file(folder / _FILE))
    except (
        OSError,
        ValueError,
        RuntimeError,
        TypeError,
        ArithmeticError,
        re.error,
        SafetensorError,
        ModelError,
    ) as error:
        raise ModelError(f"expected an adapter of {model_id} in {folder}, it does not fit: {error}") from error


def _plain_config(path: Path) -> Mapping[str, Any]:
    """A config that says plain LoRA of linear layers."""
    if (size := path.stat().st_size) > _MAX_CONFIG_BYTES:
        raise ModelError(f"{path.name} has {size} bytes, at most {_MAX_CONFIG_BYTES} are read")
    config = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise ModelError(f"{path.name} holds no JSON object but {type(config).__name__}")
    for key, allowed in _PLAIN.items():
        if config.get(key, allowed[0]) not in allowed:
            raise ModelError(f"{key} is {config[key]!r}, only plain LoRA of linear layers is supported")
    for key in ("r", "lora_alpha"):
        if not isinstance(config.get(key), int | float):
            raise ModelError(f"{key} is {config.get(key)!r}, a number is needed")
    for key in ("rank_pattern", "alpha_pattern"):
        _check_patterns(key, config.get(key) or {})
    return config


def _check_patterns(key: str, patterns: Any) -> None:
    if not isinstance(patterns, dict):
        raise ModelError(f"{key} is {patterns!r}, an object of numbers is needed")
    for pattern in patterns:
        if len(pattern) > 200 or _SLOW_PATTERN.search(pattern):
            raise ModelError(f"{key} has the pattern {pattern[:200]!r}, which could match for ever")


def _factors(
    bank: PolicyBank, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> tuple[dict[str, Factors], LoraSettings]:
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        layer, _, which = name.removeprefix(_PREFIX).rpartition(".lora_")
        if not name.startswith(_PREFIX) or which not in ("A.weight", "B.weight") or layer not in bank.layers:
            raise ModelError(f"{name} is no factor of one of its linear layers")
        if not tensor.is_floating_point():
            raise ModelError(f"{name} holds {tensor.dtype}, floating-point numbers are needed")
        found.setdefault(layer, {})[which[0]] = tensor.float()
    if not found:
        raise ModelError("it holds no factors")
    ranks = {layer: _checked_rank(bank, config, layer, own) for layer, own in found.items()}
    shape = LoraSettings(rank=max(ranks.values()), alpha=_setting(config, "alpha_pattern", "lora_alpha", ""))
    factors = {}
    for layer, own in found.items():
        # One scaling per version: what a layer scales differently goes into its second factor.
        ratio = _scaling(config, layer, ranks[layer]) / (shape.alpha / shape.rank)
        missing = shape.rank - ranks[layer]
        down = torch.nn.functional.pad(own["A"], (0, 0, 0, missing))
        up = torch.nn.functional.pad(own["B"], (0, missing))
        factors[layer] = Factors(down, up if ratio == 1.0 else up * ratio)
        if not (torch.isfinite(factors[layer].down).all() and torch.isfinite(factors[layer].up).all()):
            raise ModelError(f"the factors of {layer}, scaled by {ratio:g}, hold NaN or infinity")
    return factors, shape


def _checked_rank(bank: PolicyBank, config: Mapping[str, Any], layer: str, own: Mapping[str, torch.Tensor]) -> int:
    """The rank that a config gives a layer, which must be that of both factors."""
    rank = int(_setting(config, "rank_pattern", "r", layer))
    wide, tall = bank.layers[layer].size
    for which, size in (("A", (rank, wide)), ("B", (tall, rank))):
        if which not in own:
            raise ModelError(f"lora_{which} of {layer} is missing")
        if own[which].shape != size:
            raise ModelError(f"lora_{which} of {layer} has shape {list(own[which].shape)}, not {list(size)}")
    return rank


def _scaling(config: Mapping[str, Any], layer: str, rank: int) -> float:
    alpha = _setting(config, "alpha_pattern", "lora_alpha", layer)
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _setting(config: Mapping[str, Any], patterns: str, default: str, layer: str) -> float:
    """What a config says of one layer: under the first pattern that its name fits, otherwise for all."""
    from peft.utils.other import get_pattern_key

    special: Mapping[str, float] = config.get(patterns) or {}
    return float(special.get(get_pattern_key(list(special), layer), config[default]))


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
