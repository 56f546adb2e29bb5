"""What every method's config and cost have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from rtg_agents.lora import LoraSettings
from rtg_agents.policy import Sampling
from rtg_agents.scripted import OPENINGS
from rtg_env.errors import ConfigError
from rtg_env.goals import GoalSet
from rtg_env.rules import GameConfig
from rtg_env.tactics import Tactic
from rtg_env.types import Role
from rtg_solvers.sampling import SamplingSettings


def _quick_game() -> GameConfig:
    return GameConfig(num_exchanges=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """What decides a run, whatever its method. Each method adds its own."""

    model: str = "smollm2-135m"
    """Base model of both sides: `smollm2-135m`, `gemma3-270m`, a local folder, or a hub id."""

    device: str = "cpu"
    """Where the model is: `cpu`, or a name of torch's such as `cuda` or `cuda:1`."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the base model's numbers, adapters are float32 in any; `auto` is float32 on a CPU, bfloat16 elsewhere.
    A CPU with bfloat16 instructions (`lscpu`: avx512_bf16, amx_bf16) is about 1.7 times as fast in it; log-probabilities
    are then exact to about 0.04 nats per token instead of 1e-5."""

    goals: str = "builtin"
    """`builtin` or a goal file."""

    judge: str = "offline-a"
    """Who pays: `offline-a`, or `module:attribute` of your own judge."""

    report_judge: str = ""
    """A second judge that never pays and only reports: `offline-b`, your own, or empty for none."""

    seed: int = 0
    """The only seed of the run."""

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

    def __post_init__(self) -> None:
        """Refuse settings outside their range."""
        lows = {"dialogues_per_cell": 2, "dialogues_per_gap": 2, "heldout_repeats": 1, "seed": 0}
        for name, low in lows.items():
            if getattr(self, name) < low:
                raise ConfigError(f"{name} must be >= {low}, got {getattr(self, name)!r}")
        if self.red_sampling.min_new_tokens or self.blue_sampling.min_new_tokens:
            raise ConfigError(
                "min_new_tokens must be 0 on both sides: records of dialogues do not say it, learners would err"
            )
        if self.report_judge and self.report_judge == self.judge:
            raise ConfigError(
                f"report_judge must differ from judge, both are {self.judge!r}; one judge for both hides reward hacking"
            )

    @property
    def sampling(self) -> dict[Role, Sampling]:
        """How each side draws."""
        return {"red": self.red_sampling, "blue": self.blue_sampling}

    @property
    def fills(self) -> Sequence[Tactic]:
        """Templates that the run fills with goals: a goal must not be too long for any."""
        return OPENINGS

    @property
    def reads_with(self) -> Literal["sentences", "hashed"]:
        """What members and oracles embed texts with."""
        return "hashed"


def checks(
    config: RunConfig, stages: int, goals: GoalSet, *, deviating: int = 2, last: int = 2, num_learning: int = 2
) -> int:
    """Dialogues of a run's own checks: a gap per stage and one of the solution, the gains of the newest members.

    Args:
        config: Of the run.
        stages: Stages or iterations.
        goals: Both halves; the newest members are checked on the held-out harmful ones.
        deviating: Sides that deviate in the gap of a stage: those that learn in it.
        last: The same of the solution's gap: those that have more than one member.
        num_learning: Sides that get a new member in the run; the gain of one that learns nothing is not measured.
    """
    num_heldout = len(goals.split("heldout").harmful) * config.heldout_repeats
    return (stages * (1 + deviating) + 1 + last) * config.dialogues_per_gap + 2 * num_learning * num_heldout


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a run would do, before it does it; less if an oracle finds nothing better."""

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

    steps_text: str
    """What a training step is, in a few words."""
