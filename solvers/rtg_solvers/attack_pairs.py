"""From an attack stage to what both sides learn from: preference pairs in the ids that were read and said in play.

Red's prompt is the seed, the target's is the attack, each as its speaker read it: the recorded prompt and the recorded ids,
nothing is tokenised again but what was cut at the limit on characters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from rtg_agents.policy import ChatMessage
from rtg_agents.prompting import blue_view
from rtg_agents.seed_prompt import reading_seed
from rtg_env.errors import PolicyError
from rtg_env.types import BLUE_AGENT, Action, Observation, PublicMessages, Role
from rtg_solvers.pairs import BuiltPairs, PreferencePair, Tally
from rtg_solvers.token_pairs import TokenPair, said_pair
from rtg_solvers.tuples import Place

if TYPE_CHECKING:
    from rtg_agents.hf import TorchBackend


@dataclass(frozen=True, slots=True)
class LearnedPairs:
    """Pairs that one side learns from."""

    pairs: tuple[TokenPair, ...]
    """N of them."""

    clusters: tuple[str, ...]
    """[N] seed of each, or for general pairs the prompt: what is held out together."""

    kinds: tuple[str, ...]
    """[N] `own` or `general`."""

    tallies: Mapping[str, Tally]
    """What became of seeds, attacks, replies, and of the pairs themselves."""


def reading_of(role: Role, prompt: str, *, system_prompt: str = "") -> tuple[ChatMessage, ...]:
    """What a side's model reads before the first sentence it says.

    Args:
        role: Side.
        prompt: Red: the seed. Blue: the attack.
        system_prompt: Blue's own instructions.
    """
    if role == "red":
        return reading_seed(prompt)
    seen = Observation(
        agent_id=BLUE_AGENT,
        messages=PublicMessages((), prompt),
        turn=0,
        num_exchanges=1,
        system_prompt=system_prompt,
    )
    return blue_view(seen)


def learned_pairs(
    backend: TorchBackend,
    role: Role,
    built: BuiltPairs,
    said: Mapping[Place, Action],
    general: Sequence[PreferencePair] = (),
    *,
    groups: Mapping[str, str] = MappingProxyType({}),
    max_new_tokens: int,
    system_prompt: str = "",
) -> LearnedPairs:
    """A side's own pairs, and general ones after them.

    Args:
        backend: Its chat template is that of play.
        role: Side that learns.
        built: Its own pairs.
        said: What stood at their places.
        general: From elsewhere, as texts.
        groups: Cluster of each seed by its id, so that what came of the same three prompts stays together (seeds that
            share fewer are apart); none: its id.
        max_new_tokens: Texts are cut where play would cut them.
        system_prompt: Blue's own instructions.
    """
    found: list[tuple[TokenPair, str, str]] = []
    dropped = Counter[str]()
    for pair in (*built.pairs, *general):
        sides = [
            said[place] if place is not None else text
            for place, text in ((pair.chosen_place, pair.chosen), (pair.rejected_place, pair.rejected))
        ]
        prompt = reading_of(role, pair.prompt, system_prompt=system_prompt)
        try:
            tokens = said_pair(backend, prompt, sides[0], sides[1], max_new_tokens=max_new_tokens)
        except PolicyError:  # after one prompt nothing else can be wrong
            dropped["the same ids"] += 1
            continue
        place = pair.chosen_place
        found.append(
            (tokens, groups.get(place.seed_id, place.seed_id), "own") if place else (tokens, pair.prompt, "general")
        )
    total = len(built.pairs) + len(general)
    return LearnedPairs(
        pairs=tuple(tokens for tokens, _, _ in found),
        clusters=tuple(label for _, label, _ in found),
        kinds=tuple(kind for _, _, kind in found),
        tallies={**built.tallies, "pairs": Tally(total, len(found), dict(dropped))},
    )
