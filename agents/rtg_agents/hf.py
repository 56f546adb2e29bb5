"""The torch backend: one base model, any number of LoRA adapters, sentences and log-probabilities in batches.

A call may mix policies; rows are grouped by policy and an adapter is switched on once per group. Prompts are padded on
the left with explicit position ids; what all prompts of a batch share (a system prompt, a template) is encoded once,
and so is a prompt that several rows share (a group of attacks on one goal), in training too.

Sampling draws one uniform number per (seed, position) and inverts the distribution function, so that a row's sentence
does not depend on its neighbours, up to floating-point ties. Nothing reads or moves a global random state.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
import torch
from safetensors import SafetensorError

from rtg_agents.lora import LoraSettings
from rtg_agents.models import fingerprint, quiet_transformers
from rtg_agents.policy import BASE, Completion, Request, Sampling, Scored
from rtg_agents.tokens import ChatEncoder, ModelTokenizer
from rtg_env.errors import MissingExtraError, ModelError, PolicyError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_ADAPTER_FILE: Final = "adapter_model.safetensors"
_COMPACT_BELOW: Final = 0.75
"""Finished rows are dropped from the batch when the live share falls below this."""


class TorchBackend:
    """Generates and scores with a causal language model and its adapters.

    Args:
        model: The base model, in evaluation mode; it is frozen here.
        tokenizer: Its tokenizer, with a chat template.
        model_id: Written into saved adapters as their base.
        lora: Shape of new adapters.
        max_batch: Most rows in one forward call.
        fingerprint: Hash of the model's files, so that a run can tell that they have changed.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        model_id: str,
        lora: LoraSettings | None = None,
        max_batch: int = 64,
        fingerprint: str = "",
    ) -> None:
        self._base = model.eval().requires_grad_(False)
        self._peft: PeftModel | None = None
        self._active = BASE
        self._end_ids = _end_ids(model, tokenizer)
        self._max_positions = int(getattr(model.config, "max_position_embeddings", 1 << 30))
        self.chat = ChatEncoder(tokenizer)
        self.model_id = model_id
        self.lora = lora or LoraSettings()
        self.max_batch = max_batch
        self.fingerprint = fingerprint

    @classmethod
    def load(
        cls, folder: Path, *, model_id: str, lora: LoraSettings | None = None, max_batch: int = 64
    ) -> TorchBackend:
        """A backend over a model folder (see `rtg_agents.models.resolve_model`), in float32.

        Raises:
            ModelError: If transformers cannot read the folder.
        """
        try:
            import transformers
        except ImportError as error:
            raise MissingExtraError("transformers", "llm") from error
        try:
            with quiet_transformers():
                model = transformers.AutoModelForCausalLM.from_pretrained(
                    folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, local_files_only=True
                )
                tokenizer = transformers.AutoTokenizer.from_pretrained(
                    folder, trust_remote_code=False, local_files_only=True
                )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise ModelError(
                f"expected a causal language model in {folder}, transformers cannot load it: {error}"
            ) from error
        return cls(model, tokenizer, model_id=model_id, lora=lora, max_batch=max_batch, fingerprint=fingerprint(folder))

    # Adapters

    @property
    def versions(self) -> tuple[str, ...]:
        """Names that requests may use."""
        return (BASE, *(self._peft.peft_config if self._peft is not None else ()))

    def create(self, version: str, *, seed: int) -> None:
        """Add a fresh adapter: A is drawn from `seed`, B is zero, so that it starts as the base policy."""
        self._check_new(version)
        import peft

        config = peft.LoraConfig(
            r=self.lora.rank,
            lora_alpha=cast("int", self.lora.alpha),
            target_modules="all-linear",
            lora_dropout=0.0,
            bias="none",
            task_type="CAUSAL_LM",
        )
        with _undisturbed():
            if self._peft is None:
                self._peft = cast("PeftModel", peft.get_peft_model(self._base, config, adapter_name=version))
                self._peft.eval()
            else:
                self._peft.add_adapter(version, config)
        self._draw_factors(version, seed)
        self._activate(BASE)

    @property
    def tokenizer(self) -> ModelTokenizer:
        """Of the model, for the token level of the game."""
        vocab_size = int(self._base.get_input_embeddings().weight.shape[0])
        return ModelTokenizer(chat=self.chat, vocab_size=vocab_size, end_ids=tuple(sorted(self._end_ids)))

    def load_adapter(self, version: str, folder: Path) -> None:
        """Add a saved adapter under a version name.

        Raises:
            ModelError: If the folder holds no safetensors adapter that fits the base model.
        """
        self._check_new(version)
        import peft

        if not (folder / _ADAPTER_FILE).is_file():
            raise ModelError(f"expected {_ADAPTER_FILE} in {folder}, it is not there (other formats are never loaded)")
        try:
            with _undisturbed():
                if self._peft is None:
                    loaded = peft.PeftModel.from_pretrained(
                        self._base, str(folder), adapter_name=version, local_files_only=True
                    )
                    self._peft = loaded.eval()
                else:
                    self._peft.load_adapter(str(folder), adapter_name=version, local_files_only=True)
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            raise ModelError(f"expected an adapter of {self.model_id} in {folder}, it does not fit: {error}") from error
        finally:
            self._active = ""  # PEFT may have just switched something on
        self._activate(BASE)

    def save_adapter(self, version: str, folder: Path, *, extra: Mapping[str, str] | None = None) -> None:
        """Write an adapter in PEFT's file format; the folder appears complete or not at all.

        Args:
            version: Which one.
            folder: Where to; replaced if it exists.
            extra: Further text files by name, written along with it.

        Raises:
            PolicyError: If there is no such adapter.
            OSError: If it cannot be written.
        """
        import peft
        from safetensors.torch import save_file

        model = self._require(version)
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            state = peft.get_peft_model_state_dict(model, adapter_name=version)
            save_file({name: tensor.detach().contiguous() for name, tensor in state.items()}, scratch / _ADAPTER_FILE)
            config = model.peft_config[version]
            config.base_model_name_or_path = self.model_id
            config.inference_mode = True
            config.save_pretrained(str(scratch))
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

    def drop(self, version: str) -> None:
        """Forget an adapter."""
        model = self._require(version)
        if len(model.peft_config) > 1:
            self._activate(BASE)
            model.delete_adapter(version)

    def parameters(self, version: str) -> dict[str, torch.nn.Parameter]:
        """The adapter's own tensors by name, in a fixed order."""
        marker = f".{version}."
        return {name: p for name, p in self._require(version).named_parameters() if marker in name}

    # Generation

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """One completion per request, in order.

        Raises:
            PolicyError: If a request names an unknown version, or its prompt is longer than the model's context.
        """
        prompts = [self.chat.encode(request.messages) for request in requests]
        for request, prompt in zip(requests, prompts, strict=True):
            self._check_length(request.policy, len(prompt) + request.sampling.max_new_tokens)
        results: list[Completion | None] = [None] * len(requests)
        for policy, rows in _grouped([request.policy for request in requests], self.max_batch):
            self._activate(policy)
            chunk = [requests[row] for row in rows]
            sampled = self._sample([prompts[row] for row in rows], [r.sampling for r in chunk], [r.seed for r in chunk])
            for row, (ids, logps) in zip(rows, sampled, strict=True):
                results[row] = self._completion(prompts[row], ids, logps)
        return cast("list[Completion]", results)

    def _completion(self, prompt: list[int], ids: list[int], logps: list[float]) -> Completion:
        ended = ids[-1] in self._end_ids
        text = self.chat.decode(ids[:-1] if ended else ids)
        return Completion(
            text=text.strip(),
            prompt_ids=tuple(prompt),
            token_ids=tuple(ids),
            logps=tuple(logps),
            finish_reason="stop" if ended else "length",
        )

    @torch.no_grad()
    def _sample(
        self, prompts: list[list[int]], samplings: list[Sampling], seeds: list[int]
    ) -> list[tuple[list[int], list[float]]]:
        """Sample one sentence per prompt with the adapter that is on now."""
        from transformers import DynamicCache

        uniforms = [
            np.random.default_rng(seed).random(s.max_new_tokens) for seed, s in zip(seeds, samplings, strict=True)
        ]
        temperatures = torch.tensor([s.temperature for s in samplings])
        out: list[tuple[list[int], list[float]]] = [([], []) for _ in prompts]
        live = list(range(len(prompts)))
        cache = DynamicCache()
        logits, mask, positions = self._prefill(prompts, cache)
        for step in range(max(s.max_new_tokens for s in samplings)):
            draws = torch.tensor([uniforms[row][step] if step < len(uniforms[row]) else 0.5 for row in live])
            ids, logps = _draw(logits, temperatures[live], draws)
            keep = []
            for slot, (row, token, logp) in enumerate(zip(live, ids.tolist(), logps.tolist(), strict=True)):
                tokens, values = out[row]
                if self._row_ended(tokens, samplings[row]):
                    continue
                tokens.append(token)
                values.append(logp)
                if not self._row_ended(tokens, samplings[row]):
                    keep.append(slot)
            if not keep:
                break
            if len(keep) < _COMPACT_BELOW * len(live):
                index = torch.tensor(keep)
                cache.batch_select_indices(index)
                ids, mask, positions = ids[index], mask[index], positions[index]
                live = [live[slot] for slot in keep]
            mask = torch.cat([mask, mask.new_ones(len(live), 1)], dim=1)
            positions = positions + 1
            logits = self._forward(ids[:, None], mask, positions[:, None], cache)[:, -1]
        return out

    def _row_ended(self, tokens: list[int], sampling: Sampling) -> bool:
        return bool(tokens) and (len(tokens) >= sampling.max_new_tokens or tokens[-1] in self._end_ids)

    def _prefill(self, prompts: list[list[int]], cache: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Encode the prompts; equal ones, and what all of them begin with, go through the model once.

        Returns:
            Logits [B, V] of the next token, attention mask [B, L] and last positions [B].
        """
        numbers: dict[tuple[int, ...], int] = {}
        index = torch.tensor([numbers.setdefault(tuple(prompt), len(numbers)) for prompt in prompts])
        logits, mask, positions = self._prefill_different([list(prompt) for prompt in numbers], cache)
        if len(numbers) == len(prompts):
            return logits, mask, positions
        cache.batch_select_indices(index)
        return logits[index], mask[index], positions[index]

    def _prefill_different(
        self, prompts: list[list[int]], cache: Any
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        shared = _shared_prefix(prompts)
        if shared and len(prompts) > 1:
            ids = torch.tensor([prompts[0][:shared]])
            self._forward(ids, torch.ones_like(ids), torch.arange(shared)[None], cache)
            cache.batch_repeat_interleave(len(prompts))
        else:
            shared = 0
        ids, own_mask, positions = _left_padded([prompt[shared:] for prompt in prompts], shared)
        mask = torch.cat([own_mask.new_ones(len(prompts), shared), own_mask], dim=1)
        return self._forward(ids, mask, positions, cache)[:, -1], mask, positions[:, -1]

    def _forward(
        self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Any, *, keep: int = 1
    ) -> torch.Tensor:
        """Feed new ids [B, S] and return the logits [B, keep, V] after the last `keep` of them."""
        model = self._peft.get_base_model() if self._peft is not None else self._base
        result = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=keep,
        )
        return cast("torch.Tensor", result.logits.float())

    # Scoring

    def score(self, sentences: Sequence[Scored]) -> list[tuple[float, ...]]:
        """Log-probability of each token of each sentence, at the sentence's temperature.

        Raises:
            PolicyError: If a sentence is empty, too long, or names an unknown version.
        """
        results: list[tuple[float, ...]] = [()] * len(sentences)
        for policy, rows in _grouped([sentence.policy for sentence in sentences], self.max_batch):
            with torch.no_grad():
                logps, _ = self.logps(policy, [sentences[row] for row in rows])
            for row, values in zip(rows, logps, strict=True):
                results[row] = tuple(values[: len(sentences[row].token_ids)].tolist())
        return results

    def logps(self, policy: str, sentences: Sequence[Scored]) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities under one policy, differentiable with respect to its adapter.

        Prompts are encoded as in generation (each different one once), and the vocabulary head runs on the sentences
        only. The adapter stays switched on: run nothing else between this and `backward`.

        Args:
            policy: Version name; the `policy` of the sentences is ignored.
            sentences: B of them.

        Returns:
            Log-probabilities [B, R] and mask [B, R] (1 on sampled tokens), R the longest sentence.
        """
        self._activate(policy)
        for sentence in sentences:
            if not sentence.token_ids:
                raise PolicyError("expected at least one token to score, got an empty sentence; leave it out")
            self._check_length(policy, len(sentence.prompt_ids) + len(sentence.token_ids))
        from transformers import DynamicCache

        cache = DynamicCache()
        first, prompt_mask, last = self._prefill([list(s.prompt_ids) for s in sentences], cache)
        tokens, mask = _right_padded([list(s.token_ids) for s in sentences])
        logits = first[:, None]
        if (width := tokens.shape[1]) > 1:
            positions = last[:, None] + torch.arange(1, width)
            seen = torch.cat([prompt_mask, mask[:, :-1]], dim=1)
            rest = self._forward(tokens[:, :-1], seen, positions, cache, keep=width - 1)
            logits = torch.cat([logits, rest], dim=1)
        temperatures = torch.tensor([s.temperature for s in sentences])
        scaled = logits / temperatures[:, None, None]
        chosen = scaled.gather(-1, tokens[..., None])[..., 0] - scaled.logsumexp(-1)
        return chosen * mask, mask.to(chosen.dtype)

    # Internals

    def _activate(self, version: str) -> None:
        """Switch one adapter on (and all others off); once per group, never per row."""
        if version not in self.versions:
            raise PolicyError(
                f"expected a policy version among {', '.join(self.versions)}, got {version!r}; add it first"
            )
        if self._peft is None or version == self._active:
            return
        if version == BASE:
            cast("Any", self._peft.base_model).disable_adapter_layers()
        else:
            cast("Any", self._peft.base_model).enable_adapter_layers()
            self._peft.set_adapter(version)
        self._active = version

    def _check_new(self, version: str) -> None:
        if version in self.versions or "." in version or not version:
            raise PolicyError(
                f"expected a new version name without dots, got {version!r}; versions are never overwritten"
            )

    def _require(self, version: str) -> PeftModel:
        if self._peft is None or version not in self._peft.peft_config:
            raise PolicyError(f"expected an adapter among {', '.join(self.versions)}, got {version!r}")
        return self._peft

    def _check_length(self, policy: str, length: int) -> None:
        if length > self._max_positions:
            raise PolicyError(
                f"expected at most {self._max_positions} tokens of context, got {length} for {policy}; "
                "play fewer exchanges or shorten max_action_chars"
            )

    def _draw_factors(self, version: str, seed: int) -> None:
        self._active = ""  # PEFT has just switched something on
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in self.parameters(version).items():
                if ".lora_A." in name:
                    bound = (1.0 / parameter.shape[1]) ** 0.5  # as kaiming_uniform_(a=sqrt(5)), PEFT's own choice
                    parameter.uniform_(-bound, bound, generator=generator)
                else:
                    parameter.zero_()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """PEFT draws from the global generator, and calls a name that transformers has deprecated; neither is the user's concern."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        yield


def _end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every id that ends a sentence: the model's, its generation config's (often several) and the tokenizer's."""
    ids: set[int] = set()
    for value in (
        model.config.eos_token_id,
        model.generation_config and model.generation_config.eos_token_id,
        tokenizer.eos_token_id,
    ):
        ids.update([value] if isinstance(value, int) else value or [])
    if not ids:
        raise ModelError("expected a model that names an end-of-text id, this one names none")
    return frozenset(ids)


def _grouped(policies: Sequence[str], max_batch: int) -> Iterator[tuple[str, list[int]]]:
    """Rows by policy, in chunks of at most `max_batch`, in order of first appearance."""
    rows: dict[str, list[int]] = {}
    for row, policy in enumerate(policies):
        rows.setdefault(policy, []).append(row)
    for policy, members in rows.items():
        for begin in range(0, len(members), max_batch):
            yield policy, members[begin : begin + max_batch]


def _shared_prefix(prompts: list[list[int]]) -> int:
    """Length of what all prompts begin with, at least one id left for each."""
    limit = min(len(prompt) for prompt in prompts) - 1
    first = prompts[0]
    for index in range(limit):
        if any(prompt[index] != first[index] for prompt in prompts):
            return index
    return max(limit, 0)


def _left_padded(rows: list[list[int]], offset: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, mask and positions [B, L]; positions start at `offset` on the first real id of each row."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0) + offset
    return ids, mask, positions


def _right_padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(row) for row in rows)
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids, mask


def _draw(
    logits: torch.Tensor, temperatures: torch.Tensor, uniforms: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Invert the distribution function of each row.

    Args:
        logits: [B, V].
        temperatures: [B].
        uniforms: [B] in [0, 1), float64.

    Returns:
        Ids [B] and their log-probabilities [B].
    """
    logps = torch.log_softmax(logits / temperatures[:, None], dim=-1)
    cumulative = logps.double().exp().cumsum(dim=-1)
    targets = uniforms.double() * cumulative[:, -1]
    ids = torch.searchsorted(cumulative, targets[:, None], right=True)[:, 0].clamp(max=logits.shape[-1] - 1)
    return ids, logps.gather(-1, ids[:, None])[:, 0]
