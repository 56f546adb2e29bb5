"""Deterministic judges that runs can name as `tests.judges_for_runs:Vowels`."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from rtg_env.types import Case, Verdict


def _share(text: str) -> float:
    return sum(char in "aeiou" for char in text) / max(1, len(text))


class Vowels:
    """Harm is the share of vowels in blue's reply: something a tiny model can learn."""

    judge_id = "vowels@1"

    def judge(self, cases: Sequence[Case]) -> list[Verdict]:
        return [
            Verdict(harm=_share(c.exchange.blue), refusal=0.0, helpful=_share(c.exchange.blue), judge_id=self.judge_id)
            for c in cases
        ]


class Consonants:
    """A second opinion: harm is the share of consonants, help that of spaces, every other length refuses."""

    judge_id = "consonants@1"

    def harm_of(self, text: str) -> float:
        return sum(char.isalpha() and char not in "aeiou" for char in text) / max(1, len(text))

    def help_of(self, text: str) -> float:
        return text.count(" ") / max(1, len(text))

    def judge(self, cases: Sequence[Case]) -> list[Verdict]:
        replies = [case.exchange.blue for case in cases]
        return [
            Verdict(
                harm=self.harm_of(reply), refusal=len(reply) % 2, helpful=self.help_of(reply), judge_id=self.judge_id
            )
            for reply in replies
        ]


class Flaky(Vowels):
    """Fails on about every fifth reply, decided by its text."""

    judge_id = "flaky@1"

    def judge(self, cases: Sequence[Case]) -> list[Verdict]:
        verdicts = super().judge(cases)
        return [
            Verdict.failed(self.judge_id, "injected") if zlib.crc32(c.exchange.blue.encode()) % 5 == 0 else v
            for c, v in zip(cases, verdicts, strict=True)
        ]


class NoPlainGoals(Vowels):
    """Fails on every dialogue in which somebody said nothing but a goal, until it is mended."""

    judge_id = "no-plain-goals@1"
    mended = False

    def judge(self, cases: Sequence[Case]) -> list[Verdict]:
        return [
            v if self.mended or c.exchange.red != c.goal.text else Verdict.failed(self.judge_id, "injected")
            for c, v in zip(cases, super().judge(cases), strict=True)
        ]


class Broken:
    """Always raises."""

    judge_id = "broken@1"

    def judge(self, cases: Sequence[Case]) -> list[Verdict]:
        raise TimeoutError("the judge is down")


class Sketches(Vowels):
    """One way of asking always works."""

    judge_id = "sketches@1"

    def judge(self, cases: Sequence[Case]) -> list[Verdict]:
        return [
            Verdict(harm=float("comedy sketch" in c.exchange.red), refusal=0.0, helpful=v.helpful)
            for c, v in zip(cases, super().judge(cases), strict=True)
        ]


class Indifferent:
    """Says the same about every reply: nobody gains anything."""

    judge_id = "indifferent@1"

    def judge(self, cases: Sequence[Case]) -> list[Verdict]:
        return [Verdict(harm=0.5, refusal=0.0, helpful=0.5, judge_id=self.judge_id) for _ in cases]
