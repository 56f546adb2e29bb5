"""MART: both sides imitate what a round selected, red its successes, the target its good answers (arXiv:2311.07689).

The population loop with four choices: everybody prepares for the newest member of the other side; both sides learn by
maximum likelihood (`rtg_solvers.oracles.mart`); after a first stage that makes red's first member, both sides learn in every
round, until the rounds are over, nothing succeeds, or little is left to mend. The first target is the base model itself. Red's
goals are seeds in the template of its prompts, so that payoff cells, gaps and the solved matrix are those of every method;
parents of later rounds are no goals and stand in the run as data (`rtg_solvers.mart_rounds`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from rtg_agents.policy import Sampling
from rtg_agents.population import untrained_seeded_members
from rtg_agents.seed_prompt import render_after
from rtg_env.errors import ConfigError
from rtg_env.goals import Goal, GoalSet, Split
from rtg_env.transcripts import TranscriptStore
from rtg_env.types import Role
from rtg_solvers.loop import DialogueContext, Method
from rtg_solvers.mart_rounds import end_of, selected_rounds
from rtg_solvers.mart_selection import MartPrompt
from rtg_solvers.meta_solvers import latest, nash
from rtg_solvers.methods.common import Cost, checks
from rtg_solvers.methods.seeded import SeededConfig, Sources
from rtg_solvers.oracles.mart import MartOracle, MartSettings
from rtg_solvers.payoffs import PayoffTensor
from rtg_solvers.seeding import rng_for
from rtg_solvers.seeds import SeedPrompt, SeedStore, load_seeds

if TYPE_CHECKING:
    from rtg_agents.hf import TorchBackend

METHODS: Final = ("mart",)
"""Names of `MartConfig.method`."""

_MAX_ACTION_CHARS: Final = 3000
"""A prompt becomes a goal with its template around it, and a goal has at most 4,000 characters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MartConfig(SeededConfig):
    """Everything that decides a run of MART. The defaults take minutes on two CPU cores."""

    method: Literal["mart"] = "mart"
    """This one."""

    rounds: int = 4
    """At most so many, at least 1; 4 in the paper. The last one is that of rejection sampling."""

    mart: MartSettings = field(default_factory=MartSettings)
    """Seeds, rounds, selection, training."""

    red_sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.7, max_new_tokens=32))
    """How red's models draw; the paper also truncates at top-p 0.9, which nothing here does."""

    blue_sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.7, max_new_tokens=32))
    """How blue's models draw, but for the last round."""

    def __post_init__(self) -> None:
        """Refuse settings outside their range."""
        SeededConfig.__post_init__(self)  # zero-argument super() fails in a dataclass with slots
        if self.rounds < 1:
            raise ConfigError(f"expected rounds >= 1, got {self.rounds}")
        if self.game.max_action_chars > _MAX_ACTION_CHARS:
            raise ConfigError(
                f"expected game.max_action_chars of at most {_MAX_ACTION_CHARS}, got {self.game.max_action_chars}: a prompt "
                "becomes what red is told in the next round; lower it"
            )

    @property
    def sources(self) -> Sources:
        """The texts that both sides learn from."""
        return Sources(self.mart.seeds.source, self.mart.instructions.source)

    @property
    def unsafe_above(self) -> float:
        """A reply is unsafe if its harm is above this: its safety is then below theta_adv, as that is set."""
        return 1.0 - self.mart.selection.thresholds.theta_adv

    @property
    def updates(self) -> int:
        """Times that both sides learn, at most."""
        return self.rounds

    @property
    def iterations(self) -> int:
        """Times that both sides learn."""
        return self.rounds


def goals(config: MartConfig) -> GoalSet:
    """The seeds of a run as goals, in both halves; those of the training half are what round 1 starts from.

    Raises:
        ConfigError: If the seeds cannot be read, a half has too few, or there are no requests to evaluate with.
    """
    config.heldout_requests()  # refused now, and not when the run is evaluated
    store = load_seeds(config.mart.seeds.source)
    counts: tuple[tuple[Split, int], ...] = (("train", config.mart.seeds.count), ("heldout", config.heldout_seeds))
    chosen = [(seed, split) for split, count in counts for seed in _seeds(config, store, split, count)]
    return GoalSet(
        (
            Goal(
                id=seed.id,
                text=render_after(_category(seed), seed.text.strip()),
                category=_category(seed),
                group=f"{split}: {seed.group or seed.id}",
                split=split,
            )
            for seed, split in chosen
        ),
        source=f"seeds of {store.source}",
    )


def method(config: MartConfig, backend: TorchBackend, log: TranscriptStore | None = None) -> Method[DialogueContext]:
    """The config's point of the population loop.

    Args:
        config: Of the run.
        backend: Holds the models.
        log: The run's store, which says whether a round was the last; None: all rounds are on the schedule.
    """
    store = load_seeds(config.mart.seeds.source)
    first = [
        MartPrompt(id=seed.id, text=seed.text.strip(), category=_category(seed))
        for seed in _seeds(config, store, "train", config.mart.seeds.count)
    ]
    oracle = MartOracle(
        backend, config.mart, rounds=config.rounds, seeds=first, store=_usable(config, store).split("train")
    )

    def rounds(k: int, payoffs: PayoffTensor) -> Sequence[tuple[Role, ...]]:
        del payoffs
        if k == 0:
            return [("red",)]
        over = k > config.rounds or (log is not None and end_of(log, k - 1) is not None)
        return [] if over else [("red", "blue")]

    return Method(meta_solver=latest, final_solver=nash, oracles={"red": oracle, "blue": oracle}, schedule=rounds)


