"""The torch backend: one base model, a bank of LoRA policies, sentences and log-probabilities in batches.

A call may mix policies as it likes: every row of a batch speaks for its own (`bank`), what was read before is not read
again (`kv`), common beginnings go through the model once (`packing`), rows draw from noise of their own (`generation`).
Scoring runs the same weights over the same ids at the same temperature, so that a policy's ratio to itself is 1.
Nothing reads or moves a global random state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors import SafetensorError

from rtg_agents.adapter_files import read_adapter, write_adapter
from rtg_agents.bank import PolicyBank
from rtg_agents.generation import Forward, Generation, Job, PackBatch, Reader
from rtg_agents.head import Barred, heard
from rtg_agents.kv import Views
from rtg_agents.lora import LoraSettings
from rtg_agents.models import fingerprint, quiet_transformers
from rtg_agents.packing import Pack, batches, pack
from rtg_agents.policy import Completion, Request, TokenSequence
from rtg_agents.tokens import ChatEncoder, ModelTokenizer
from rtg_env.errors import ConfigError, MissingExtraError, ModelError, PolicyError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_PACK_TOKENS: Final = 256
_PASS_TOKENS: Final = 4096
_DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What policies say about sequences: S of them, T sampled ids in the longest."""

    logps: torch.Tensor
    """[S, T] log-probability of each sampled id at its temperature; 0 beyond."""

    mask: torch.Tensor
    """[S, T] 1 on sampled ids."""

    entropies: torch.Tensor | None = None
    """[S, T] of the distributions they were drawn from, if asked for."""

    hidden: torch.Tensor | None = None
    """[S, T, H] last hidden state before each sampled id, if asked for: what a value head reads."""

    values: torch.Tensor | None = None
    """[S, T] what value heads make of them; a trainer that has such heads fills this in."""


