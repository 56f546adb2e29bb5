"""What it costs a side to play one distilled adapter instead of its mixture: on fresh dialogues, paired, with intervals.

Two questions. Against the other side's mixture: the same deals, opponents and seeds, once with the mixture and once with the
student. Against whoever is worst for it: for mixture and student each, the opponent that wins most is chosen among all members
of the other side on one half of the deals, and what it wins is estimated on the other half, so that the estimate is free of
the winner's luck. A mixture is built to have no such opponent; a student that has missed part of it may have one. Members are
all that is tried: somebody who trains against the student may win more.

Costs are what the side is paid less: above 0 where the mixture is better. Only the game's utility counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rtg_env.transcripts import Played
from rtg_env.types import Role
from rtg_solvers.distil import STUDENT, Distillation
from rtg_solvers.gaps import deviating, most_paid, paired_gain
from rtg_solvers.measures import Estimate, mean_estimate
from rtg_solvers.rollout import Pairing, utilities


@dataclass(frozen=True, slots=True, kw_only=True)
class Duel:
    """What red wins on the same deals, and what the student costs its side."""

    mixture: Estimate
    """What red wins where the side plays its mixture."""

    student: Estimate
    """What red wins where it plays the student."""

    cost: Estimate
    """What the student's side is paid less than the mixture's, dialogue by dialogue."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """The price of a distilled adapter."""

    against_mixture: Duel
    """The other side plays its mixture."""

    against_best: Duel
    """The other side plays the member that wins most against whom it faces."""

    best_against_mixture: str
    """Version of that member, for the mixture."""

    best_against_student: str
    """The same for the student."""


def measure_cost(task: Distillation) -> Cost:
    """Play the student and the mixture it imitates.

    Raises:
        JudgeError: If the judge failed on too many dialogues.
    """
    deals = task.draw("cost", count=task.settings.cost_dialogues)
    half = len(deals) // 2
    chosen, estimated = deals[:half], deals[half:]
    mixed = task.play_unit("cost/mixture/mixture", deals)
    learned = task.play_unit("cost/student/mixture", _taken_by_student(task, deals))
    other: Role = "blue" if task.role == "red" else "red"
    best: dict[str, str] = {}
    worst: dict[str, list[Played]] = {}
    for name, own in (("mixture", lambda deals: deals), ("student", lambda deals: _taken_by_student(task, deals))):

        def faced(half: str, deals: Sequence[Pairing], version: str, name: str = name) -> list[Played]:
            facing = [deviating(deal, other, version) for deal in deals]
            return task.play_unit(f"cost/{name}/{half}/{version}", facing)

        tried = {version: faced("chosen", own(chosen), version) for version in task.opponents}
        best[name] = most_paid(other, tried)
        worst[name] = faced("estimated", own(estimated), best[name])
    return Cost(
        against_mixture=_duel(task, mixed, learned),
        against_best=_duel(task, worst["mixture"], worst["student"]),
        best_against_mixture=best["mixture"],
        best_against_student=best["student"],
    )


def num_dialogues(count: int, num_opponents: int) -> int:
    """Dialogues that `measure_cost` plays on `count` deals."""
    return 2 * count + (num_opponents + 1) * count


def to_json(cost: Cost) -> dict[str, Any]:
    """A cost as JSON data."""
    return {
        "against_mixture": asdict(cost.against_mixture),
        "against_best": {
            **asdict(cost.against_best),
            "opponent_of_mixture": cost.best_against_mixture,
            "opponent_of_student": cost.best_against_student,
        },
    }


def _taken_by_student(task: Distillation, deals: Sequence[Pairing]) -> list[Pairing]:
    return [deviating(deal, task.role, STUDENT) for deal in deals]


def _duel(task: Distillation, mixed: Sequence[Played], learned: Sequence[Played]) -> Duel:
    bounds = (0.0, task.game.config.max_utility)
    goals = [item.transcript.goal.id for item in mixed]
    return Duel(
        mixture=mean_estimate(utilities(mixed), goals, bounds=bounds),
        student=mean_estimate(utilities(learned), goals, bounds=bounds),
        cost=paired_gain(task.game, task.role, mixed, learned),
    )
