"""Learning from sentences that were said: whoever said them, model or script, in whatever dialogue.

A sentence is made a lesson as the learner itself would have read and said it: its own prompt, the ids that were sampled if
a model of the same view sampled them, the text's ids and the end of a turn otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rtg_agents.policy import ChatMessage, Sampling, TokenSequence
from rtg_agents.prompting import blue_view, red_view
from rtg_env import rules
from rtg_env.dialogue import Transcript
from rtg_env.errors import ConfigError, ModelError
from rtg_env.rules import Deal, GameConfig
from rtg_env.transcripts import Played
from rtg_env.types import BLUE_AGENT, Action, Observation, Role, role_of
from rtg_solvers.aggregation import Totals, aggregate
from rtg_solvers.losses import sft_loss

if TYPE_CHECKING:
    import torch

    from rtg_agents.hf import Evaluated, TorchBackend
    from rtg_solvers.trainer import StepFigures, Trainer


class Sentence(NamedTuple):
    """A sentence of one side, and what its speaker saw."""

    seen: Observation
    """Before it was said."""

    action: Action
    """The sentence, with its ids if a model sampled them."""

    reward: float
    """What the speaker's side was paid from this exchange on; NaN if the dialogue is unscored."""


class Demonstration(NamedTuple):
    """A sentence to imitate."""

    sentence: Sentence
    goal: str
    """Id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImitationSettings:
    """Maximum likelihood on the best sentences so far."""

    steps: int = 12
    """Optimizer steps, at least 0."""

    batch: int = 32
    """Sentences per step, at least 1."""

    per_goal: int = 2
    """Best sentences that are kept of each goal, at least 1."""

    def __post_init__(self) -> None:
        """Refuse settings outside their range."""
        if self.steps < 0 or self.batch < 1 or self.per_goal < 1:
            raise ConfigError(
                f"expected steps >= 0, batch >= 1 and per_goal >= 1, got {self.steps}, {self.batch}, {self.per_goal}"
            )


def sentences_of(config: GameConfig, transcript: Transcript, role: Role) -> list[Sentence]:
    """What one side said in a dialogue, with what each speaker saw."""
    start = rules.start(config, Deal(goal=transcript.goal, red_order=transcript.red_order))
    said = [(agent, action) for agent, action in transcript.actions if role_of(agent) == role]
    sign, found = (1.0 if role == "red" else -1.0), []
    for turn, (agent, action) in enumerate(said):
        pending = transcript.exchanges[turn].red if agent == BLUE_AGENT else None
        state = start._replace(exchanges=transcript.exchanges[:turn], pending=pending)
        reward = float("nan") if transcript.unscored else sign * sum(transcript.payments[turn:])
        found.append(Sentence(rules.observe(config, state, agent), action, reward))
    return found


def best_of_each_goal(
    config: GameConfig, played: Sequence[Played], role: Role, *, per_goal: int, rng: np.random.Generator
) -> list[Demonstration]:
    """The best-paid different sentences on each goal, if goals have better and worse ones.

    A goal is compared with itself only, so that hard goals are not forgotten; of goals on which everything was paid alike
    nothing can be learned.

    Args:
        config: The game.
        played: Dialogues, of any policies.
        role: Side that learns.
        per_goal: Sentences kept of each goal.
        rng: Breaks ties.
    """
    by_goal: dict[str, list[Sentence]] = {}
    for item in played:
        if not item.transcript.unscored:
            own = [s for s in sentences_of(config, item.transcript, role) if s.action.text]
            by_goal.setdefault(item.transcript.goal.id, []).extend(own)
    found = []
    for goal, sentences in by_goal.items():
        rewards = np.array([sentence.reward for sentence in sentences])
        if rewards.size and rewards.max() > rewards.min():
            order = np.lexsort((rng.random(len(sentences)), -rewards))
            texts: dict[str, Sentence] = {}
            for place in order[rewards[order] > rewards.mean()]:
                texts.setdefault(sentences[int(place)].action.text, sentences[int(place)])
            found += [Demonstration(sentence, goal) for sentence in list(texts.values())[:per_goal]]
    return found


def as_said(backend: TorchBackend, sentence: Sentence, *, policy: str, sampling: Sampling) -> TokenSequence:
    """A sentence as a policy of the model would have read and said it, cut where it would be cut.

    Ids that were sampled after the very prompt that the policy would read are kept.

    Raises:
        ModelError: If a chat template does not close what a script says.
    """
    view = blue_view if role_of(sentence.seen.agent_id) == "blue" else red_view
    prompt, ids = said_ids(backend, view(sentence.seen), sentence.action, max_new_tokens=sampling.max_new_tokens)
    return TokenSequence.of_sentence(policy, prompt, ids, sampling.temperature)


def said_ids(
    backend: TorchBackend, prompt: Sequence[ChatMessage], action: Action, *, max_new_tokens: int
) -> tuple[list[int], list[int]]:
    """Ids of a prompt and of a sentence after it: those that were sampled after the very same ids, else `typed_ids`, cut.

    Raises:
        ModelError: If a chat template does not close what a script says.
    """
    before = backend.chat.encode(prompt)
    if action.token_ids and action.finish_reason != "cut" and action.prompt_ids == tuple(before):
        return before, list(action.token_ids)
    return before, typed_ids(backend, prompt, action.text)[1][:max_new_tokens]


def imitate(
    trainer: Trainer, sequences: Sequence[TokenSequence], settings: ImitationSettings, rng: np.random.Generator
) -> list[StepFigures]:
    """Steps of maximum likelihood, every sentence as often as any other (up to one); the loss is a mean over tokens.

    Args:
        trainer: Of one policy, from its first step.
        sequences: What to imitate.
        settings: Steps and batch.
        rng: Orders the sentences.
    """
    figures: list[StepFigures] = []
    order = rng.permutation(0)
    for _ in range(settings.steps if sequences else 0):
        while len(order) < settings.batch:
            order = np.concatenate([order, rng.permutation(len(sequences))])
        chosen, order = [sequences[int(place)] for place in order[: settings.batch]], order[settings.batch :]
        figures += maximum_likelihood(trainer, chosen).values()
    return figures


def maximum_likelihood(trainer: Trainer, sequences: Sequence[TokenSequence]) -> Mapping[str, StepFigures]:
    """One step on some sentences; the loss is a mean over their tokens."""
    num_tokens = sum(sequence.num_sampled for sequence in sequences)
    totals = Totals(num_sequences=len(sequences), num_tokens=num_tokens)

    def objective(said: Evaluated, places: Sequence[int]) -> torch.Tensor:
        del places
        return aggregate(sft_loss(said.logps), said.mask, "token-mean", totals)

    return trainer.step(sequences, objective)


def typed_ids(backend: TorchBackend, prompt: Sequence[ChatMessage], text: str) -> tuple[list[int], list[int]]:
    """Ids of a prompt, and those that a model would sample to say a text after it: the text's own and the end of its turn.

    Which of the model's end ids ends a turn is what the chat template writes there.
    """
    before, own = backend.chat.encode(prompt), backend.chat.plain(text)
    whole = backend.chat.encode([*prompt, ChatMessage("assistant", text), ChatMessage("user", "")])
    said = whole[len(before) : len(before) + len(own) + 1]
    if whole[: len(before)] != before or said[:-1] != own or said[-1] not in backend.tokenizer.end_ids:
        raise ModelError(
            "expected a chat template that ends an assistant's message with an end id of the model, this one does not: "
            "what scripts say cannot be made a lesson; leave scripts out (rtg export: --no-distil)"
        )
    return before, said
