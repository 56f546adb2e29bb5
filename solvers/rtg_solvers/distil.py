"""One adapter that imitates a mixture: sequence-level distillation (Kim & Rush 2016, arXiv:1606.07947).

A mixture draws one member per dialogue. The student learns, by maximum likelihood, the sentences that the mixture says in
dialogues against the other side's mixture. The gradient is an unbiased estimate of that of KL(mixture || student), so what
it tends to is the policy that says after each history what the members would, weighed by how probable that history makes
each of them. That policy would be paid exactly as the mixture is, whoever the opponent (Kuhn 1953: a player who forgets
nothing loses nothing by drawing as it goes). What a real student costs is what it failed to learn; `distil_cost` measures it.

The student begins at the weighted average of the members' adapters (`rtg_agents.fusion`), or at the base if there is none.
Sentences of members without a model (plain goal, templates) are tokenised, and cut where the student would be cut.

Fresh dialogues for each step, one step on each batch, no dropout. Everything is a named unit of a work folder, so that the
same call goes on after a kill. The finished run itself is only read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from rtg_agents.policy import BASE, Policy, TokenSequence
from rtg_agents.population import Population
from rtg_agents.progress import WorkMeter
from rtg_agents.sequences import recorded_sequences
from rtg_env.dialogue import Transcript
from rtg_env.errors import ConfigError
from rtg_env.transcripts import Played
from rtg_env.types import Role
from rtg_solvers.aggregation import Totals, aggregate
from rtg_solvers.empirical import Mixture
from rtg_solvers.imitation import as_said, sentences_of
from rtg_solvers.losses import sft_loss
from rtg_solvers.measures import clustered_error
from rtg_solvers.optimizer import OptimizerSettings
from rtg_solvers.rollout import Game, Pairing, draw_pairings, play
from rtg_solvers.run import RunDirectory
from rtg_solvers.seeding import draw_seed, rng_for
from rtg_solvers.workbench import check_scored

if TYPE_CHECKING:
    import torch

    from rtg_agents.hf import Evaluated, TorchBackend
    from rtg_solvers.trainer import Trainer

STUDENT: Final = "distilled@v1"
"""Version name of the student while it is trained and measured."""

MODEL_KINDS: Final = ("base", "adapter")
"""Kinds of members whose sentences a model samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DistilSettings:
    """How a mixture is distilled, and how well its cost is measured. The defaults are about the work of a quick run."""

    steps: int = 16
    """Optimizer steps, at least 1; each on dialogues of its own."""

    dialogues_per_step: int = 32
    """Teacher dialogues per step, at least 1."""

    held_back: int = 64
    """Teacher dialogues that are not learned from: how likely the student finds them says what it learned; at least 2."""

    cost_dialogues: int = 128
    """Fresh deals on which the cost is measured, an even number, at least 4."""

    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    """Adam on the adapter; the learning rate falls to 0 over the steps."""

    def __post_init__(self) -> None:
        """Refuse settings outside their range."""
        for name, low in {"steps": 1, "dialogues_per_step": 1, "held_back": 2, "cost_dialogues": 4}.items():
            if getattr(self, name) < low:
                raise ConfigError(f"expected {name} >= {low}, got {getattr(self, name)!r}")
        if self.cost_dialogues % 2:
            raise ConfigError(f"expected an even number of cost_dialogues, got {self.cost_dialogues}; it is halved")


