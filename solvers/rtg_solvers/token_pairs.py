"""Preference pairs as a policy reads and says them: one prompt in ids, and after it the better and the worse sentence.

Training must see what playing sees. The prompt goes through the chat template of play (`rtg_agents.tokens`), a sentence that
was sampled after that very prompt keeps its ids, and a text gets its own ids and the id that ends a turn. A sentence that is
cut at the limit of play has no such id, as in play.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rtg_agents.policy import BASE, ChatMessage, TokenSequence
from rtg_env.errors import PolicyError
from rtg_env.types import Action
from rtg_solvers.imitation import said_ids
from rtg_solvers.pairs import PreferencePair, Tally

if TYPE_CHECKING:
    from rtg_agents.hf import TorchBackend


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPair:
    """Two sentences after one prompt, the better one first. Who is named as their policy plays no part."""

    chosen: TokenSequence
    """Preferred."""

    rejected: TokenSequence
    """Not."""

    def __post_init__(self) -> None:
        """Refuse what is no pair: several sentences, two prompts, two ways to sample, or equal sentences."""
        for side in (self.chosen, self.rejected):
            if len(side.spans) != 1 or side.spans[0][1] != len(side.ids):
                raise PolicyError(
                    f"expected a view that ends with its one sampled sentence, got ranges {side.spans} of "
                    f"{len(side.ids)} ids; build it with TokenSequence.of_sentence"
                )
        if _prompt(self.chosen) != _prompt(self.rejected):
            raise PolicyError(
                f"expected both sentences of a pair after one prompt, got prompts of {len(_prompt(self.chosen))} and "
                f"{len(_prompt(self.rejected))} ids that differ; only such sentences can be compared"
            )
        if (self.chosen.temperature, self.chosen.min_tokens) != (self.rejected.temperature, self.rejected.min_tokens):
            raise PolicyError(
                "expected both sentences of a pair at one temperature and one least length, got "
                f"{self.chosen.temperature}, {self.chosen.min_tokens} and {self.rejected.temperature}, "
                f"{self.rejected.min_tokens}; their log-probabilities are of different policies"
            )
        if self.chosen.ids == self.rejected.ids:
            raise PolicyError("expected two sentences that differ, got the same ids twice; leave the pair out")

    @classmethod
    def of_ids(
        cls,
        prompt_ids: Sequence[int],
        chosen_ids: Sequence[int],
        rejected_ids: Sequence[int],
        *,
        temperature: float = 1.0,
        min_tokens: int = 0,
    ) -> TokenPair:
        """A pair of recorded ids, the end of a turn included where it was sampled.

        Args:
            prompt_ids: What was read.
            chosen_ids: What is preferred.
            rejected_ids: What is not.
            temperature: Log-probabilities are taken at it; 1 in every paper, whatever play samples at.
            min_tokens: As `TokenSequence.min_tokens`.

        Raises:
            PolicyError: If this is no pair.
        """
        sides = [
            TokenSequence.of_sentence(BASE, prompt_ids, ids, temperature, min_tokens=min_tokens)
            for ids in (chosen_ids, rejected_ids)
        ]
        return cls(chosen=sides[0], rejected=sides[1])

    def of(self, policy: str) -> tuple[TokenSequence, TokenSequence]:
        """Chosen and rejected, asked of a policy."""
        return replace(self.chosen, policy=policy), replace(self.rejected, policy=policy)


@dataclass(frozen=True, slots=True)
class BuiltTokenPairs:
    """Pairs in ids, and what became of the others."""

    pairs: tuple[TokenPair, ...]
    """In order."""

    places: tuple[int, ...]
    """Of each, its index in what it was built from."""

    tally: Tally
    """Used and dropped."""


def said_pair(
    backend: TorchBackend,
    prompt: Sequence[ChatMessage],
    chosen: Action | str,
    rejected: Action | str,
    *,
    max_new_tokens: int,
) -> TokenPair:
    """A pair of what was said after a prompt: ids where a model sampled them after this very prompt, else the text's.

    Args:
        backend: Its chat template is that of play.
        prompt: What the policy reads in play (`rtg_agents.prompting`).
        chosen: Preferred: a recorded action, or a text.
        rejected: Not.
        max_new_tokens: Texts are cut where play would cut them, and then have no end of turn.

    Raises:
        PolicyError: If both come out as the same ids.
        ModelError: If the chat template does not end an assistant's message with an end id.
    """
    sides = []
    for side in (chosen, rejected):
        action = Action(text=side) if isinstance(side, str) else side
        sides.append(said_ids(backend, prompt, action, max_new_tokens=max_new_tokens))
    return TokenPair.of_ids(sides[0][0], sides[0][1], sides[1][1])


def user_says(system_prompt: str = "") -> Callable[[str], tuple[ChatMessage, ...]]:
    """How a text is read that stands alone: as the user's one message, after a system prompt if play has one."""
    system = (ChatMessage("system", system_prompt),) if system_prompt else ()
    return lambda text: (*system, ChatMessage("user", text))


def token_pairs(
    backend: TorchBackend,
    pairs: Sequence[PreferencePair],
    read: Callable[[str], Sequence[ChatMessage]],
    *,
    max_new_tokens: int,
    max_tokens: int | None = None,
) -> BuiltTokenPairs:
    """Pairs of texts as pairs of ids; those that teach nothing or do not fit are left out and counted.

    Args:
        backend: Its chat template is that of play.
        pairs: Texts.
        read: From a prompt's text to what the policy reads in play, such as `user_says()`.
        max_new_tokens: As play cuts sentences.
        max_tokens: Longest prompt and sentence together; None: no limit but the model's.
    """
    kept, places, dropped = [], [], Counter[str]()
    for place, pair in enumerate(pairs):
        try:
            found = said_pair(backend, read(pair.prompt), pair.chosen, pair.rejected, max_new_tokens=max_new_tokens)
        except PolicyError:  # after one prompt nothing else can be wrong
            dropped["the same ids once cut"] += 1
            continue
        if max_tokens is not None and max(len(found.chosen.ids), len(found.rejected.ids)) > max_tokens:
            dropped[f"over {max_tokens} ids"] += 1
            continue
        kept.append(found)
        places.append(place)
    return BuiltTokenPairs(tuple(kept), tuple(places), Tally(len(pairs), len(kept), dict(dropped)))


def _prompt(sequence: TokenSequence) -> tuple[int, ...]:
    return sequence.ids[: sequence.spans[0][0]]
