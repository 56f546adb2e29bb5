"""Evaluated runs of SEAS or MART side by side: a figure, and tables in Markdown.

    python benchmarks/compare_seas.py benchmarks/results/seas_*.json --out benchmarks/results/seas_smollm2
    python benchmarks/compare_seas.py .. --transfer benchmarks/results/seas_*_transfer.json

Reads what `summarise.py` wrote of evaluated runs of one method, and what `rtg transfer --out` wrote: numbers only. Writes
OUT.svg and OUT.md: every attacker against every target beside the published shape (SEAS), how far each pair is from an
equilibrium of that matrix, what became of the targets' general ability, and what each update learned from.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from rtg_solvers.evaluation.matrix import solved_matrix
from rtg_solvers.evaluation.seas import CrossPlayMatrix, SeasEvaluation
from rtg_solvers.evaluation.seas_tables import seas_tables
from rtg_solvers.evaluation.tables import TextTable
from rtg_solvers.records import from_record

mpl.rcParams["svg.hashsalt"] = "rtg"  # the same numbers give the same file

PUBLISHED: Final = (
    (54.89, 16.44, 6.33, 3.12),
    (88.21, 59.02, 14.55, 7.08),
    (91.28, 90.55, 51.47, 24.92),
    (95.17, 97.06, 92.93, 73.97),
)
"""Attack success in per cent of R0 to R3 against T0 to T3 (arXiv:2408.02632)."""


class Run(NamedTuple):
    """One run as it was committed."""

    name: str
    method: str
    found: SeasEvaluation
    lineage: dict[str, dict[str, Any]]
    """Of each trained member, by version."""

    rounds: list[dict[str, Any]]
    """Of MART."""


def main(argv: Sequence[str] | None = None) -> None:
    """Read records, write a figure and tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, nargs="+")
    parser.add_argument("--transfer", type=Path, nargs="*", default=[], help="what rtg transfer --out wrote")
    parser.add_argument("--out", type=Path, required=True, help="without ending")
    options = parser.parse_args(argv)
    runs = [read(path) for path in options.records]
    transfers = {path.stem: json.loads(path.read_text("utf-8")) for path in options.transfer}
    options.out.with_suffix(".md").write_text(markdown(runs, transfers), "utf-8")
    figure(runs).savefig(options.out.with_suffix(".svg"), metadata={"Date": None})
    print(f"wrote {options.out}.md and .svg from {len(runs)} runs")


def read(path: Path) -> Run:
    """One committed record.

    Raises:
        SystemExit: If it is none of an evaluated run of SEAS or MART.
    """
    record = json.loads(path.read_text("utf-8"))
    method = record["settings"]["config"]["method"]
    if method not in ("seas", "mart") or not record.get("evaluation"):
        raise SystemExit(
            f"expected an evaluated run of seas or mart in {path}; run rtg evaluate, then summarise.py again"
        )
    figures = from_record(SeasEvaluation, record["evaluation"]["figures"])
    return Run(path.stem, method, figures, record["lineage"], record.get("rounds", []))


def markdown(runs: Sequence[Run], transfers: dict[str, Any]) -> str:
    """Every table of every run."""
    parts = [line for run in runs for line in _of_run(run)]
    if any(run.method == "seas" for run in runs):
        parts += _table(_pooled(runs))
    for name, record in transfers.items():
        parts += _table(_transferred(name, record))
    return "\n".join(parts).rstrip() + "\n"


def _of_run(run: Run) -> list[str]:
    lines = [f"## {run.name}", "", *_headline(run)]
    for table in seas_tables(run.found):
        lines += _table(table)
    return [*lines, *_table(_learned(run))]


def _headline(run: Run) -> list[str]:
    """The last pair, the diagonal, and the value of the game, by each judge."""
    lines = []
    for matrix in run.found.matrices:
        shares = _shares(matrix)
        corner = f"({run.found.red[-1]}, {run.found.blue[-1]})"
        diagonal = ", ".join(f"{100 * shares[pair]:.1f}" for pair in matrix.solved.pairs)
        lines.append(
            f"- judge {matrix.judge_id}: pairs of the iterations {diagonal} %; last pair {corner} {100 * shares[-1, -1]:.1f} %, "
            f"value of the game {100 * matrix.solved.value:.1f} %, NashConv of the last pair {100 * matrix.solved.diagonal[-1]:.1f} %"
        )
    return [*lines, ""]