@dataclass(frozen=True, slots=True, kw_only=True)
class Distillation:
    """A mixture that is being distilled, with all that plays and learns."""

    role: Role
    """Side of the mixture."""

    game: Game
    """Rules, training goals and judge of the run."""

    mixture: Mixture
    """Both sides' mixtures; members of weight 0 are left out."""

    opponents: tuple[str, ...]
    """Every member of the other side, in the mixture or not."""

    population: Population
    """Members of both sides, known to the backend."""

    backend: TorchBackend
    """Holds the adapters and the student."""

    work: RunDirectory
    """Keeps dialogues and the checkpoint."""

    settings: DistilSettings
    """Of the distillation."""

    seed: int
    """Of the run."""

    meter: WorkMeter
    """Is told how many dialogues were played or learned from."""

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each member that is imitated."""
        names, shares = (
            (self.mixture.red_names, self.mixture.red)
            if self.role == "red"
            else (self.mixture.blue_names, self.mixture.blue)
        )
        return {name: float(share) for name, share in zip(names, shares, strict=True)}

    @property
    def all_models(self) -> bool:
        """Whether a model speaks for every member of the mixture."""
        return all(self.population[name].kind in MODEL_KINDS for name in self.weights)

    def draw(self, part: str, *number: int, count: int, harmful_only: bool = False) -> list[Pairing]:
        """Deals of the mixtures against each other, decided by the run's seed and the part's name."""
        return draw_pairings(
            self.game,
            rng_for(self.seed, "distil", self.role, part, *number),
            count=count,
            red=lambda rng: self.mixture.draw("red", rng),
            blue=lambda rng: self.mixture.draw("blue", rng),
            harmful_only=harmful_only,
        )

    def play_unit(self, name: str, pairings: Sequence[Pairing]) -> list[Played]:
        """Dialogues of a unit: read back, or played and committed.

        Raises:
            JudgeError: If the judge failed on too many.
        """

        def fresh() -> list[Played]:
            policies: dict[str, Policy] = dict(self.population.policies)
            if STUDENT in self.backend.versions:
                policies[STUDENT] = self.population.model_policy(STUDENT, self.role, STUDENT)
            played = play(self.game, policies, pairings)
            check_scored(name, played)
            return played

        played = self.work.unit(name, fresh)
        self.meter.add(len(played))
        return played


class Taught(NamedTuple):
    """What the mixture said in some dialogues, as the student would have read and said it."""

    sequences: tuple[TokenSequence, ...]
    """Under the student's name; one or more per dialogue."""

    dialogues: tuple[int, ...]
    """Of each sequence, the index of its dialogue."""

    @property
    def num_tokens(self) -> int:
        """Ids to be learned."""
        return sum(sequence.num_sampled for sequence in self.sequences)


@dataclass(frozen=True, slots=True, kw_only=True)
class Likelihood:
    """How likely a student finds sentences of the mixture that it has not learned from."""

    token_logp: float
    """Mean log-probability of a token."""

    kl: float
    """Estimate of KL(mixture || student) in nats per dialogue, never below 0 but for noise; NaN if a member has no model."""

    kl_se: float
    """Its standard error, clustered by goal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What training did."""

    start: str
    """`fusion` or `base`."""

    fusion_kept: float
    """Share of the average's squared size that fits into the student's rank; 1 from the base."""

    num_held_back: int
    """Dialogues that were held back."""

    num_tokens: int
    """Tokens of the mixture in them."""

    before: Likelihood
    """Of the start."""

    after: Likelihood
    """Of the student."""


def learn(task: Distillation) -> Learned:
    """Train the student; it is in the backend as `STUDENT` afterwards.

    Raises:
        RunError: If the work folder cannot be written.
        JudgeError: If the judge failed on too many dialogues.
        ModelError: If the sentences of a script cannot be told from the chat template's text.
    """
    from rtg_solvers.trainer import Trainer

    start, kept = _begin(task)
    settings = task.settings
    played = task.play_unit("teacher/held-back", _lessons(task, "held-back", count=settings.held_back))
    held_back = taught(task, [item.transcript for item in played])
    before = likelihood(task, played, held_back)
    optimizer = replace(settings.optimizer, decay_steps=settings.steps)
    trainer = Trainer(task.backend, [STUDENT], optimizer)
    if trainer.resume(task.work.work / "checkpoint"):
        task.meter.add(2 * trainer.steps_done * settings.dialogues_per_step)
    while trainer.steps_done < settings.steps:
        step = trainer.steps_done
        pairings = _lessons(task, "teacher", step, count=settings.dialogues_per_step)
        batch = task.play_unit(f"teacher/{step:04d}", pairings)
        _step(task, trainer, taught(task, [item.transcript for item in batch]))
        trainer.save(task.work.work / "checkpoint")
        task.meter.add(len(batch))
    return Learned(
        start=start,
        fusion_kept=kept,
        num_held_back=len(played),
        num_tokens=held_back.num_tokens,
        before=before,
        after=likelihood(task, played, held_back),
    )


def taught(task: Distillation, transcripts: Sequence[Transcript]) -> Taught:
    """The mixture's sentences in some dialogues, as sequences of the student.

    Args:
        task: Says who is imitated.
        transcripts: Each of the mixture, one member per dialogue.

    Raises:
        ModelError: If a chat template does not close what a script says.
    """
    found: list[tuple[int, TokenSequence]] = []
    for version in task.weights:
        if task.population[version].kind in MODEL_KINDS:
            recorded = recorded_sequences(transcripts, task.role, version)
            found += [(item.sources[0].dialogue, item.tokens) for item in recorded.sequences]
        else:
            found += [(n, typed) for n, item in enumerate(transcripts) for typed in _typed(task, item, version)]
    found.sort(key=lambda pair: pair[0])
    return Taught(
        sequences=tuple(replace(sequence, policy=STUDENT) for _, sequence in found),
        dialogues=tuple(dialogue for dialogue, _ in found),
    )


