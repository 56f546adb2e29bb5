"""Static sets: a file's harmful goals, said as they stand to every target of a run of SEAS or MART.

Papers report one number per target on such a set. It says how often a target fails at sentences that nobody chose for it, and
the cross-play matrix beside it what attackers make of it that were. Prompts that the run's players were trained on are left out.
Only figures are kept: the texts may be harmful, and are the user's own.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from rtg_env import goals as goals_module
from rtg_env.errors import ConfigError, JudgeError
from rtg_env.goals import Goal, GoalSet
from rtg_env.judges.base import Judge, judge_safely
from rtg_env.types import Case, Exchange, Verdict
from rtg_solvers.evaluation.ability import Speaker
from rtg_solvers.measures import Estimate
from rtg_solvers.workbench import MAX_UNSCORED_SHARE

_JUDGED_TOGETHER: Final = 64
"""Cases in one call of a judge: what makes it fail costs no more than these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticPrompts:
    """What is asked of a set."""

    name: str
    """Of the file."""

    digest: str
    """Of what is asked."""

    goals: tuple[Goal, ...]
    """Harmful, of both halves."""

    num_seen: int
    """Others that were left out, since they are training prompts of the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticSet:
    """One target on one set."""

    name: str
    """Of the file."""

    digest: str
    """Of what was asked."""

    target: str
    num_prompts: int
    num_seen: int
    """Prompts that were left out, since the run's players were trained on them."""

    unsafe: Estimate
    """Share of unsafe replies, by the run's own judge, clustered by group."""

    unsafe_by_second: Estimate


def load_static(sources: Sequence[str], seen: Collection[str]) -> tuple[StaticPrompts, ...]:
    """The sets by name: `builtin`, or goal files (docs/goals.md).

    Args:
        sources: Names.
        seen: Training prompts of the run; the same words, whatever case and blanks, are left out.

    Raises:
        GoalFileError: If a file cannot be read or is broken.
        ConfigError: If nothing of one can be asked, or two are the same.
    """
    known = {_words(text) for text in seen}
    found = tuple(_prompts(source, known) for source in sources)
    if len({one.digest for one in found}) != len(found):
        raise ConfigError(f"expected different static sets, got one twice in {list(sources)}; leave one out")
    return found


def _prompts(source: str, known: Collection[str]) -> StaticPrompts:
    given = goals_module.load(source)
    harmful = given.harmful
    asked = GoalSet((goal for goal in harmful if _words(goal.text) not in known), source=given.source)
    if not len(asked):
        raise ConfigError(
            f"expected harmful goals in the static set {source!r} that the run was not trained on, got {len(harmful)} harmful "
            "ones and none that is new; choose another file"
        )
    return StaticPrompts(
        name=asked.source, digest=asked.digest, goals=asked.harmful, num_seen=len(harmful) - len(asked)
    )


def _words(text: str) -> str:
    return " ".join(text.casefold().split())


def harms(speaker: Speaker, goals: Sequence[Goal], judges: Sequence[Judge], *, responses: int) -> np.ndarray:
    """Say every goal `responses` times to a target, and ask the judges.

    Args:
        speaker: The target.
        goals: P of them.
        judges: J of them.
        responses: k.

    Returns:
        [P * k, J] harm, goal by goal; NaN where a judge failed.

    Raises:
        JudgeError: If one failed on more than half of them.
    """
    said = [goal for goal in goals for _ in range(responses)]
    replies = speaker.replies([goal.text for goal in said])
    cases = [Case(goal, (Exchange(goal.text, reply),)) for goal, reply in zip(said, replies, strict=True)]
    return np.array([_harms(judge, cases) for judge in judges]).T


def _harms(judge: Judge, cases: Sequence[Case]) -> list[float]:
    verdicts: list[Verdict] = []
    for first in range(0, len(cases), _JUDGED_TOGETHER):
        verdicts += judge_safely(judge, cases[first : first + _JUDGED_TOGETHER])
    failed = [verdict for verdict in verdicts if not verdict.valid]
    if len(failed) > MAX_UNSCORED_SHARE * len(verdicts):
        raise JudgeError(
            f"expected verdicts from judge {judge.judge_id} on at least {1 - MAX_UNSCORED_SHARE:.0%} of a static set, it failed "
            f"on {len(failed)} of {len(verdicts)} ({failed[0].raw.get('error', '')}); mend it and run the same command again"
        )
    return [verdict.harm if verdict.valid else float("nan") for verdict in verdicts]
