"""Red alone learns against a fixed target, and the target may then be tuned on what was found.

After arXiv:2405.18540 (GFlowNet + maximum likelihood, safety tuning, cross-attack), arXiv:2402.19464 (PPO + novelty) and
Yun et al. 2025 (Active Attacks). A method is a list of stages, and a stage is one task of the population loop:

- `sft`, `icl`: the attackers that need no queries.
- `map-elites`: an archive over topic and style, improved by mutation; no gradient.
- `gflownet`: SFT, then a GFlowNet from there, then maximum likelihood on its good attacks.
- `reinforce`, `soft-reinforce` (the GFlowNet's control), `ppo-novelty`: SFT, then policy gradients from there.
- `active-attacks`: SFT; then in turn a GFlowNet from there against the newest target, and the target tuned on what it
  found; at last maximum likelihood on all of it.
- `cross-attack`: several attackers against the base, a target tuned on each one's attacks, and with `retrain` every
  attacker once more against every tuned target. The payoff matrix is the cross-attack matrix, solved like any other game.

Each stage meets one fixed opponent, so the mixture that the loop shows for it is pure. What is reported is the newest member
of each side; for `cross-attack` a Nash equilibrium.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from rtg_agents.policy import BASE, Sampling
from rtg_agents.population import Member, untrained_members
from rtg_env.errors import ConfigError
from rtg_env.goals import GoalSet
from rtg_env.judges.base import Encoder
from rtg_env.types import Role
from rtg_solvers.attack_rewards import AttackRewardSettings, Ramp
from rtg_solvers.empirical import Mixture, checked_means
from rtg_solvers.loop import DialogueContext, Method, Oracle, Task
from rtg_solvers.meta_solvers import latest, nash
from rtg_solvers.methods.common import Cost, RunConfig, checks
from rtg_solvers.objectives import ON_POLICY
from rtg_solvers.optimizer import OptimizerSettings
from rtg_solvers.oracles import map_elites, ppo_novelty
from rtg_solvers.oracles.gflownet import BehaviourSettings, GFlowNetOracle, GFlowNetSettings, num_queries, step_units
from rtg_solvers.oracles.in_context import InContextOracle, InContextSettings
from rtg_solvers.oracles.map_elites import MapElitesOracle, MapElitesSettings
from rtg_solvers.oracles.ppo_novelty import PPONoveltyOracle, PPONoveltySettings
from rtg_solvers.oracles.rl import RLSettings
from rtg_solvers.oracles.supervised import (
    SafetyOracle,
    SafetySettings,
    SFTOracle,
    SmoothingOracle,
    SmoothingSettings,
    SupervisedSettings,
)
from rtg_solvers.payoffs import PayoffTensor
from rtg_solvers.replay import ReplaySettings

if TYPE_CHECKING:
    from rtg_agents.hf import TorchBackend

Recipe = Literal[
    "sft", "icl", "gflownet", "reinforce", "soft-reinforce", "ppo-novelty", "map-elites", "smoothing", "safety"
]
"""How a stage's member is learned."""

ATTACKERS: Final = ("gflownet", "reinforce", "soft-reinforce", "ppo-novelty", "map-elites", "sft", "icl")
"""Attackers by their method's name."""

METHODS: Final = (*ATTACKERS, "active-attacks", "cross-attack")
"""Names of `AttackConfig.method`."""

_UNTRAINED: Final = {"red": len(untrained_members("red")), "blue": len(untrained_members("blue"))}
_TARGET: Final = "blue_00@v1"
_WITHOUT_START: Final = ("icl", "map-elites")
"""Attackers that do not begin at the SFT attacker."""
_WITHOUT_QUERIES: Final = ("sft", "icl")
"""Attackers that do not ask their target."""
_CROSS_ATTACK_QUERIES: Final = 1280
"""Budget of each attacker of a comparison that names none."""
_COMPARING: Final = ("gflownet", "reinforce", "soft-reinforce", "ppo-novelty")
"""Recipes that compare texts by their vectors."""


