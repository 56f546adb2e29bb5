"""A backend without a model: it samples what it is told to, or any ids at all, through a real chat template."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from rtg_agents.policy import BASE, BackendPolicy, Completion, Prompting, Request, Sampling, TokenSequence
from rtg_agents.tokens import ChatEncoder
from tests.tiny import tiny_tokenizer

END, OTHER_END, START = 2, 0, 1
"""<|im_end|>, <|endoftext|> and <|im_start|> of the tiny tokenizer."""
END_IDS = (END, OTHER_END)

Sampler = Callable[[Request], Sequence[int]]


def any_ids(request: Request) -> list[int]:
    """Ids drawn by the seed: no text of anybody's, control ids among them, ended by one of two ids or by length."""
    rng = np.random.default_rng(request.seed)
    ids: list[int] = []
    while len(ids) < request.sampling.max_new_tokens:
        ids.append(int(rng.choice((START, *END_IDS)) if rng.random() < 0.2 else rng.integers(3, 259)))
        if ids[-1] in END_IDS:
            break
    return ids


class IdsBackend:
    """Reads prompts as the torch backend does, and remembers them; nobody scores."""

    def __init__(self, sample: Sampler = any_ids, *, template: str = "", encoder: ChatEncoder | None = None) -> None:
        tokenizer = tiny_tokenizer()
        if template:
            tokenizer.chat_template = template
        self.chat = encoder or ChatEncoder(tokenizer)
        self.sample = sample

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        return [self._completion(request) for request in requests]

    def score(self, sequences: Sequence[TokenSequence]) -> list[tuple[float, ...]]:
        raise NotImplementedError

    def _completion(self, request: Request) -> Completion:
        ids = tuple(self.sample(request))
        ended = ids[-1] in END_IDS
        return Completion(
            text=self.chat.decode(ids[:-1] if ended else ids).strip(),
            prompt_ids=tuple(self.chat.encode(request.messages)),
            token_ids=ids,
            logps=tuple(-0.5 * place for place in range(1, len(ids) + 1)),
            finish_reason="stop" if ended else "length",
        )


def policy(name: str, backend: IdsBackend, prompting: Prompting, *, tokens: int = 8) -> BackendPolicy:
    return BackendPolicy(
        name=name, backend=backend, adapter=BASE, prompting=prompting, sampling=Sampling(max_new_tokens=tokens)
    )
