"""The policy bank at the sizes people train: random weights of published shapes, against what the hardware can do.

Speed does not depend on what weights say, so nothing is downloaded. Decoding is compared with the time to read once from
memory what a step must read (weights, adapters, keys and values), training with the machine's own matrix products: both
limits are measured in the same process.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from bank_parts import Decoder, fill, versions
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rtg_agents import LoraSettings, TokenSequence, TorchBackend
from rtg_solvers.optimizer import OptimizerSettings
from rtg_solvers.trainer import Trainer

SHAPES = {
    "tiny": {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
    "3b": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
}
"""Of Llama 3.1 and 3.2 (Grattafiori et al. 2024, arXiv:2407.21783); `tiny` tries the code on any machine."""


def random_backend(shape: str, device: str, *, policies: int) -> TorchBackend:
    """A model of that shape with random weights and policies, bfloat16 on a GPU."""
    tiny = shape == "tiny"
    config = LlamaConfig(
        **SHAPES[shape],
        vocab_size=1024 if tiny else 128_256,
        num_key_value_heads=2 if tiny else 8,
        head_dim=32 if tiny else 128 if shape != "1b" else 64,
        tie_word_embeddings=shape != "8b",
        max_position_embeddings=8192,
    )
    dtype = torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
    with torch.device(device), torch.random.fork_rng(devices=[0] if dtype == torch.bfloat16 else []):
        torch.manual_seed(0)  # only inside the fork: transformers initialises from the global generator
        model = LlamaForCausalLM._from_config(config, dtype=dtype).eval()
    backend = TorchBackend(model, _tokenizer(), model_id=f"random-{shape}", lora=LoraSettings(rank=16))
    fill(backend, policies)
    return backend


def _tokenizer() -> PreTrainedTokenizerFast:
    """Never asked to say anything: rows are made of random ids."""
    raw = Tokenizer(models.WordLevel({"<end>": 0, "a": 1}, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>", unk_token="a")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    return tokenizer


class Limits(NamedTuple):
    """What the machine can do."""

    bytes_per_s: float
    """Read from memory, by a sum over a large tensor."""

    flops: float
    """Per second, in a square matrix product of the model's type."""


def limits(device: str, dtype: torch.dtype, seconds: Callable[[Callable[[], object]], float]) -> Limits:
    """Measure them: the best of five tries."""
    big = torch.device(device).type == "cuda"
    block = torch.zeros((4 << 30) if big else (256 << 20), dtype=torch.uint8, device=device).view(torch.int64)
    read = min(seconds(block.amax) for _ in range(5))
    num_bytes = block.nbytes
    del block
    size = 8192 if big else 1024
    one = torch.randn(size, size, device=device).to(dtype)
    product = min(seconds(lambda: one @ one) for _ in range(5))
    return Limits(num_bytes / read, 2 * size**3 / product)


def floor_bytes(backend: TorchBackend, rows: int, context: int) -> int:
    """What one decoding step must read: weights but the input embedding, stacks of the policies in use, keys and values."""
    model, bank = backend.bank.model, backend.bank
    config = model.config
    tied = bool(config.tie_word_embeddings)
    weights = sum(p.nbytes for p in model.parameters())
    weights -= 0 if tied else model.get_input_embeddings().weight.nbytes
    stacks = sum((layer.down.nbytes + layer.up.nbytes) for layer in bank.layers.values())
    size = next(model.parameters()).element_size()
    keys = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * size
    return int(weights + stacks + keys * rows * context)


def measure(shape: str, device: str, rounds: int, time_of: Callable[[Callable[[], object]], float]) -> dict[str, Any]:
    """Decoding and training figures of one shape.

    Args:
        shape: Of `SHAPES`.
        device: Where to.
        rounds: Medians are over this many.
        time_of: Seconds of some work, the device's included.
    """
    small = shape == "tiny"
    policies = 4 if small else 16
    backend = random_backend(shape, device, policies=policies)
    dtype = next(backend.bank.model.parameters()).dtype
    limit = limits(device, dtype, time_of)
    figures: dict[str, Any] = {
        "parameters": sum(p.numel() for p in backend.bank.model.parameters()),
        "policies": policies,
        "read_gb_per_s": round(limit.bytes_per_s / 1e9, 1),
        "matmul_tflops": round(limit.flops / 1e12, 1),
        "decode": [],
    }
    for rows in (8,) if small else (64, 256):
        prompt, tokens = (16, 4) if small else (256, 16)
        work = Decoder(
            backend,
            [version for version in versions(policies) for _ in range(rows // policies)],
            tokens,
            prompt=prompt,
            highest_id=1000,
        )
        work()
        step = statistics.median(time_of(work) for _ in range(rounds)) / tokens
        floor = floor_bytes(backend, rows, prompt + tokens // 2) / limit.bytes_per_s
        figures["decode"].append(
            {
                "rows": rows,
                "context": prompt,
                "ms_per_step": round(1e3 * step, 3),
                "tokens_per_s": round(rows / step),
                "floor_ms": round(1e3 * floor, 3),
                "floor : step": round(floor / step, 3),
            }
        )
        del work
    figures["train"] = _train(backend, policies, (2, 32) if small else (4, 512), rounds, limit, time_of)
    return figures


def _train(
    backend: TorchBackend,
    policies: int,
    size: tuple[int, int],
    rounds: int,
    limit: Limits,
    time_of: Callable[[Callable[[], object]], float],
) -> dict[str, Any]:
    """Steps of all policies at once: forward, backward, clipping, AdamW.

    The base is frozen: its weights get no gradient, so a token costs 2 P flops forward and 2 P back.
    """
    count, length = size
    rng = np.random.default_rng(0)
    rows = [
        TokenSequence.of_sentence(version, tuple(map(int, ids[:1])), list(map(int, ids[1:])))
        for version in versions(policies)
        for ids in rng.integers(3, 1000, (count, length))
    ]
    trainer = Trainer(backend, versions(policies), OptimizerSettings(micro_batch=8))

    def work() -> None:
        trainer.step(rows, lambda said, _: -said.logps.mean(1))

    cuda = backend.bank.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    work()
    spent = statistics.median(time_of(work) for _ in range(rounds))
    tokens = len(rows) * (length - 1)
    model = backend.bank.model
    read = sum(p.numel() for p in model.parameters())
    read -= 0 if model.config.tie_word_embeddings else model.get_input_embeddings().weight.numel()
    return {
        "rows": len(rows),
        "tokens": length,
        "ms": round(1e3 * spent, 1),
        "tokens_per_s": round(tokens / spent),
        "share of the matmul rate": round(4 * read * tokens / spent / limit.flops, 3),
        "peak_memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if cuda else None,
    }
