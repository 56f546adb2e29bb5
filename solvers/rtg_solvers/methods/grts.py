"""GRTS and its ablations: red and blue LoRA populations on one base model, an empirical game, its solution, repeat.

After "Red Teaming Game" (arXiv:2310.00322). The methods differ in whom the next best responses prepare for, and in the
mixture that is reported:

- `grts`: for the logit mixture of all members, which moves less than a vertex of the Nash set; reported is the linear
  program's Nash equilibrium (double oracle).
- `self-play`: for the newest member of the other side, which is also what is reported.
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

from rtg_agents.lora import LoraSettings
from rtg_agents.policy import Sampling
from rtg_env.errors import ConfigError
from rtg_env.rules import GameConfig
from rtg_env.types import Role
from rtg_solvers.loop import DialogueContext, Method, Oracle
from rtg_solvers.meta_solvers import meta_solver
from rtg_solvers.oracles.candidates import selection_dialogues
from rtg_solvers.oracles.rl import RLOracle, RLSettings, imitation_units, step_units
from rtg_solvers.oracles.search import SearchOracle, SearchSettings, num_dialogues
from rtg_solvers.oracles.tactics import TacticOracle, TacticSettings
from rtg_solvers.payoffs import PayoffTensor
from rtg_solvers.sampling import SamplingSettings

if TYPE_CHECKING:
    from rtg_agents.hf import TorchBackend


_SOLVERS: Final = {
    "grts": ("logit", "nash"),
    "self-play": ("latest", "latest"),
    "fictitious-play": ("uniform", "uniform"),
}
"""Whom each method prepares for, and what it reports."""

_RED_ORACLES: Final = ("rl", "search", "tactics")


def _quick_game() -> GameConfig:
    return GameConfig(num_exchanges=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class GRTSConfig:
    """Everything that decides a run. The defaults are the quick preset: minutes on two CPU cores."""

    method: Literal["grts", "self-play", "fictitious-play"] = "grts"
    """Whom best responses prepare for."""

    meta_solver: str = ""
    """Prepare for this mixture instead: a name of `rtg_solvers.META_SOLVERS`, empty for the method's own."""

    model: str = "smollm2-135m"
    """Base model of both sides: `smollm2-135m`, a local folder, or a hub id."""

    goals: str = "builtin"
    """`builtin` or a goal file."""

    judge: str = "offline-a"
    """Who pays: `offline-a`, or `module:attribute` of your own judge."""

    report_judge: str = ""
    """A second judge that never pays and only reports: `offline-b`, your own, or empty for none."""

    seed: int = 0
    """The only seed of the run."""

    iterations: int = 1
    """Double-oracle iterations; each trains one best response per side. At least 1."""

    dialogues_per_cell: int = 64
    """Dialogues per payoff cell, at least 2; on average, if `adaptive`."""

    adaptive: bool = False
    """Give the same number of dialogues in all, but more to the cells that decide."""

    payoff_sampling: SamplingSettings = field(default_factory=SamplingSettings)
    """How, if `adaptive`."""

    dialogues_per_gap: int = 64
    """Fresh deals per gap, at least 2."""

    heldout_repeats: int = 1
    """Dialogues per held-out harmful goal in the check of red's gain; at least 1."""

    game: GameConfig = field(default_factory=_quick_game)
    """Rules and pay."""

    red_sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.7, max_new_tokens=24))
    """How red's models draw."""

    blue_sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.7, max_new_tokens=32))
    """How blue's models draw."""

    lora: LoraSettings = field(default_factory=LoraSettings)
    """Shape of the adapters."""

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
        lows = {"iterations": 1, "dialogues_per_cell": 2, "dialogues_per_gap": 2, "heldout_repeats": 1, "seed": 0}
        for name, low in lows.items():
            if getattr(self, name) < low:
                raise ConfigError(f"{name} must be >= {low}, got {getattr(self, name)!r}")
        if self.method not in _SOLVERS:
            raise ConfigError(f"method must be one of {', '.join(_SOLVERS)}, got {self.method!r}")
        if self.meta_solver:
            meta_solver(self.meta_solver)
        self._check_red_oracle()
        if self.red_sampling.min_new_tokens or self.blue_sampling.min_new_tokens:
            raise ConfigError(
                "min_new_tokens must be 0 on both sides: records of dialogues do not say it, learners would err"
            )
        if self.report_judge and self.report_judge == self.judge:
            raise ConfigError(
                f"report_judge must differ from judge, both are {self.judge!r}; one judge for both hides reward hacking"
            )

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
    def sampling(self) -> dict[Role, Sampling]:
        """How each side draws."""
        return {"red": self.red_sampling, "blue": self.blue_sampling}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a run would do, before it does it; less if red's search finds nothing better."""

    cells: int
    """Payoff cells."""

    dialogues: int
    """Dialogues in all."""

    training_steps: int
    """Steps of both sides' training, for a network over tactics its updates."""

    max_generated_tokens: int
    """Upper bound: every sentence as long as it may be, scripts counted as models."""

    units: float
    """Work in played dialogues, updates included, for the progress bar."""


def cost(config: GRTSConfig, num_heldout: int, num_untrained: tuple[int, int] = (3, 1)) -> Cost:
    """Count the work of a run.

    Args:
        config: Of the run.
        num_heldout: Harmful held-out goals.
        num_untrained: Members of (red, blue) before the first iteration.
    """
    red, blue = (count + config.iterations for count in num_untrained)
    steps = config.iterations * config.rl.steps
    red_steps, red_rollouts, red_units = _red_training(config, num_untrained[1])
    played = red * blue * config.dialogues_per_cell
    checks = 3 * (config.iterations + 1) * config.dialogues_per_gap + 4 * num_heldout * config.heldout_repeats
    training = steps * step_units(config.rl) + config.iterations * imitation_units(config.rl) + red_units
    dialogues = played + checks + steps * config.rl.dialogues_per_step + red_rollouts
    tokens_per_dialogue = config.game.num_exchanges * (
        config.red_sampling.max_new_tokens + config.blue_sampling.max_new_tokens
    )
    return Cost(
        cells=red * blue,
        dialogues=dialogues,
        training_steps=steps + red_steps,
        max_generated_tokens=dialogues * tokens_per_dialogue,
        units=played + checks + training,
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
        return [("red", "blue")] if k < config.iterations else []

    prepare, report = _SOLVERS[config.method]
    return Method(
        meta_solver=meta_solver(config.meta_solver or prepare),
        final_solver=meta_solver(report),
        oracles={"red": reds[config.red_oracle], "blue": blue},
        schedule=both_sides,
    )
