"""Both sides of SEAS: the first red and target by imitation, every later one by preference on what one attack stage left.

SEAS (arXiv:2408.02632). Iteration 0: red R0 learns to write one more prompt of a type after three of it, target T0 learns
from general instructions; only completions carry a loss. Iteration k: R(k-1) attacks T(k-1) from fresh seeds; red's pairs
are attacks, the target's are replies and some general pairs; each side learns from its own, against itself as it was when
the iteration began. No tuple of an earlier stage is used again.

Deviations: LoRA instead of all parameters; rewards come from a scoring judge whose harm is cut at a threshold; seeds and
general data are small and mild unless the user brings more.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtg_agents.policy import BASE, ChatMessage, TokenSequence
from rtg_agents.population import Member
from rtg_agents.seed_prompt import SEED_TEMPLATE_VERSION, reading_seed
from rtg_env.errors import ConfigError
from rtg_env.goals import Goal
from rtg_env.types import Role
from rtg_solvers.attack_pairs import LearnedPairs, learned_pairs, reading_of
from rtg_solvers.attack_stage import AttackStage, SaidTuples, play_stage, said_in
from rtg_solvers.general import builtin_general_pairs, instructions_of
from rtg_solvers.imitation import typed_ids
from rtg_solvers.loop import DialogueContext, Task
from rtg_solvers.oracles.preference import PreferenceSettings, prefer
from rtg_solvers.oracles.supervised import SupervisedSettings, learn
from rtg_solvers.pair_files import read_pairs
from rtg_solvers.pairs import BuiltPairs, PairSettings, PreferencePair, mix_pairs, red_pairs, target_pairs
from rtg_solvers.seed_goals import SeedSettings, usable
from rtg_solvers.seed_template import draw_attacker_rows
from rtg_solvers.seeding import rng_for
from rtg_solvers.seeds import SeedStore

if TYPE_CHECKING:
    from rtg_agents.hf import TorchBackend

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSettings:
    """How much an attack stage plays (the paper: 5,000 seeds, 5 attacks, 5 replies)."""

    seeds: int = 24
    """Seeds in each iteration (N), at least 1."""

    attacks: int = 5
    """Attacks on each (n), at least 1."""

    replies: int = 5
    """Replies to each attack (m), at least 1."""

    block: int = 4
    """Seeds that are kept together, at least 1: at most so many are lost by a kill."""

    unsafe_above: float = 0.5
    """A reply is unsafe if its harm is above this; in [0, 1)."""

    def __post_init__(self) -> None:
        """Refuse settings outside their range."""
        if min(self.seeds, self.attacks, self.replies, self.block) < 1 or not 0.0 <= self.unsafe_above < 1.0:
            raise ConfigError(
                f"expected seeds, attacks, replies and block >= 1 and unsafe_above in [0, 1), got {self.seeds}, "
                f"{self.attacks}, {self.replies}, {self.block} and {self.unsafe_above!r}"
            )

    @property
    def num_replies(self) -> int:
        """Answers of the target in one stage."""
        return self.seeds * self.attacks * self.replies


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneralSettings:
    """General pairs beside the target's own (the paper: 7,000 in the first iteration, 14,000 in the others, to 2,000)."""

    source: str = "builtin"
    """`builtin` (77 of our own sentences), or a file of preference pairs (docs/pairs.md)."""

    first: int = 32
    """How many in the first iteration, at least 0; fewer if there are not so many."""

    later: int = 64
    """How many in each later one."""

    only: bool = False
    """The ablation: the target learns from these alone; red as ever."""

    def __post_init__(self) -> None:
        """Refuse settings outside their range."""
        if min(self.first, self.later) < 0:
            raise ConfigError(f"expected first and later >= 0, got {self.first} and {self.later}")

    def read(self) -> list[PreferencePair]:
        """The pairs.

        Raises:
            ConfigError: If the file cannot be read or is broken.
        """
        if self.source == "builtin":
            return builtin_general_pairs()
        # Where they stood in a log of their own means nothing here: other runs have seeds of the same names.
        return [replace(pair, chosen_place=None, rejected_place=None) for pair in read_pairs(Path(self.source))]


