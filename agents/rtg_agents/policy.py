"""The two seams of this package: who speaks (`Policy`, of `rtg_env.policies`) and what computes it (`Backend`).

A custom agent is one class with one method:

    class Echo:
        name = "echo"
        def act(self, observations, seeds):
            return [Action(text=observation.messages[-1][1]) for observation in observations]

Randomness is passed in: one seed per observation, and nothing else, decides what is sampled, so that a dialogue does
not depend on what it is batched with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, NamedTuple, Protocol, runtime_checkable

from rtg_env.errors import ConfigError, PolicyError
from rtg_env.policies import Asked, Policy
from rtg_env.types import Action, FinishReason, Observation

__all__ = [
    "BASE",
    "Backend",
    "BackendPolicy",
    "ChatMessage",
    "Completion",
    "Policy",
    "Prompting",
    "RememberingBackend",
    "Request",
    "Sampling",
    "TokenSequence",
    "with_own_ids",
]

BASE: Final = "base"
"""Version name of the base model without any adapter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a model draws a sentence. The distribution is never truncated (no top-p, no top-k)."""

    temperature: float = 1.0
    """Logits are divided by it; above 0. Log-probabilities are reported at this temperature."""

    max_new_tokens: int = 32
    """Longest sentence in tokens, the end-of-turn id included; at least 1."""

    min_new_tokens: int = 0
    """Before so many tokens the end-of-turn ids are barred, and log-probabilities are those of what is left; at least 0,
    below `max_new_tokens`. Records do not say it: whoever scores what was sampled so must (`TokenSequence.min_tokens`)."""

    def __post_init__(self) -> None:
        """Refuse settings outside their range."""
        if not 0.0 < self.temperature < float("inf"):
            raise ConfigError(f"temperature must be finite and > 0, got {self.temperature!r}")
        if isinstance(self.max_new_tokens, bool) or not isinstance(self.max_new_tokens, int) or self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens must be a whole number >= 1, got {self.max_new_tokens!r}")
        if isinstance(self.min_new_tokens, bool) or not 0 <= self.min_new_tokens < self.max_new_tokens:
            raise ConfigError(
                f"min_new_tokens must be >= 0 and below max_new_tokens ({self.max_new_tokens}), got {self.min_new_tokens!r}"
            )


class ChatMessage(NamedTuple):
    """One message of a prompt. Its content is data: it can never become a control token."""

    role: Literal["system", "user", "assistant"]
    """Who speaks; the assistant is whoever reads the prompt."""

    content: str
    """What was said."""

    ids: tuple[int, ...] = ()
    """The ids that were sampled for this content, if it is the reader's own sentence; a backend reads them in its place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One sentence to be generated."""

    policy: str
    """Version name of the policy, `base` for the base model."""

    messages: tuple[ChatMessage, ...]
    """The prompt, from this policy's point of view."""

    sampling: Sampling
    """How to draw."""

    seed: int
    """Decides, together with the above, what is drawn; in [0, 2**63)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One generated sentence."""

    text: str
    """Decoded, without control tokens."""

    prompt_ids: tuple[int, ...]
    """What the model read."""

    token_ids: tuple[int, ...]
    """What it sampled, the end id included if it was sampled."""

    logps: tuple[float, ...]
    """Log-probability of each sampled id."""

    finish_reason: FinishReason
    """Why it ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSequence:
    """One policy's view of a dialogue in token ids: what it read, and in between what it sampled.

    The ids are those that went through the model; nothing is ever tokenised again. Only the sampled ranges carry
    log-probabilities and losses: the end-of-turn id that was sampled does, the template's own tokens do not.
    """

    policy: str
    """Version name of the policy that is asked about."""

    ids: tuple[int, ...]
    """The whole view."""

    spans: tuple[tuple[int, int], ...]
    """Half-open ranges of `ids` that were sampled, in order, not empty, the first one after at least one id."""

    temperature: float = 1.0
    """The temperature they were, or would be, sampled at."""

    min_tokens: int = 0
    """In each range, the end-of-turn ids are barred before so many ids (`Sampling.min_new_tokens`)."""

    def __post_init__(self) -> None:
        """Refuse ranges that are not in order or not within the sequence."""
        last = 1
        for begin, end in self.spans:
            if not last <= begin < end <= len(self.ids):
                raise PolicyError(f"expected sampled ranges in order within 1..{len(self.ids)}, got {self.spans}")
            last = end

    @classmethod
    def of_sentence(
        cls,
        policy: str,
        prompt_ids: Sequence[int],
        token_ids: Sequence[int],
        temperature: float = 1.0,
        *,
        min_tokens: int = 0,
    ) -> TokenSequence:
        """A view that ends with one sampled sentence."""
        ids, spans = (*prompt_ids, *token_ids), ((len(prompt_ids), len(prompt_ids) + len(token_ids)),)
        return cls(policy=policy, ids=ids, spans=spans, temperature=temperature, min_tokens=min_tokens)

    @property
    def num_sampled(self) -> int:
        """How many ids were sampled."""
        return sum(end - begin for begin, end in self.spans)

    @property
    def sampled(self) -> tuple[int, ...]:
        """The sampled ids."""
        return tuple(token for begin, end in self.spans for token in self.ids[begin:end])


class Backend(Protocol):
    """Computes sentences and log-probabilities for many policies in one call."""

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """One completion per request, in order; results do not depend on how requests are batched."""
        ...

    def score(self, sequences: Sequence[TokenSequence]) -> list[tuple[float, ...]]:
        """Log-probability of each sampled id of each sequence."""
        ...


@runtime_checkable
class RememberingBackend(Backend, Protocol):
    """A backend that keeps what it has read, so that a dialogue's next turn costs its new tokens only."""

    def forget(self) -> None:
        """Give that up."""
        ...


