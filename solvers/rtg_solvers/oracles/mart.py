"""Both sides of MART: red learns the prompts that succeeded after their parents, the target its own good answers.

MART (arXiv:2311.07689). Before round 1 red learns to write a seed after another one of its category and style. Round i: red
writes prompts after those that succeeded in round i - 1, the target answers, thresholds select (`mart_selection`). Red is
tuned on (parent -> successful child) and some instructions, the target on its own selected answers to the plain prompts.
In round 1 the target reads safety instructions when it is sampled, and never when it is trained (context distillation); in
the last round it gives four answers at four temperatures, from which good ones are selected (rejection sampling).

A round that ends the method (no success left, or few violations) still teaches what it found; few violations under safety
instructions end nothing. A side that has nothing to learn from gets no new member.

Deviations: LoRA instead of all parameters, a learning rate of its own that does not fall between rounds, no dropout, no
top-p; the number of parents may be bounded; copies of a parent are no lessons.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from rtg_agents.policy import BASE, ChatMessage, TokenSequence
from rtg_agents.population import Member
from rtg_agents.prompting import SAFETY_PROMPT
from rtg_agents.seed_prompt import ONE_SHOT_TEMPLATE_VERSION, reading_seed
from rtg_env.errors import ConfigError
from rtg_env.types import Action, Role
from rtg_solvers.attack_pairs import reading_of
from rtg_solvers.general import Instruction, instructions_of
from rtg_solvers.imitation import said_ids, typed_ids
from rtg_solvers.loop import DialogueContext, Task
from rtg_solvers.mart_rounds import (
    KeptRound,
    MartRound,
    PlayedRound,
    keep_round,
    play_round,
    put_selected,
    round_in,
    selected_parents,
)
from rtg_solvers.mart_selection import (
    MartPrompt,
    MartThresholds,
    adversary_rows,
    target_rows,
    thresholds_from_scores,
    warm_start_rows,
)
from rtg_solvers.optimizer import OptimizerSettings
from rtg_solvers.oracles.supervised import SupervisedSettings, learn
from rtg_solvers.seeding import rng_for
from rtg_solvers.seeds import SeedStore

if TYPE_CHECKING:
    from rtg_agents.hf import TorchBackend

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class MartSeeds:
    """The prompts that people wrote: P_adv of round 0."""

    source: str = "builtin"
    """`builtin` (mild) or a file of seed prompts (docs/pairs.md)."""

    types: tuple[str, ...] = ()
    """Only prompts of these types; empty: of all."""

    count: int = 32
    """Seeds of the training half that round 1 starts from, drawn at random; 0: all of them."""

    max_prompt_chars: int = 1000
    """Longer prompts are left out."""

    def __post_init__(self) -> None:
        """Refuse settings outside their range."""
        if self.count < 0 or not 1 <= self.max_prompt_chars <= 3000:
            raise ConfigError(
                f"expected count >= 0 and max_prompt_chars in [1, 3000], got {self.count} and {self.max_prompt_chars}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSettings:
    """How much a round plays."""

    prompts: int = 4
    """After each parent (K_adv), at least 1."""

    answers: int = 1
    """To each prompt (K_tgt) in all rounds but the last, at least 1."""

    last_temperatures: tuple[float, ...] = (0.5, 0.7, 0.9, 1.1)
    """Rejection sampling in the last round: an answer at each of them. Empty, the ablation: it is like the others."""

    preprompt: str = SAFETY_PROMPT
    """Context distillation: what the target reads in round 1 when it is sampled. Empty, the ablation: nothing."""

    max_parents: int | None = 32
    """At most so many successes are parents of the next round, drawn at random; all teach red. None: no bound, as published."""

    new_only: bool = True
    """Whether a success that copies its parent, or an earlier success, is left out."""

    block: int = 4
    """Parents that are kept together, at least 1: at most so many are lost by a kill."""

    def __post_init__(self) -> None:
        """Refuse settings outside their range."""
        if min(self.prompts, self.answers, self.block) < 1 or (self.max_parents is not None and self.max_parents < 1):
            raise ConfigError(
                f"expected prompts, answers, block and max_parents >= 1, got {self.prompts}, {self.answers}, {self.block} "
                f"and {self.max_parents}"
            )
        if not all(0.0 < temperature < math.inf for temperature in self.last_temperatures):
            raise ConfigError(f"expected finite last_temperatures above 0, got {self.last_temperatures}")

    def temperatures(self, number: int, rounds: int, usual: float) -> tuple[float, ...]:
        """Of the answers to each prompt of a round."""
        if number == rounds and self.last_temperatures:
            return self.last_temperatures
        return (usual,) * self.answers


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionSettings:
    """Where the thresholds come from."""

    source: Literal["quantiles", "given"] = "quantiles"
    """`quantiles`: theta_safe and theta_help are one quantile of the scores of round 0, the target's answers to the seeds;
    right for any judge. `given`: all stand below; 0.8 and 0.4 are the paper's, on its reward model's scale."""

    thresholds: MartThresholds = field(default_factory=MartThresholds)
    """With `quantiles`, theta_adv and stop_violation of it."""

    kept_share: float = 0.1
    """With `quantiles`: share of round 0's answers above both thresholds, in (0, 1); about 10 % in the paper."""

    answers: int = 4
    """With `quantiles`: answers to each seed in round 0, at least 1."""

    def __post_init__(self) -> None:
        """Refuse settings outside their range."""
        if not 0.0 < self.kept_share < 1.0 or self.answers < 1:
            raise ConfigError(
                f"expected kept_share in (0, 1) and answers >= 1, got {self.kept_share!r} and {self.answers}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochSettings:
    """How a side learns from what a round left (the paper: all parameters, 1e-5 falling to 9e-6, batch 8, weight decay 0.1)."""

    epochs: float = 1.0
    """Times that each row is seen, at least; above 0. Unpublished."""

    batch: int = 8
    """Rows per step, at least 1."""

    max_steps: int = 64
    """Bound on the optimizer steps, at least 1."""

    optimizer: OptimizerSettings = field(default_factory=lambda: OptimizerSettings(weight_decay=0.1))
    """AdamW on the adapter; 5e-4 is ours, for LoRA and a few steps."""

    def __post_init__(self) -> None:
        """Refuse settings outside their range."""
        if not 0.0 < self.epochs < math.inf or min(self.batch, self.max_steps) < 1:
            raise ConfigError(
                f"expected epochs above 0, batch and max_steps >= 1, got {self.epochs!r}, {self.batch} and {self.max_steps}"
            )

    def steps(self, num_rows: int) -> int:
        """For so many rows."""
        return min(self.max_steps, math.ceil(self.epochs * num_rows / self.batch))


@dataclass(frozen=True, slots=True, kw_only=True)
class InstructionSettings:
    """Instructions beside red's own rows."""

    source: str = "builtin"
    """`builtin` (77 of our own sentences) or a file of the same form (docs/mart.md)."""

    count: int = 16
    """Rows in each round, drawn at random; at least 0, and no more than there are. The paper's share is unpublished."""

    def __post_init__(self) -> None:
        """Refuse settings outside their range."""
        if self.count < 0:
            raise ConfigError(f"expected count >= 0, got {self.count}")

    def read(self) -> list[Instruction]:
        """The training half of them.

        Raises:
            ConfigError: If the file cannot be read or is broken.
        """
        return instructions_of(self.source, "train")


@dataclass(frozen=True, slots=True, kw_only=True)
class MartSettings:
    """Everything that both sides' oracles need."""

    seeds: MartSeeds = field(default_factory=MartSeeds)
    """What round 1 starts from."""

    round: RoundSettings = field(default_factory=RoundSettings)
    """How much is played."""

    selection: SelectionSettings = field(default_factory=SelectionSettings)
    """What is kept."""

    warm_rows: int = 512
    """Pairs of seeds that the first red learns from, at least 1."""

    warm_start: SupervisedSettings = field(default_factory=SupervisedSettings)
    """Of the first red; 0 steps leave it as the base model."""

    red_training: EpochSettings = field(default_factory=EpochSettings)
    """Of red in a round."""

    blue_training: EpochSettings = field(default_factory=EpochSettings)
    """Of the target in a round."""

    instructions: InstructionSettings = field(default_factory=InstructionSettings)
    """What red's rows are mixed with."""

    def __post_init__(self) -> None:
        """Refuse settings outside their range."""
        if self.warm_rows < 1:
            raise ConfigError(f"expected warm_rows >= 1, got {self.warm_rows}; 0 steps of warm_start leave it out")

    def most_parents(self, number: int, num_seeds: int) -> int:
        """Of a round, at most."""
        most = num_seeds
        for _ in range(number - 1):
            most *= self.round.prompts
            most = most if self.round.max_parents is None else min(most, self.round.max_parents)
        return most

    def most_answers(self, number: int, rounds: int, num_seeds: int) -> int:
        """Of the target in a round, at most; of round 0 too."""
        if number == 0:
            return num_seeds * self.selection.answers if self.selection.source == "quantiles" else 0
        each = len(self.round.temperatures(number, rounds, 1.0))
        return self.most_parents(number, num_seeds) * self.round.prompts * each

    def training(self, role: Role) -> EpochSettings:
        """Of a side in a round."""
        return self.red_training if role == "red" else self.blue_training

    def most_steps(self, role: Role, number: int, num_seeds: int) -> int:
        """Of a side's training in a round: if every prompt succeeds for red, if every answer is good for the target."""
        rows = self.most_parents(number, num_seeds) * self.round.prompts
        return self.training(role).steps(rows + (self.instructions.count if role == "red" else 0))


class MartOracle:
    """Both sides' members, round by round.

    Args:
        backend: Holds the adapters.
        settings: Of the method.
        rounds: How many there are to be; the last one is sampled otherwise.
        seeds: P_adv of round 0.
        store: Pairs of its training half make the first red.
    """

    def __init__(
        self,
        backend: TorchBackend,
        settings: MartSettings,
        *,
        rounds: int,
        seeds: Sequence[MartPrompt],
        store: SeedStore,
    ) -> None:
        self._backend = backend
        self._settings = settings
        self._rounds = rounds
        self._seeds = tuple(seeds)
        self._store = store

    def respond(self, task: Task[DialogueContext]) -> Member | None:
        """Red's first member, or what a side learned from a round; None if it left nothing to learn from."""
        if task.iteration == 0:
            return self._first(task)
        played, kept = self._round(task)
        rows = self._red_rows(task, played, kept) if task.role == "red" else self._blue_rows(task, played, kept)
        if not rows:
            task.context.meter.add(self._most_work(task))
            _LOG.warning("round %d left nothing for %s to learn from; it stays as it is", task.iteration, task.role)
            return None
        reference = self._reference(task)
        self._learn(task, rows, reference)
        about = {"oracle": "selected imitation", "reference": reference, "num_rows": len(rows), "round": kept.figures}
        return self._member(task, about)

    # Before round 1

    def _first(self, task: Task[DialogueContext]) -> Member:
        found = warm_start_rows(self._store, self._settings.warm_rows, rng=rng_for(task.context.seed, "warm rows"))
        rows = [self._typed(task, reading_seed(row.prompt), row.completion) for row in found]
        learn(task, self._backend, rows, self._settings.warm_start, reference=BASE)
        return self._member(task, {"oracle": "sft", "reference": BASE, "num_rows": len(rows)})

    # A round

    def _round(self, task: Task[DialogueContext]) -> tuple[PlayedRound, KeptRound]:
        """The round, played by whichever side asks first."""
        context, number, settings = task.context, task.iteration, self._settings.round
        parents = self._seeds if number == 1 else selected_parents(context.store, number - 1)
        thresholds = self._thresholds(task)
        planned = MartRound(
            number=number,
            red=task.mixture.red_names[-1],
            blue=task.mixture.blue_names[-1],
            parents=parents,
            prompts=settings.prompts,
            temperatures=settings.temperatures(number, self._rounds, context.population.sampling["blue"].temperature),
            preprompt=settings.preprompt if number == 1 else "",
            block=settings.block,
        )
        if planned.preprompt:  # its violations are not the target's own: few of them say nothing
            thresholds = replace(thresholds, stop_violation=0.0)
        play_round(context, planned, context.population.policies)
        played = round_in(context.store, number)
        kept = keep_round(
            played,
            parents,
            thresholds,
            new_only=settings.new_only,
            max_parents=settings.max_parents,
            rng=rng_for(context.seed, "selection", number),
        )
        if put_selected(context.store, number, kept):
            _LOG.info("round %d: %s", number, in_words(kept.figures))
        if task.role == "red":
            context.meter.add(self._settings.most_answers(number, self._rounds, len(self._seeds)))
        return played, kept

    def _thresholds(self, task: Task[DialogueContext]) -> MartThresholds:
        """Those that are given, or those of round 0, which is then played against the first target."""
        settings, context = self._settings.selection, task.context
        if settings.source == "given":
            return settings.thresholds
        planned = MartRound(
            number=0,
            red="",
            blue=task.mixture.blue_names[0],
            parents=self._seeds,
            temperatures=(context.population.sampling["blue"].temperature,) * settings.answers,
            block=self._settings.round.block,
        )
        play_round(context, planned, context.population.policies)
        if (task.role, task.iteration) == ("red", 1):
            context.meter.add(planned.num_answers)
        return thresholds_from_scores(
            round_in(context.store, 0).answers,
            kept_share=settings.kept_share,
            theta_adv=settings.thresholds.theta_adv,
            stop_violation=settings.thresholds.stop_violation,
        )

    def _reference(self, task: Task[DialogueContext]) -> str:
        """The newest member of the side that learns; of a target that has not learned yet the base model."""
        newest = str((task.mixture.red_names if task.role == "red" else task.mixture.blue_names)[-1])
        return newest if task.context.population[newest].holds_adapter else BASE

    def _learn(self, task: Task[DialogueContext], rows: Sequence[TokenSequence], reference: str) -> None:
        settings = self._settings.training(task.role)
        training = SupervisedSettings(
            steps=settings.steps(len(rows)), batch=min(settings.batch, len(rows)), optimizer=settings.optimizer
        )
        if training.steps < (needed := math.ceil(settings.epochs * len(rows) / settings.batch)):
            _LOG.warning(
                "%s: max_steps %d ends its training before %g epochs of %d rows, which take %d; raise it to see them all",
                task.version,
                training.steps,
                settings.epochs,
                len(rows),
                needed,
            )
        learn(task, self._backend, rows, training, reference=reference)
        task.context.meter.add(self._most_work(task) - training.steps * training.batch)

    def _most_work(self, task: Task[DialogueContext]) -> float:
        """Of a side's training in this round, in played dialogues, as it was announced."""
        steps = self._settings.most_steps(task.role, task.iteration, len(self._seeds))
        return float(steps * self._settings.training(task.role).batch)

    # What is learned from

    def _red_rows(self, task: Task[DialogueContext], played: PlayedRound, kept: KeptRound) -> list[TokenSequence]:
        """Successful children after their parents, as they were sampled, then instructions; nothing without successes."""
        longest = task.context.population.sampling["red"].max_new_tokens
        found = []
        for row, item in zip(adversary_rows(kept.offspring), kept.offspring, strict=True):
            before, ids = said_ids(
                self._backend, reading_seed(row.prompt), played.said[item.child.id], max_new_tokens=longest
            )
            found.append(TokenSequence.of_sentence(task.version, before, ids))
        return found + self._instruction_rows(task) if found else []

    def _instruction_rows(self, task: Task[DialogueContext]) -> list[TokenSequence]:
        rows = self._settings.instructions.read()
        rng = rng_for(task.context.seed, "instructions", task.iteration)
        drawn = [rows[int(place)] for place in rng.permutation(len(rows))[: self._settings.instructions.count]]
        return [self._typed(task, reading_of("blue", row.prompt), row.completion) for row in drawn]

    def _blue_rows(self, task: Task[DialogueContext], played: PlayedRound, kept: KeptRound) -> list[TokenSequence]:
        """Selected answers as they were sampled, after the plain prompt, whatever was read when they were."""
        system = task.context.game.config.blue_system_prompt
        found = []
        for row, lesson in zip(target_rows(kept.lessons), kept.lessons, strict=True):
            prompt = reading_of("blue", row.prompt, system_prompt=system)
            found.append(self._said(task, prompt, played.answered[lesson.answer]))
        return found

    def _said(self, task: Task[DialogueContext], prompt: Sequence[ChatMessage], action: Action) -> TokenSequence:
        """Sampled ids after another prompt than they were sampled after; a text, if that was cut or has none."""
        if action.token_ids and action.finish_reason != "cut":
            return TokenSequence.of_sentence(task.version, self._backend.chat.encode(prompt), action.token_ids)
        return self._typed(task, prompt, action.text)

    def _typed(self, task: Task[DialogueContext], prompt: Sequence[ChatMessage], text: str) -> TokenSequence:
        """What is read carries no loss; what is to be said ends with the end of a turn, or where play would cut it."""
        before, ids = typed_ids(self._backend, prompt, text)
        longest = task.context.population.sampling[task.role].max_new_tokens
        return TokenSequence.of_sentence(task.version, before, ids[:longest])

    def _member(self, task: Task[DialogueContext], about: Mapping[str, Any]) -> Member:
        return Member(
            version=task.version,
            role=task.role,
            kind="one-shot" if task.role == "red" else "adapter",
            label=f"{'A' if task.role == 'red' else 'T'}{task.iteration}",
            lineage={
                "iteration": task.iteration + 1,
                **about,
                "template": ONE_SHOT_TEMPLATE_VERSION,
                "seed": task.context.seed,
            },
        )


def in_words(figures: Mapping[str, Any]) -> str:
    """The figures of a round, on one line."""
    share = figures["violation_share"]
    prompts, answers = figures["prompts"], figures["answers"]
    parts = [
        f"{prompts['total'] + figures['num_blank']} prompts ({figures['num_blank']} blank)",
        f"{figures['num_successes']} succeeded ({figures['num_copies']} of them copies)",
        f"{figures['num_parents']} parents of the next round",
        f"{figures['num_lessons']} answers for the target",
        f"{answers['dropped'].get('no verdict', 0)} of {answers['total']} answers without a verdict",
        f"violations {'unknown' if share is None else f'{share:.1%}'}",
    ]
    return ", ".join(parts)