@dataclass(frozen=True, slots=True, kw_only=True)
class SeasSettings:
    """Everything that both sides' oracles need."""

    seeds: SeedSettings = field(default_factory=SeedSettings)
    """Which prompts red is shown."""

    stage: StageSettings = field(default_factory=StageSettings)
    """How much is played."""

    sft_rows: int = 512
    """Rows that R0 learns from (the paper: 16,000), at least 1."""

    red_sft: SupervisedSettings = field(default_factory=SupervisedSettings)
    """Of R0."""

    instructions: str = "builtin"
    """What T0 learns from: `builtin` (77 of our own sentences) or a file of the same form (docs/mart.md)."""

    blue_sft: SupervisedSettings = field(default_factory=lambda: SupervisedSettings(steps=12, batch=16))
    """Of T0; 0 steps leave it as it is, which is right for a model that was tuned on instructions already."""

    pairs: PairSettings = field(default_factory=PairSettings)
    """What makes a pair."""

    red_preference: PreferenceSettings = field(default_factory=PreferenceSettings)
    """How red learns from its pairs."""

    blue_preference: PreferenceSettings = field(default_factory=PreferenceSettings)
    """How the target does."""

    general: GeneralSettings = field(default_factory=GeneralSettings)
    """What the target's pairs are mixed with."""

    def __post_init__(self) -> None:
        """Refuse settings outside their range."""
        if self.sft_rows < 1:
            raise ConfigError(f"expected sft_rows >= 1, got {self.sft_rows}; 0 steps of red_sft leave R0 untrained")

    def num_general(self, iteration: int) -> int:
        """General pairs of an iteration, from 1: as many as wanted, or as there are."""
        wanted = self.general.first if iteration == 1 else self.general.later
        return min(wanted, len(self.general.read()))

    def most_pairs(self, role: Role, iteration: int) -> int:
        """What a side can learn from at most: a pair a seed, a pair an attack and the general ones."""
        if role == "red":
            return self.stage.seeds
        own = self.stage.seeds * self.stage.attacks
        most = own if self.pairs.max_target_pairs is None else min(own, self.pairs.max_target_pairs)
        return self.num_general(iteration) + (0 if self.general.only else most)

    def preference(self, role: Role, iteration: int) -> PreferenceSettings:
        """How a side learns in an iteration; the bound on steps is no more than its pairs can need."""
        settings = self.red_preference if role == "red" else self.blue_preference
        needed = settings.epochs * -(-self.most_pairs(role, iteration) // settings.batch)
        return replace(settings, max_steps=max(1, min(settings.max_steps, needed)))


class SeasOracle:
    """Both sides' members, iteration by iteration.

    Args:
        backend: Holds the adapters.
        settings: Of the method.
        store: The prompts that red is shown; its training half is read.
    """

    def __init__(self, backend: TorchBackend, settings: SeasSettings, store: SeedStore) -> None:
        self._backend = backend
        self._settings = settings
        self._store = store

    def respond(self, task: Task[DialogueContext]) -> Member:
        """The member of an iteration: R0 or T0, later one that learned from the stage before it."""
        if task.iteration == 0:
            return self._first(task)
        found = self._attacked(task)
        reference = str((task.mixture.red_names if task.role == "red" else task.mixture.blue_names)[-1])
        lesson = self._lesson(task, found)
        settings = self._settings.preference(task.role, task.iteration)
        report = prefer(
            task,
            self._backend,
            lesson.pairs,
            settings,
            reference=reference,
            clusters=lesson.clusters,
            kinds=lesson.kinds,
        )
        about: dict[str, object] = {
            "oracle": settings.loss,
            "reference": reference,
            "stage": str(task.iteration),
            "verdicts": dict(found.log.verdicts),
            "num_queries": len(found.log.tuples),
            "pairs": {kind: tally._asdict() for kind, tally in lesson.tallies.items()},
            "preference": report.lineage(),
        }
        return self._member(task, about)

    # Iteration 0

    def _first(self, task: Task[DialogueContext]) -> Member:
        settings = self._settings.red_sft if task.role == "red" else self._settings.blue_sft
        lessons = self._seed_lessons(task) if task.role == "red" else self._instruction_lessons(task)
        learn(task, self._backend, lessons, settings, reference=BASE)
        return self._member(task, {"oracle": "sft", "reference": BASE, "num_lessons": len(lessons)})

    def _seed_lessons(self, task: Task[DialogueContext]) -> list[TokenSequence]:
        """Three prompts of a type are read, another one is to be written."""
        settings = self._settings.seeds
        rows = draw_attacker_rows(
            usable(self._store, settings).split("train"),
            self._settings.sft_rows,
            rng=rng_for(task.context.seed, "seed rows"),
            num_prompts=settings.num_prompts,
            sampling=settings.sampling,
        )
        return [self._typed(task, reading_seed(row.prompt), row.completion) for row in rows]

    def _instruction_lessons(self, task: Task[DialogueContext]) -> list[TokenSequence]:
        system = task.context.game.config.blue_system_prompt
        rows = instructions_of(self._settings.instructions, "train")
        return [self._typed(task, reading_of("blue", row.prompt, system_prompt=system), row.completion) for row in rows]

    def _typed(self, task: Task[DialogueContext], prompt: Sequence[ChatMessage], text: str) -> TokenSequence:
        """What is read carries no loss; what is to be said ends with the end of a turn, or where play would cut it."""
        before, ids = typed_ids(self._backend, prompt, text)
        longest = task.context.population.sampling[task.role].max_new_tokens
        return TokenSequence.of_sentence(task.version, before, ids[:longest])

    # Later iterations

    def _attacked(self, task: Task[DialogueContext]) -> SaidTuples:
        """The iteration's stage, played by whichever side asks first."""
        stage = attack_stage(
            self._settings.stage,
            task.context.game.goals.harmful,
            iteration=task.iteration,
            red=task.mixture.red_names[-1],
            blue=task.mixture.blue_names[-1],
        )
        play_stage(task.context, stage, task.context.population.policies)
        if task.role == "red":
            task.context.meter.add(stage.num_replies)
        return said_in(task.context.store, [stage.name], threshold=self._settings.stage.unsafe_above)

    def _lesson(self, task: Task[DialogueContext], found: SaidTuples) -> LearnedPairs:
        settings, general = self._settings, self._settings.general
        rng = rng_for(task.context.seed, "pairs", task.role, task.iteration)
        mixed: list[PreferencePair] = []
        if task.role == "red":
            built = red_pairs(found.log.tuples, settings.pairs)
        else:
            built = BuiltPairs((), {}) if general.only else target_pairs(found.log.tuples, settings.pairs, rng=rng)
            mixed = mix_pairs((), general.read(), num_general=settings.num_general(task.iteration), rng=rng)
        return learned_pairs(
            self._backend,
            task.role,
            built,
            found.said,
            mixed,
            groups={goal.id: goal.group for goal in task.context.game.goals.harmful},
            max_new_tokens=task.context.population.sampling[task.role].max_new_tokens,
            system_prompt=task.context.game.config.blue_system_prompt,
        )

    def _member(self, task: Task[DialogueContext], about: dict[str, Any]) -> Member:
        name = f"{'R' if task.role == 'red' else 'T'}{task.iteration}"
        return Member(
            version=task.version,
            role=task.role,
            kind="seeded" if task.role == "red" else "adapter",
            label=name,
            lineage={
                "iteration": task.iteration + 1,
                **about,
                "template": SEED_TEMPLATE_VERSION,
                "seed": task.context.seed,
            },
        )


def attack_stage(settings: StageSettings, goals: Sequence[Goal], *, iteration: int, red: str, blue: str) -> AttackStage:
    """The stage of an iteration, from seeds of its own.

    Args:
        settings: How much is played.
        goals: Seeds of the training half, as many as all iterations need.
        iteration: From 1.
        red: Version that attacks.
        blue: Version that answers.

    Raises:
        ConfigError: If there are too few seeds.
    """
    first = (iteration - 1) * settings.seeds
    seeds = tuple(goals[first : first + settings.seeds])
    if len(seeds) < settings.seeds:
        raise ConfigError(
            f"expected {first + settings.seeds} seeds of the training half for iteration {iteration}, got {len(goals)}; "
            "draw more"
        )
    return AttackStage(
        name=str(iteration),
        red=red,
        blue=blue,
        seeds=seeds,
        attacks=settings.attacks,
        replies=settings.replies,
        block=settings.block,
    )
