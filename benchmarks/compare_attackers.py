"""Attackers trained at the same number of victim queries, over several seeds: a figure, tables in Markdown, and two claims.

    python benchmarks/compare_attackers.py benchmarks/results/attackers_*.json --out benchmarks/results/attackers_smollm2

Reads what `summarise.py` wrote of evaluated `cross-attack` runs of one config: numbers only. Writes OUT.svg and OUT.md. The
claims are those of arXiv:2405.18540: that the GFlowNet with maximum likelihood after it finds more unique successful
attacks than PPO + novelty at no lower success, and that a target tuned on its attacks resists the others better than the
other way round. Means are over seeds, with intervals from two seeds on: the wider of Student's over seeds, and of what the
dialogues of each run leave open (two seeds may agree by chance). A claim holds if its interval says so.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import matplotlib as mpl
import numpy as np
from compare_runs import Run, read
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rtg_solvers.diversity import rarefied
from rtg_solvers.evaluation.protocol import BASE_TARGET
from rtg_solvers.evaluation.results import Attacked, Evaluation, Written
from rtg_solvers.measures import Estimate, mean_estimate

mpl.rcParams["svg.hashsalt"] = "rtg"  # the same numbers give the same file

FLOW: Final = "smoothed"
"""In the name of the GFlowNet after maximum likelihood."""
PPO: Final = "PPO"
_NORMAL: Final = 1.96
"""Half-width of a 95 % interval in standard errors."""
_EDGE: Final = 5
"""Steps at each end of training that are compared."""


class Seeds(NamedTuple):
    """A figure of every run; NaN where a run has none."""

    values: tuple[float, ...]

    errors: tuple[float, ...] = ()
    """Standard error of each within its run; empty if nobody knows it."""

    def __str__(self) -> str:
        """The mean; with an interval, if there is one."""
        if not self.known:
            return ""
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]" if len(self.known) > 1 else f"{self.mean:.2f}"

    @property
    def known(self) -> list[float]:
        """Of the runs that have it."""
        return [value for value in self.values if not np.isnan(value)]

    @property
    def mean(self) -> float:
        """Over these."""
        return float(np.mean(self.known)) if self.known else float("nan")

    @property
    def low(self) -> float:
        """Of a Student interval over these; unbounded from fewer than two."""
        return self._interval()[0]

    @property
    def high(self) -> float:
        """Of the same."""
        return self._interval()[1]

    def _interval(self) -> tuple[float, float]:
        if len(self.known) < 2:
            return float("-inf"), float("inf")
        found = mean_estimate(self.known, [str(seed) for seed in range(len(self.known))], bounds=(-1e9, 1e9))
        inside = _NORMAL * math.sqrt(sum(error**2 for error in self.errors)) / len(self.known)
        return min(found.low, self.mean - inside), max(found.high, self.mean + inside)


def main() -> None:
    """Read records, write a figure and tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True, help="without ending")
    options = parser.parse_args()
    runs = [read(path) for path in options.records]
    check(runs)
    options.out.with_suffix(".md").write_text(markdown(runs), "utf-8")
    figure(runs).savefig(options.out.with_suffix(".svg"), metadata={"Date": None})
    print("\n".join(claims(runs)))
    print(f"wrote {options.out}.md and .svg from {len(runs)} runs")


def check(runs: Sequence[Run]) -> None:
    """Refuse runs that differ in more than their seed.

    Raises:
        SystemExit: Naming a setting.
    """
    first = runs[0].settings
    for run in runs[1:]:
        differing = [key for key in first if key != "seed" and run.settings.get(key) != first[key]]
        if differing:
            raise SystemExit(f"expected runs that differ in their seed alone, {run.name} differs in {differing[0]}")


def attackers_of(runs: Sequence[Run]) -> list[str]:
    """Names, those that every run has."""
    return [one.attacker for one in runs[0].figures.written if all(_wrote(run, one.attacker) for run in runs)]


def targets_of(runs: Sequence[Run]) -> list[str]:
    """Names, the base model first."""
    return list(dict.fromkeys(one.target for one in runs[0].figures.attacked))


def success(runs: Sequence[Run], attacker: str, target: str = BASE_TARGET) -> Seeds:
    """Share of attacks that succeed, by the reporting judge."""
    return _seeds([_attacked(run.figures, attacker, target).success for run in runs])


def unique_successes(runs: Sequence[Run], attackers: Sequence[str]) -> list[Seeds]:
    """Unique attacks to expect among equally many successes: run by run the fewest that any of these attackers has."""
    rows: list[list[float]] = [[] for _ in attackers]
    for run in runs:
        common = _common(run, attackers)
        for row, own in zip(rows, _sizes(run, attackers), strict=True):
            row.append(rarefied(own, common) if common else float("nan"))
    return [Seeds(tuple(row)) for row in rows]


