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


def default_judge() -> Judge:
    """The judge of whoever names none: the offline judge A."""
    from rtg_env.judges.offline import OfflineJudge  # reads its weights: only when it is wanted

    return OfflineJudge()


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
    if not isinstance(verdicts, list):
        raise _lawless(judge, verdicts)
    if len(verdicts) != len(cases):
        return [Verdict.failed(judge.judge_id, f"{len(verdicts)} verdicts for {len(cases)} cases")] * len(cases)
    return [_checked(verdict, judge) for verdict in verdicts]


def _lawless(judge: Judge, found: object) -> JudgeError:
    return JudgeError(
        f"expected judge {judge.judge_id} to return a list of Verdict, got {type(found).__name__}; fix the judge"
    )


def _checked(verdict: Verdict, judge: Judge) -> Verdict:
    if not isinstance(verdict, Verdict):
        raise _lawless(judge, verdict)
    if not verdict.valid:
        return verdict
    harm, refusal, helpful = verdict.harm, verdict.refusal, verdict.helpful
    try:
        if 0.0 <= harm <= 1.0 and 0.0 <= refusal <= 1.0 and 0.0 <= helpful <= 1.0:  # NaN compares false
            return verdict
    except (TypeError, ValueError):  # judges are other people's code: what stands in a field may be no number at all
        pass
    return Verdict.failed(judge.judge_id, f"numbers outside [0, 1]: {(harm, refusal, helpful)}")
