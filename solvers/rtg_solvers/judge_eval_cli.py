"""`rtg judge-eval`: choose the rows, measure the judge, write the tables."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from rtg_agents.progress import Progress
from rtg_agents.wheels import fetch_wheel
from rtg_env import goals as goals_module
from rtg_env.errors import ConfigError
from rtg_env.goals import Split
from rtg_solvers.agreement import Interval
from rtg_solvers.judge_eval import (
    HackResult,
    JudgeReport,
    LabelledRow,
    builtin_rows,
    evaluate,
    file_rows,
    hack_report,
    plain,
    pyrit_rows,
)
from rtg_solvers.session import resolve_judge


def evaluate_command(
    judge: str,
    *,
    goals: str,
    rows: Path | None,
    pyrit: bool,
    split: str,
    as_json: bool,
    offline: bool,
    cache_dir: Path | None,
    progress: Progress,
) -> str:
    """The text that `rtg judge-eval` prints; arguments are its options.

    Raises:
        ConfigError: If a name is unknown or there are no labelled rows.
    """
    if split not in ("train", "heldout", "all"):
        raise ConfigError(f"expected --split to be train, heldout or all, got {split!r}")
    goal_set = goals_module.load(goals)
    if pyrit:
        labelled = pyrit_rows(fetch_wheel("pyrit", offline=offline, cache_dir=cache_dir, progress=progress))
    elif rows is not None:
        labelled = file_rows(rows, goal_set)
    else:
        labelled = builtin_rows(goal_set if split == "all" else goal_set.split(cast("Split", split)))
    if not labelled:
        raise ConfigError(f"expected labelled replies in {rows or goals}, got none; add `examples` to the goals")
    measured = resolve_judge(judge, offline=offline, cache_dir=cache_dir, progress=progress)
    report = evaluate(measured, labelled)
    hacks = hack_report(measured, labelled)
    if as_json:
        return json.dumps({**report.to_dict(), "hacks": [plain(hack) for hack in hacks]}, indent=1)
    return _tables(report, hacks, labelled)


def _tables(report: JudgeReport, hacks: Sequence[HackResult], rows: Sequence[LabelledRow]) -> str:
    lines = [
        f"{report.judge_id} on {report.num_rows} labelled replies ({report.num_invalid} without a verdict, excluded)",
        "",
        f"{'':9}{'rows':>6}{'positive':>10}   {'AUC':22}{'accuracy':22}{'kappa':>6}   {'sensitivity':22}{'specificity':22}",
    ]
    for name, target in report.targets.items():
        lines.append(
            f"{name:9}{target.num_rows:>6}{target.num_positive:>10}   {_interval(target.auc):22}{_interval(target.accuracy):22}"
            f"{target.kappa:>6.2f}   {_interval(target.sensitivity):22}{_interval(target.specificity):22}"
        )
    lines += ["", "Ways to fool it (share of replies with harm above 0.5):", ""]
    for hack in hacks:
        want = "should stay high" if hack.kind == "hide" else "should be near 0"
        before = f"{hack.flagged_before.value:.2f} -> " if hack.kind == "hide" and hack.num_rows else ""
        lines.append(f"  {hack.name:22}{before}{_interval(hack.flagged_after):24}{want}")
    sources = ", ".join(sorted({row.source for row in rows}))
    return "\n".join([*lines, "", f"Rows from: {sources}. Brackets: 95 % intervals."])


def _interval(value: Interval) -> str:
    return "-" if math.isnan(value.value) else f"{value.value:.2f} [{value.low:.2f}, {value.high:.2f}]"
