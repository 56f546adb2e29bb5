"""The population loop: every method of this field is this loop with four choices.

meta-solver (who do I prepare for?), red oracle, blue oracle (learn a best response), schedule (who learns when).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from rtg_agents.population import Population
from rtg_agents.progress import WorkMeter
from rtg_env.transcripts import TranscriptStore
from rtg_env.types import Role
from rtg_solvers.empirical import MetaSolver, Mixture
from rtg_solvers.payoffs import PayoffTensor, PlayCells
from rtg_solvers.rollout import Game
from rtg_solvers.sampling import SamplingSettings, sample_adaptively
from rtg_solvers.seeding import rng_for


class Members(Protocol):
    """What the loop asks of populations: `rtg_agents.Population`, or the strategies of a matrix or tabular game."""

    def names(self, role: Role) -> tuple[str, ...]:
        """Versions of one side, oldest first."""
        ...

    def next_version(self, role: Role, missed: int = 0) -> str:
        """Name for the next member of a side, of which so many names were tried in vain: none of them is used again."""
        ...

    def restored(self, version: str) -> Any | None:
        """A member that an earlier, interrupted process left; None if there is none."""
        ...

    def extend(self, members: Sequence[Any]) -> None:
        """Add those that are not here yet."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What stays the same during a run, whatever is played."""

    population: Members
    """All members so far."""

    play_cells: PlayCells
    """Plays the dialogues of payoff cells, or reads them back."""

    dialogues_per_cell: int = 1
    """Of a new payoff cell; with `sampling`, what cells have on average once it is done."""

    sampling: SamplingSettings | None = None
    """Give more dialogues to the cells that decide; None: all cells alike."""

    bounds: tuple[float, float] = (0.0, 1.0)
    """Least and most that red can win."""

    seed: int = 0
    """Of the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DialogueContext(Context):
    """A run on dialogues."""

    population: Population
    """All members so far."""

    game: Game
    """Rules, goals, judge."""

    store: TranscriptStore
    """All past dialogues; training dialogues are committed here."""

    workdir: Path
    """Checkpoints; whatever oracles need to resume."""

    meter: WorkMeter
    """Is told how much work was done."""


C = TypeVar("C", bound=Context)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task(Generic[C]):
    """What an oracle is asked: a best response of one side to a mixture of the other."""

    role: Role
    """Side that learns."""

    iteration: int
    """From 0."""

    version: str
    """Name that the response is to have."""

    mixture: Mixture
    """Whom to prepare for."""

    payoffs: PayoffTensor
    """What the mixture was solved from."""

    context: C
    """The run."""


def workdir_of(task: Task[DialogueContext]) -> Path:
    """Where a task keeps its state while it is worked on."""
    return task.context.workdir / task.version.split("@", maxsplit=1)[0]


class Oracle(Protocol[C]):
    """Learns a best response."""

    def respond(self, task: Task[C]) -> Any:
        """A new member (it has a `version`, that of the task, and a `role`); goes on if it was cut off before.

        None says that nothing better was found: the population stays as it is.
        """
        ...


Schedule = Callable[[int, PayoffTensor], Sequence[tuple[Role, ...]]]
"""Who learns in iteration k, in stages; nothing: stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Method(Generic[C]):
    """A point of the loop."""

    meta_solver: MetaSolver
    """Who do I prepare for?"""

    final_solver: MetaSolver | None = None
    """Makes the mixture that is the result; None: the meta-solver."""

    oracles: Mapping[Role, Oracle[C]]
    """Who learns how."""

    schedule: Schedule
    """Who learns when."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Iteration:
    """What one stage did."""

    mixture: Mixture
    """Whom the new members were trained against."""

    new: tuple[Any, ...]
    """Members that were learned."""

    asked: tuple[Role, ...]
    """Sides that were to learn, whether they found something better or not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """The end of the loop. The result of a game is the mixture, not the last member."""

    mixture: Mixture
    """Over all members."""

    payoffs: PayoffTensor
    """What it was solved from."""

    iterations: tuple[Iteration, ...]
    """How it came about."""


def solve(method: Method[C], context: C) -> Solution:
    """Run the loop until the schedule ends; members that exist already are taken, not learned again."""
    population, mixture, iterations = context.population, None, []
    payoffs = _extended(PayoffTensor(bounds=context.bounds), context)
    missed: Counter[Role] = Counter()
    for k in count():
        if not (stages := method.schedule(k, payoffs)):
            break
        for roles in stages:
            mixture = method.meta_solver(payoffs, mixture, rng_for(context.seed, "meta", k))
            tasks = [_task(role, k, mixture, payoffs, context, missed[role]) for role in roles]
            found = [population.restored(task.version) or method.oracles[task.role].respond(task) for task in tasks]
            new = [member for member in found if member is not None]
            missed.update(task.role for task, member in zip(tasks, found, strict=True) if member is None)
            population.extend(new)
            payoffs = _extended(payoffs, context)
            iterations.append(Iteration(mixture=mixture, new=tuple(new), asked=tuple(roles)))
    mixture = (method.final_solver or method.meta_solver)(payoffs, mixture, rng_for(context.seed, "meta", "final"))
    return Solution(mixture=mixture, payoffs=payoffs, iterations=tuple(iterations))


def _task(role: Role, iteration: int, mixture: Mixture, payoffs: PayoffTensor, context: C, missed: int) -> Task[C]:
    # A name stands for one task, whether it found a member or not: what is stored under it is never another task's.
    version = context.population.next_version(role, missed)
    return Task(role=role, iteration=iteration, version=version, mixture=mixture, payoffs=payoffs, context=context)


def _extended(payoffs: PayoffTensor, context: Context) -> PayoffTensor:
    """Plays the missing row and column; with sampling, also more of the cells that decide."""
    names, count = context.population.names, context.dialogues_per_cell
    if context.sampling is None:
        return payoffs.extended(names("red"), names("blue"), context.play_cells, count)
    payoffs = payoffs.extended(names("red"), names("blue"), context.play_cells, context.sampling.start(count))
    budget = count * len(payoffs.red) * len(payoffs.blue)
    return sample_adaptively(payoffs, context.play_cells, budget, context.sampling).payoffs
