"""GRTS and its ablations: red and blue LoRA populations on one base model, an empirical game, its solution, repeat.

After "Red Teaming Game" (arXiv:2310.00322). The methods differ in whom the next best responses prepare for, and in the
mixture that is reported:

- `grts`: for the logit mixture of all members, which moves less than a vertex of the Nash set; reported is the linear
  program's Nash equilibrium (double oracle).
- `self-play`: for the newest member of the other side, which is also what is reported.
- `alternating`: as self-play, but in turn: blue meets the red that has just learned (alternating best response).
- `fictitious-play`: for all members alike, which is also what is reported.

Blue's best responses are adapters, trained by reinforcement learning; red's are that, or scripts found by search, or a
network over prompt tactics (`red_oracle`).

Deviations from the paper: mixtures are solved, not averaged over iterations; its diversity term is not public, ours is
off unless `rl.diversity` names one; a helpfulness term makes refusing cost blue something; best responses start from the
base model unless `rl.start` says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from rtg_agents.scripted import OPENINGS
from rtg_env.errors import ConfigError
from rtg_env.goals import GoalSet
from rtg_env.tactics import TACTICS, Tactic
from rtg_env.types import Role
from rtg_solvers.loop import DialogueContext, Method, Oracle
from rtg_solvers.meta_solvers import meta_solver
from rtg_solvers.methods.common import Cost, RunConfig, checks
from rtg_solvers.oracles.candidates import selection_dialogues
from rtg_solvers.oracles.rl import RLOracle, RLSettings, imitation_units, step_units
from rtg_solvers.oracles.search import SearchOracle, SearchSettings, num_dialogues
from rtg_solvers.oracles.tactics import TacticOracle, TacticSettings
from rtg_solvers.payoffs import PayoffTensor

if TYPE_CHECKING:
    from rtg_agents.hf import TorchBackend


_SOLVERS: Final = {
    "grts": ("logit", "nash"),
    "self-play": ("latest", "latest"),
    "alternating": ("latest", "latest"),
    "fictitious-play": ("uniform", "uniform"),
}
"""Whom each method prepares for, and what it reports."""

METHODS: Final = tuple(_SOLVERS)
"""Names of `GRTSConfig.method`."""

_RED_ORACLES: Final = ("rl", "search", "tactics")


@dataclass(frozen=True, slots=True, kw_only=True)
class GRTSConfig(RunConfig):
    """Everything that decides a run. The defaults are the quick preset: minutes on two CPU cores."""

    method: Literal["grts", "self-play", "alternating", "fictitious-play"] = "grts"
    """Whom best responses prepare for."""

    meta_solver: str = ""
    """Prepare for this mixture instead: a name of `rtg_solvers.META_SOLVERS`, empty for the method's own."""

    iterations: int = 1
    """Double-oracle iterations; each trains one best response per side. At least 1."""

    rl: RLSettings = field(default_factory=RLSettings)
    """Best responses by reinforcement learning: blue's, and red's unless `red_oracle` says otherwise."""

    red_oracle: Literal["rl", "search", "tactics"] = "rl"
    """How red's best responses are found: an adapter by `rl`, the best of some scripts, or PPO over prompt tactics
    (needs the rl extra)."""

    search: SearchSettings = field(default_factory=SearchSettings)
    """Of red's search, if that is its oracle; an iteration in which nothing gains adds no red member."""

    tactics: TacticSettings = field(default_factory=TacticSettings)
    """Of red's PPO over tactics, if that is its oracle."""

    def __post_init__(self) -> None:
        """Refuse settings outside their range."""
        RunConfig.__post_init__(self)  # zero-argument super() fails in a dataclass with slots
        if self.iterations < 1:
            raise ConfigError(f"iterations must be >= 1, got {self.iterations!r}")
        if self.method not in _SOLVERS:
            raise ConfigError(f"method must be one of {', '.join(_SOLVERS)}, got {self.method!r}")
        if self.meta_solver:
            meta_solver(self.meta_solver)
        self._check_red_oracle()

    def _check_red_oracle(self) -> None:
        if self.red_oracle not in _RED_ORACLES:
            raise ConfigError(f"red_oracle must be one of {', '.join(_RED_ORACLES)}, got {self.red_oracle!r}")
        if self.red_oracle == "tactics" and self.game.num_red > 1:
            raise ConfigError(
                f"expected game.num_red of 1 for red_oracle 'tactics', got {self.game.num_red}; take 'rl' or 'search'"
            )
        diversity = (self.rl.diversity.bonus, self.rl.diversity.select)
        if self.red_oracle != "rl" and diversity != ("none", "none"):
            raise ConfigError(
                f"expected rl.diversity.bonus and select 'none' for red_oracle {self.red_oracle!r}, got {diversity}: "
                "they are for a red that learns by rl alone"
            )

    @property
    def stages(self) -> tuple[tuple[Role, ...], ...]:
        """Who learns in an iteration: both sides from the same mixture, or one after the other."""
        return (("red",), ("blue",)) if self.method == "alternating" else (("red", "blue"),)

    @property
    def fills(self) -> Sequence[Tactic]:
        """Red's search tries all tactics, the population's templates are openings."""
        return TACTICS if self.red_oracle == "search" else OPENINGS

    @property
    def reads_with(self) -> Literal["sentences", "hashed"]:
        """What red's tactic members read of texts, if it has any."""
        return self.tactics.embeddings if self.red_oracle == "tactics" else "hashed"

    @property
    def steps_text(self) -> str:
        """What a training step is, for each side."""
        size = f"of {self.rl.dialogues_per_step} dialogues"
        if self.red_oracle == "tactics":
            return f"(blue's {size}, red's of {self.tactics.dialogues_per_update})"
        if self.red_oracle == "search":
            return f"{size}, all of them blue's; red tries at most {self.search.candidates} scripts per iteration"
        return size


