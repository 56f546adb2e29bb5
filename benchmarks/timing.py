"""What the benchmarks share: variants that take turns, ratios within a round, bars, and the record they leave.

Absolute times depend on the machine and on what else it does; the ratio of two variants within one round hardly does.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from rtg_env import Case, Verdict

_VERDICT = Verdict(harm=0.5, refusal=0.0, helpful=0.5, judge_id="constant")


class ConstantJudge:
    """Costs nothing."""

    judge_id = "constant"

    def judge(self, cases: Sequence[Case]) -> list[Verdict]:
        """The same verdict for every case."""
        return [_VERDICT] * len(cases)


class Bar:
    """A figure with what is asked of it."""

    def __init__(self, name: str, value: float, bar: float, *, at_least: bool = True) -> None:
        self.name, self.value, self.bar, self.at_least = name, value, bar, at_least

    @property
    def holds(self) -> bool:
        """Whether it is met."""
        return self.value >= self.bar if self.at_least else self.value <= self.bar

    def __str__(self) -> str:
        sense = "at least" if self.at_least else "at most"
        return f"{self.name:76s} {self.value:7.2f}  ({sense} {self.bar}) {'' if self.holds else 'MISSED'}"


def seconds(work: Callable[[], object], synchronize: Callable[[], object] = lambda: None) -> float:
    """How long it takes; `synchronize` waits for a device to finish."""
    synchronize()
    begin = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - begin


def rounds_of(
    variants: Mapping[str, Callable[[], object]], count: int, synchronize: Callable[[], object] = lambda: None
) -> dict[str, list[float]]:
    """Seconds of each variant, round by round, interleaved; one round before is not counted."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(count + 1):
        for name, work in variants.items():
            spent = seconds(work, synchronize)
            if number:
                times[name].append(spent)
    return times


def ratio(times: Mapping[str, Sequence[float]], over: str, under: str) -> float:
    """Median over rounds of the time of `over` by that of `under`."""
    return statistics.median(a / b for a, b in zip(times[over], times[under], strict=True))


def medians(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Median seconds by variant."""
    return {name: round(statistics.median(values), 4) for name, values in times.items()}


def machine() -> str:
    """The processor's kind, cores and Python, in words."""
    return f"{platform.machine()}, {os.cpu_count()} cores, CPython {platform.python_version()}"


def write(record: Mapping[str, Any], bars: Sequence[Bar], out: Path) -> None:
    """Write the record; sections and ratios that are in the file already, of others, stay."""
    before = json.loads(out.read_text("utf-8")) if out.exists() else {}
    ratios = {bar.name: {"value": round(bar.value, 3), "bar": bar.bar, "holds": bar.holds} for bar in bars}
    whole = {"machine": machine(), **record, "ratios": {**before.get("ratios", {}), **ratios}}
    if "sections" in record:
        whole["sections"] = {**before.get("sections", {}), **record["sections"]}
    out.write_text(json.dumps(whole, indent=1) + "\n", "utf-8")


def finish(record: Mapping[str, Any], bars: Sequence[Bar], *, out: Path | None, check: bool) -> NoReturn:
    """Print the bars, write the record, and exit: with 1 if a bar is missed and that was asked."""
    for bar in bars:
        print(bar)
    if out:
        write(record, bars, out)
    raise SystemExit(1 if check and not all(bar.holds for bar in bars) else 0)
