"""Members that learn from preference pairs: direct preference optimisation against the player they were (SEAS).

One call trains one side for one iteration of "SEAS" (arXiv:2408.02632). The reference is that player at the start of this
iteration, under its own version name, and stays frozen; an adapter that is switched off would be the base, which is wrong
from the second iteration on. Its log-probabilities are computed once.

Checks in every iteration, before the first step is kept: the player's log-probabilities are those of the reference; they
differ from the base's, unless the reference is the base or has learned nothing; and the loss is log 2.

Deviations: LoRA, hence a learning rate of 1e-4 instead of 5e-6 and several epochs instead of one; some pairs are held out,
whole groups of them, to see whether what is learned holds for others. `sft` is the ablation: the chosen side alone.

Letters: N pairs; columns [2] are the chosen and the rejected sentence.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, cast

import numpy as np

from rtg_env.errors import ConfigError, RunError
from rtg_solvers.imitation import maximum_likelihood
from rtg_solvers.loop import DialogueContext, Task, workdir_of
from rtg_solvers.optimizer import OptimizerSettings
from rtg_solvers.oracles.supervised import begin, note_step
from rtg_solvers.pair_accuracy import PairAccuracy, heldout_places, pair_accuracies
from rtg_solvers.preference_checks import StartCheck, check_first_step, check_start
from rtg_solvers.seeding import rng_for

if TYPE_CHECKING:
    from rtg_agents.hf import TorchBackend
    from rtg_solvers.token_pairs import TokenPair
    from rtg_solvers.trainer import Trainer

_LOG = logging.getLogger(__name__)
_SAVE_EVERY: Final = 16
"""Steps between checkpoints."""

PreferenceLoss = Literal["dpo", "sft"]
"""`dpo`, or maximum likelihood on the chosen side alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceSettings:
    """How one side learns from its pairs (the paper: beta 0.1, batch 8, 1 epoch of all parameters at 5e-6)."""

    loss: PreferenceLoss = "dpo"
    """`dpo`; `sft` is the ablation."""

    beta: float = 0.1
    """Price of divergence from the reference, above 0."""

    epochs: int = 3
    """Times that each pair is seen, at least 1; several, because adapters learn slower (ours)."""

    batch: int = 8
    """Pairs per step, at least 1."""

    max_steps: int = 400
    """Bound on the optimizer steps, at least 1; it may cut the last epochs."""

    heldout_share: float = 0.1
    """Share of the pairs, by whole groups, that accuracy is measured on and nothing is learned from; in [0, 0.5]."""

    optimizer: OptimizerSettings = field(default_factory=lambda: OptimizerSettings(learning_rate=1e-4))
    """AdamW on the adapter; a micro-batch counts sentences, two to a pair."""

    def __post_init__(self) -> None:
        """Refuse settings outside their range."""
        if self.loss not in ("dpo", "sft"):
            raise ConfigError(f"expected the loss 'dpo' or 'sft', got {self.loss!r}; 'dpo' is the paper's")
        if not 0.0 < self.beta < float("inf"):
            raise ConfigError(f"expected beta finite and above 0, got {self.beta!r}; 0.1 is the paper's")
        for name in ("epochs", "batch", "max_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"expected {name} to be at least 1, got {getattr(self, name)!r}; raise it")
        if not 0.0 <= self.heldout_share <= 0.5:
            raise ConfigError(
                f"expected heldout_share in [0, 0.5], got {self.heldout_share!r}; 0.1 leaves most pairs to learn from"
            )

    @property
    def units(self) -> int:
        """What one call of `prefer` tells the meter, whatever pairs there are."""
        return self.max_steps * self.batch


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceReport:
    """What one call has done."""

    version: str
    """Trained player."""

    reference: str
    """What it began as."""

    num_train: int = 0
    """Pairs that were learned from."""

    num_heldout: int = 0
    """Pairs that were not."""

    num_steps: int = 0
    """Optimizer steps; 0 without pairs, and then the player is the reference."""

    epochs_seen: float = 0.0
    """Times that each pair was seen, less than asked for where `max_steps` cut it."""

    start: StartCheck | None = None
    """None without pairs."""

    heldout: Mapping[str, PairAccuracy] = field(default_factory=dict)
    """By kind of pair, and `all` of them; empty where nothing was held out."""

    def lineage(self) -> dict[str, object]:
        """The report as JSON has it, for a member's lineage: NaN is null."""
        return cast("dict[str, object]", _plain(asdict(self)))


class _Lesson(NamedTuple):
    """Pairs with what belongs to them."""

    pairs: Sequence[TokenPair]
    """N of them."""

    train: np.ndarray
    """Places of those that are learned from."""

    reference_N2: np.ndarray
    """[N, 2] log-probabilities under the reference."""


def prefer(
    task: Task[DialogueContext],
    backend: TorchBackend,
    pairs: Sequence[TokenPair],
    settings: PreferenceSettings,
    *,
    reference: str,
    clusters: Sequence[str],
    kinds: Sequence[str] = (),
) -> PreferenceReport:
    """Train the task's version on pairs, beginning at the reference; goes on where an earlier process was cut off.

    Args:
        task: Names the version, the store and the folder.
        backend: Gets the version, as a copy of the reference.
        pairs: N of them, in an order that a second call repeats; none: the copy stays as it is.
        settings: Loss, steps, batch, optimizer.
        reference: The player at the start of this iteration.
        clusters: [N] pairs of one label (of one seed or prompt) are held out together and count as one.
        kinds: [N] labels, such as own and general, whose accuracies are reported apart; empty: all are alike.

    Raises:
        ConfigError: If there is not one cluster (and kind) per pair.
        PolicyError: If the player does not begin as the reference, or the loss is not log 2.
        RunError: If an earlier process began with other pairs.
    """
    from rtg_solvers.preference_updates import pair_logps

    kinds = kinds or ["pairs"] * len(pairs)
    if not len(pairs) == len(clusters) == len(kinds):
        raise ConfigError(
            f"expected one cluster and one kind per pair, got {len(clusters)} and {len(kinds)} for {len(pairs)} pairs"
        )
    begin(task, backend, reference)
    if not pairs:
        _LOG.warning("%s: expected pairs to learn from, got none; it equals %s", task.version, reference)
        task.context.meter.add(settings.units)
        return PreferenceReport(version=task.version, reference=reference)
    rng = rng_for(task.context.seed, "preference-heldout", task.role, task.iteration)
    heldout = heldout_places(clusters, kinds, settings.heldout_share, rng)
    train = np.setdiff1d(np.arange(len(pairs)), heldout)
    table = _reference_table(task, backend, pairs, clusters, reference)
    lesson = _Lesson(pairs, train, table)
    start, num_steps, num_seen = _train(task, backend, lesson, settings, reference)
    after_N2 = pair_logps(backend, [pairs[int(place)] for place in heldout], task.version)
    labels = [[names[int(place)] for place in heldout] for names in (clusters, kinds)]
    found = pair_accuracies(table[heldout], after_N2, *labels)
    # General pairs are easy, and the player may have seen them in an earlier iteration: its own say whether it learned.
    told = found.get("own") or found.get("all")
    if told and not told.reward_after.low > 0.5:
        share = told.reward_after
        _LOG.warning(
            "%s: of its %d held-out pairs %.2f [%.2f,%.2f] gained on their rejected side; more than chance is not shown",
            task.version,
            share.count,
            share.mean,
            share.low,
            share.high,
        )
    return PreferenceReport(
        version=task.version,
        reference=reference,
        num_train=len(train),
        num_heldout=len(heldout),
        num_steps=num_steps,
        epochs_seen=num_seen / len(train),
        start=start,
        heldout=found,
    )


# Training


def _train(
    task: Task[DialogueContext],
    backend: TorchBackend,
    lesson: _Lesson,
    settings: PreferenceSettings,
    reference: str,
) -> tuple[StartCheck, int, int]:
    """The steps that are still to be done: what was found before them, how many there are, how many pairs they see."""
    from rtg_solvers.trainer import Trainer

    batches = _batches(task, lesson.train, settings)
    trainer = Trainer(backend, [task.version], settings.optimizer)
    checkpoint = workdir_of(task) / "checkpoint"
    if trainer.resume(checkpoint):
        _LOG.info("%s goes on after step %d", task.version, trainer.steps_done)
        task.context.meter.add(trainer.steps_done * settings.batch)
    start = _start(task, backend, lesson, settings, reference, trainer.steps_done)
    while trainer.steps_done < len(batches):
        _step(task, backend, trainer, lesson, batches[trainer.steps_done], settings)
        if trainer.steps_done % _SAVE_EVERY == 0 or trainer.steps_done == len(batches):
            trainer.save(checkpoint)
        task.context.meter.add(settings.batch)
    task.context.meter.add((settings.max_steps - len(batches)) * settings.batch)
    _LOG.info("%s learned %d pairs in %d steps", task.version, len(lesson.train), len(batches))
    return start, len(batches), sum(map(len, batches))


def _batches(task: Task[DialogueContext], train: np.ndarray, settings: PreferenceSettings) -> list[np.ndarray]:
    """Places of each step: each epoch is an order of its own, its last step may be smaller, and no pair is in one twice."""
    rng = rng_for(task.context.seed, "preference", task.role, task.iteration)
    batches: list[np.ndarray] = []
    for _ in range(settings.epochs):
        order = rng.permutation(train)
        batches += [order[first : first + settings.batch] for first in range(0, len(order), settings.batch)]
    if len(batches) > settings.max_steps:
        _LOG.warning(
            "%s: max_steps %d ends its update before %d epochs of %d pairs, which take %d; raise it to see them all",
            task.version,
            settings.max_steps,
            settings.epochs,
            len(train),
            len(batches),
        )
    return batches[: settings.max_steps]


def _step(
    task: Task[DialogueContext],
    backend: TorchBackend,
    trainer: Trainer,
    lesson: _Lesson,
    places: np.ndarray,
    settings: PreferenceSettings,
) -> None:
    """One step, and its figures committed."""
    from rtg_solvers.preference_updates import preference_step

    step, chosen = trainer.steps_done, [lesson.pairs[int(place)] for place in places]
    if settings.loss == "sft":
        figures = maximum_likelihood(trainer, [pair.of(task.version)[0] for pair in chosen])
        note_step(task, step, figures[task.version])
        return
    done = preference_step(trainer, task.version, chosen, lesson.reference_N2[places], beta=settings.beta)
    if step == 0:
        check_first_step(task.version, done.figures.loss, backend, beta=settings.beta)
    note_step(task, step, done.figures, asdict(done.ranking))


# Checks


def _start(
    task: Task[DialogueContext],
    backend: TorchBackend,
    lesson: _Lesson,
    settings: PreferenceSettings,
    reference: str,
    steps_done: int,
) -> StartCheck:
    """Check the beginning, or read what was found by the process that began."""
    store, name = task.context.store, f"preference-start/{task.version}"
    if steps_done and store.has_block(name):
        return StartCheck(**cast("dict[str, Any]", store.block_data(name)))
    found = check_start(backend, task.version, reference, lesson.pairs, lesson.reference_N2, beta=settings.beta)
    if not store.has_block(name):
        store.put_block(name, [], asdict(found))
    return found


# Reference


def _reference_table(
    task: Task[DialogueContext],
    backend: TorchBackend,
    pairs: Sequence[TokenPair],
    clusters: Sequence[str],
    reference: str,
) -> np.ndarray:
    """[N, 2] log-probabilities under the reference: computed once, then read back."""
    from rtg_solvers.preference_updates import pair_logps

    store, name = task.context.store, f"preference-reference/{task.version}"
    content = [
        (side.ids, side.spans, side.temperature, side.min_tokens) for p in pairs for side in (p.chosen, p.rejected)
    ]
    digest = hashlib.sha256(json.dumps([reference, list(clusters), content]).encode()).hexdigest()
    if not store.has_block(name):
        rows = pair_logps(backend, pairs, reference).tolist()
        store.put_block(name, [], {"reference": reference, "pairs": digest, "logps": rows})
    data = store.block_data(name)
    if data["pairs"] != digest:
        raise RunError(
            f"expected the pairs that {task.version} began to learn from, got other ones; they must come out the same when "
            "a run goes on: draw them by the run's seed, or begin a new run"
        )
    return np.array(data["logps"])


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
