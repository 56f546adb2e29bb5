"""Seeds of an attack: a type and a few prompts of it, drawn from a store and written by one template.

SEAS (arXiv:2408.02632): red reads k = 3 prompts of one type and writes another of that type. The template is that of
`rtg_agents.seed_prompt`, for the rows that train the first red and for the seeds it attacks from alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from rtg_agents.seed_prompt import SEED_TEMPLATE_VERSION, render_seed
from rtg_env.errors import ConfigError
from rtg_solvers.seeds import SeedPrompt, SeedStore

__all__ = [
    "SEED_TEMPLATE_VERSION",
    "Seed",
    "TypeSampling",
    "WrittenRow",
    "draw_attacker_rows",
    "draw_seeds",
    "render_seed",
]

TypeSampling = Literal["uniform", "proportional"]
"""How a type is drawn: all alike, or in proportion to its number of different prompts."""


class WrittenRow(NamedTuple):
    """A row of supervised training: only the completion is learnt."""

    prompt: str
    """What is read; masked."""

    completion: str
    """What is to be said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seed:
    """What red attacks from."""

    id: str
    """Unique in its stage."""

    type: str
    """Of all its prompts."""

    prompt_ids: tuple[str, ...]
    """Ids of its prompts, in the order they are shown."""

    text: str
    """What red reads: `render_seed` of them."""

    template: str = SEED_TEMPLATE_VERSION
    """Version that wrote `text`."""


def draw_seeds(
    store: SeedStore,
    count: int,
    *,
    rng: np.random.Generator,
    num_prompts: int = 3,
    sampling: TypeSampling = "uniform",
    prefix: str = "seed",
) -> list[Seed]:
    """Draw seeds: a type, then different prompts of it. Two seeds may be alike; their ids differ.

    Args:
        store: One half of a store; every type needs `num_prompts` different texts.
        count: How many, at least 0; 5,000 an iteration in the paper.
        rng: Consumed.
        num_prompts: k.
        sampling: How types are drawn; the paper does not say.
        prefix: Ids are `<prefix>-00000` and so on.

    Raises:
        ConfigError: If a type has too few prompts or an argument is out of range.
    """
    seeds = []
    for number, picked in enumerate(_draw(store, count, num_prompts, sampling, rng)):
        text = render_seed(picked[0].type, [prompt.text for prompt in picked])
        ids = tuple(prompt.id for prompt in picked)
        seeds.append(Seed(id=f"{prefix}-{number:05d}", type=picked[0].type, prompt_ids=ids, text=text))
    return seeds


def draw_attacker_rows(
    store: SeedStore,
    count: int,
    *,
    rng: np.random.Generator,
    num_prompts: int = 3,
    sampling: TypeSampling = "uniform",
) -> list[WrittenRow]:
    """Rows that make the first red: k prompts of a type are read, another of that type is to be written.

    Args:
        store: The training half; every type needs `num_prompts` + 1 different texts.
        count: How many, at least 0; 16,000 in the paper.
        rng: Consumed.
        num_prompts: k.
        sampling: How types are drawn.

    Raises:
        ConfigError: As `draw_seeds`.
    """
    rows = []
    for *shown, wanted in _draw(store, count, num_prompts + 1, sampling, rng):
        rows.append(WrittenRow(render_seed(wanted.type, [prompt.text for prompt in shown]), wanted.text.strip()))
    return rows


def _draw(
    store: SeedStore, count: int, size: int, sampling: TypeSampling, rng: np.random.Generator
) -> list[list[SeedPrompt]]:
    """Lists of different prompts of one type each."""
    if count < 0 or size < 1 or sampling not in ("uniform", "proportional"):
        raise ConfigError(
            f"expected count >= 0, at least one prompt and sampling uniform or proportional, got {count}, {size}, {sampling!r}"
        )
    pools = [store.pools[name] for name in store.types]
    if not pools:
        raise ConfigError(f"expected seed prompts in {store.source}, got none; load some or take the other half")
    if small := [name for name in store.types if len(store.pools[name]) < size]:
        raise ConfigError(
            f"expected at least {size} different prompts of each type in {store.source}, got "
            f"{len(store.pools[small[0]])} of {small[0]!r}; add some, or leave the type out: store.of_types(..)"
        )
    sizes = np.array([len(pool) for pool in pools], dtype=float)
    weights = sizes / sizes.sum() if sampling == "proportional" else np.full(len(pools), 1.0 / len(pools))
    drawn = []
    for index in rng.choice(len(pools), size=count, p=weights):
        pool = pools[int(index)]
        drawn.append([pool[int(place)] for place in rng.choice(len(pool), size=size, replace=False)])
    return drawn
