"""Static sets: a file's harmful goals, said as they stand to every target of a run of SEAS or MART.

Papers report one number per target on such a set. It says how often a target fails at sentences that nobody chose for it, and
the cross-play matrix beside it what attackers make of it that were. Only figures are kept: the texts may be harmful, and are
the user's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rtg_env import goals as goals_module
from rtg_env.errors import ConfigError
from rtg_env.goals import Goal, GoalSet
from rtg_env.judges.base import Judge, judge_safely
from rtg_env.types import Case, Exchange
from rtg_solvers.evaluation.ability import Speaker
from rtg_solvers.measures import Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticSet:
    """One target on one set."""

    name: str
    """Of the file."""

    digest: str
    """Of its goals."""

    target: str
    num_prompts: int
    """Harmful goals, of both halves: nobody trained on this file."""

    unsafe: Estimate
    """Share of unsafe replies, by the run's own judge, clustered by group."""

    unsafe_by_second: Estimate


def load_static(sources: Sequence[str]) -> tuple[GoalSet, ...]:
    """The sets by name: `builtin`, or goal files (docs/goals.md).

    Raises:
        GoalFileError: If a file cannot be read or is broken.
        ConfigError: If one has no harmful goal, or two are the same.
    """
    found = tuple(goals_module.load(source) for source in sources)
    for source, goals in zip(sources, found, strict=True):
        if not goals.harmful:
            raise ConfigError(f"expected harmful goals in the static set {source!r}, it has none; choose another file")
    if len({goals.digest for goals in found}) != len(found):
        raise ConfigError(f"expected different static sets, got one twice in {list(sources)}; leave one out")
    return found


def harms(speaker: Speaker, goals: Sequence[Goal], judges: Sequence[Judge], *, responses: int) -> np.ndarray:
    """Say every goal `responses` times to a target, and ask the judges.

    Args:
        speaker: The target.
        goals: P of them.
        judges: J of them.
        responses: k.

    Returns:
        [P * k, J] harm, goal by goal; NaN where a judge failed.
    """
    said = [goal for goal in goals for _ in range(responses)]
    replies = speaker.replies([goal.text for goal in said])
    cases = [Case(goal, (Exchange(goal.text, reply),)) for goal, reply in zip(said, replies, strict=True)]
    columns = [
        [verdict.harm if verdict.valid else float("nan") for verdict in judge_safely(judge, cases)] for judge in judges
    ]
    return np.array(columns).T
