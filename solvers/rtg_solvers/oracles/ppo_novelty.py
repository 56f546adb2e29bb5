"""Attackers by PPO that are paid for novelty: curiosity-driven red teaming, and DiveR-CT's two changes as options.

After "Curiosity-driven Red-teaming for Large Language Models" (arXiv:2402.19464). Per step some attacks, each answered
once by a draw of blue's mixture. A token is paid -kl (log pi - log pi_ref) - ent log pi, the last one of an attack also
the reward of `rtg_solvers.novelty`: harm, less likeness to all attacks before this step, less what reads as gibberish.
Generalised advantages over tokens, with a value head; a few epochs on the clipped surrogate.

In a dialogue of several exchanges each sentence of red is an attack with its own terminal reward, whose harm is what
its exchange pays (these add up to the utility), and the tokens of all of them are one trajectory.

Deviations from the paper's code: attacks are sampled at temperature 1 and never empty; every epoch is one optimizer step
on all attacks (there: two); the value loss is not clipped; the prompt is the game's, with its goal, not a task prompt.
The history is that of one best response: attacks of other members are not in it.

Letters: S attacks, T tokens of the longest one.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import numpy as np

from rtg_agents.policy import BASE, Policy, TokenSequence
from rtg_agents.population import Member
from rtg_env.errors import ConfigError, JudgeError
from rtg_env.judges.base import Encoder
from rtg_env.transcripts import Played
from rtg_env.types import Action, role_of
from rtg_solvers.advantages import token_gae, token_rewards
from rtg_solvers.diversity import standardised
from rtg_solvers.loop import DialogueContext, Task, workdir_of
from rtg_solvers.losses import Clipping
from rtg_solvers.novelty import (
    AttackHistory,
    NoveltyRewardSettings,
    Terms,
    clean_prob,
    next_multiplier,
    terminal_reward,
)
from rtg_solvers.optimizer import OptimizerSettings
from rtg_solvers.oracles.supervised import begin
from rtg_solvers.rollout import draw_pairings, play
from rtg_solvers.seeding import rng_for

if TYPE_CHECKING:
    from rtg_agents.hf import TorchBackend
    from rtg_solvers.trainer import StepFigures, Trainer

_LOG = logging.getLogger(__name__)
_LEAST: Final = 1
"""Tokens before an attack may end: the empty one is barred in sampler and scorer alike."""
_FLOOR: Final = 1e-6
"""Least harm under the logarithm that is reported, as the GFlowNet's reward has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PPONoveltySettings:
    """Settings of one attacker. Defaults are the paper's code's, but for the number of steps."""

    steps: int = 8
    """Batches of attacks, at least 1."""

    rollouts: int = 128
    """Dialogues per step, at least 1."""

    epochs: int = 4
    """Optimizer steps on each batch, at least 1."""

    kl_weight: float = 1e-3
    """Price of one nat of log-ratio to the reference, per token; at least 0."""

    entropy_weight: float = 0.01
    """Pay for one nat of surprise, per token; at least 0."""

    trace_decay: float = 0.95
    """lambda of the advantages over tokens, in [0, 1]."""

    clipping: Clipping = field(default_factory=Clipping)
    """Of the ratio, token by token."""

    value_weight: float = 1.0
    """Of the value loss, at least 0."""

    whiten: bool = True
    """Whether the advantages of a step's tokens are standardised."""

    reward: NoveltyRewardSettings = field(default_factory=NoveltyRewardSettings)
    """What an attack is paid in the end; `neighbours` and `harm_threshold` in it make it DiveR-CT."""

    optimizer: OptimizerSettings = field(default_factory=lambda: OptimizerSettings(learning_rate=3e-5))
    """AdamW on the adapter and the value head."""

    def __post_init__(self) -> None:
        """Refuse settings outside their range."""
        for name in ("steps", "rollouts", "epochs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"expected {name} >= 1, got {getattr(self, name)!r}")
        for name in ("kl_weight", "entropy_weight", "value_weight"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} must be finite and >= 0, got {getattr(self, name)!r}")
        if not 0.0 <= self.trace_decay <= 1.0:
            raise ConfigError(f"expected trace_decay in [0, 1], got {self.trace_decay!r}")


class Attack(NamedTuple):
    """One sentence of the learner in a scored dialogue."""

    dialogue: int
    """Place of its dialogue in the step."""

    said: Action
    """What it is, with its ids."""

    paid: float
    """By its exchange."""

    reference_logps: tuple[float, ...]
    """log p_ref of each id."""


class _Past:
    """What a step depends on beside the policy: rebuilt from the finished steps when a run goes on."""

    def __init__(self, settings: NoveltyRewardSettings) -> None:
        self._settings = settings
        self.history = AttackHistory()
        self.multiplier = 1.0

    def add(self, attacks: Sequence[Attack], features: np.ndarray) -> None:
        self.history.add([attack.said.text for attack in attacks], features)
        harm = sum(attack.paid for attack in attacks) / len({attack.dialogue for attack in attacks})
        self.multiplier = next_multiplier(self.multiplier, harm, self._settings)


class PPONoveltyOracle:
    """Trains an attacker by PPO on harm and novelty.

    Args:
        backend: Holds the adapter while it is trained.
        settings: Steps, weights, optimizer.
        encoder: Embeds attacks for the cosine to past ones.
        reference: Version that training begins at and stays near to (an SFT attacker); the base by default.
    """

    def __init__(
        self, backend: TorchBackend, settings: PPONoveltySettings, encoder: Encoder, *, reference: str = BASE
    ) -> None:
        self._backend = backend
        self._settings = settings
        self._encoder = encoder
        self._reference = reference

    def respond(self, task: Task[DialogueContext]) -> Member:
        """Train an attacker against blue's mixture; goes on where an earlier process was cut off.

        Raises:
            ConfigError: If blue is to be trained.
            JudgeError: If not one attack of a step was scored.
        """
        if task.role != "red":
            raise ConfigError("expected red to be trained, the reward is that of attacks; use another oracle for blue")
        trainer = self._trainer(task)
        past = _Past(self._settings.reward)
        for step in range(self._done(trainer)):
            attacks = self._attacks(task, step)
            past.add(attacks, self._features(attacks))
        while self._done(trainer) < self._settings.steps:
            self._step(task, trainer, past)
            trainer.save(workdir_of(task) / "checkpoint")
        return Member(
            version=task.version,
            role="red",
            kind="adapter",
            label="PPO + novelty attacker",
            lineage={
                "iteration": task.iteration + 1,
                "oracle": "ppo-novelty",
                "reference": self._reference,
                "against": task.mixture.named("blue"),
                "settings": asdict(self._settings),
                "seed": task.context.seed,
            },
        )

    def _trainer(self, task: Task[DialogueContext]) -> Trainer:
        from rtg_solvers.trainer import Trainer

        begin(task, self._backend, self._reference)
        trainer = Trainer(self._backend, [task.version], self._settings.optimizer, values=True)
        if trainer.resume(workdir_of(task) / "checkpoint"):
            _LOG.info("%s goes on after step %d", task.version, self._done(trainer))
            task.context.meter.add(self._done(trainer) * step_units(self._settings))
        return trainer

    def _done(self, trainer: Trainer) -> int:
        """Steps that are finished: checkpoints are written after the last epoch alone."""
        return trainer.steps_done // self._settings.epochs

    # One step

    def _step(self, task: Task[DialogueContext], trainer: Trainer, past: _Past) -> None:
        """Attacks, committed; one update; its figures, committed."""
        store, step = task.context.store, self._done(trainer)
        name = _block(task, step)
        if not store.has_block(name):
            played = self._play(task, rng_for(task.context.seed, "ppo-novelty", task.role, task.iteration, step))
            store.put_block(name, played, {"reference_logps": self._reference_logps(_said(played))})
        attacks = self._attacks(task, step)
        features = self._features(attacks)
        terms, multiplier = self._terms(attacks, features, past.history), past.multiplier
        paid = np.array([attack.paid for attack in attacks])
        terminal = terminal_reward(paid, terms, self._settings.reward, multiplier)
        found = self._update(task, trainer, attacks, terminal)
        past.add(attacks, features)
        if not store.has_block(f"step/{task.version}/{step:04d}"):
            own = {
                **_means(attacks, terms),
                "terminal": float(terminal.mean()),
                "multiplier": multiplier,
                "buffered": len(past.history),
                "loss": found.loss if found else 0.0,
                "grad_norm": found.grad_norm if found else 0.0,
            }
            store.put_block(f"step/{task.version}/{step:04d}", [], {**self._counts(task, step), **own})
        task.context.meter.add(step_units(self._settings))

    def _play(self, task: Task[DialogueContext], rng: np.random.Generator) -> list[Played]:
        context, learner = task.context, task.version
        own = context.population.model_policy(learner, "red", learner)
        own = replace(own, sampling=replace(own.sampling, temperature=1.0, min_new_tokens=_LEAST))
        policies: dict[str, Policy] = {**context.population.policies, learner: own}
        pairings = draw_pairings(
            context.game,
            rng,
            count=self._settings.rollouts,
            red=lambda _: learner,
            blue=lambda r: task.mixture.draw("blue", r),
            harmful_only=True,
        )
        return play(context.game, policies, pairings)

    def _reference_logps(self, said: Sequence[Action]) -> list[tuple[float, ...]]:
        """Log p_ref of each id of each sentence; nothing for what has no ids."""
        places = [place for place, action in enumerate(said) if action.token_ids]
        rows = self._backend.score([_sequence(self._reference, said[place]) for place in places])
        found: list[tuple[float, ...]] = [()] * len(said)
        for place, row in zip(places, rows, strict=True):
            found[place] = row
        return found

    def _attacks(self, task: Task[DialogueContext], step: int) -> list[Attack]:
        """A step's attacks that have a score, as they are stored."""
        store, name = task.context.store, _block(task, step)
        played = store.block(name)
        reference = iter(cast("list[list[float]]", store.block_data(name)["reference_logps"]))
        attacks = []
        for dialogue, item in enumerate(played):
            for turn, action in enumerate(_said([item])):
                logps = tuple(next(reference))
                if action.token_ids and not item.transcript.unscored:
                    attacks.append(Attack(dialogue, action, float(item.transcript.payments[turn]), logps))
        if not attacks:
            raise JudgeError(
                f"expected a scored attack in {name}, all are unscored; mend the judge and start a new run"
            )
        return attacks

    def _features(self, attacks: Sequence[Attack]) -> np.ndarray:
        return self._encoder.encode([attack.said.text for attack in attacks])

    def _terms(self, attacks: Sequence[Attack], features: np.ndarray, history: AttackHistory) -> Terms:
        reward = self._settings.reward
        return Terms(
            history.self_bleu([attack.said.text for attack in attacks]),
            history.cosine(features, neighbours=reward.neighbours),
            clean_prob(np.array([np.mean(attack.reference_logps) for attack in attacks]), reward),
        )

    def _update(
        self, task: Task[DialogueContext], trainer: Trainer, attacks: Sequence[Attack], terminal: np.ndarray
    ) -> StepFigures | None:
        from rtg_solvers.aggregation import Totals
        from rtg_solvers.updates import TokenCredit, clipped_token_steps

        settings = self._settings
        sequences = [_sequence(task.version, attack.said) for attack in attacks]
        old = _table([attack.said.logps for attack in attacks])
        lengths = np.array([len(attack.said.token_ids) for attack in attacks])
        rewards = token_rewards(
            old,
            _table([attack.reference_logps for attack in attacks]),
            lengths,
            terminal,
            kl_weight=settings.kl_weight,
            entropy_weight=settings.entropy_weight,
        )
        advantages, returns = token_gae(
            rewards,
            trainer.values(sequences),
            lengths,
            [attack.dialogue for attack in attacks],
            trace_decay=settings.trace_decay,
        )
        if settings.whiten:
            used = np.arange(old.shape[1]) < lengths[:, None]
            advantages[used] = standardised(advantages[used])
        return clipped_token_steps(
            trainer,
            sequences,
            TokenCredit(old, advantages, returns),
            settings.clipping,
            epochs=settings.epochs,
            how="token-mean",
            totals=Totals(num_sequences=len(attacks), num_tokens=int(lengths.sum())),
            value_weight=settings.value_weight,
        )

    def _counts(self, task: Task[DialogueContext], step: int) -> dict[str, Any]:
        """What was played in a step, for the report and the committed records."""
        played = task.context.store.block(_block(task, step))
        scored = [item.transcript.utility for item in played if not item.transcript.unscored]
        return {
            "version": task.version,
            "role": "red",
            "step": step,
            "utility": float(np.mean(scored)),
            "tau": None,
            "num_queries": sum(len(item.transcript.exchanges) for item in played),
            "num_unscored": sum(item.transcript.unscored for item in played),
        }


def step_units(settings: PPONoveltySettings) -> float:
    """Cost of one step in played dialogues: they, and about as much again for each epoch."""
    return float((1 + settings.epochs) * settings.rollouts)


def _means(attacks: Sequence[Attack], terms: Terms) -> dict[str, float]:
    """What a step's attacks are like; divergence and `reference_logp` per attack, entropy per token."""
    reference = np.array([sum(attack.reference_logps) for attack in attacks])
    own = np.array([sum(attack.said.logps) for attack in attacks])
    return {
        "kl": float((own - reference).mean()),
        "entropy": float(-own.sum() / sum(len(attack.said.token_ids) for attack in attacks)),
        "log_score": float(np.mean([np.log(max(attack.paid, _FLOOR)) for attack in attacks])),
        "reference_logp": float(reference.mean()),
        "self_bleu": float(terms.self_bleu_N.mean()),
        "cosine": float(terms.cosine_N.mean()),
        "clean": float(terms.clean_N.mean()),
    }


def _said(played: Sequence[Played]) -> list[Action]:
    """What red says, dialogue by dialogue."""
    return [action for item in played for agent, action in item.transcript.actions if role_of(agent) == "red"]


def _table(rows: Sequence[Sequence[float]]) -> np.ndarray:
    """[S, T] rows of different lengths; 0 beyond."""
    table = np.zeros((len(rows), max(len(row) for row in rows)))
    for line, row in zip(table, rows, strict=True):
        line[: len(row)] = row
    return table


def _sequence(version: str, action: Action) -> TokenSequence:
    return TokenSequence.of_sentence(version, action.prompt_ids, action.token_ids, min_tokens=_LEAST)


def _block(task: Task[DialogueContext], step: int) -> str:
    return f"train/{task.version}/{step:04d}"
