"""Several evaluated runs side by side: a figure, and tables in Markdown.

    python benchmarks/compare_runs.py benchmarks/results/grts_*.json --out benchmarks/results/grts_smollm2

Reads what `summarise.py` wrote: numbers only. Writes OUT.svg and OUT.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from rtg_solvers.evaluation.results import Evaluation
from rtg_solvers.evaluation.tables import evaluation_tables
from rtg_solvers.records import from_record
from rtg_solvers.result import Result, from_json

mpl.rcParams["svg.hashsalt"] = "rtg"  # the same numbers give the same file


class Run(NamedTuple):
    """One run as it was committed."""

    name: str
    """Of the file."""

    settings: dict[str, Any]
    """Its config."""

    found: Result
    """Its result."""

    figures: Evaluation
    """Its evaluation."""

    hours: float
    """Of the machine, if the record says so."""

    steps: list[dict[str, Any]]
    """Figures of its training steps."""


def main() -> None:
    """Read records, write a figure and tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True, help="without ending")
    options = parser.parse_args()
    runs = [read(path) for path in options.records]
    options.out.with_suffix(".md").write_text(markdown(runs), "utf-8")
    figure(runs).savefig(options.out.with_suffix(".svg"), metadata={"Date": None})
    print(f"wrote {options.out}.md and .svg from {len(runs)} runs")


def read(path: Path) -> Run:
    """One committed record.

    Raises:
        SystemExit: If it holds no evaluation.
    """
    record = json.loads(path.read_text("utf-8"))
    if not record.get("evaluation"):
        raise SystemExit(f"expected an evaluated run in {path}; run rtg evaluate, then summarise.py again")
    return Run(
        name=path.stem,
        settings=record["settings"]["config"],
        found=from_json(record["result"]),
        figures=from_record(Evaluation, record["evaluation"]["figures"]),
        hours=float(record.get("hours", float("nan"))),
        steps=record["steps"],
    )


def markdown(runs: Sequence[Run]) -> str:
    """All tables of all runs; attacks first, side by side."""
    lines = []
    for table in evaluation_tables(runs[0].figures):
        lines += [f"### {table.title}", ""]
        for run in runs:
            tables = evaluation_tables(run.figures)
            found = next((t for t in tables if t.title == table.title), None)
            if found is None:
                continue
            lines += [f"**{run.name}**", "", "| " + " | ".join(found.header) + " |", "|" + "---|" * len(found.header)]
            lines += ["| " + " | ".join(row) + " |" for row in found.rows]
            lines.append("")
        if table.note:
            lines += [table.note, ""]
    return "\n".join(lines)


def figure(runs: Sequence[Run]) -> Figure:
    """Success by attacker and target, every run a dot; gaps by iteration, every run a line."""
    page = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = page.subplots(1, 2, width_ratios=[3, 2])
    first = runs[0].figures
    targets = list(dict.fromkeys(one.target for one in first.attacked))
    attackers = list(dict.fromkeys(one.attacker for one in first.attacked))
    for number, (target, colour) in enumerate(zip(targets, ("#5b6577", "#7fa3d4", "#2b5fa8"), strict=False)):
        for index, run in enumerate(runs):
            for one in (one for one in run.figures.attacked if one.target == target):
                place = attackers.index(one.attacker) + 0.26 * (number - 1) + 0.07 * (index - (len(runs) - 1) / 2)
                left.plot([one.success.low, one.success.high], [place] * 2, color=colour, lw=1)
                left.plot(one.success.mean, place, "o", color=colour, ms=3)
        left.plot([], [], "o-", color=colour, label=f"against {target}")
    left.set_yticks(range(len(attackers)), attackers)
    left.invert_yaxis()
    left.set(xlim=(0, 1), xlabel=f"attacks that succeed (judge {first.judge_id}, held-out goals)")
    left.legend(fontsize=8)
    for name, style in (("oracle", ":"), ("restricted", "--"), ("independent", "-")):
        for run in runs:
            gaps = run.found.oracle_gaps if name == "oracle" else [getattr(p, name) for p in run.figures.gaps]
            right.plot(range(len(gaps)), [gap.total for gap in gaps], style, color="black", lw=1, marker=".")
        right.plot([], [], style, color="black", label=f"{name}_gap")
    right.set(ylim=(0, None), xlabel="solution after iteration", ylabel="sum of both sides' gains")
    right.set_xticks(np.arange(len(first.gaps)))
    right.legend(fontsize=8)
    return page


if __name__ == "__main__":
    main()
