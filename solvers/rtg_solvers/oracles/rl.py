"""Reinforcement-learning best responses: leave-one-out REINFORCE, GRPO and PPO, for either side.

Per step: chance draws (goal, opponent, speaking order) once per group of G dialogues; each sentence is credited with
what its side is paid from its exchange on, less the KL to the base model (k1) from there on. Red: u_red - beta KL; blue:
-u_red - beta KL. Shaping stays in here: payoff cells hold the game's utility alone. What the estimators make of it:

- `leave-one-out` (Kool et al. 2019): less the mean of the other G - 1 sentences at the same place; one step.
- `grpo` (arXiv:2402.03300): less the group's mean, over its standard deviation; clipped, averaged over a sentence's ids.
- `ppo` (arXiv:1707.06347): generalised advantages over turns with a value head per policy; clipped.

Deviations from GRPO and PPO as published: the KL is in the reward in all three (as a k3 loss its gradient is biased),
and credit is per sentence, so that one time step is one turn.

Red learns on harmful goals only, since on benign ones nature speaks; that scales its objective by a constant.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import numpy as np

from rtg_agents.policy import BASE, Policy, TokenSequence
from rtg_agents.population import Member
from rtg_env.errors import ConfigError, JudgeError
from rtg_env.transcripts import Played
from rtg_solvers.advantages import (
    group_advantages,
    kl_in_reward,
    leave_one_out,
    paid_until_the_next,
    returns_to_go,
    turn_gae,
)
from rtg_solvers.diversity import policy_bonus
from rtg_solvers.imitation import ImitationSettings, as_said, best_of_each_goal, imitate
from rtg_solvers.lessons import Lessons, collect_lessons, flat_share
from rtg_solvers.loop import DialogueContext, Task, workdir_of
from rtg_solvers.losses import Clipping
from rtg_solvers.optimizer import OptimizerSettings
from rtg_solvers.oracles.candidates import candidate_steps, choose_checkpoint
from rtg_solvers.oracles.shaping import DiversityBonus, DiversitySettings, with_probabilities
from rtg_solvers.rollout import draw_pairings, num_answered, play
from rtg_solvers.seeding import draw_seed, rng_for

if TYPE_CHECKING:
    from rtg_agents.hf import TorchBackend
    from rtg_solvers.trainer import StepFigures, Trainer

_LOG = logging.getLogger(__name__)
_MET_WEIGHT: Final = 0.02
"""Opponents with less weight in the mixture do not say what is worth imitating."""
_SCORING: Final = 0.1
"""Cost of having one more policy score a step's sentences, as a share of playing its dialogues (measured)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RLSettings:
    """Settings of one best response."""

    steps: int = 8
    """Optimizer steps, at least 1."""

    dialogues_per_step: int = 32
    """A multiple of `group_size`."""

    group_size: int = 8
    """Dialogues that share goal, opponent and order (G), at least 2."""

    estimator: Literal["leave-one-out", "grpo", "ppo"] = "leave-one-out"
    """How sentences are credited, and what a step is."""

    epochs: int = 1
    """Optimizer steps on each batch of dialogues; more than 1 for grpo and ppo only."""

    clipping: Clipping = field(default_factory=Clipping)
    """Of grpo and ppo."""

    trace_decay: float = 0.95
    """lambda of ppo's advantages, in [0, 1]."""

    value_weight: float = 0.5
    """Of ppo's value loss, at least 0."""

    start: Literal["base", "mixture", "imitation"] = "base"
    """Where a best response begins: at the base model; at the average of its own side's adapters, weighted by the
    mixture (scripts and the base count as the base); or at what imitation makes of the base."""

    imitation: ImitationSettings = field(default_factory=ImitationSettings)
    """Of that: the sentences of its own side, scripts among them, that were paid best against the members that it
    prepares for, as the payoff cells have them; learned by maximum likelihood at the optimizer's learning rate."""

    diversity: DiversitySettings = field(default_factory=DiversitySettings)
    """What red is paid beside the game for saying something new, and which of its checkpoints becomes the member."""

    kl_weight: float = 0.01
    """beta: price of one nat of divergence from the base model per sentence, in utility; at least 0."""

    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    """Adam on the adapter."""

    def __post_init__(self) -> None:
        """Refuse settings outside their range."""
        if self.steps < 1 or self.group_size < 2:
            raise ConfigError(f"expected steps >= 1 and group_size >= 2, got {self.steps} and {self.group_size}")
        if self.dialogues_per_step < 1 or self.dialogues_per_step % self.group_size:
            raise ConfigError(
                f"expected dialogues_per_step to be a multiple of group_size ({self.group_size}), "
                f"got {self.dialogues_per_step}"
            )
        for name in ("kl_weight", "value_weight"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} must be finite and >= 0, got {getattr(self, name)!r}")
        if self.epochs < 1 or (self.epochs > 1 and self.estimator == "leave-one-out"):
            raise ConfigError(
                f"expected epochs >= 1, and 1 for leave-one-out, whose samples must be its own, got {self.epochs} for "
                f"{self.estimator!r}"
            )
        if not 0.0 <= self.trace_decay <= 1.0:
            raise ConfigError(f"expected trace_decay in [0, 1], got {self.trace_decay!r}")
        wanted = self.diversity.candidates
        if self.diversity.select != "none" and len(candidate_steps(self.steps, wanted)) < wanted:
            raise ConfigError(
                f"expected steps >= {2 * wanted} to choose among {wanted} checkpoints of the second half, "
                f"got {self.steps}; train longer or keep fewer candidates"
            )