class TorchBackend:
    """Generates and scores with a causal language model and the policies of its bank.

    Args:
        model: The base model, in evaluation mode; it is frozen, and its linear layers are replaced.
        tokenizer: Its tokenizer, with a chat template.
        model_id: Written into saved adapters as their base.
        lora: Shape of new policies.
        max_batch: Most rows that are decoded together.
        cache_bytes: Most memory for what was read in earlier turns; 0 reads every prompt anew.
        fingerprint: Hash of the model's files, so that a run can tell that they have changed.

    Raises:
        ModelError: If the model does more with its last hidden state than one linear head.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        model_id: str,
        lora: LoraSettings | None = None,
        max_batch: int = 64,
        cache_bytes: int = 2 << 30,
        fingerprint: str = "",
    ) -> None:
        self.lora = lora or LoraSettings()
        self.bank = PolicyBank(model, self.lora)
        self.chat = ChatEncoder(tokenizer)
        self.model_id = model_id
        self.max_batch = max_batch
        self.fingerprint = fingerprint
        self._end_ids = _end_ids(model, tokenizer)
        self._max_positions = _max_positions(model)
        self.forward = Forward(self.bank)
        self._views = Views(cache_bytes)
        reader = Reader(self.bank, self.forward, self._views, max_tokens=_PASS_TOKENS, pack_tokens=_PACK_TOKENS)
        self._generation = Generation(
            self.bank, self.forward, reader, self._views, end_ids=self._end_ids, max_rows=max_batch
        )
        self._check_head()

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        model_id: str,
        lora: LoraSettings | None = None,
        max_batch: int = 64,
        device: str = "cpu",
        dtype: str = "auto",
    ) -> TorchBackend:
        """A backend over a model folder.

        Args:
            folder: See `rtg_agents.models.resolve_model`.
            model_id: Written into saved adapters as their base.
            lora: Shape of new policies.
            max_batch: Most rows that are decoded together.
            device: Of torch's.
            dtype: Of the base model: `float32`, `bfloat16`, or `auto`, the former on a CPU, the latter elsewhere.
                Adapters are float32.

        Raises:
            ConfigError: If torch knows or has no such device, or the type is another.
            ModelError: If transformers cannot read the folder.
        """
        try:
            import transformers
        except ImportError as error:
            raise MissingExtraError("transformers", "llm") from error
        folder = Path(folder)
        place, chosen = _device(device), _DTYPES.get(dtype)
        if dtype == "auto":
            chosen = torch.float32 if place.type == "cpu" else torch.bfloat16
        if chosen is None:
            raise ConfigError(f"expected dtype to be auto, {' or '.join(_DTYPES)}, got {dtype!r}")
        try:
            with quiet_transformers():
                model: Any = transformers.AutoModelForCausalLM.from_pretrained(
                    folder, dtype=chosen, use_safetensors=True, trust_remote_code=False, local_files_only=True
                )
                model = model.to(place)
                tokenizer = transformers.AutoTokenizer.from_pretrained(
                    folder, trust_remote_code=False, local_files_only=True
                )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise ModelError(
                f"expected a causal language model in {folder}, transformers cannot load it: {error}"
            ) from error
        return cls(model, tokenizer, model_id=model_id, lora=lora, max_batch=max_batch, fingerprint=fingerprint(folder))

    # Policies

    @property
    def versions(self) -> tuple[str, ...]:
        """Names that requests may use."""
        return self.bank.versions

    def create(self, version: str, *, seed: int) -> None:
        """Add a fresh policy: A is drawn from `seed`, B is zero, so that it starts as the base policy."""
        self.bank.create(version, seed=seed)

    def load_adapter(self, version: str, folder: str | Path) -> None:
        """Add a saved adapter under a version name.

        Raises:
            ModelError: If the folder holds no safetensors adapter that fits the base model.
        """
        self.bank.check_new(version)
        self.bank.add(version, *read_adapter(self.bank, Path(folder), model_id=self.model_id))

    def save_adapter(self, version: str, folder: str | Path, *, extra: Mapping[str, str] | None = None) -> None:
        """Write an adapter in PEFT's file format; the folder appears complete or not at all.

        Args:
            version: Which one.
            folder: Where to; replaced if it exists.
            extra: Further text files by name, written along with it.

        Raises:
            PolicyError: If there is no such adapter.
            OSError: If it cannot be written.
        """
        write_adapter(self.bank, version, Path(folder), model_id=self.model_id, extra=extra)

    def drop(self, version: str) -> None:
        """Forget an adapter."""
        self.bank.drop(version)

    def parameters(self, version: str) -> dict[str, torch.nn.Parameter]:
        """The adapter's own tensors by name, in a fixed order."""
        return self.bank.parameters(version)

    @property
    def tokenizer(self) -> ModelTokenizer:
        """Of the model, for the token level of the game."""
        vocab_size = int(self.bank.model.get_input_embeddings().weight.shape[0])
        return ModelTokenizer(chat=self.chat, vocab_size=vocab_size, end_ids=tuple(sorted(self._end_ids)))

    def forget(self) -> None:
        """Give up what was read so far: the same calls then compute the same numbers, whatever came before."""
        self._views.clear()

    # Generation

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """One completion per request, in order.

        Raises:
            PolicyError: If a request names an unknown version, or its prompt is longer than the model's context.
        """
        prompts = [tuple(self.chat.encode(request.messages)) for request in requests]
        versions = sorted({request.policy for request in requests})
        revisions = dict(zip(versions, self.bank.refresh(versions), strict=True))
        jobs = []
        for request, prompt in zip(requests, prompts, strict=True):
            self._check_length(request.policy, len(prompt) + request.sampling.max_new_tokens)
            job = Job(
                version=request.policy,
                key=(request.policy, revisions[request.policy]),
                prompt=prompt,
                temperature=request.sampling.temperature,
                max_new_tokens=request.sampling.max_new_tokens,
                seed=request.seed,
                min_new_tokens=request.sampling.min_new_tokens,
            )
            jobs.append(job)
        self._generation.run(jobs)
        return [self._completion(job) for job in jobs]

    def _completion(self, job: Job) -> Completion:
        ids = job.token_ids
        ended = ids[-1] in self._end_ids
        text = self.chat.decode(ids[:-1] if ended else ids)
        return Completion(
            text=text.strip(),
            prompt_ids=job.prompt,
            token_ids=tuple(ids),
            logps=tuple(job.logps),
            finish_reason="stop" if ended else "length",
        )

    # Scoring

    def score(self, sequences: Sequence[TokenSequence]) -> list[tuple[float, ...]]:
        """Log-probability of each sampled id of each sequence, at the sequence's temperature.

        Raises:
            PolicyError: If a sequence holds nothing sampled, is too long, or names an unknown version.
        """
        with torch.no_grad():
            logps = self.evaluate(sequences).logps
        return [
            tuple(row[: sequence.num_sampled].tolist()) for sequence, row in zip(sequences, logps.cpu(), strict=True)
        ]

    def evaluate(
        self,
        sequences: Sequence[TokenSequence],
        *,
        trained: Sequence[str] = (),
        entropy: bool = False,
        hidden: bool = False,
    ) -> Evaluated:
        """Log-probabilities of what was sampled; differentiable with respect to the versions that are trained.

        Common beginnings of one policy's sequences go through the model once, the vocabulary head runs on sampled
        positions only, and policies may be mixed: a reference is a row like any other.

        Args:
            sequences: S of them.
            trained: Versions whose `parameters` get gradients.
            entropy: Whether to compute entropies.
            hidden: Whether to return hidden states.

        Raises:
            PolicyError: If a sequence holds nothing sampled, is too long, or names an unknown version.
        """
        by_version: dict[str, list[int]] = {}
        for index, sequence in enumerate(sequences):
            if not sequence.spans:
                raise PolicyError("expected at least one sampled id to score, got an empty sentence; leave it out")
            self._check_length(sequence.policy, len(sequence.ids))
            by_version.setdefault(sequence.policy, []).append(index)
        self.bank.refresh(list(by_version))
        packs: list[tuple[Pack, str, list[int]]] = []
        for version, indices in by_version.items():
            # The last id of a sequence is only predicted.
            read = [sequences[index].ids[: sequences[index].spans[-1][1] - 1] for index in indices]
            packs += [(one, version, [indices[m] for m in one.members]) for one in pack(read, _PACK_TOKENS)]
        parts = [
            self._evaluate_packs(sequences, [packs[number] for number in chosen], trained, entropy)
            for chosen in batches([one for one, _, _ in packs], _PASS_TOKENS)
        ]
        return _assembled(sequences, parts, entropy=entropy, hidden=hidden)

    def _evaluate_packs(
        self,
        sequences: Sequence[TokenSequence],
        packs: Sequence[tuple[Pack, str, list[int]]],
        trained: Sequence[str],
        entropy: bool,
    ) -> _Part:
        device = self.bank.device
        batch = PackBatch([one for one, _, _ in packs], device)
        versions = [version for _, version, _ in packs]
        route = self.bank.route(versions, trained=[version for version in trained if version in versions])
        with self.bank.routed(route):
            states = self.forward.hidden(batch.ids, batch.positions, batch.sees, None)
        rows: list[int] = []
        nodes: list[int] = []
        ids: list[int] = []
        owners: list[int] = []
        places: list[int] = []
        temperatures: list[float] = []
        early: list[bool] = []
        for row, (one, _, members) in enumerate(packs):
            for path, index in zip(one.paths, members, strict=True):
                sequence = sequences[index]
                before = [place - 1 for begin, end in sequence.spans for place in range(begin, end)]
                rows += [row] * len(before)
                nodes += path[before].tolist()
                ids += sequence.sampled
                owners += [index] * len(before)
                places += range(len(before))
                temperatures += [sequence.temperature] * len(before)
                early += [n < sequence.min_tokens for begin, end in sequence.spans for n in range(end - begin)]
        chosen = states[torch.tensor(rows, device=device), torch.tensor(nodes, device=device)]
        head = self.bank.model.get_output_embeddings()
        barred = Barred(torch.tensor(early, device=device), torch.tensor(sorted(self._end_ids), device=device))
        said = heard(
            head,
            chosen,
            torch.tensor(ids, device=device),
            torch.tensor(temperatures, device=device),
            entropy=entropy,
            barred=barred if any(early) else None,
        )
        return _Part(owners, places, said.logps, said.entropies, chosen)

    # Internals

    def _check_length(self, policy: str, length: int) -> None:
        if length > self._max_positions:
            raise PolicyError(
                f"expected at most {self._max_positions} tokens of context, got {length} for {policy}; "
                "play fewer exchanges or shorten max_action_chars"
            )

    @torch.no_grad()
    def _check_head(self) -> None:
        """Refuse models that scale or cap their logits after the head: scoring would not see it."""
        model = self.bank.model
        ids = torch.tensor([[0, 1, 2]], device=self.bank.device)
        sees = torch.ones(1, 3, 3, dtype=torch.bool, device=self.bank.device).tril()
        with self.bank.routed(self.bank.route(["base"])):
            expected = model(input_ids=ids, use_cache=False).logits[0, -1].float()
            found = self.forward.logits(
                self.forward.hidden(ids, torch.arange(3, device=ids.device)[None], sees, None)[:, -1]
            )
        if not torch.allclose(expected, found[0], atol=1e-3 + 0.02 * float(expected.abs().max())):
            raise ModelError(
                f"expected a model whose logits are one linear layer of its last hidden state, "
                f"{type(model).__name__} does something else; its policies cannot be scored"
            )