def cost(config: GRTSConfig, goals: GoalSet, num_untrained: tuple[int, int] = (3, 1)) -> Cost:
    """Count the work of a run.

    Args:
        config: Of the run.
        goals: Both halves.
        num_untrained: Members of (red, blue) before the first iteration.
    """
    red, blue = (count + config.iterations for count in num_untrained)
    steps = config.iterations * config.rl.steps
    red_steps, red_rollouts, red_units = _red_training(config, num_untrained[1])
    played = red * blue * config.dialogues_per_cell
    # Who meets the newest alone stays with it while the other side learns.
    alone = config.method == "alternating" and config.meta_solver in ("", "latest")
    checked = checks(config, config.iterations * len(config.stages), goals, deviating=1 if alone else 2)
    training = steps * step_units(config.rl) + config.iterations * imitation_units(config.rl) + red_units
    dialogues = played + checked + steps * config.rl.dialogues_per_step + red_rollouts
    tokens_per_dialogue = config.game.num_exchanges * (
        config.red_sampling.max_new_tokens + config.blue_sampling.max_new_tokens
    )
    return Cost(
        cells=red * blue,
        dialogues=dialogues,
        training_steps=steps + red_steps,
        max_generated_tokens=dialogues * tokens_per_dialogue,
        units=played + checked + training,
        steps_text=config.steps_text,
    )


def _red_training(config: GRTSConfig, num_blue: int) -> tuple[int, int, float]:
    """Steps, dialogues and units of work of all of red's best responses, `num_blue` blue members being there at first."""
    iterations = range(config.iterations)
    if config.red_oracle == "search":
        exchanges = config.game.num_exchanges
        played = sum(num_dialogues(config.search, exchanges, seed=config.seed, iteration=k) for k in iterations)
        return 0, played, float(played)
    if config.red_oracle == "tactics":
        steps = config.iterations * config.tactics.updates
        played = steps * config.tactics.dialogues_per_update
        return steps, played, float(played)
    steps = config.iterations * config.rl.steps
    chosen = sum(selection_dialogues(config.rl.diversity, num_blue + k) for k in iterations)
    units = sum(config.rl.steps * step_units(config.rl, _num_compared(config, k)) for k in iterations)
    units += config.iterations * imitation_units(config.rl) + chosen
    return steps, steps * config.rl.dialogues_per_step + chosen, units


def _num_compared(config: GRTSConfig, iteration: int) -> int:
    """Adapters that score red's sentences in a step: all that red has by then, if the bonus is paid for that."""
    diversity = config.rl.diversity
    return iteration if diversity.bonus == "policy" and diversity.weight_in(iteration, config.iterations) else 0


def method(config: GRTSConfig, backend: TorchBackend) -> Method[DialogueContext]:
    """The config's point of the population loop."""
    blue = RLOracle(backend, config.rl, iterations=config.iterations)
    reds: dict[str, Oracle[DialogueContext]] = {
        "rl": blue,
        "search": SearchOracle(config.search),
        "tactics": TacticOracle(config.tactics),
    }

    def both_sides(k: int, payoffs: PayoffTensor) -> Sequence[tuple[Role, ...]]:
        del payoffs
        return config.stages if k < config.iterations else []

    prepare, report = _SOLVERS[config.method]
    return Method(
        meta_solver=meta_solver(config.meta_solver or prepare),
        final_solver=meta_solver(report),
        oracles={"red": reds[config.red_oracle], "blue": blue},
        schedule=both_sides,
    )