Prompting = Callable[[Observation], tuple[ChatMessage, ...]]
"""From what an agent sees to what its model reads (`rtg_agents.prompting`)."""


def with_own_ids(messages: Sequence[ChatMessage], said: Sequence[Action], policy: str) -> tuple[ChatMessage, ...]:
    """A prompt in which the policy's own sentences carry the ids that it sampled for them.

    The assistant's messages are paired with the side's actions from the last one backwards, so that examples in front
    stay out of it. A message keeps its text alone, to be tokenised, if its action is somebody else's, was cut, holds no
    ids, or says something else: a message filter or the prompting itself has changed it.

    Args:
        messages: What `Prompting` has made of an observation.
        said: Its `said`.
        policy: Name under which its actions are recorded.
    """
    prompt = list(messages)
    own = [index for index, message in enumerate(prompt) if message.role == "assistant"]
    for index, action in zip(reversed(own), reversed(tuple(said)), strict=False):
        kept = action.policy == policy and action.finish_reason != "cut" and action.text == prompt[index].content
        if kept and action.token_ids:
            prompt[index] = prompt[index]._replace(ids=action.token_ids)
    return tuple(prompt)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendPolicy:
    """A policy whose sentences a backend computes.

    Policies on one backend speak in one call of it (`act_together`): a batch may mix adapters.
    """

    name: str
    """Version name in transcripts and populations."""

    backend: Backend
    """Where the model is."""

    adapter: str
    """Version name at the backend; `base` for no adapter."""

    prompting: Prompting
    """How observations become prompts."""

    sampling: Sampling
    """How to draw."""

    def requests(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[Request]:
        """What to ask the backend, one request per observation."""
        return [
            Request(
                policy=self.adapter,
                messages=with_own_ids(self.prompting(observation), observation.said, self.name),
                sampling=self._within(observation.tokens_left),
                seed=seed,
            )
            for observation, seed in zip(observations, seeds, strict=True)
        ]

    def _within(self, tokens_left: int | None) -> Sampling:
        """A model is not asked for more than its side may still say."""
        if tokens_left is None or tokens_left >= self.sampling.max_new_tokens:
            return self.sampling
        return replace(self.sampling, max_new_tokens=max(1, tokens_left))

    def finish(self, completions: Sequence[Completion]) -> list[Action]:
        """From what the backend computed to actions."""
        return [
            Action(
                text=completion.text,
                policy=self.name,
                prompt_ids=completion.prompt_ids,
                token_ids=completion.token_ids,
                logps=completion.logps,
                temperature=self.sampling.temperature,
                finish_reason=completion.finish_reason,
            )
            for completion in completions
        ]

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[Action]:
        """Generate one sentence per observation."""
        return self.finish(self.backend.generate(self.requests(observations, seeds)))

    @property
    def shared(self) -> Backend:
        """The backend, which other policies share."""
        return self.backend

    def act_together(self, asked: Sequence[Asked]) -> list[list[Action]]:
        """The sentences of several policies on this backend, by one call.

        Raises:
            PolicyError: If one of them has no backend of this kind.
        """
        own = [(one.policy, one) for one in asked if isinstance(one.policy, BackendPolicy)]
        if len(own) != len(asked):
            raise PolicyError(f"expected policies on the backend of {self.name} alone, got others too")
        requests = [policy.requests(one.observations, one.seeds) for policy, one in own]
        completions = iter(self.backend.generate([request for some in requests for request in some]))
        return [
            policy.finish([next(completions) for _ in some]) for (policy, _), some in zip(own, requests, strict=True)
        ]
