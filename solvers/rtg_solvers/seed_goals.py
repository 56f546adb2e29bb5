"""Seeds as goals of the ordinary game: what red attacks from is what it wants.

A seed's text is the goal's, its type the category, its id the goal's id. So payoff cells, gaps, intervals clustered by goal,
the report and the way a run goes on after a kill need nothing new. The halves are those of the seed store: no prompt, and no
template of prompts, stands in seeds of both halves.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from rtg_env.errors import ConfigError
from rtg_env.goals import MAX_GOAL_CHARS, Goal, GoalSet, Split
from rtg_solvers.seed_template import Seed, TypeSampling, draw_seeds
from rtg_solvers.seeding import rng_for
from rtg_solvers.seeds import SeedStore

_FRAME_CHARS: Final = 400
"""Room for the template around the prompts, the type's name included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedSettings:
    """Which prompts red is shown, and how seeds are drawn from them."""

    source: str = "builtin"
    """`builtin` (mild) or a file of seed prompts (docs/pairs.md)."""

    types: tuple[str, ...] = ()
    """Only prompts of these types; empty: of all."""

    num_prompts: int = 3
    """Prompts in a seed (k), at least 1."""

    sampling: TypeSampling = "uniform"
    """How a type is drawn: all alike, or in proportion to its prompts. The paper does not say."""

    max_prompt_chars: int = 1000
    """Longer prompts are left out; a seed must not be longer than a goal may be."""

    def __post_init__(self) -> None:
        """Refuse seeds that no goal could hold."""
        if self.num_prompts < 1 or self.max_prompt_chars < 1:
            raise ConfigError(
                f"expected num_prompts and max_prompt_chars >= 1, got {self.num_prompts} and {self.max_prompt_chars}"
            )
        if (longest := self.num_prompts * self.max_prompt_chars + _FRAME_CHARS) > MAX_GOAL_CHARS:
            raise ConfigError(
                f"expected num_prompts * max_prompt_chars + {_FRAME_CHARS} of at most {MAX_GOAL_CHARS}, got {longest}; "
                "lower one of them"
            )


def usable(store: SeedStore, settings: SeedSettings) -> SeedStore:
    """The prompts that seeds are drawn from.

    Raises:
        ConfigError: If a type does not exist.
    """
    chosen = store.of_types(settings.types) if settings.types else store
    return SeedStore((one for one in chosen if len(one.text.strip()) <= settings.max_prompt_chars), source=store.source)


def seed_goals(store: SeedStore, settings: SeedSettings, *, num_train: int, num_heldout: int, seed: int) -> GoalSet:
    """Draw seeds of both halves as harmful goals; those of the training half in the order in which they are attacked.

    Args:
        store: Both halves of the prompts.
        settings: How seeds are drawn.
        num_train: Seeds of the training half, at least 1.
        num_heldout: Seeds of the other, at least 1.
        seed: Of the run.

    Raises:
        ConfigError: If a type of a half has too few prompts.
    """
    prompts = usable(store, settings)
    counts: tuple[tuple[Split, int], ...] = (("train", num_train), ("heldout", num_heldout))
    goals: list[Goal] = []
    for split, count in counts:
        half = prompts.split(split)
        seeds = draw_seeds(
            half,
            count,
            rng=rng_for(seed, "seeds", split),
            num_prompts=settings.num_prompts,
            sampling=settings.sampling,
            prefix=f"seed-{split}",
        )
        goals += as_goals(seeds, half, split)
    return GoalSet(goals, source=f"seeds of {store.source}")


def as_goals(seeds: Iterable[Seed], store: SeedStore, split: Split) -> list[Goal]:
    """Seeds as goals; those made of the same groups of prompts share a group.

    Args:
        seeds: Drawn from the store.
        store: Knows the groups of its prompts.
        split: Half.
    """
    groups = {prompt.id: prompt.group or prompt.id for prompt in store}
    return [
        Goal(
            id=seed.id,
            text=seed.text,
            category=seed.type,
            group=f"{split}: " + " + ".join(sorted({groups[name] for name in seed.prompt_ids}))[: MAX_GOAL_CHARS // 2],
            split=split,
        )
        for seed in seeds
    ]
