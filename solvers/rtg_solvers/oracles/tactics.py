"""Best response of red by PPO over prompt tactics: a small network learns which way of asking to use when.

Red plays `RedTeam/Tactics-v0` against the mixture of blue's members, one drawn per dialogue, on the run's goals, paid by
the run's judge. Its network reads numbers (sentence vectors, verdicts, the tactics used so far), so that training costs
next to nothing beside blue's answers; those of all members are generated in one call per turn. What is learnt is a member
of kind `tactics`: a few arrays and a list of templates.

Every update deals new dialogues from seeds of its own and draws from random streams of its own. A training that was cut
off therefore goes on after its last finished update; the update that was cut is played again and counted once.

Deviation from PPO as published (arXiv:1707.06347): none that stable-baselines3 does not make; pay is not discounted.
"""

from __future__ import annotations

import importlib
import logging
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from rtg_agents.population import Member
from rtg_env.errors import ConfigError, JudgeError
from rtg_env.table import Pool
from rtg_solvers.loop import DialogueContext, Task, workdir_of
from rtg_solvers.rollout import num_answered

if TYPE_CHECKING:
    from rtg_solvers.tactic_trainer import TacticTrainer, TacticUpdate

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TacticSettings:
    """Settings of one best response over tactics."""

    num_envs: int = 32
    """Dialogues at a time, at least 1."""

    steps: int = 2
    """Dialogues that each of them plays, one after another, before an update; at least 1."""

    updates: int = 16
    """Updates of the network, at least 1."""

    epochs: int = 8
    """Passes over the sentences of an update, at least 1."""

    batches: int = 2
    """Batches that a pass is split into; must divide `num_envs * steps`."""

    learning_rate: float = 1e-3
    """Of Adam; 0 is a null run."""

    clip: float = 0.2
    """How far an update may move the probability of a tactic, as a share of it; above 0."""

    entropy_weight: float = 0.01
    """Price of a nat of entropy that is missing, in utility; at least 0."""

    trace_decay: float = 0.95
    """lambda of generalised advantages over turns, in [0, 1]."""

    embeddings: Literal["hashed", "sentences"] = "hashed"
    """What the network reads of texts: hashed words (needs nothing), or all-MiniLM-L6-v2 (needs the judges extra)."""

    def __post_init__(self) -> None:
        """Refuse settings outside their range."""
        for name in ("num_envs", "steps", "updates", "epochs", "batches"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be >= 1, got {getattr(self, name)!r}")
        if self.dialogues_per_update < 2 or self.dialogues_per_update % self.batches:
            raise ConfigError(
                f"expected num_envs * steps to be at least 2 and a multiple of batches ({self.batches}), "
                f"got {self.dialogues_per_update}"
            )
        for name in ("learning_rate", "entropy_weight"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} must be finite and >= 0, got {getattr(self, name)!r}")
        if not 0.0 < self.clip < float("inf") or not 0.0 <= self.trace_decay <= 1.0:
            raise ConfigError(f"expected clip > 0 and trace_decay in [0, 1], got {self.clip} and {self.trace_decay}")

    @property
    def dialogues_per_update(self) -> int:
        """Dialogues between two updates."""
        return self.num_envs * self.steps


class TacticOracle:
    """Best response over tactics, for red alone.

    Args:
        settings: Of PPO, and how much it plays.
    """

    def __init__(self, settings: TacticSettings | None = None) -> None:
        self._settings = settings or TacticSettings()

    def respond(self, task: Task[DialogueContext]) -> Member:
        """Train a fresh network against blue's mixture and add it to the population, or go on with its training.

        Raises:
            ConfigError: If blue is to learn, red has several members, or the population has no encoder.
            JudgeError: If not one dialogue of an update was scored.
            MissingExtraError: If stable-baselines3 is not installed.
        """
        trainer = self._trainer(task)
        context, size = task.context, self._settings.dialogues_per_update
        checkpoint = workdir_of(task) / "checkpoint.safetensors"
        if trainer.resume(checkpoint):
            _LOG.info("%s goes on after update %d", task.version, trainer.updates_done)
            context.meter.add(trainer.updates_done * size)
        while trainer.updates_done < self._settings.updates:
            number = trainer.updates_done
            self._commit(task, number, trainer.update())
            trainer.save(checkpoint)
            context.meter.add(size)
        member = Member(
            version=task.version,
            role=task.role,
            kind="tactics",
            label=f"tactics {task.iteration + 1}",
            lineage={
                "iteration": task.iteration + 1,
                "oracle": "tactics",
                "against": task.mixture.named("blue"),
                **asdict(self._settings),
                "seed": context.seed,
            },
        )
        # Not left to the loop: a member alone does not hold its network.
        context.population.add(member, trainer.policy())
        return member

    def _trainer(self, task: Task[DialogueContext]) -> TacticTrainer:
        game, population = task.context.game, task.context.population
        if task.role != "red" or game.config.num_red > 1:
            raise ConfigError(
                f"expected tactics to be learnt by a red team of one, got {task.role} and {game.config.num_red} red "
                "member(s); take RLOracle there"
            )
        if population.senses is None:
            raise ConfigError(
                "expected a population with an encoder and a judge for tactics, got none; "
                "pass them: Population(.., senses=(encoder, judge))"
            )
        require_extra()
        from rtg_solvers.tactic_trainer import TacticTrainer

        mixture = task.mixture
        members = [population.policies[name] for name in mixture.blue_names]
        return TacticTrainer(
            game,
            Pool(members, [float(weight) for weight in mixture.blue]),
            self._settings,
            encoder=population.senses[0],
            version=task.version,
            seed=task.context.seed,
            key=("tactics", task.role, task.iteration),
        )

    def _commit(self, task: Task[DialogueContext], number: int, update: TacticUpdate) -> None:
        """Keep the dialogues and figures of an update, unless a process that was killed has kept them."""
        store, rollout = task.context.store, f"train/{task.version}/{number:04d}"
        scored = [item.transcript.utility for item in update.played if not item.transcript.unscored]
        if not scored:
            raise JudgeError(
                f"expected a scored dialogue in {rollout}, the judge {task.context.game.judge.judge_id} failed in all "
                f"{len(update.played)}; mend the judge and run the same command again"
            )
        if not store.has_block(rollout):
            store.put_block(rollout, update.played)
        figures = f"step/{task.version}/{number:04d}"
        if not store.has_block(figures):
            data = {
                "version": task.version,
                "role": task.role,
                "step": number,
                "utility": float(np.mean(scored)),
                "num_queries": num_answered(update.played),
                "num_unscored": len(update.played) - len(scored),
                "entropy": update.entropy,
                "value_loss": update.value_loss,
            }
            store.put_block(figures, [], data)


def require_extra() -> None:
    """Say what is missing before anything is played.

    Raises:
        MissingExtraError: If stable-baselines3 is not installed.
    """
    importlib.import_module("rtg_agents.sb3")