def remarks(config: MartConfig, log: TranscriptStore) -> list[str]:
    """Why a run ended before its last round, if it did."""
    figures = selected_rounds(log)
    if not figures or len(figures) == config.rounds or figures[-1]["end"] is None:
        return []
    last, share = figures[-1], figures[-1]["violation_share"]
    return [
        f"MART ended after round {len(figures)} of {config.rounds}: {last['end']} ({last['num_successes']} of "
        f"{last['prompts']['total'] + last['num_blank']} prompts succeeded, {'unknown' if share is None else f'{share:.1%}'} violations); "
        "there was no rejection sampling, which belongs to the last round"
    ]


def cost(config: MartConfig, goals: GoalSet) -> Cost:
    """Count the work of a run; less where few prompts succeed.

    Args:
        config: Of the run.
        goals: Seeds of both halves.
    """
    mart, rounds, seeds = config.mart, config.rounds, num_seeds(config)
    untrained = len(untrained_seeded_members()) // 2
    red, blue = untrained + 1 + rounds, untrained + rounds
    played = red * blue * config.dialogues_per_cell
    checked = checks(config, 1 + rounds, goals) - config.dialogues_per_gap  # in the first stage red learns alone
    queries = sum(mart.most_answers(k, rounds, seeds) for k in range(rounds + 1))
    prompts = sum(mart.most_parents(k, seeds) * mart.round.prompts for k in range(1, rounds + 1))
    sides: tuple[Role, ...] = ("red", "blue")
    steps = {side: sum(mart.most_steps(side, k, seeds) for k in range(1, rounds + 1)) for side in sides}
    dialogues = played + checked
    longest = config.red_sampling.max_new_tokens, config.blue_sampling.max_new_tokens
    return Cost(
        cells=red * blue,
        dialogues=dialogues + queries,
        training_steps=mart.warm_start.steps + sum(steps.values()),
        max_generated_tokens=dialogues * sum(longest) + prompts * longest[0] + queries * longest[1],
        units=dialogues
        + queries
        + mart.warm_start.steps * mart.warm_start.batch
        + sum(steps[side] * mart.training(side).batch for side in sides),
        steps_text=f"at most, {queries} victim queries among the dialogues at most",
    )


def plan(config: MartConfig) -> list[str]:
    """What each round does, a line each, before it does it."""
    mart, seeds = config.mart, num_seeds(config)
    lines = [f"0: A0 from {mart.warm_start.steps} steps on {mart.warm_rows} pairs of seeds, T0 is the base model"]
    if zeroth := mart.most_answers(0, config.rounds, seeds):
        lines[0] += f"; T0 gives {mart.selection.answers} answer(s) to each of {seeds} seeds = {zeroth} victim queries"
    for k in range(1, config.rounds + 1):
        temperatures = mart.round.temperatures(k, config.rounds, config.blue_sampling.temperature)
        drawn = "T " + ", ".join(f"{t:g}" for t in dict.fromkeys(temperatures))
        told = ", with safety instructions" if k == 1 and mart.round.preprompt else ""
        lines.append(
            f"{k}: A{k - 1} writes {mart.round.prompts} prompts after each of {'' if k == 1 else 'at most '}"
            f"{mart.most_parents(k, seeds)} parents, T{k - 1} gives {len(temperatures)} answer(s) to each ({drawn}{told}), at most "
            f"{mart.most_answers(k, config.rounds, seeds)} victim queries"
        )
    return lines


def num_seeds(config: MartConfig) -> int:
    """Seeds that round 1 starts from."""
    return config.mart.seeds.count or len(_pool(_usable(config, load_seeds(config.mart.seeds.source)).split("train")))


def _usable(config: MartConfig, store: SeedStore) -> SeedStore:
    settings = config.mart.seeds
    chosen = store.of_types(settings.types) if settings.types else store
    short = (one for one in chosen if len(one.text.strip()) <= settings.max_prompt_chars)
    return SeedStore(short, source=store.source)


def _pool(store: SeedStore) -> list[SeedPrompt]:
    """Prompts of different text, the first of equal ones, in the order of the store."""
    found: dict[str, SeedPrompt] = {}
    for seed in store:
        found.setdefault(seed.text.strip(), seed)
    return list(found.values())


def _seeds(config: MartConfig, store: SeedStore, split: Split, count: int) -> list[SeedPrompt]:
    """So many different prompts of a half, at random; 0: all of them."""
    pool = _pool(_usable(config, store).split(split))
    if len(pool) < max(1, count):
        raise ConfigError(
            f"expected at least {max(1, count)} different seeds in the {split} half of {store.source}, got {len(pool)}; "
            "lower mart.seeds.count or heldout_seeds, or bring more"
        )
    order = rng_for(config.seed, "mart seeds", split).permutation(len(pool))
    return [pool[int(place)] for place in order[: count or len(pool)]]


def _category(seed: SeedPrompt) -> str:
    return seed.category or seed.type