def _learned(run: Run) -> TextTable:
    """What each update learned from, as its member's lineage says."""
    if run.method == "mart":
        return _rounds(run)
    rows = [
        (
            f"{version} {about['label']}",
            str(about["num_queries"]),
            ", ".join(f"{count} {name}" for name, count in about["verdicts"].items()),
            f"{report['num_train']} in {report['num_steps']} steps",
            f"{kept['reward_after']['count']} {kind}",
            _share(kept["likelihood_before"]),
            _share(kept["likelihood_after"]),
            _share(kept["reward_after"]),
        )
        for version, about in run.lineage.items()
        if (report := about.get("preference")) is not None
        for kind, kept in report["heldout"].items()
    ]
    return TextTable(
        title="What each update learned from, and how it ranks pairs that were held out",
        header=(
            "member",
            "victim queries",
            "replies",
            "pairs learned",
            "held out",
            "likelier before",
            "likelier after",
            "gained more",
        ),
        rows=tuple(rows),
        note="Likelier: share of held-out pairs whose chosen sentence is the likelier one, before and after. Gained more: whose "
        "chosen sentence gained more on the rejected one than it lost (0 before). 95 % intervals clustered by seed. General pairs "
        "are drawn anew in each iteration from those whose answers T0 was taught: most held-out ones had been learned before.",
    )


def _pooled(runs: Sequence[Run]) -> TextTable:
    """Accuracy on held-out pairs over all updates of all runs: one update holds out too few to say anything."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for about in (about for run in runs for about in run.lineage.values() if "preference" in about):
        for kind, kept in _unseen(about["preference"]["heldout"]).items():
            found.setdefault(("red" if about["label"].startswith("R") else "target", kind), []).append(kept)
    return TextTable(
        title="Held-out pairs of all updates of all runs",
        header=("side", "pairs", "held out", "of so many seeds", "likelier before", "likelier after", "gained more"),
        rows=tuple(
            (
                side,
                kind,
                str(sum(kept["reward_after"]["count"] for kept in updates)),
                str(sum(kept["reward_after"]["num_clusters"] for kept in updates)),
                *(
                    _interval([kept[name] for kept in updates])
                    for name in ("likelihood_before", "likelihood_after", "reward_after")
                ),
            )
            for (side, kind), updates in found.items()
        ),
        note="Shares over all pairs, with Clopper-Pearson 95 % intervals as if each held-out seed were one pair, which is the most "
        "that pairs of one seed can depend on each other. Seeds are three prompts each, and share prompts with seeds that were learned.",
    )


def _unseen(heldout: dict[str, Any]) -> dict[str, Any]:
    """The side's own pairs: general ones had been learned from before."""
    return {"own": heldout["own"]} if "own" in heldout else {"own": heldout["all"]} if "all" in heldout else {}


def _interval(updates: Sequence[dict[str, Any]]) -> str:
    known = [one for one in updates if one["mean"] is not None]
    if not known:
        return "-"
    share = sum(one["mean"] * one["count"] for one in known) / sum(one["count"] for one in known)
    num = sum(one["num_clusters"] for one in known)
    right = share * num
    low = stats.beta.ppf(0.025, right, num - right + 1) if right > 0 else 0.0
    high = stats.beta.ppf(0.975, right + 1, num - right) if right < num else 1.0
    return f"{share:.2f} [{low:.2f},{high:.2f}]"