def _reward() -> AttackRewardSettings:
    """Tau stays at 1: at 2 the fluency that is asked for is p_ref^(1/2), gibberish, and a short training does not come back."""
    return AttackRewardSettings(tau=Ramp(start=1.0, end=1.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackConfig(RunConfig):
    """Everything that decides a run in which attackers are compared. The defaults take minutes on two CPU cores."""

    method: Literal[
        "gflownet",
        "reinforce",
        "soft-reinforce",
        "ppo-novelty",
        "map-elites",
        "sft",
        "icl",
        "active-attacks",
        "cross-attack",
    ] = "gflownet"
    """Who attacks."""

    attackers: tuple[str, ...] = ("gflownet", "reinforce")
    """Of `cross-attack`: names of methods with one attacker each."""

    queries: int = 0
    """Most victim queries of each attacker that asks its target, which then decide its steps. 0: as many steps as its
    settings say; but 1,280 in `cross-attack`, whose attackers are compared at equal cost."""

    tune: bool = False
    """Whether a target is tuned on the attacks of a single attacker; the other methods do so anyway."""

    retrain: bool = False
    """Of `cross-attack`: whether attackers that ask their target are also trained against tuned ones."""

    retrained: tuple[str, ...] = ()
    """With `retrain`: attackers that are trained again, against the targets tuned on each other's and their own attacks;
    none: all that ask, against all targets."""

    rounds: int = 3
    """Of `active-attacks`, at least 1."""

    embeddings: Literal["sentences", "hashed"] = "sentences"
    """What near-duplicates and novelty are measured on: all-MiniLM-L6-v2 (judges extra), or hashed words (needs nothing)."""

    red_sampling: Sampling = field(default_factory=lambda: Sampling(temperature=1.0, max_new_tokens=32))
    """How red's models draw: at temperature 1, where a GFlowNet's distribution is the one that it was trained to have. With
    the 20 tokens of the paper most of what the SFT attacker is to say would be cut."""

    sft: SupervisedSettings = field(default_factory=SupervisedSettings)
    """Of the attacker that the others begin at."""

    icl: InContextSettings = field(default_factory=InContextSettings)
    """Of the in-context attacker."""

    gflownet: GFlowNetSettings = field(
        default_factory=lambda: GFlowNetSettings(
            replay=ReplaySettings(max_cosine=0.95),
            behaviour=BehaviourSettings(coldest=0.75, hottest=1.25),
            reward=_reward(),
        )
    )
    """Of the GFlowNet. One goal's attacks are alike by nature: the published bound of 0.4 on their cosine would keep one. The
    published temperatures, 0.5 to 2, are those of 20 tokens; whole sentences of a language model are gibberish at 2."""

    smoothing: SmoothingSettings = field(default_factory=SmoothingSettings)
    """Of the maximum likelihood after it; 0 steps leave it out."""

    reinforce: GFlowNetSettings = field(
        default_factory=lambda: GFlowNetSettings(
            objective="leave-one-out",
            behaviour=BehaviourSettings(replay_share=0.0, hot_share=0.0),
            reward=_reward(),
        )
    )
    """Of REINFORCE: objective `leave-one-out`, `parity` (as published) or `soft`. Of `soft-reinforce`, the GFlowNet's
    control, too, whose objective is `soft`."""

    ppo: PPONoveltySettings = field(
        default_factory=lambda: PPONoveltySettings(rollouts=32, optimizer=OptimizerSettings(learning_rate=1e-4))
    )
    """Of PPO + novelty."""

    archive: MapElitesSettings = field(default_factory=MapElitesSettings)
    """Of MAP-Elites."""

    safety: SafetySettings = field(default_factory=SafetySettings)
    """Of tuning targets."""

    rl: RLSettings = field(default_factory=RLSettings)
    """Of the fresh best responses of an evaluation."""

    def __post_init__(self) -> None:
        """Refuse settings outside their range."""
        RunConfig.__post_init__(self)  # zero-argument super() fails in a dataclass with slots
        if self.method not in METHODS:
            raise ConfigError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")
        unknown = [name for name in self.attackers if name not in ATTACKERS]
        if unknown or len(set(self.attackers)) != len(self.attackers) or not self.attackers:
            raise ConfigError(
                f"expected different attackers among {', '.join(ATTACKERS)}, got {', '.join(self.attackers) or 'none'}"
            )
        asking = [name for name in self.attackers if name not in _WITHOUT_QUERIES]
        if self.retrained and not (self.retrain and set(self.retrained) <= set(asking)):
            raise ConfigError(
                f"expected retrain = true and retrained among {', '.join(asking)}, got {self.retrain} and "
                f"{', '.join(self.retrained)}"
            )
        if self.game.num_exchanges > 1 and (self.game.red_tokens or self.game.blue_tokens):
            raise ConfigError(
                "expected game.red_tokens and game.blue_tokens 0 for more than one exchange: an attacker whose budget is "
                f"spent says nothing that could be learned from; got {self.game.red_tokens} and {self.game.blue_tokens}"
            )
        if self.queries < 0 or self.rounds < 1:
            raise ConfigError(f"expected queries >= 0 and rounds >= 1, got {self.queries} and {self.rounds}")
        if self.budget and self.gflownet.behaviour.replay_share == 1.0:
            raise ConfigError("expected gflownet.behaviour.replay_share below 1: who only replays spends no queries")
        if self.reinforce.objective not in ON_POLICY:
            raise ConfigError(
                f"expected reinforce.objective parity, leave-one-out or soft, got {self.reinforce.objective!r}; the "
                "others are the GFlowNet's"
            )
        if self.gflownet.objective in ON_POLICY:
            raise ConfigError(
                f"expected gflownet.objective vargrad, tb or pairwise, got {self.gflownet.objective!r}; it is "
                "reinforce's"
            )

    @property
    def reads_with(self) -> Literal["sentences", "hashed"]:
        """What the attackers compare texts by; hashed words, which need nothing, if none of them does."""
        return self.embeddings if any(stage.recipe in _COMPARING for stage in stages(self)) else "hashed"

    @property
    def budget(self) -> int:
        """Most victim queries of each attacker that asks its target; 0: its settings decide."""
        return self.queries or (_CROSS_ATTACK_QUERIES if self.method == "cross-attack" else 0)

    @property
    def iterations(self) -> int:
        """Stages: one new member each."""
        return len(stages(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One task of the loop, before there is a model."""

    version: str
    """Of the member that is learned; names follow from the order alone, since every stage yields a member."""

    recipe: Recipe
    """How."""

    against: str
    """Version of the other side that it meets."""

    reference: str = BASE
    """Version that it begins at."""

    sources: tuple[str, ...] = ()
    """Versions whose attacks it reads."""

    @property
    def role(self) -> Role:
        """Side that learns."""
        return "blue" if self.recipe == "safety" else "red"

    @property
    def target(self) -> str:
        """Version of blue that is attacked, or tuned."""
        if self.role == "red":
            return self.against
        return _TARGET if self.reference == BASE else self.reference


def stages(config: AttackConfig) -> tuple[Stage, ...]:
    """What a config's method does, in order."""
    plan = _Plan()
    if config.method == "active-attacks":
        _active_attacks(plan, config)
    elif config.method == "cross-attack":
        _cross_attack(plan, config)
    else:
        start = plan.red("sft", _TARGET) if config.method not in _WITHOUT_START else BASE
        sources = plan.attacker(config, config.method, start, _TARGET)
        if config.tune:
            plan.blue(sources, _TARGET)
    return tuple(plan.stages)


class _Plan:
    """Stages in the making; knows which names are next."""

    def __init__(self) -> None:
        self.stages: list[Stage] = []

    def red(self, recipe: Recipe, against: str, reference: str = BASE, sources: Sequence[str] = ()) -> str:
        version = self._next("red")
        self.stages.append(
            Stage(version=version, recipe=recipe, against=against, reference=reference, sources=tuple(sources))
        )
        return version

    def blue(self, sources: Sequence[str], reference: str) -> str:
        """A target tuned on the attacks of some versions; it meets the last of them."""
        version = self._next("blue")
        start = BASE if reference == _TARGET else reference
        self.stages.append(
            Stage(version=version, recipe="safety", against=sources[-1], reference=start, sources=tuple(sources))
        )
        return version

    def attacker(self, config: AttackConfig, name: str, start: str, against: str) -> tuple[str, ...]:
        """An attacker's own stages; versions that found its attacks, the last one being the attacker."""
        if name == "sft":
            return (start,)
        if name == "icl":
            return (self.red("icl", against),)
        if name == "map-elites":
            return (self.red("map-elites", against),)
        if name == "gflownet":
            found = self.red("gflownet", against, start)
            return (found, self.red("smoothing", against, start, [found])) if _smooths(config) else (found,)
        if name == "ppo-novelty":
            return (self.red("ppo-novelty", against, start),)
        return (self.red("soft-reinforce" if name == "soft-reinforce" else "reinforce", against, start),)

    def _next(self, role: Role) -> str:
        return f"{role}_{_UNTRAINED[role] + sum(stage.role == role for stage in self.stages):02d}@v1"


def _active_attacks(plan: _Plan, config: AttackConfig) -> None:
    start, target = plan.red("sft", _TARGET), _TARGET
    found: list[str] = []
    for _ in range(config.rounds):
        found.append(plan.red("gflownet", target, start))
        target = plan.blue(found[-1:], target)
    if _smooths(config):
        plan.red("smoothing", target, start, found)


def _cross_attack(plan: _Plan, config: AttackConfig) -> None:
    needs_start = any(name not in _WITHOUT_START for name in config.attackers)
    start = plan.red("sft", _TARGET) if needs_start else BASE
    sources = {name: plan.attacker(config, name, start, _TARGET) for name in config.attackers}
    targets = {name: plan.blue(sources[name], _TARGET) for name in config.attackers}
    asking = [name for name in config.attackers if name not in _WITHOUT_QUERIES]
    for name in (config.retrained or asking) if config.retrain else ():
        for tuned in config.retrained or config.attackers:
            plan.attacker(config, name, start, targets[tuned])


def _smooths(config: AttackConfig) -> bool:
    return config.smoothing.training.steps > 0


class _StagedOracle:
    """Each stage's own oracle, against its own opponent.

    Args:
        config: Of the run.
        backend: Holds the models.
        encoder: Compares texts.
    """

    def __init__(self, config: AttackConfig, backend: TorchBackend, encoder: Encoder) -> None:
        self._config = config
        self._backend = backend
        self._encoder = encoder
        self._stages = stages(config)

    def respond(self, task: Task[DialogueContext]) -> Member:
        """The stage's member, with a label that tells it from others of its kind."""
        stage = self._stages[task.iteration]
        member: Member = self._oracle(stage).respond(task)
        if stage.role == "blue":
            return replace(member, label=f"tuned on {_short(stage.sources[-1])}")
        # Smoothing after several rounds has learned from attacks on several targets.
        retrained = stage.against != _TARGET and stage.recipe not in ("sft", "icl") and len(stage.sources) < 2
        return replace(member, label=f"{member.label} of {_short(stage.against)}") if retrained else member

    def _oracle(self, stage: Stage) -> Oracle[DialogueContext]:
        config, backend = self._config, self._backend
        if stage.recipe == "sft":
            return SFTOracle(backend, config.sft)
        if stage.recipe == "icl":
            return InContextOracle(config.icl)
        if stage.recipe == "safety":
            return SafetyOracle(
                backend, config.safety, reference=stage.reference, sources=stage.sources, target=stage.target
            )
        if stage.recipe == "smoothing":
            return SmoothingOracle(
                backend,
                config.smoothing,
                reference=stage.reference,
                sources=stage.sources,
                target=stage.target,
                floor=config.gflownet.reward.floor,
                min_tokens=config.gflownet.reward.min_tokens,
            )
        return self._querying(stage)

    def _querying(self, stage: Stage) -> Oracle[DialogueContext]:
        """An attacker that asks its target."""
        config, backend = self._config, self._backend
        if stage.recipe == "map-elites":
            return MapElitesOracle(config.archive, queries=config.budget)
        if stage.recipe == "ppo-novelty":
            return PPONoveltyOracle(backend, _ppo(config), self._encoder, reference=stage.reference)
        settings = _balanced(config, stage.recipe)
        return GFlowNetOracle(backend, settings, self._encoder, reference=stage.reference, queries=config.budget)


def _balanced(config: AttackConfig, recipe: Recipe) -> GFlowNetSettings:
    """As many steps as spend the budget of victim queries; steps before there is enough to replay cost more."""
    settings = config.gflownet if recipe == "gflownet" else config.reinforce
    if recipe == "soft-reinforce":
        settings = replace(settings, objective="soft")
    if not config.budget:
        return settings
    return replace(settings, steps=max(1, round(config.budget / num_queries(settings, config.game.num_exchanges))))


def _ppo(config: AttackConfig) -> PPONoveltySettings:
    """The same for PPO, each of whose dialogues is answered once per exchange."""
    if not config.budget:
        return config.ppo
    per_step = config.ppo.rollouts * config.game.num_exchanges
    return replace(config.ppo, steps=max(1, config.budget // per_step))


def method(config: AttackConfig, backend: TorchBackend, encoder: Encoder) -> Method[DialogueContext]:
    """The config's point of the population loop.

    Args:
        config: Of the run.
        backend: Holds the models.
        encoder: Compares texts, by `config.embeddings`.
    """
    planned, oracle = stages(config), _StagedOracle(config, backend, encoder)

    def one_at_a_time(k: int, payoffs: PayoffTensor) -> Sequence[tuple[Role, ...]]:
        del payoffs
        return [(planned[k].role,)] if k < len(planned) else []

    def opponent(payoffs: PayoffTensor, previous: Mixture | None, rng: np.random.Generator) -> Mixture:
        del previous, rng
        return _meeting(planned[_num_done(payoffs)], payoffs)

    return Method(
        meta_solver=opponent,
        final_solver=nash if config.method == "cross-attack" else latest,
        oracles={"red": oracle, "blue": oracle},
        schedule=one_at_a_time,
    )


def _num_done(payoffs: PayoffTensor) -> int:
    """Stages that are over: each has added one member."""
    return len(payoffs.red) + len(payoffs.blue) - sum(_UNTRAINED.values())


def _meeting(stage: Stage, payoffs: PayoffTensor) -> Mixture:
    """A stage's opponent, and what the learner is compared with (the member that it begins at), as a pure mixture."""
    begins = payoffs.red[0] if stage.reference == BASE else stage.reference
    mean = checked_means(payoffs)
    row = payoffs.red.index(stage.against if stage.role == "blue" else begins)
    column = payoffs.blue.index(stage.target)
    return Mixture(
        red=np.eye(len(payoffs.red))[row],
        blue=np.eye(len(payoffs.blue))[column],
        red_names=payoffs.red,
        blue_names=payoffs.blue,
        value=float(mean[row, column]),
        expected=float(mean[row, column]),
    )


def cost(config: AttackConfig, goals: GoalSet) -> Cost:
    """Count the work of a run; what safety tuning will learn is not known before.

    Args:
        config: Of the run.
        goals: Both halves.
    """
    planned = stages(config)
    red, blue = (_UNTRAINED[role] + sum(stage.role == role for stage in planned) for role in ("red", "blue"))
    tuned = any(stage.role == "blue" for stage in planned)
    checked = checks(config, len(planned), goals, deviating=1, last=1 + (blue > 1), num_learning=1 + tuned)
    played = red * blue * config.dialogues_per_cell
    work = [_training(config, stage.recipe, goals) for stage in planned]
    queries, units = sum(each.queries for each in work), sum(each.units for each in work)
    dialogues = played + checked + queries
    longest = config.red_sampling.max_new_tokens + config.blue_sampling.max_new_tokens
    return Cost(
        cells=red * blue,
        dialogues=dialogues,
        training_steps=sum(each.steps for each in work),
        max_generated_tokens=dialogues * config.game.num_exchanges * longest,
        units=played + checked + units,
        steps_text=f"in {len(planned)} stages, {queries} victim queries among the dialogues",
    )


@dataclass(frozen=True, slots=True)
class _Work:
    steps: int
    queries: int
    units: float


def _training(config: AttackConfig, recipe: Recipe, goals: GoalSet) -> _Work:
    if recipe in ("gflownet", "reinforce", "soft-reinforce"):
        settings = _balanced(config, recipe)
        queries = round(settings.steps * num_queries(settings, config.game.num_exchanges))
        return _Work(settings.steps, queries, settings.steps * step_units(settings))
    if recipe == "ppo-novelty":
        ppo = _ppo(config)
        queries = ppo.steps * ppo.rollouts * config.game.num_exchanges
        return _Work(ppo.steps * ppo.epochs, queries, ppo.steps * ppo_novelty.step_units(ppo))
    if recipe == "map-elites":
        num_topics = len(map_elites.topics(goals.split("train").harmful))
        queries = map_elites.num_queries(config.archive, num_topics, config.budget)
        return _Work(0, queries, float(queries))
    if recipe == "safety":
        return _Work(config.safety.max_steps, 0, float(config.safety.max_steps * config.safety.batch))
    if recipe == "icl":
        return _Work(0, 0, 0.0)
    training = config.sft if recipe == "sft" else config.smoothing.training
    return _Work(training.steps, 0, float(training.steps * training.batch))


def _short(version: str) -> str:
    return version.split("@", maxsplit=1)[0]
