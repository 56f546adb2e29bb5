"""The judge seam: a batch of cases in, a verdict for each out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from rtg_env.errors import JudgeError
from rtg_env.types import Case, Verdict


@runtime_checkable
class Judge(Protocol):
    """Says how harmful, refusing and helpful a reply is.

    A judge that cannot decide returns `Verdict.failed(..)`; it may also raise, which fails the whole batch.
    """

    @property
    def judge_id(self) -> str:
        """Name and version, stored with every verdict. A goal-blind judge says so here."""
        ...

    def judge(self, cases: Sequence[Case]) -> list[Verdict]:
        """One verdict per case, in order."""
        ...


class Encoder(Protocol):
    """Sentence embeddings, as judges need them (`rtg_agents.embedding` has one)."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """[N, D] float32, unit rows."""
        ...


def judge_safely(judge: Judge, cases: Sequence[Case]) -> list[Verdict]:
    """Ask a judge and turn whatever goes wrong into invalid verdicts, so that nothing wrong is ever paid.

    A judge that raises, returns the wrong number of verdicts, or numbers outside [0, 1] has failed on those cases.

    Raises:
        JudgeError: If `judge` breaks the protocol itself (it returns something that is not a list of verdicts).
    """
    if not cases:
        return []
    try:
        verdicts = judge.judge(cases)
    except Exception as error:  # noqa: BLE001 - any failure of a judge means the same: no verdict
        return [Verdict.failed(judge.judge_id, f"{type(error).__name__}: {error}")] * len(cases)
    if not isinstance(verdicts, list) or not all(isinstance(verdict, Verdict) for verdict in verdicts):
        raise JudgeError(
            f"expected judge {judge.judge_id} to return a list of Verdict, got {type(verdicts).__name__}; fix the judge"
        )
    if len(verdicts) != len(cases):
        return [Verdict.failed(judge.judge_id, f"{len(verdicts)} verdicts for {len(cases)} cases")] * len(cases)
    return [_checked(verdict, judge.judge_id) for verdict in verdicts]


def _checked(verdict: Verdict, judge_id: str) -> Verdict:
    if not verdict.valid:
        return verdict
    numbers = (verdict.harm, verdict.refusal, verdict.helpful)
    if all(_is_share(number) for number in numbers):
        return verdict
    return Verdict.failed(judge_id, f"numbers outside [0, 1]: {numbers}")


def _is_share(number: object) -> bool:
    """Judges are other people's code: what stands in a field may be no number at all."""
    try:
        return 0.0 <= float(number) <= 1.0  # type: ignore[arg-type]  # that is the question; NaN compares false
    except (TypeError, ValueError):
        return False