@dataclass(frozen=True, slots=True)
class _Part:
    """Some sampled ids: sequence and place of each, and what was found."""

    owners: list[int]
    places: list[int]
    logps: torch.Tensor
    entropies: torch.Tensor
    states: torch.Tensor


def _device(name: str) -> torch.device:
    """A device that is here.

    Raises:
        ConfigError: If there is none of that name.
    """
    try:
        torch.empty(1, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"expected a device that torch finds here, such as cpu or cuda, got {name!r}: {reason}"
        ) from None


def _assembled(sequences: Sequence[TokenSequence], parts: Sequence[_Part], *, entropy: bool, hidden: bool) -> Evaluated:
    width = max((sequence.num_sampled for sequence in sequences), default=0)
    if not parts:
        none = torch.zeros(0, 0)
        return Evaluated(none, none, none if entropy else None, torch.zeros(0, 0, 0) if hidden else None)
    device = parts[0].logps.device
    index = (
        torch.tensor([owner for part in parts for owner in part.owners], device=device),
        torch.tensor([place for part in parts for place in part.places], device=device),
    )

    def spread(found: Sequence[torch.Tensor]) -> torch.Tensor:
        together = torch.cat(list(found))
        return together.new_zeros(len(sequences), width, *together.shape[1:]).index_put(index, together)

    return Evaluated(
        logps=spread([part.logps for part in parts]),
        mask=spread([torch.ones_like(part.logps, requires_grad=False) for part in parts]).detach(),
        entropies=spread([part.entropies for part in parts]) if entropy else None,
        hidden=spread([part.states for part in parts]) if hidden else None,
    )


def _max_positions(model: PreTrainedModel) -> int:
    """The model's context; masks are made for full attention, so a sliding window is its limit."""
    limits = [getattr(model.config, name, None) for name in ("max_position_embeddings", "sliding_window")]
    if not getattr(model.config, "use_sliding_window", True):
        limits = limits[:1]
    return min((int(limit) for limit in limits if limit), default=1 << 30)


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