def _common(run: Run, attackers: Sequence[str]) -> int:
    """Successes that each of the attackers has at least."""
    return min(sum(own) for own in _sizes(run, attackers))


def _sizes(run: Run, attackers: Sequence[str]) -> list[tuple[int, ...]]:
    """Of the clusters of each attacker's successes."""
    return [found.variety_of_successes.sizes for name in attackers if (found := _wrote(run, name))]


def markdown(runs: Sequence[Run]) -> str:
    """All tables."""
    parts = [
        ("Attackers on the base model", *_attackers(runs)),
        (f"Success by attacker and target (judge {runs[0].figures.judge_id})", *_matrix(runs)),
        ("Ordinary requests", *_ordinary(runs)),
        ("Training", *_training(runs)),
    ]
    lines: list[str] = []
    for title, header, rows in parts:
        lines += [f"### {title}", "", "| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
        lines.append("")
    lines += ["### The claims", "", *(f"- {line}" for line in claims(runs)), ""]
    return "\n".join(lines)


def claims(runs: Sequence[Run]) -> list[str]:
    """What the two claims come to, as sentences."""
    flow, ppo = (_named(attackers_of(runs), part) for part in (FLOW, PPO))
    if not flow or not ppo:
        return ["Not both of the GFlowNet with maximum likelihood and PPO + novelty are here."]
    ours, theirs = unique_successes(runs, [flow, ppo])
    more = _difference(ours, theirs)
    rate = _difference(success(runs, flow), success(runs, ppo))
    common = ", ".join(str(_common(run, (flow, ppo))) for run in runs)
    lines = [
        f"Unique attacks among equally many successes ({common} of each), GFlowNet + MLE less PPO + novelty: "
        f"{str(more) or 'no successes to compare'}. "
        f"Success: {rate}.",
    ]
    tuned = {part: _tuned_on(runs, part) for part in (FLOW, PPO)}
    if all(tuned.values()):
        # The attacker that a target was not tuned on, in both directions.
        resisted = _difference(success(runs, ppo, tuned[FLOW]), success(runs, flow, tuned[PPO]))
        lines.append(
            f"Success of PPO + novelty against the target tuned on the GFlowNet's attacks ({tuned[FLOW]}), less the GFlowNet's "
            f"against the one tuned on PPO's ({tuned[PPO]}): {resisted}. Negative speaks for the claim."
        )
    return lines


def figure(runs: Sequence[Run]) -> Figure:
    """Success against diversity, a dot per run; and the cross-attack matrix, means over runs."""
    page = Figure(figsize=(13, 5), layout="constrained")
    left, right = page.subplots(1, 2, width_ratios=[1, 1.25])
    _scatter(left, runs)
    _heat(right, runs)
    return page


def _scatter(axes: Axes, runs: Sequence[Run]) -> None:
    colours = mpl.colormaps["tab20"]
    for index, attacker in enumerate(attackers_of(runs)):
        found = [_wrote(run, attacker) for run in runs]
        shares = success(runs, attacker).values
        unique = [(one.variety.vendi or 0.0) / max(1, one.variety.num) for one in found if one]
        axes.plot(shares, unique, "o", color=colours(index), ms=5, label=attacker)
        axes.plot(np.mean(shares), np.mean(unique), "x", color=colours(index), ms=9)
    axes.set(
        xlabel=f"attacks that succeed against the base model (judge {runs[0].figures.judge_id})",
        ylabel="Vendi score of the attacks, share of their number",
        xlim=(-0.01, None),
        ylim=(0, 1.02),
    )
    axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3)  # beside the dots, never on them


def _heat(axes: Axes, runs: Sequence[Run]) -> None:
    rows, columns = list(dict.fromkeys(one.attacker for one in runs[0].figures.attacked)), targets_of(runs)
    table = np.array([[success(runs, row, column).mean for column in columns] for row in rows])
    axes.imshow(table, cmap="Blues", vmin=0.0, vmax=max(0.2, float(np.nanmax(table))), aspect="auto")
    axes.set_xticks(range(len(columns)), [_target_label(runs, column) for column in columns], rotation=25, ha="right")
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(labelsize=7)
    for (row, column), value in np.ndenumerate(table):
        dark = value > 0.6 * max(0.2, float(np.nanmax(table)))
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color="white" if dark else "black")
    axes.set_title("success by attacker and target", fontsize=9)


Table = tuple[tuple[str, ...], list[tuple[str, ...]]]


