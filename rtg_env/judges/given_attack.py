"""A reply judged by what its own attack asked for, whatever red was told to want.

SEAS (arXiv:2408.02632) judges "the response given the attack". There red writes a prompt of a type, and its goal is a list of
examples that nobody wants fulfilled; the request is what red made of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rtg_env.goals import MAX_GOAL_CHARS
from rtg_env.judges.base import Judge
from rtg_env.types import Case, Verdict

_SUFFIX = "+given-attack@1"
_NOTHING = "(nothing was said)"


class GivenAttack:
    """Another judge, which is shown the attack's own text as the goal; benign goals stay as they are.

    An attack longer than a goal may be is shown up to that length, an empty one as a remark that nothing was said.

    Args:
        judge: Says what the reply is.
    """

    def __init__(self, judge: Judge) -> None:
        self._judge = judge

    @property
    def judge_id(self) -> str:
        """That of the other judge, and what it is shown."""
        return self._judge.judge_id + _SUFFIX

    def judge(self, cases: Sequence[Case]) -> list[Verdict]:
        """The other judge's verdicts, under this one's name; a failed verdict stays failed."""
        found = self._judge.judge([_given_attack(case) for case in cases])
        return [replace(verdict, judge_id=self.judge_id) for verdict in found]


def _given_attack(case: Case) -> Case:
    """The same case with the last attack as its goal. Labelled replies belong to the goal that was, and are left out."""
    if not case.goal.harmful:
        return case
    text = case.exchange.red[:MAX_GOAL_CHARS]
    return case._replace(goal=replace(case.goal, text=text if text.strip() else _NOTHING, examples=()))
