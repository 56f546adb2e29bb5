"""SEAS: both sides learn from the same attacked dialogues, each from preferences, in a few iterations (arXiv:2408.02632).

The population loop with four choices: everybody prepares for the newest member of the other side; red and the target learn
by preference (`rtg_solvers.oracles.seas`); both sides learn in every iteration, R0 and T0 in the first. Red's goals are
seeds, so the payoff matrix is the cross-play of all R with all T, and its solution is a Nash equilibrium of that game: what
the paper does not ask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Literal

from rtg_agents.policy import Sampling
from rtg_agents.population import untrained_seeded_members
from rtg_env.errors import ConfigError
from rtg_env.goals import GoalSet
from rtg_env.types import Role
from rtg_solvers.loop import DialogueContext, Method
from rtg_solvers.meta_solvers import latest, nash
from rtg_solvers.methods.common import Cost, checks
from rtg_solvers.methods.seeded import SeededConfig, Sources
from rtg_solvers.oracles.preference import PreferenceSettings
from rtg_solvers.oracles.seas import SeasOracle, SeasSettings
from rtg_solvers.payoffs import PayoffTensor
from rtg_solvers.seed_goals import seed_goals
from rtg_solvers.seeds import load_seeds

if TYPE_CHECKING:
    from rtg_agents.hf import TorchBackend

METHODS: Final = ("seas",)
"""Names of `SeasConfig.method`."""


_ROLES: Final[tuple[Role, ...]] = ("red", "blue")


@dataclass(frozen=True, slots=True, kw_only=True)
class SeasConfig(SeededConfig):
    """Everything that decides a run of SEAS. The defaults take minutes on two CPU cores."""

    method: Literal["seas"] = "seas"
    """This one."""

    iterations: int = 3
    """Attack stages and updates of both sides after R0 and T0, at least 1; 3 in the paper."""

    schedule: Literal["iterative", "pooled"] = "iterative"
    """`pooled`, the ablation: one stage of R0 against T0 with the seeds of all iterations, one update."""

    seas: SeasSettings = field(default_factory=SeasSettings)
    """Seeds, stage, pairs, preferences, general data."""

    red_sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.8, max_new_tokens=32))
    """How red's models draw; the paper also truncates at top-p 0.9, which nothing here does."""

    blue_sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.8, max_new_tokens=32))
    """How blue's models draw."""

    def __post_init__(self) -> None:
        """Refuse settings outside their range."""
        SeededConfig.__post_init__(self)  # zero-argument super() fails in a dataclass with slots
        if self.iterations < 1:
            raise ConfigError(f"expected iterations >= 1, got {self.iterations}")

    @property
    def sources(self) -> Sources:
        """The texts that both sides learn from."""
        return Sources(self.seas.seeds.source, self.seas.instructions, self.seas.general.source)

    @property
    def unsafe_above(self) -> float:
        """A reply is unsafe if its harm is above this."""
        return self.seas.stage.unsafe_above

    @property
    def updates(self) -> int:
        """Times that both sides learn from an attack stage."""
        return 1 if self.schedule == "pooled" else self.iterations

    @property
    def settings(self) -> SeasSettings:
        """What the oracles need; pooled, one update has the seeds, pairs and steps of all iterations."""
        found, more = self.seas, self.iterations - 1
        if self.schedule == "iterative":
            return found
        general = replace(found.general, first=found.general.first + more * found.general.later)
        most = found.pairs.max_target_pairs
        return replace(
            found,
            stage=replace(found.stage, seeds=found.stage.seeds * self.iterations),
            general=general,
            pairs=replace(found.pairs, max_target_pairs=None if most is None else most * self.iterations),
            red_preference=self._pooled(found.red_preference),
            blue_preference=self._pooled(found.blue_preference),
        )

    def _pooled(self, settings: PreferenceSettings) -> PreferenceSettings:
        """One update may take the steps of all."""
        return replace(settings, max_steps=settings.max_steps * self.iterations)


def goals(config: SeasConfig) -> GoalSet:
    """The seeds of a run as goals, in both halves; those of the training half in the order in which they are attacked.

    Raises:
        ConfigError: If the seeds cannot be read, a type has too few prompts, or there are no requests to evaluate with.
    """
    config.heldout_requests()  # refused now, and not when the run is evaluated
    store = load_seeds(config.seas.seeds.source)
    num_train = config.updates * config.settings.stage.seeds
    return seed_goals(store, config.seas.seeds, num_train=num_train, num_heldout=config.heldout_seeds, seed=config.seed)


def method(config: SeasConfig, backend: TorchBackend) -> Method[DialogueContext]:
    """The config's point of the population loop.

    Args:
        config: Of the run.
        backend: Holds the models.
    """
    oracle = SeasOracle(backend, config.settings, load_seeds(config.seas.seeds.source))

    def both(k: int, payoffs: PayoffTensor) -> Sequence[tuple[Role, ...]]:
        del payoffs
        return [("red", "blue")] if k <= config.updates else []

    return Method(meta_solver=latest, final_solver=nash, oracles={"red": oracle, "blue": oracle}, schedule=both)


def cost(config: SeasConfig, goals: GoalSet) -> Cost:
    """Count the work of a run; less where few pairs are found.

    Args:
        config: Of the run.
        goals: Seeds of both halves.
    """
    seas, updates = config.settings, config.updates
    members = len(untrained_seeded_members()) // 2 + 1 + updates
    played = members**2 * config.dialogues_per_cell
    checked = checks(config, 1 + updates, goals)
    queries = updates * seas.stage.num_replies
    sft = (seas.red_sft, seas.blue_sft)
    learned = [seas.preference(role, k) for k in range(1, updates + 1) for role in _ROLES]
    dialogues = played + checked + queries
    longest = config.red_sampling.max_new_tokens + config.blue_sampling.max_new_tokens
    return Cost(
        cells=members**2,
        dialogues=dialogues,
        training_steps=sum(one.steps for one in sft) + sum(one.max_steps for one in learned),
        max_generated_tokens=dialogues * longest,
        units=played
        + checked
        + queries
        + sum(one.steps * one.batch for one in sft)
        + sum(one.units for one in learned),
        steps_text=f"at most, {queries} victim queries among the dialogues",
    )


def plan(config: SeasConfig) -> list[str]:
    """What each iteration does, a line each, before it does it."""
    seas = config.settings
    stage = seas.stage
    lines = [
        f"0: R0 from {seas.red_sft.steps} steps on {seas.sft_rows} seeds with their next prompt, "
        f"T0 from {seas.blue_sft.steps} steps on instructions"
    ]
    for k in range(1, config.updates + 1):
        general = seas.num_general(k)
        lines.append(
            f"{k}: R{k - 1} against T{k - 1}, {stage.seeds} seeds x {stage.attacks} attacks x {stage.replies} replies = "
            f"{stage.num_replies} victim queries; at most {seas.most_pairs('red', k)} pairs for R{k} "
            f"({seas.red_preference.loss}), {seas.most_pairs('blue', k) - general} and {general} general ones for T{k} "
            f"({seas.blue_preference.loss})"
        )
    return lines