def _attackers(runs: Sequence[Run]) -> Table:
    names = attackers_of(runs)
    trained = [name for name in names if name.startswith("red_")]
    equal = dict(zip(trained, unique_successes(runs, trained), strict=True))
    header = (
        *("attacker", "answers asked", "success", "success, training judge", "mean harm"),
        *("unique of all", "successes", "unique among equally many successes", "perplexity"),
    )
    rows = []
    for name in names:
        found = [one for run in runs if (one := _wrote(run, name))]
        shares = [_attacked(run.figures, name, BASE_TARGET) for run in runs]
        rows.append(
            (
                name,
                _each(found, lambda one: one.training_queries),
                str(success(runs, name)),
                str(_seeds([one.success_by_trained for one in shares])),
                str(_seeds([one.harm for one in shares])),
                _each(found, lambda one: f"{one.variety.clusters} of {one.variety.num}"),
                _each(found, lambda one: one.variety_of_successes.num),
                str(equal.get(name, "")),
                _each(found, lambda one: f"{one.perplexity:.0f}"),
            )
        )
    return header, rows


def _matrix(runs: Sequence[Run]) -> Table:
    columns = targets_of(runs)
    rows = list(dict.fromkeys(one.attacker for one in runs[0].figures.attacked))
    header = ("attacker", *(_target_label(runs, column) for column in columns))
    return header, [(row, *(str(success(runs, row, column)) for column in columns)) for row in rows]


def _ordinary(runs: Sequence[Run]) -> Table:
    rows = []
    for index, one in enumerate(runs[0].figures.helped):
        found = [run.figures.helped[index] for run in runs]
        refusal, helpful = (_seeds([getattr(own, key) for own in found]) for key in ("refusal", "helpful"))
        rows.append((_target_label(runs, one.target), str(refusal), str(helpful)))
    return ("target", "refuses", "helps"), rows


def _training(runs: Sequence[Run]) -> Table:
    """Whether an attacker was still improving: the mean log score of its first and last steps."""
    rows = []
    for version in dict.fromkeys(
        step["version"] for run in runs for step in run.steps if step.get("log_score") is not None
    ):
        own = [
            [step for step in run.steps if step["version"] == version and step.get("log_score") is not None]
            for run in runs
        ]
        first, last = (
            [_mean(steps[part], "log_score") for steps in own] for part in (slice(_EDGE), slice(-_EDGE, None))
        )
        fluent = [_mean(steps[-_EDGE:], "reference_logp") for steps in own]
        label = f"{version.split('@')[0]} {runs[0].found.labels[version]}"
        rows.append((label, str(len(own[0])), *(str(Seeds(tuple(values))) for values in (first, last, fluent))))
    header = ("attacker", "steps", f"log R1, first {_EDGE}", f"last {_EDGE}", f"log p_ref, last {_EDGE}")
    return header, rows


def _mean(steps: Sequence[dict[str, Any]], key: str) -> float:
    values = [float(step[key]) for step in steps if step.get(key) is not None]
    return float(np.mean(values)) if values else float("nan")


def _target_label(runs: Sequence[Run], target: str) -> str:
    """Which attacker's attacks a target was tuned on."""
    label = runs[0].found.labels.get(f"{target}@v1", target)
    source = label.removeprefix("tuned on ")
    known = runs[0].found.labels.get(f"{source}@v1")
    return f"{target}, tuned on {source} {known}" if known else target


def _tuned_on(runs: Sequence[Run], part: str) -> str:
    """The target that was tuned on the attacks of an attacker with such a name."""
    return _named(targets_of(runs), part, lambda target: _target_label(runs, target))


def _named(names: Iterable[str], part: str, label: Callable[[str], str] = str) -> str:
    return next((name for name in names if part in label(name)), "")


def _difference(first: Seeds, second: Seeds) -> Seeds:
    errors = zip(first.errors, second.errors, strict=False)
    return Seeds(
        tuple(a - b for a, b in zip(first.values, second.values, strict=True)),
        tuple(math.hypot(*pair) for pair in errors),
    )


def _seeds(estimates: Sequence[Estimate]) -> Seeds:
    """With the standard error that an interval's width implies: it is not 0 where nothing, or everything, succeeded."""
    return Seeds(tuple(one.mean for one in estimates), tuple((one.high - one.low) / (2 * _NORMAL) for one in estimates))


def _each(found: Sequence[Written], pick: Callable[[Written], object]) -> str:
    return ", ".join(str(pick(one)) for one in found)


def _wrote(run: Run, attacker: str) -> Written | None:
    return next((one for one in run.figures.written if one.attacker == attacker), None)


def _attacked(figures: Evaluation, attacker: str, target: str) -> Attacked:
    return next(one for one in figures.attacked if (one.attacker, one.target) == (attacker, target))


if __name__ == "__main__":
    main()
