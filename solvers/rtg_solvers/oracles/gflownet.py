"""Attackers in proportion to reward: a GFlowNet, and REINFORCE on the same reward as its control.

After "Learning diverse attacks on large language models for robust red-teaming and safety tuning" (arXiv:2405.18540). Per
step some micro-batches, each of a few groups of G attacks on one goal: replayed ones, fresh ones at temperature 1, or fresh
ones at a temperature drawn for the micro-batch. Every fresh attack is answered k times by the victim (a draw of blue's
mixture per group) and scored; the balance condition needs no importance weights, whoever wrote the attack.

Deviations: a goal is a context (the paper has a single prompt), so the buffer is kept by goal and drawn in groups; VarGrad by
default, because a learned normaliser that starts at 0 is off by thousands of nats squared; several exchanges by one
balance per turn over sibling sentences of one history (`tree_rollout`); only first sentences are replayed, since
later histories do not come back; shares of behaviours are drawn systematically, so that a step of M micro-batches replays
M times the share (rounded up or down) and costs what it should.

All attacks of a step on one goal share a normaliser, fresh or replayed, and goals of the fresh ones are replayed first.
Groups apart would not do: replay is drawn in proportion to the score, and a group of successes alone is in balance
whatever the odds of success are (docs/planted-modes.md).
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import numpy as np

from rtg_agents.policy import BASE, BackendPolicy, Policy, TokenSequence
from rtg_agents.population import Member
from rtg_env.errors import ConfigError, JudgeError
from rtg_env.judges.base import Encoder
from rtg_env.types import Action
from rtg_solvers.attack_rewards import AttackRewardSettings
from rtg_solvers.diversity import unit
from rtg_solvers.loop import DialogueContext, Task, workdir_of
from rtg_solvers.objectives import ON_POLICY, Objective
from rtg_solvers.optimizer import OptimizerSettings
from rtg_solvers.oracles.supervised import begin
from rtg_solvers.replay import Kept, ReplayBuffer, ReplaySettings
from rtg_solvers.rollout import Pairing, draw_pairings
from rtg_solvers.seeding import rng_for
from rtg_solvers.tree_rollout import Tree, num_answers, play_tree, returns, siblings_to_json, spoken, tree_from_block
from rtg_solvers.workbench import check_scored

if TYPE_CHECKING:
    from rtg_agents.hf import TorchBackend
    from rtg_solvers.trainer import StepFigures, Trainer

_LOG = logging.getLogger(__name__)
_KINDS: Final = {**dict.fromkeys(("vargrad", "tb", "pairwise"), "GFlowNet"), "soft": "soft REINFORCE"}
"""Of attackers, by objective; the others are plain REINFORCE."""
_LEAST: Final = 1
"""Tokens before an attack may end: the empty one is barred in sampler and scorer alike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BehaviourSettings:
    """Who writes the attacks of a micro-batch; the rest is written at temperature 1."""

    replay_share: float = 0.5
    """Chance that a micro-batch is replayed, once there is enough to replay; in [0, 1]."""

    hot_share: float = 0.25
    """Chance of a temperature of its own; in [0, 1 - replay_share]."""

    coldest: float = 0.5
    """Lowest such temperature, above 0; 0.7 against safety-tuned targets."""

    hottest: float = 2.0
    """Highest such temperature."""

    def __post_init__(self) -> None:
        """Refuse settings outside their range."""
        if min(self.replay_share, self.hot_share) < 0.0 or self.replay_share + self.hot_share > 1.0:
            raise ConfigError(
                f"expected shares >= 0 that add up to at most 1, got {self.replay_share!r} and {self.hot_share!r}"
            )
        if not 0.0 < self.coldest <= self.hottest < float("inf"):
            raise ConfigError(f"expected 0 < coldest <= hottest, got {self.coldest!r} and {self.hottest!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class GFlowNetSettings:
    """Settings of one attacker. Batches are small for a CPU; the paper's are 5,000 steps of 8 x 16 attacks."""

    objective: Objective = "vargrad"
    """`vargrad`, `tb`, `pairwise`; or the controls `parity`, `leave-one-out`, `soft`, which need no replay and no heat."""

    steps: int = 32
    """Optimizer steps, at least 1."""

    micro_batches: int = 2
    """Per step, at least 1; each has one behaviour."""

    groups: int = 4
    """Goals per micro-batch, at least 1."""

    group_size: int = 4
    """Attacks per goal (G), at least 2."""

    responses: int = 5
    """Replies to each attack (k), at least 1."""

    behaviour: BehaviourSettings = field(default_factory=BehaviourSettings)
    """Who writes the attacks."""

    reward: AttackRewardSettings = field(default_factory=AttackRewardSettings)
    """What they are to be proportional to."""

    replay: ReplaySettings = field(default_factory=ReplaySettings)
    """What is kept."""

    optimizer: OptimizerSettings = field(default_factory=lambda: OptimizerSettings(learning_rate=1e-4))
    """AdamW on the adapter."""

    def __post_init__(self) -> None:
        """Refuse settings outside their range."""
        lows = {"steps": 1, "micro_batches": 1, "groups": 1, "group_size": 2, "responses": 1}
        for name, low in lows.items():
            if getattr(self, name) < low:
                raise ConfigError(f"expected {name} >= {low}, got {getattr(self, name)!r}")
        if self.objective in ON_POLICY and self.behaviour.replay_share + self.behaviour.hot_share > 0:
            raise ConfigError(
                f"expected replay_share and hot_share 0 for {self.objective!r}, whose samples must be its own, got "
                f"{self.behaviour.replay_share} and {self.behaviour.hot_share}"
            )


class Attempt(NamedTuple):
    """An attack to learn from."""

    kept: Kept
    """What it is."""

    log_score: float
    """log R1, or the return of a sentence in a longer dialogue."""

    group: int = 0
    """Siblings of one history share it."""

    turn: int = 0
    """Exchange in which it was said."""

    @property
    def context(self) -> Hashable:
        """Attacks that share it share a normaliser: those on one goal in the first exchange, later those of one history."""
        return (self.turn, self.group) if self.turn else self.kept.prompt_ids


class GFlowNetOracle:
    """Trains an attacker in proportion to reward.

    Args:
        backend: Holds the adapter while it is trained.
        settings: Steps, behaviour, reward.
        encoder: Embeds attacks for the buffer's rule on near-duplicates.
        reference: Version that training begins at and that fluency is measured by (an SFT attacker); the base by default.
        queries: Training ends before the step that would make the victim answer more often; 0: after `settings.steps`.
    """

    def __init__(
        self,
        backend: TorchBackend,
        settings: GFlowNetSettings,
        encoder: Encoder,
        *,
        reference: str = BASE,
        queries: int = 0,
    ) -> None:
        self._backend = backend
        self._settings = settings
        self._encoder = encoder
        self._reference = reference
        self._queries = queries

    def respond(self, task: Task[DialogueContext]) -> Member:
        """Train an attacker against blue's mixture; goes on where an earlier process was cut off.

        Raises:
            ConfigError: If blue is to be trained.
            JudgeError: If not one attack of a step was scored.
        """
        if task.role != "red":
            raise ConfigError("expected red to be trained, the reward is that of attacks; use another oracle for blue")
        trainer = self._trainer(task)
        settings, num_goals = self._settings, len(task.context.game.goals.harmful)
        buffer = ReplayBuffer(settings.replay, num_contexts=num_goals, group_size=settings.group_size)
        for step in range(trainer.steps_done):
            self._keep(buffer, self._attempts(task, step))
        while trainer.steps_done < settings.steps and self._affords_step(task, trainer.steps_done, buffer):
            self._step(task, trainer, buffer)
            trainer.save(workdir_of(task) / "checkpoint")
        task.context.meter.add((settings.steps - trainer.steps_done) * step_units(settings))
        return Member(
            version=task.version,
            role="red",
            kind="adapter",
            label=f"{_KINDS.get(settings.objective, 'REINFORCE')} attacker",
            lineage={
                "iteration": task.iteration + 1,
                "oracle": settings.objective,
                "reference": self._reference,
                "against": task.mixture.named("blue"),
                "settings": asdict(settings),
                "seed": task.context.seed,
            },
        )

    def _trainer(self, task: Task[DialogueContext]) -> Trainer:
        from rtg_solvers.trainer import Trainer

        begin(task, self._backend, self._reference)
        trainer = Trainer(
            self._backend, [task.version], self._settings.optimizer, values=self._settings.objective == "tb"
        )
        if trainer.resume(workdir_of(task) / "checkpoint"):
            _LOG.info("%s goes on after step %d", task.version, trainer.steps_done)
            task.context.meter.add(trainer.steps_done * step_units(self._settings))
        return trainer

    # One step

    def _step(self, task: Task[DialogueContext], trainer: Trainer, buffer: ReplayBuffer) -> None:
        """Attacks, committed; one update; its figures, committed."""
        store, step, settings = task.context.store, trainer.steps_done, self._settings
        rng = self._rng(task, step)
        temperatures, num_replayed = self._behaviours(rng, buffer)
        name = _block(task, step)
        if temperatures and not store.has_block(name):
            tree = self._play(task, temperatures, rng_for(task.context.seed, "tree", task.role, task.iteration, step))
            fluency = {"reference_logps": self._reference_logps(tree)}
            check_scored(name, tree.played)
            store.put_block(name, tree.played, {**siblings_to_json(tree), **fluency})
        fresh = self._attempts(task, step)
        replayed = self._replayed(rng, buffer, num_replayed, first=_first_sentences(fresh))
        self._keep(buffer, fresh)
        figures = self._update(task, trainer, [*fresh, *replayed])
        if not store.has_block(f"step/{task.version}/{step:04d}"):
            store.put_block(
                f"step/{task.version}/{step:04d}", [], self._figures(task, step, fresh, len(buffer), figures)
            )
        task.context.meter.add(step_units(settings))

    @property
    def _replays(self) -> bool:
        return self._settings.behaviour.replay_share > 0.0

    def _keep(self, buffer: ReplayBuffer, fresh: Sequence[Attempt]) -> None:
        if self._replays:
            buffer.add(_first_sentences(fresh))

    def _rng(self, task: Task[DialogueContext], step: int) -> np.random.Generator:
        """Of a step's behaviours, and of what it replays."""
        return rng_for(task.context.seed, "gflownet", task.role, task.iteration, step)

    def _affords_step(self, task: Task[DialogueContext], step: int, buffer: ReplayBuffer) -> bool:
        """Whether the budget of queries has room for a step."""
        if not self._queries:
            return True
        store, settings = task.context.store, self._settings
        spent = sum(self._num_queries(task, done) for done in range(step))
        fresh = len(self._behaviours(self._rng(task, step), buffer)[0])
        if store.has_block(_block(task, step)):  # asked by a process that was cut off in this step
            return True
        return spent + fresh * _batch_queries(settings, task.context.game.config.num_exchanges) <= self._queries

    def _num_queries(self, task: Task[DialogueContext], step: int) -> int:
        """Answers of the victim in a step."""
        store, name = task.context.store, _block(task, step)
        if not store.has_block(name):
            return 0
        tree = tree_from_block(store.block(name), store.block_data(name))
        return num_answers(tree, task.context.game.config.num_exchanges)

    def _behaviours(self, rng: np.random.Generator, buffer: ReplayBuffer) -> tuple[list[float], int]:
        """Temperature of each fresh micro-batch, and how many are replayed."""
        settings, behaviour = self._settings, self._settings.behaviour
        able = len(buffer.contexts(settings.group_size)) >= settings.groups
        temperatures, replayed = [], 0
        # Evenly spaced behind one random start: each is uniform in [0, 1), and their shares hardly vary.
        for draw in (rng.random() + np.arange(settings.micro_batches)) / settings.micro_batches:
            if draw < behaviour.replay_share and able:
                replayed += 1
            elif behaviour.replay_share <= draw < behaviour.replay_share + behaviour.hot_share:
                temperatures.append(float(rng.uniform(behaviour.coldest, behaviour.hottest)))
            else:
                temperatures.append(1.0)
        return temperatures, replayed

    def _play(self, task: Task[DialogueContext], temperatures: Sequence[float], rng: np.random.Generator) -> Tree:
        """All fresh micro-batches together: one call of the models per turn."""
        context, settings = task.context, self._settings
        policies: dict[str, Policy] = dict(context.population.policies)
        learner = context.population.model_policy(task.version, "red", task.version)
        pairings: list[Pairing] = []
        for temperature in temperatures:
            name = task.version if temperature == 1.0 else f"{task.version}~{temperature:.6f}"
            policies[name] = _at(learner, temperature)
            pairings += draw_pairings(
                context.game,
                rng,
                count=settings.groups,
                red=lambda _, name=name: name,  # type: ignore[misc]  # a default argument binds this turn's name
                blue=lambda r: task.mixture.draw("blue", r),
                harmful_only=True,
            )
        policies[task.version] = _at(learner, 1.0)
        return play_tree(
            context.game,
            policies,
            pairings,
            group_size=settings.group_size,
            responses=settings.responses,
            rng=rng,
            finisher=task.version,
        )

    def _attempts(self, task: Task[DialogueContext], step: int) -> list[Attempt]:
        """A step's fresh attacks that have a score, as they are stored; none if all its micro-batches were replayed."""
        store, name = task.context.store, _block(task, step)
        if not store.has_block(name):
            return []
        data = store.block_data(name)
        tree, reference = tree_from_block(store.block(name), data), cast("list[float]", data["reference_logps"])
        scores = returns(tree, task.context.game.config, floor=self._settings.reward.floor)
        said = spoken(tree)
        known = [index for index, score in enumerate(scores) if np.isfinite(score) and said[index].token_ids]
        if not known:
            raise JudgeError(
                f"expected a scored attack in {name}, all are unscored; mend the judge and start a new run"
            )
        # Who never replays needs no near-duplicates told.
        texts = [said[index].text for index in known] if self._replays else []
        rows = unit(self._encoder.encode(texts)) if texts else np.zeros((len(known), 0))
        attempts = []
        for index, row in zip(known, rows, strict=True):
            sibling, action = tree.siblings[index], said[index]
            goal = tree.played[sibling.replies[0]].transcript.goal.id
            kept = Kept(
                context=goal,
                prompt_ids=action.prompt_ids,
                token_ids=action.token_ids,
                text=action.text,
                score=float(np.exp(scores[index])),
                embedding=row,
                num_tokens=action.num_spoken,
                reference_logp=reference[index],
            )
            attempts.append(Attempt(kept, float(scores[index]), sibling.group, sibling.turn))
        return attempts

    def _replayed(
        self, rng: np.random.Generator, buffer: ReplayBuffer, num_batches: int, *, first: Sequence[Kept]
    ) -> list[Attempt]:
        """Attacks of the buffer; on goals of the step's fresh ones first, so that they are compared with these."""
        settings, attempts = self._settings, list[Attempt]()
        goals = list(dict.fromkeys(kept.context for kept in first))
        for _ in range(num_batches):
            groups = buffer.draw(rng, num_groups=settings.groups, group_size=settings.group_size, first=goals)
            goals = [goal for goal in goals if goal not in {group[0].context for group in groups}]
            attempts += [Attempt(kept, float(np.log(kept.score))) for group in groups for kept in group]
        return attempts

    def _reference_logps(self, tree: Tree) -> list[float]:
        """Log p_ref of each sibling, at temperature 1; 0 for what has no ids."""
        said = spoken(tree)
        places = [place for place, action in enumerate(said) if action.token_ids]
        rows = self._backend.score([_sequence(self._reference, said[place]) for place in places])
        found = [0.0] * len(said)
        for place, row in zip(places, rows, strict=True):
            found[place] = float(sum(row))
        return found

    def _update(self, task: Task[DialogueContext], trainer: Trainer, attempts: Sequence[Attempt]) -> StepFigures | None:
        from rtg_solvers.balance import balance_step

        kept = [attempt.kept for attempt in attempts]
        log_reward = self._settings.reward.log_reward(
            np.array([attempt.log_score for attempt in attempts]),
            np.array([one.reference_logp for one in kept]),
            np.array([one.num_tokens for one in kept]),
            trainer.steps_done,
        )
        sequences = [
            TokenSequence.of_sentence(task.version, one.prompt_ids, one.token_ids, min_tokens=_LEAST) for one in kept
        ]
        numbers = {context: number for number, context in enumerate(dict.fromkeys(a.context for a in attempts))}
        groups = [numbers[attempt.context] for attempt in attempts]
        return balance_step(trainer, sequences, log_reward, groups, self._settings.objective)

    def _figures(
        self,
        task: Task[DialogueContext],
        step: int,
        fresh: Sequence[Attempt],
        buffered: int,
        figures: StepFigures | None,
    ) -> dict[str, Any]:
        """What the report and the committed records show of a step."""
        played = task.context.store.block(_block(task, step))
        scored = [item.transcript.utility for item in played if np.isfinite(item.transcript.utility)]
        reward = self._settings.reward
        return {
            "version": task.version,
            "role": "red",
            "step": step,
            "utility": float(np.mean(scored)) if scored else None,
            "kl": None,
            "log_score": float(np.mean([attempt.log_score for attempt in fresh])) if fresh else None,
            "reference_logp": float(np.mean([attempt.kept.reference_logp for attempt in fresh])) if fresh else None,
            "tau": reward.tau.at(step),
            "buffered": buffered,
            "num_queries": self._num_queries(task, step),
            "num_unscored": sum(item.transcript.unscored for item in played),
            "loss": figures.loss if figures else 0.0,
            "grad_norm": figures.grad_norm if figures else 0.0,
        }


def num_queries(settings: GFlowNetSettings, num_exchanges: int) -> float:
    """Victim queries of one step, on average: what is replayed costs none.

    Args:
        settings: Of the attacker.
        num_exchanges: T; a reply of every exchange but the last is also played to the end, once per sibling.
    """
    fresh = settings.micro_batches * (1.0 - settings.behaviour.replay_share)
    return fresh * _batch_queries(settings, num_exchanges)


def _batch_queries(settings: GFlowNetSettings, num_exchanges: int) -> int:
    """Of one fresh micro-batch."""
    continued = num_exchanges * (num_exchanges - 1) // 2
    return settings.groups * settings.group_size * (settings.responses * num_exchanges + continued)


def step_units(settings: GFlowNetSettings) -> float:
    """Cost of one step in played dialogues: those of its fresh attacks, and about one for each attack's update."""
    attacks = settings.micro_batches * settings.groups * settings.group_size
    fresh = attacks * (1.0 - settings.behaviour.replay_share)
    return fresh * settings.responses + attacks


def _first_sentences(attempts: Sequence[Attempt]) -> list[Kept]:
    return [attempt.kept for attempt in attempts if attempt.turn == 0]


def _at(policy: BackendPolicy, temperature: float) -> BackendPolicy:
    """The same policy, hotter or colder, that says something."""
    sampling = replace(policy.sampling, temperature=temperature, min_new_tokens=_LEAST)
    return replace(policy, sampling=sampling)


def _sequence(version: str, action: Action) -> TokenSequence:
    return TokenSequence.of_sentence(version, action.prompt_ids, action.token_ids, min_tokens=_LEAST)


def _block(task: Task[DialogueContext], step: int) -> str:
    return f"train/{task.version}/{step:04d}"