def _rounds(run: Run) -> TextTable:
    """A row a round, also where nobody learned anything."""
    learned: dict[tuple[int, str], int] = {
        (about["iteration"] - 1, version.split("_")[0]): about["num_rows"]
        for version, about in run.lineage.items()
        if "round" in about
    }
    return TextTable(
        title="What each round left",
        header=("round", "prompts", "violations", "succeeded", "of them copies", "red's lessons", "target's lessons"),
        rows=tuple(
            (
                str(number),
                str(figures["prompts"]["total"]),
                "-" if figures["violation_share"] is None else f"{100 * figures['violation_share']:.1f} %",
                str(figures["num_successes"]),
                str(figures["num_copies"]),
                *(str(learned.get((number, side), "-")) for side in ("red", "blue")),
            )
            for number, figures in enumerate(run.rounds, start=1)
        ),
        note="Violations: share of answers below theta_adv in the round, in round 1 under safety instructions. Lessons: rows learned "
        "from (red's hold instructions, too); - says that a side learned nothing.",
    )


def _transferred(name: str, record: dict[str, Any]) -> TextTable:
    rows = tuple(
        (one["attacker"], one["target"], str(one["num_attacks"]), _share(one["success"]), _share(one["harm"]))
        for one in record["transferred"]
    )
    return TextTable(
        title=f"Said again: {name} (judge {record['judge_id']})",
        header=("attacker", "target", "sentences", "succeed", "mean harm"),
        rows=rows,
        note="Sentences that worked on the run's own target, by the run's own judge.",
    )


def _share(estimate: dict[str, Any]) -> str:
    if estimate["mean"] is None:
        return "-"
    ends = (f"{end:.2f}" if end is not None else "-" for end in (estimate["low"], estimate["high"]))
    return f"{estimate['mean']:.2f} [{','.join(ends)}]"


def _table(table: TextTable) -> list[str]:
    rows = (table.header, ("---",) * len(table.header), *table.rows)
    return [f"### {table.title}", "", *("| " + " | ".join(row) + " |" for row in rows), "", table.note, ""]


def figure(runs: Sequence[Run]) -> Figure:
    """The matrix of each run by the judge that nothing was trained on, and beside them the published one."""
    shown: list[tuple[str, np.ndarray, Sequence[str], Sequence[str]]] = [
        (_title(run), 100 * _shares(run.found.matrices[-1]), run.found.red, run.found.blue) for run in runs
    ]
    if any(run.method == "seas" for run in runs):
        names = [[f"{side}{k}" for k in range(4)] for side in "RT"]
        shown.append(("published (Llama-3-8B)", np.array(PUBLISHED), *names))
    result = Figure(figsize=(3.6 * len(shown), 3.9), layout="constrained")
    for axes, (title, shares, red, blue) in zip(_axes(result, len(shown)), shown, strict=True):
        _heat(axes, title, shares, red, blue)
    return result


def _title(run: Run) -> str:
    return f"{run.name}\njudge {run.found.matrices[-1].judge_id.split('@')[0]}"


def _axes(result: Figure, count: int) -> Iterable[Axes]:
    return np.atleast_1d(result.subplots(1, count)).tolist()


def _heat(axes: Axes, title: str, shares: np.ndarray, red: Sequence[str], blue: Sequence[str]) -> None:
    """One matrix in per cent, its saddle framed if it has one, and the value of the game below."""
    axes.imshow(shares, vmin=0.0, vmax=100.0, cmap="Reds", aspect="auto")
    for row, column in np.ndindex(shares.shape):
        share = shares[row, column]
        axes.text(column, row, f"{share:.0f}", ha="center", va="center", color="white" if share > 60 else "black")
    axes.set_xticks(range(len(blue)), blue)
    axes.set_yticks(range(len(red)), red)
    axes.set_title(title, fontsize=9)
    rows, columns = shares.shape
    solved = solved_matrix(shares, [(rows - 1, columns - 1)])
    axes.set_xlabel(f"value {solved.value:.1f} %, NashConv of the last pair {solved.diagonal[-1]:.1f} %", fontsize=8)
    if solved.saddle is not None:
        row, column = solved.saddle
        axes.add_patch(mpl.patches.Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, linewidth=2))


def _shares(matrix: CrossPlayMatrix) -> np.ndarray:
    return np.array([[cell.mean for cell in row] for row in matrix.cells])


if __name__ == "__main__":
    main()