def likelihood(task: Distillation, played: Sequence[Played], lessons: Taught) -> Likelihood:
    """How likely the student finds what the mixture said, and how much likelier the mixture itself does.

    The mixture's likelihood of a dialogue is the weighted sum of its members', each over the whole dialogue: who speaks is
    drawn once. log mixture - log student, averaged over dialogues of the mixture, estimates KL(mixture || student).
    """
    student_D = _per_dialogue(task, STUDENT, lessons)
    token_logp = float(student_D.sum()) / lessons.num_tokens
    if not task.all_models:
        return Likelihood(token_logp=token_logp, kl=float("nan"), kl_se=float("nan"))
    parts = [
        np.log(weight) + _per_dialogue(task, BASE if task.population[name].kind == "base" else name, lessons)
        for name, weight in task.weights.items()
    ]
    excess_D = np.logaddexp.reduce(parts, axis=0) - student_D
    goals = np.array([played[n].transcript.goal.id for n in sorted(set(lessons.dialogues))], dtype=object)
    return Likelihood(token_logp=token_logp, kl=float(excess_D.mean()), kl_se=clustered_error(excess_D, goals))


def _per_dialogue(task: Distillation, version: str, lessons: Taught) -> np.ndarray:
    """[D] log-probability under a version of all that was said in each dialogue that has a sentence."""
    logps = task.backend.score([replace(sequence, policy=version) for sequence in lessons.sequences])
    _, places = np.unique(lessons.dialogues, return_inverse=True)
    return np.bincount(places, weights=[sum(own) for own in logps])


def _begin(task: Distillation) -> tuple[str, float]:
    """Add the student where it begins."""
    from rtg_agents.fusion import fuse

    bank = task.backend.bank
    weights = {name: share for name, share in task.weights.items() if task.population[name].kind == "adapter"}
    if not weights:
        task.backend.create(STUDENT, seed=draw_seed(rng_for(task.seed, "distil", task.role, "adapter")))
        return "base", 1.0
    fusion = fuse(bank, {**weights, BASE: max(0.0, 1.0 - sum(weights.values()))}, bank.lora)
    bank.add(STUDENT, fusion.factors, bank.lora)
    return "fusion", fusion.kept


def _lessons(task: Distillation, part: str, *number: int, count: int) -> list[Pairing]:
    """Dialogues to learn from; on a benign goal nature speaks for red, and there is nothing to learn."""
    return task.draw(part, *number, count=count, harmful_only=task.role == "red")


def _step(task: Distillation, trainer: Trainer, lessons: Taught) -> None:
    """One step of maximum likelihood: tokens are added up, dialogues averaged."""
    longest = task.population.sampling[task.role].max_new_tokens * task.game.config.num_exchanges
    totals = Totals(num_sequences=task.settings.dialogues_per_step, max_tokens=longest)

    def objective(said: Evaluated, places: Sequence[int]) -> torch.Tensor:
        del places
        return aggregate(sft_loss(said.logps), said.mask, "constant", totals)

    trainer.step(lessons.sequences, objective)


def _typed(task: Distillation, transcript: Transcript, version: str) -> list[TokenSequence]:
    """What a member without a model said, one sequence per sentence: read and said as the student would."""
    sampling = task.population.sampling[task.role]
    return [
        as_said(task.backend, sentence, policy=STUDENT, sampling=sampling)
        for sentence in sentences_of(task.game.config, transcript, task.role)
        if sentence.action.policy == version
    ]


def to_json(learned: Learned) -> dict[str, Any]:
    """What training did, for `cost.json`."""
    return {
        "start": learned.start,
        "fusion_kept": learned.fusion_kept,
        "held_back_dialogues": learned.num_held_back,
        "held_back_tokens": learned.num_tokens,
        "token_logp_before": learned.before.token_logp,
        "token_logp_after": learned.after.token_logp,
        "kl_before": learned.before.kl,
        "kl_before_se": learned.before.kl_se,
        "kl_after": learned.after.kl,
        "kl_after_se": learned.after.kl_se,
    }
