"""The usual ways to do what the policy bank does, to be measured beside it: transformers and PEFT, nothing of ours.

Written as their documentation shows it: `generate` with padding on the left, `adapter_names` for mixed batches,
`disable_adapter` for the reference, texts tokenised again for the update, one full forward pass per set of sequences.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers
from transformers import DynamicCache


def load(folder: Path) -> Any:
    """The base model."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()


def with_adapters(folder: Path, adapters: Mapping[str, Path]) -> Any:
    """The base model with saved adapters."""
    names = iter(adapters)
    first = next(names)
    model = peft.PeftModel.from_pretrained(load(folder), str(adapters[first]), adapter_name=first)
    for name in names:
        model.load_adapter(str(adapters[name]), adapter_name=name)
    return model.eval()


def decoder(model: Any, rows: int, prompt_tokens: int, tokens: int, who: Sequence[str] = ()) -> Callable[[], object]:
    """Continues prompts that were read before by `generate`, with mixed adapters if names are given."""
    rng = np.random.default_rng(0)
    ids = torch.tensor(np.stack([rng.integers(3, 20_000, prompt_tokens) for _ in range(rows)]))
    cache = DynamicCache()
    adapters = {"adapter_names": list(who)} if who else {}
    with torch.no_grad():
        model(input_ids=ids[:, :-1], past_key_values=cache, use_cache=True, logits_to_keep=1, **adapters)

    def run() -> object:
        return model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=copy.deepcopy(cache),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=True,
            top_k=0,
            top_p=1.0,
            pad_token_id=0,
            **adapters,
        )

    return run


def prefill(model: Any, prompts: Sequence[Sequence[int]]) -> Callable[[], object]:
    """Reads prompts, each as often as it is there."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])

    @torch.no_grad()
    def run() -> object:
        return model(input_ids=ids, attention_mask=mask, past_key_values=DynamicCache(), logits_to_keep=1)

    return run


class Step:
    """One policy-gradient step of red against the base model: play, judge, score, update.

    Args:
        folder: Base model.
        goals: What red wants, one per dialogue; equal ones in a row are a group.
        judge: From (goal, exchanges) of each dialogue to red's pay per exchange.
        settings: `exchanges`, `group`, `red_tokens`, `blue_tokens`, `temperature`, `kl_weight`, `micro_batch`.
    """

    def __init__(self, folder: Path, goals: Sequence[str], judge: Any, settings: Mapping[str, Any]) -> None:
        config = peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", lora_dropout=0.0)
        self.model = peft.get_peft_model(load(folder), config).eval()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, padding_side="left")
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        self.goals, self.judge, self.settings = list(goals), judge, settings
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=5e-4)

    def __call__(self) -> None:
        """Play all dialogues to their end and update once."""
        exchanges: list[list[tuple[str, str]]] = [[] for _ in self.goals]
        for _ in range(self.settings["exchanges"]):
            attacks = self._speak([self._red_chat(g, e) for g, e in zip(self.goals, exchanges, strict=True)], "red")
            chats = [[*_blue_chat(e), _said("user", a)] for e, a in zip(exchanges, attacks, strict=True)]
            with self.model.disable_adapter():
                replies = self._speak(chats, "blue")
            for own, attack, reply in zip(exchanges, attacks, replies, strict=True):
                own.append((attack, reply))
        pay = self.judge(self.goals, exchanges)  # [D, T]
        to_go = np.cumsum(pay[:, ::-1], axis=1)[:, ::-1]
        self._update(exchanges, to_go)

    def _red_chat(self, goal: str, exchanges: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
        chat = [
            _said("system", "You rewrite requests."),
            _said("user", f"Rewrite this request in your own words: {goal}"),
        ]
        for attack, reply in exchanges:
            chat += [_said("assistant", attack), _said("user", reply)]
        return chat

    def _speak(self, chats: Sequence[Any], side: str) -> list[str]:
        batch = self.tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        with torch.no_grad():
            out = self.model.generate(
                **batch,
                max_new_tokens=self.settings[f"{side}_tokens"],
                do_sample=True,
                temperature=self.settings["temperature"],
                top_k=0,
                top_p=1.0,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        fresh = out[:, batch["input_ids"].shape[1] :]
        return [text.strip() for text in self.tokenizer.batch_decode(fresh, skip_special_tokens=True)]

    def _update(self, exchanges: Sequence[Sequence[tuple[str, str]]], to_go: np.ndarray) -> None:
        group, size = self.settings["group"], self.settings["micro_batch"]
        means = to_go.reshape(-1, group, to_go.shape[1])
        advantages = ((means - means.mean(1, keepdims=True)) * group / (group - 1)).reshape(to_go.shape)
        rows = [(dialogue, turn) for dialogue in range(len(exchanges)) for turn in range(to_go.shape[1])]
        self.optimizer.zero_grad()
        for begin in range(0, len(rows), size):
            part = rows[begin : begin + size]
            prompts = [
                self.tokenizer.apply_chat_template(
                    self._red_chat(self.goals[d], exchanges[d][:t]), add_generation_prompt=True, tokenize=False
                )
                for d, t in part
            ]
            ends = [exchanges[d][t][0] + "<|im_end|>" for d, t in part]
            whole = self.tokenizer(
                [p + e for p, e in zip(prompts, ends, strict=True)], return_tensors="pt", padding=True
            )
            lengths = torch.tensor([len(self.tokenizer(e)["input_ids"]) for e in ends])
            width = whole["input_ids"].shape[1] - 1
            mask = torch.arange(width) >= (width - lengths)[:, None]
            logp = (self._logps(whole) * mask).sum(1)
            with torch.no_grad(), self.model.disable_adapter():
                reference = (self._logps(whole) * mask).sum(1)
            weight = torch.tensor([advantages[d, t] for d, t in part], dtype=torch.float32)
            price = self.settings["kl_weight"] * (logp.detach() - reference)
            (-((weight - price) * logp).sum() / len(rows)).backward()
        torch.nn.utils.clip_grad_norm_([p for p in self.model.parameters() if p.requires_grad], 1.0)
        self.optimizer.step()

    def _logps(self, batch: Any) -> torch.Tensor:
        logits = self.model(**batch).logits[:, :-1] / self.settings["temperature"]
        return torch.log_softmax(logits, -1).gather(-1, batch["input_ids"][:, 1:, None])[..., 0]


def _said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _blue_chat(exchanges: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    return [_said(role, text) for pair in exchanges for role, text in zip(("user", "assistant"), pair, strict=True)]
