"""Recorded dialogues as token sequences: one per policy and dialogue, for whoever learns from them.

A dialogue holds two views, red's and blue's; in each one the sentences that the policy sampled are the ranges that carry
log-probabilities and losses, everything else (the template, the other side, the generation prompt) is context. As long
as a prompt begins with the prompt before it and what was sampled after that, both are one sequence, so that a learner
runs over each id once. Where it does not, a new sequence begins, and that is counted: a filter has changed what was
said, a limit on characters has cut it, or the chat template does not keep what came before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rtg_agents.policy import TokenSequence
from rtg_env.dialogue import Transcript
from rtg_env.types import Action, Role, role_of


class SpanSource(NamedTuple):
    """Where one sampled range comes from."""

    dialogue: int
    """Index of the transcript."""

    turn: int
    """Index of the exchange."""

    logps: tuple[float, ...]
    """Log-probability of each id when it was sampled; empty if it was not recorded."""


class RecordedSequence(NamedTuple):
    """A sequence, and where its ranges come from."""

    tokens: TokenSequence
    """What was read and said."""

    sources: tuple[SpanSource, ...]
    """One for each of its `spans`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedSequences:
    """What one policy has read and said in some dialogues."""

    sequences: tuple[RecordedSequence, ...]
    """In the order of the dialogues, and of the turns in each."""

    num_joined: int
    """Sentences that go on with the sequence of the sentence before."""

    num_broken: int
    """Sentences that follow one of the same dialogue, but whose prompt does not begin with that sequence."""

    @property
    def broken_share(self) -> float:
        """Share of the sentences that follow one of the same dialogue whose prompt is broken; 0 if there are none."""
        return self.num_broken / max(1, self.num_joined + self.num_broken)


def recorded_sequences(transcripts: Sequence[Transcript], role: Role, policy: str) -> RecordedSequences:
    """The views of one policy, in as few sequences as its prompts allow.

    Sentences sampled at different temperatures stand in different sequences, which breaks nothing. Actions without ids
    (a script's) and those of other policies of the side are left out. Unscored dialogues are not: no verdict is read.

    Args:
        transcripts: Dialogues.
        role: The side it played; a policy that played both has two views of each dialogue.
        policy: Name under which its actions are recorded; that of the sequences too.

    Raises:
        PolicyError: If something was sampled after nothing at all.
    """
    sequences: list[RecordedSequence] = []
    num_joined = num_broken = 0
    for dialogue, transcript in enumerate(transcripts):
        runs: list[list[_Spoken]] = []
        for spoken in _sampled_by(policy, role, transcript):
            last = runs[-1][-1].action if runs else None
            holds = last is not None and _begins_with(spoken.action, last)
            if last is not None and holds and spoken.action.temperature == last.temperature:
                runs[-1].append(spoken)
                num_joined += 1
            else:
                runs.append([spoken])
                num_broken += last is not None and not holds
        sequences += [_sequence(dialogue, policy, run) for run in runs]
    return RecordedSequences(sequences=tuple(sequences), num_joined=num_joined, num_broken=num_broken)


class _Spoken(NamedTuple):
    """A sentence with its place."""

    turn: int
    action: Action


def _sampled_by(policy: str, role: Role, transcript: Transcript) -> Iterator[_Spoken]:
    """What the policy sampled; the t-th action of a side belongs to exchange t."""
    side = (action for agent, action in transcript.actions if role_of(agent) == role)
    for turn, action in enumerate(side):
        if action.token_ids and action.policy == policy:
            yield _Spoken(turn, action)


def _begins_with(action: Action, last: Action) -> bool:
    """The exact-prefix invariant: a prompt begins with the prompt before it and what was sampled after that."""
    view = last.prompt_ids + last.token_ids
    return action.prompt_ids[: len(view)] == view


def _sequence(dialogue: int, policy: str, run: Sequence[_Spoken]) -> RecordedSequence:
    """Sentences of which each prompt begins with the view before it: the last view holds them all."""
    last = run[-1].action
    begins = [len(spoken.action.prompt_ids) for spoken in run]
    tokens = TokenSequence(
        policy=policy,
        ids=last.prompt_ids + last.token_ids,
        spans=tuple((begin, begin + len(spoken.action.token_ids)) for begin, spoken in zip(begins, run, strict=True)),
        temperature=last.temperature,
    )
    return RecordedSequence(tokens, tuple(SpanSource(dialogue, spoken.turn, spoken.action.logps) for spoken in run))
