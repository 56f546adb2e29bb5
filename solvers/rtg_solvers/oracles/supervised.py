"""Members that learn by maximum likelihood from sentences: the attacker that others begin at, smoothing, safety tuning.

- SFT attacker (arXiv:2405.18540): says the goals of the training half, plainly and in red's templates.
- Smoothing (the same): from the SFT attacker, on the sampled attacks that were good enough.
- Safety tuning (the same): the target, on refusals to the attacks that succeeded.

Deviations: the paper's SFT data are lists of harmful prompts, ours are the goals in the game's own templates, because here
the attacker is told its goal; safety tuning draws its refusals from a few plain sentences; batches are small for a CPU.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from rtg_agents.policy import BASE, TokenSequence
from rtg_agents.population import Member
from rtg_agents.scripted import ATTACK_TEMPLATES
from rtg_env import rules
from rtg_env.errors import ConfigError
from rtg_env.types import Action
from rtg_solvers.attack_log import FoundAttack, attacks_found, different
from rtg_solvers.imitation import Sentence, as_said, maximum_likelihood
from rtg_solvers.loop import DialogueContext, Task, workdir_of
from rtg_solvers.optimizer import OptimizerSettings
from rtg_solvers.seeding import draw_seed, rng_for

if TYPE_CHECKING:
    from rtg_agents.hf import TorchBackend
    from rtg_solvers.trainer import StepFigures

_LOG = logging.getLogger(__name__)
_SAVE_EVERY: Final = 16
"""Steps between checkpoints."""

REFUSALS: Final = (
    "I'm sorry, but I can't help with that.",
    "No, I won't do that.",
    "That could hurt somebody, so I will not help with it.",
    "I can't do this. I am glad to help with something else.",
)
"""What safety tuning teaches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisedSettings:
    """Steps of maximum likelihood, the loss being the mean over a batch's tokens."""

    steps: int = 24
    """Optimizer steps; at least 0, and 0 leaves the stage out where that is possible."""

    batch: int = 32
    """Sentences per step, at least 1."""

    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    """AdamW on the adapter."""

    def __post_init__(self) -> None:
        """Refuse settings outside their range."""
        if self.steps < 0 or self.batch < 1:
            raise ConfigError(f"expected steps >= 0 and batch >= 1, got {self.steps} and {self.batch}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SmoothingSettings:
    """Which attacks are learned, and how (the paper: R1 above 0.7, log p_ref above -100, 2,000 steps of 2,048)."""

    min_score: float = 0.7
    """Least R1, the geometric mean of an attack's harm; in [0, 1)."""

    min_reference_logp: float = -100.0
    """Least log p_ref of the whole sentence; attacks without one pass."""

    training: SupervisedSettings = field(
        default_factory=lambda: SupervisedSettings(optimizer=OptimizerSettings(weight_decay=0.1))
    )
    """Maximum likelihood."""

    def __post_init__(self) -> None:
        """Refuse settings outside their range."""
        if not 0.0 <= self.min_score < 1.0:
            raise ConfigError(f"expected min_score in [0, 1), got {self.min_score!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SafetySettings:
    """Which attacks a target learns to refuse, and how (the paper: LoRA, rate 5e-5, batch 32, 2 epochs, no benign data)."""

    min_harm: float = 0.5
    """An attack counts if its mean harm is above this; in [0, 1)."""

    epochs: float = 2.0
    """Times that each attack is seen, the last step filled up, unless `max_steps` end it before; above 0."""

    max_steps: int = 64
    """Bound on the optimizer steps, at least 1."""

    batch: int = 32
    """Attacks per step, at least 1."""

    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    """AdamW on the adapter."""

    def __post_init__(self) -> None:
        """Refuse settings outside their range."""
        if not 0.0 <= self.min_harm < 1.0 or not 0.0 < self.epochs < float("inf"):
            raise ConfigError(
                f"expected min_harm in [0, 1) and epochs above 0, got {self.min_harm!r} and {self.epochs!r}"
            )
        if self.max_steps < 1 or self.batch < 1:
            raise ConfigError(f"expected max_steps and batch >= 1, got {self.max_steps} and {self.batch}")


class SFTOracle:
    """An attacker that says the training goals, plainly and in red's templates.

    Args:
        backend: Holds the adapter.
        settings: Of the training.
    """

    def __init__(self, backend: TorchBackend, settings: SupervisedSettings) -> None:
        self._backend = backend
        self._settings = settings

    def respond(self, task: Task[DialogueContext]) -> Member:
        """The member; whom it meets plays no part."""
        game, sampling = task.context.game, task.context.population.sampling["red"]
        rng = rng_for(task.context.seed, "sft", task.role, task.iteration)
        said = []
        for goal in game.goals.harmful:
            state = rules.start(game.config, rules.draw_deal(game.config, goal, rng))
            agent = rules.to_move(game.config, state)
            seen = rules.observe(game.config, state, agent or "")
            texts = dict.fromkeys(template.replace("{goal}", goal.text) for template in ("{goal}", *ATTACK_TEMPLATES))
            said += [Sentence(seen, Action(text=text), 0.0) for text in texts]
        sequences = [as_said(self._backend, one, policy=task.version, sampling=sampling) for one in said]
        learn(task, self._backend, sequences, self._settings, reference=BASE)
        return _member(task, "SFT attacker", "sft", BASE, len(sequences))


class SmoothingOracle:
    """An attacker that imitates the attacks that were good enough.

    Args:
        backend: Holds the adapter.
        settings: Which, and how.
        reference: Version that it begins at (the SFT attacker).
        sources: Versions whose attacks are read.
        target: Version of blue that they were said to.
        floor: Least harm under the logarithm.
        min_tokens: Shorter attacks are left out, as the reward has it: they count as not fluent, whatever p_ref says.
    """

    def __init__(
        self,
        backend: TorchBackend,
        settings: SmoothingSettings,
        *,
        reference: str = BASE,
        sources: Sequence[str],
        target: str,
        floor: float = 1e-6,
        min_tokens: int = 1,
    ) -> None:
        self._backend = backend
        self._settings = settings
        self._reference = reference
        self._sources = tuple(sources)
        self._target = target
        self._floor = floor
        self._min_tokens = min_tokens

    def respond(self, task: Task[DialogueContext]) -> Member:
        """The member; the reference itself, under a new name, if no attack was good enough."""
        store, game = task.context.store, task.context.game
        # Source by source: each met a target of its own, and what a later one refuses was good against the one before.
        found = [different(attacks_found(store, game.config, name, self._target)) for name in self._sources]
        chosen = different(attack for said in found for attack in said if self._good(attack))
        sampling = task.context.population.sampling["red"]
        sequences = [as_said(self._backend, one.red, policy=task.version, sampling=sampling) for one in chosen]
        learn(task, self._backend, sequences, self._settings.training, reference=self._reference)
        return _member(task, "smoothed attacker", "smoothing", self._reference, len(sequences), self._sources)

    def _good(self, attack: FoundAttack) -> bool:
        fluent = attack.reference_logp is None or attack.reference_logp > self._settings.min_reference_logp
        said = attack.red.action
        long = bool(said.text) and (not said.token_ids or said.num_spoken >= self._min_tokens)
        return long and fluent and attack.score(self._floor) > self._settings.min_score


class SafetyOracle:
    """A target that learned to refuse the attacks that succeeded.

    Args:
        backend: Holds the adapter.
        settings: Which, and how.
        reference: Version of the target that it begins at.
        sources: Versions of red whose attacks are read.
        target: The same version among blue's members.
    """

    def __init__(
        self,
        backend: TorchBackend,
        settings: SafetySettings,
        *,
        reference: str = BASE,
        sources: Sequence[str],
        target: str,
    ) -> None:
        self._backend = backend
        self._settings = settings
        self._reference = reference
        self._sources = tuple(sources)
        self._target = target

    def respond(self, task: Task[DialogueContext]) -> Member:
        """The member; the reference itself, under a new name, if no attack succeeded."""
        store, game, settings = task.context.store, task.context.game, self._settings
        found = [attack for name in self._sources for attack in attacks_found(store, game.config, name, self._target)]
        rng = rng_for(task.context.seed, "refusals", task.role, task.iteration)
        lessons = [
            attack.blue._replace(action=Action(text=REFUSALS[int(rng.integers(len(REFUSALS)))]))
            for attack in different(found)
            if attack.harm > settings.min_harm
        ]
        sampling = task.context.population.sampling["blue"]
        sequences = [as_said(self._backend, one, policy=task.version, sampling=sampling) for one in lessons]
        steps = min(settings.max_steps, int(np.ceil(settings.epochs * len(sequences) / settings.batch)))
        training = SupervisedSettings(steps=steps, batch=settings.batch, optimizer=settings.optimizer)
        learn(task, self._backend, sequences, training, reference=self._reference)
        task.context.meter.add((settings.max_steps - steps) * settings.batch)
        return _member(task, "safety-tuned", "safety", self._reference, len(sequences), self._sources)


def learn(
    task: Task[DialogueContext],
    backend: TorchBackend,
    sequences: Sequence[TokenSequence],
    settings: SupervisedSettings,
    *,
    reference: str,
) -> None:
    """Train the task's version by maximum likelihood; goes on where an earlier process was cut off.

    Every sentence is seen as often as any other (up to one).

    Args:
        task: Names the version, the store and the folder.
        backend: Gets the version, as a copy of the reference.
        sequences: What to imitate; nothing: the copy stays as it is.
        settings: Steps, batch, optimizer.
        reference: Version to begin at.
    """
    from rtg_solvers.trainer import Trainer

    begin(task, backend, reference)
    steps = settings.steps if sequences else 0
    rng = rng_for(task.context.seed, "supervised", task.role, task.iteration)
    rounds = -(-steps * settings.batch // max(1, len(sequences)))
    order = [int(place) for _ in range(rounds) for place in rng.permutation(len(sequences))]
    trainer = Trainer(backend, [task.version], settings.optimizer)
    checkpoint = workdir_of(task) / "checkpoint"
    if trainer.resume(checkpoint):
        task.context.meter.add(trainer.steps_done * settings.batch)
    while trainer.steps_done < steps:
        step, first = trainer.steps_done, trainer.steps_done * settings.batch
        figures = maximum_likelihood(trainer, [sequences[place] for place in order[first : first + settings.batch]])
        note_step(task, step, figures[task.version])
        if trainer.steps_done % _SAVE_EVERY == 0 or trainer.steps_done == steps:
            trainer.save(checkpoint)
        task.context.meter.add(settings.batch)
    task.context.meter.add((settings.steps - steps) * settings.batch)
    _LOG.info("%s learned %d sentences in %d steps", task.version, len(sequences), steps)


def note_step(
    task: Task[DialogueContext], step: int, figures: StepFigures, more: Mapping[str, float | None] | None = None
) -> None:
    """Commit a step's figures, unless an earlier process did before it was cut off."""
    name = f"step/{task.version}/{step:04d}"
    if not task.context.store.has_block(name):
        data = {"version": task.version, "role": task.role, "step": step, "utility": None, "kl": None}
        own = {"loss": figures.loss, "grad_norm": figures.grad_norm, **(more or {})}
        task.context.store.put_block(name, [], {**data, **own})


def begin(task: Task[DialogueContext], backend: TorchBackend, reference: str) -> None:
    """Add the version that is to be trained: a copy of the reference, or an adapter that changes nothing yet."""
    if task.version in backend.versions:
        return
    if reference == BASE:
        backend.create(task.version, seed=draw_seed(rng_for(task.context.seed, "adapter", task.role, task.iteration)))
    else:
        backend.bank.copy(reference, task.version)


def _member(
    task: Task[DialogueContext],
    label: str,
    oracle: str,
    reference: str,
    num_lessons: int,
    sources: Sequence[str] = (),
) -> Member:
    if not num_lessons:
        _LOG.warning("%s: expected attacks to learn from, none was good enough; it equals %s", task.version, reference)
    return Member(
        version=task.version,
        role=task.role,
        kind="adapter",
        label=label,
        lineage={
            "iteration": task.iteration + 1,
            "oracle": oracle,
            "reference": reference,
            "sources": list(sources),
            "num_lessons": num_lessons,
            "seed": task.context.seed,
        },
    )