class RLOracle:
    """A best response by policy gradient, on a torch backend.

    Args:
        backend: Holds the adapter while it is trained.
        settings: Steps, batch, KL, optimizer.
        iterations: Of the run: diversity is annealed over them.
    """

    def __init__(self, backend: TorchBackend, settings: RLSettings, *, iterations: int = 1) -> None:
        self._backend = backend
        self._settings = settings
        self._iterations = iterations

    def respond(self, task: Task[DialogueContext]) -> Member:
        """Train a fresh adapter, from the base, against the mixture of the other side."""
        trainer = self._trainer(task)
        shaping = self._shaping(task, trainer.steps_done // self._settings.epochs)
        checkpoint, kept = workdir_of(task) / "checkpoint", self._kept(task)
        while trainer.steps_done < self._settings.steps * self._settings.epochs:
            self._step(task, trainer, shaping)
            if folder := kept.get(trainer.steps_done // self._settings.epochs):
                self._backend.save_adapter(task.version, folder)  # first: a kill in between writes it once more
            trainer.save(checkpoint)
            task.context.meter.add(self._units(task))
        selection = self._select(task, kept) if kept else {"rule": "none"}
        return Member(
            version=task.version,
            role=task.role,
            kind="adapter",
            label=f"best response {task.iteration + 1}",
            lineage={
                "iteration": task.iteration + 1,
                "oracle": self._settings.estimator,
                "against": task.mixture.named("blue" if task.role == "red" else "red"),
                "steps": self._settings.steps,
                "learning_rate": self._settings.optimizer.learning_rate,
                "kl_weight": self._settings.kl_weight,
                "start": self._settings.start,
                "diversity": self._settings.diversity.bonus if task.role == "red" else "none",
                "diversity_weight": self._weight(task),
                "diversity_against": list(self._compared(task)),
                "selection": selection,
                "seed": task.context.seed,
            },
        )

    def _trainer(self, task: Task[DialogueContext]) -> Trainer:
        from rtg_solvers.trainer import Trainer

        if task.version not in self._backend.versions:
            self._begin(task)
        values = self._settings.estimator == "ppo"
        trainer = Trainer(self._backend, [task.version], self._settings.optimizer, values=values)
        if trainer.resume(workdir_of(task) / "checkpoint"):
            done = trainer.steps_done // self._settings.epochs
            _LOG.info("%s goes on after step %d", task.version, done)
            task.context.meter.add(done * self._units(task))
        return trainer

    def _weight(self, task: Task[DialogueContext]) -> float:
        return self._settings.diversity.weight_in(task.iteration, self._iterations) if task.role == "red" else 0.0

    def _shaping(self, task: Task[DialogueContext], done: int) -> DiversityBonus | None:
        """The bonus by what is said, if there is one, with the dialogues of the steps that are done in memory."""
        if not self._weight(task) or self._settings.diversity.bonus == "policy":
            return None
        store, members = task.context.store, task.context.population.names("red")
        shaping = DiversityBonus(self._settings.diversity.bonus, members, store)
        for step in range(done):
            shaping.remember(store.block(_rollout_name(task, step)))
        return shaping

    def _compared(self, task: Task[DialogueContext]) -> dict[str, str]:
        """Members whose log-probabilities the bonus needs, and their names at the backend."""
        if not self._weight(task) or self._settings.diversity.bonus != "policy":
            return {}
        return with_probabilities(task.context.population.side("red"))

    def _units(self, task: Task[DialogueContext]) -> float:
        return step_units(self._settings, len(set(self._compared(task).values()) - {BASE}))

    def _kept(self, task: Task[DialogueContext]) -> dict[int, Path]:
        """Where checkpoints that may become the member are kept, by step; nothing if the last one does."""
        diversity = self._settings.diversity
        if task.role == "blue" or diversity.select == "none":
            return {}
        steps = candidate_steps(self._settings.steps, diversity.candidates)
        return {step: workdir_of(task) / "candidates" / f"{step:04d}" for step in steps}

    def _select(self, task: Task[DialogueContext], kept: Mapping[int, Path]) -> dict[str, object]:
        """Give the chosen checkpoint the member's name; how it was chosen, for the lineage."""
        diversity = self._settings.diversity
        tolerance = diversity.tolerance_in(task.iteration, self._iterations)
        choice = choose_checkpoint(task, self._backend, diversity, tolerance, kept)
        step = list(kept)[choice.chosen]
        if step != self._settings.steps:
            self._backend.drop(task.version)
            self._backend.load_adapter(task.version, kept[step])
        return {
            "rule": diversity.select,
            "tolerance": tolerance,
            "dialogues": diversity.select_dialogues,
            "steps": list(kept),
            "utilities": [round(utility, 6) for utility in choice.utilities],
            "diversities": [round(value, 6) for value in choice.diversities],
            "chosen_step": step,
        }

    def _begin(self, task: Task[DialogueContext]) -> None:
        """Add the policy that is to be trained."""
        from rtg_agents.fusion import fuse

        if self._settings.start == "imitation":
            self._begin_by_imitation(task)
            return
        weights = own_adapters(task) if self._settings.start == "mixture" else {}
        if weights:
            bank = self._backend.bank
            bank.add(task.version, fuse(bank, weights, bank.lora).factors, bank.lora)
            return
        rng = rng_for(task.context.seed, "adapter", task.role, task.iteration)
        self._backend.create(task.version, seed=draw_seed(rng))

    def _begin_by_imitation(self, task: Task[DialogueContext]) -> None:
        """The base after some steps on the best sentences so far; kept, so that a run that goes on begins there too."""
        from rtg_solvers.trainer import Trainer

        folder, settings = workdir_of(task) / "imitated", self._settings.imitation
        if folder.exists():
            self._backend.load_adapter(task.version, folder)
            return
        rng = rng_for(task.context.seed, "imitation", task.role, task.iteration)
        self._backend.create(task.version, seed=draw_seed(rng))
        lessons = best_of_each_goal(
            task.context.game.config, _met(task), task.role, per_goal=settings.per_goal, rng=rng
        )
        sampling = task.context.population.sampling[task.role]
        sequences = [as_said(self._backend, one.sentence, policy=task.version, sampling=sampling) for one in lessons]
        trainer = Trainer(self._backend, [task.version], self._settings.optimizer)
        losses = [figure.loss for figure in imitate(trainer, sequences, settings, rng)]
        _LOG.info("%s imitated %d sentences, loss %s", task.version, len(sequences), losses[:1] + losses[-1:])
        self._backend.save_adapter(task.version, folder)
        task.context.meter.add(imitation_units(self._settings))

    def _step(self, task: Task[DialogueContext], trainer: Trainer, shaping: DiversityBonus | None) -> None:
        """One unit of work: dialogues, committed; one update; its figures, committed."""
        store, step = task.context.store, trainer.steps_done // self._settings.epochs
        rollout, figures_name = _rollout_name(task, step), f"step/{task.version}/{step:04d}"
        if not store.has_block(rollout):
            tried = self._rollout(task, step)
            store.put_block(rollout, tried.played, {"num_queries": tried.num_queries})
        played = store.block(rollout)
        lessons = collect_lessons(played, task.role, task.version, self._settings.group_size)
        if not lessons.sentences:
            raise JudgeError(
                f"expected a scored dialogue in {rollout}, all are unscored; mend the judge and start a new run"
            )
        compared = self._compared(task).values()
        logps = self._scored(lessons, dict.fromkeys([BASE, *compared]))
        reference_logp = logps[BASE]
        logp = lessons.column("logp")
        price = kl_in_reward(np.zeros_like(logp), logp, reference_logp, self._settings.kl_weight)
        if shaping is None:
            bonus = self._weight(task) * policy_bonus(logp, np.array([logps[name] for name in compared]))
        else:
            per_dialogue = self._weight(task) * shaping.of(played)
            bonus = per_dialogue[[sentence.dialogue for sentence in lessons.sentences]]
            shaping.remember(played)
        figures, flat = self._update(trainer, lessons, price, bonus)
        if not store.has_block(figures_name):
            scored = [item.transcript.utility for item in played if not item.transcript.unscored]
            data = {
                "version": task.version,
                "role": task.role,
                "step": step,
                "utility": float(np.mean(scored)),
                "kl": float(np.mean(logp - reference_logp)),
                "num_tokens": int(lessons.column("num_tokens").sum()),
                "broken_share": lessons.broken_share,
                "num_queries": store.block_data(rollout)["num_queries"],
                "num_unscored": len(played) - len(scored),
                "flat_groups": flat,
                "bonus_spread": float(np.std(bonus)),
                "loss": figures.loss if figures else 0.0,
                "grad_norm": figures.grad_norm if figures else 0.0,
            }
            store.put_block(figures_name, [], data)

    def _scored(self, lessons: Lessons, policies: Iterable[str]) -> dict[str, np.ndarray]:
        """[N] log-probability of each sentence under each policy; all of them in one call, as rows of the bank."""
        names, count = list(policies), len(lessons.sequences)
        logps = self._backend.score([_under(name, sequence) for name in names for sequence in lessons.sequences])
        return {
            name: lessons.per_sentence(logps[place * count : (place + 1) * count]) for place, name in enumerate(names)
        }

    def _update(
        self, trainer: Trainer, lessons: Lessons, price_N: np.ndarray, bonus_N: np.ndarray
    ) -> tuple[StepFigures | None, float]:
        """Credit the sentences, learn from them; also the share of groups that teach nothing."""
        from rtg_solvers import updates

        settings = self._settings
        dialogues = [sentence.dialogue for sentence in lessons.sentences]
        groups = [sentence.group for sentence in lessons.sentences]
        shaped = lessons.column("reward") + returns_to_go(price_N, dialogues) + bonus_N
        apart = leave_one_out(shaped, groups)
        if settings.estimator == "leave-one-out":
            return updates.reinforce(trainer, lessons, apart), flat_share(apart, groups)
        if settings.estimator == "grpo":
            advantages, returns = group_advantages(shaped, groups, divide_by_std=True), None
        else:
            values = updates.sentence_values(trainer, lessons)
            paid = paid_until_the_next(shaped, dialogues)
            advantages, returns = turn_gae(paid, values, dialogues, last_values={}, trace_decay=settings.trace_decay)
        figures = updates.clipped_steps(
            trainer,
            lessons,
            advantages,
            settings.clipping,
            epochs=settings.epochs,
            mean_over_tokens=settings.estimator == "grpo",
            returns_N=returns,
            value_weight=settings.value_weight,
        )
        return figures, flat_share(apart, groups)

    def _rollout(self, task: Task[DialogueContext], step: int) -> _Rollout:
        """Play this step's dialogues; those that a judge failed on again with another seed, twice at most."""
        context, settings = task.context, self._settings
        rng = rng_for(context.seed, "train", task.role, task.iteration, step)
        learner = task.version
        pairings = draw_pairings(
            context.game,
            rng,
            count=settings.dialogues_per_step,
            red=(lambda _: learner) if task.role == "red" else (lambda r: task.mixture.draw("red", r)),
            blue=(lambda _: learner) if task.role == "blue" else (lambda r: task.mixture.draw("blue", r)),
            group_size=settings.group_size,
            harmful_only=task.role == "red",
        )
        policies: dict[str, Policy] = {
            **context.population.policies,
            learner: context.population.model_policy(learner, task.role, learner),
        }
        played = play(context.game, policies, pairings)
        queries = num_answered(played)
        for _ in range(2):
            failed = [index for index, item in enumerate(played) if item.transcript.unscored]
            if not failed:
                break
            again = [replace(pairings[index], seed=draw_seed(rng)) for index in failed]
            repeated = play(context.game, policies, again)
            queries += num_answered(repeated)
            for index, item in zip(failed, repeated, strict=True):
                played[index] = item
        return _Rollout(played, queries)


class _Rollout(NamedTuple):
    """Dialogues of a step."""

    played: list[Played]
    num_queries: int
    """Of blue, for dialogues that were played again besides."""


def own_adapters(task: Task[DialogueContext]) -> dict[str, float]:
    """The mixture of the learner's own side as weights of adapters and the base; empty if it plays no adapter."""
    mixture, population = task.mixture, task.context.population
    names, shares = (mixture.red_names, mixture.red) if task.role == "red" else (mixture.blue_names, mixture.blue)
    weights = {
        name: float(share)
        for name, share in zip(names, shares, strict=True)
        if share > 0 and population[name].kind == "adapter"
    }
    rest = max(0.0, 1.0 - sum(weights.values()))
    return {**weights, BASE: rest} if weights else {}


def imitation_units(settings: RLSettings) -> float:
    """Cost of a start by imitation in played dialogues; 0 for another start."""
    return float(settings.imitation.steps * settings.imitation.batch) if settings.start == "imitation" else 0.0


def _met(task: Task[DialogueContext]) -> list[Played]:
    """Dialogues of the payoff cells in which members of the side met those that it prepares for.

    Opponents that the mixture hardly plays are left out, if others are left.
    """
    own = task.context.population.names(task.role)
    others, shares = (
        (task.mixture.blue_names, task.mixture.blue)
        if task.role == "red"
        else (task.mixture.red_names, task.mixture.red)
    )
    met = [name for name, share in zip(others, shares, strict=True) if share >= _MET_WEIGHT] or list(others)
    pairs = {(one, other) if task.role == "red" else (other, one) for one in own for other in met}
    store = task.context.store
    names = [name for name in store.block_names() if name.startswith("cell/")]
    return [item for name in names if tuple(name.split("/")[1:3]) in pairs for item in store.block(name)]


def step_units(settings: RLSettings, num_compared: int = 0) -> float:
    """Cost of one step in played dialogues: an update costs about as much as playing its dialogues (measured).

    Args:
        settings: Of the best response.
        num_compared: Adapters that score the learner's sentences for the `policy` bonus; the base does so anyway.
    """
    return (1.0 + settings.epochs + _SCORING * num_compared) * settings.dialogues_per_step


def _rollout_name(task: Task[DialogueContext], step: int) -> str:
    return f"train/{task.version}/{step:04d}"


def _under(policy: str, scored: TokenSequence) -> TokenSequence:
    return replace(scored, policy=policy)
