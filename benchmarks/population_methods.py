"""Population methods on games whose truth is known, with noisy payoffs and handicapped oracles: true NashConv by dialogues.

    python benchmarks/population_methods.py --check --out benchmarks/results/population_methods.json \
        --figure benchmarks/results/population_methods.svg
    python benchmarks/population_methods.py --quick             # seconds; says little

Games are in `population_games.py`, the oracle and our loop in `population_runs.py`, OpenSpiel's psro_v2 in
`population_psro.py`, the judgement in `population_verdict.py`. How many seeds a game gets follows from a pilot with other
seeds. Finished (game, seed) pairs are kept in `--runs FILE`, if given: a run that was cut off goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from population_games import GAMES, Tree
from population_psro import psro
from population_runs import Plan, Reported, Run, cardinality, distance, ours, without_cells
from population_verdict import compared, mean_rank_correlation, seeds_needed
from timing import Bar, finish

from rtg_solvers.diversity import response_diversity
from rtg_solvers.empirical import solve_zero_sum

Method = Callable[[Tree, int, Plan], Run]

DEFAULT: Final = "ours"
METHODS: Final[Mapping[str, Method]] = {
    DEFAULT: ours,
    "ours, all cells alike": partial(ours, adaptive=False),
    "ours + expected cardinality": partial(ours, diversity=cardinality),
    "ours + response diversity": partial(ours, diversity=response_diversity),
    "ours + nearest member": partial(ours, diversity=distance),
    "psro_v2, nash": partial(psro, meta_strategy="nash"),
    "psro_v2, prd": partial(psro, meta_strategy="prd"),
    "self-play": partial(without_cells, newest=True),
    "fictitious play": partial(without_cells, newest=False),
    "uniform": partial(ours, prepare="uniform", adaptive=False),
}
"""Our default prepares for the logit mixture, reports the Nash equilibrium, and samples cells adaptively."""

REPORTS_LOGIT: Final = "ours, reports logit"
"""The same run as our default, had it reported the mixture that it prepares for."""

NAMES: Final = (*METHODS, REPORTS_LOGIT)

NO_CELLS: Final = ("self-play", "fictitious play")
"""Methods that need no payoffs."""

PLAIN: Final = tuple(name for name in METHODS if " + " not in name)
"""Methods that do not look for diversity: those of the pilot, and of the seeds beyond the least number."""


class Scope(NamedTuple):
    """How much is run."""

    plan: Plan
    games: tuple[str, ...]
    pilot_seeds: tuple[int, ...]
    least: int
    """Seeds of a game, at least, and of methods that look for diversity."""
    most: int
    """Seeds of a game at most, whatever the power calculation asks for."""

    def methods(self, seed: int) -> tuple[str, ...]:
        """What is run with a seed."""
        return tuple(METHODS) if seed < self.least else PLAIN


def full(games: Iterable[str]) -> Scope:
    """What the bars are stated for."""
    return Scope(Plan(), tuple(games), tuple(range(1000, 1006)), 10, 20)


def quick(games: Iterable[str]) -> Scope:
    """To see that it runs."""
    plan = Plan(iterations=2, dialogues_per_cell=16, dialogues_per_response=32, candidates=4)
    return Scope(plan, tuple(games), (1000, 1001), 2, 3)


# Runs


def one(game: str, seed: int, methods: Sequence[str], plan: Plan) -> dict[str, Any]:
    """All methods on one game with one seed, and what they are worth against each other's members."""
    tree = GAMES[game](seed)
    runs = {name: METHODS[name](tree, seed, plan) for name in methods}
    if (prepared := runs[DEFAULT].prepared) is not None:
        runs[REPORTS_LOGIT] = prepared
    reported = {name: run.reported[0] for name, run in runs.items()}
    return {
        "game": game,
        "seed": seed,
        "plan": repr(plan),
        "methods": list(methods),
        "curves": {name: run.curve for name, run in runs.items()},
        "combined": combined(tree, reported),
        "exact": {name: with_exact_cells(tree, reported[name]) for name in methods},
    }


def combined(tree: Tree, reported: Mapping[str, Reported]) -> dict[str, float]:
    """NashConv of each method's mixture in the game of all methods' members pooled, with exact payoffs."""
    red = np.vstack([found.red_members for found in reported.values()])
    blue = np.vstack([found.blue_members for found in reported.values()])
    return {
        name: float((red @ tree.gains("red", found.blue)).max() + (blue @ tree.gains("blue", found.red)).max())
        for name, found in reported.items()
    }


def with_exact_cells(tree: Tree, found: Reported) -> float:
    """True NashConv of the Nash mixture of the same members, had every payoff between them been exact."""
    cells = found.red_members @ (tree.payoff @ found.blue_members.T)
    solved = solve_zero_sum(cells)
    return tree.nash_conv(solved.row @ found.red_members, solved.column @ found.blue_members)


class Store:
    """Finished pairs of game and seed, one per line; in memory alone without a file."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        lines = path.read_text("utf-8").splitlines() if path and path.exists() else []
        self._found = {self._key(record): record for record in map(json.loads, lines)}

    def get(self, game: str, seed: int, methods: Sequence[str], plan: Plan) -> dict[str, Any]:
        """A record, run now if there is none."""
        key = self._key({"game": game, "seed": seed, "methods": methods, "plan": repr(plan)})
        if key not in self._found:
            text = json.dumps(one(game, seed, methods, plan))
            if self._path:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(text + "\n")
            self._found[key] = json.loads(text)
        return self._found[key]

    @staticmethod
    def _key(record: Mapping[str, Any]) -> tuple[Any, ...]:
        return (record["game"], record["seed"], tuple(record["methods"]), record["plan"])


# Judgement


def seeds_by_game(scope: Scope, store: Store) -> dict[str, dict[str, int]]:
    """By game and method: the seeds that the pilot asks for."""
    found: dict[str, dict[str, int]] = {game: {} for game in scope.games}
    pilot = {game: [] for game in scope.games}
    for seed in scope.pilot_seeds:
        for game in scope.games:
            pilot[game].append(store.get(game, seed, PLAIN, scope.plan))
    for game, records in pilot.items():
        ours_too = final(records, DEFAULT, scope.plan)
        others = [name for name in PLAIN if name != DEFAULT]
        found[game] = {name: seeds_needed(ours_too, final(records, name, scope.plan)) for name in others}
    return found


def all_runs(scope: Scope, needed: Mapping[str, Mapping[str, int]], store: Store) -> dict[str, list[dict[str, Any]]]:
    """By game: a record per seed. All games get a seed before any gets the next."""
    counts = {game: min(scope.most, max(scope.least, *own.values())) for game, own in needed.items()}
    records: dict[str, list[dict[str, Any]]] = {game: [] for game in scope.games}
    for seed in range(max(counts.values())):
        for game in scope.games:
            if seed < counts[game]:
                records[game].append(store.get(game, seed, scope.methods(seed), scope.plan))
    return records


def judged(
    game: str, records: Sequence[Mapping[str, Any]], needed: Mapping[str, int], plan: Plan
) -> tuple[dict[str, Any], list[Bar]]:
    """Figures and bars of one game."""
    last, further = plan.iterations, plan.iterations_without_cells
    whole = [record for record in records if set(record["methods"]) == set(METHODS)]
    truth = {name: final(records, name, plan) for name in NAMES}
    trained = {f"{name}, training counted": final(records, name, plan, further) for name in NO_CELLS}
    comparisons = {
        name: compared(truth[DEFAULT][: values.size], values)
        for name, values in {**truth, **trained}.items()
        if name != DEFAULT
    }
    pooled = {name: np.array([record["combined"][name] for record in whole]) for name in NAMES}
    bars = [
        Bar(f"{game}: {DEFAULT} - {name}, upper end : margin", found.upper / found.margin, 1.0, at_least=False)
        for name, found in comparisons.items()
    ]
    figures = {
        "seeds": {name: values.size for name, values in truth.items()},
        "seeds_needed": dict(needed),
        "dialogues": (last + 1) ** 2 * plan.dialogues_per_cell,
        "oracle_calls": 2 * last,
        "oracle_calls_training_counted": 2 * further,
        "nash_conv": {name: spread(values) for name, values in {**truth, **trained}.items()},
        "by_seed": {name: rounded(values) for name, values in truth.items()},
        "comparisons": {name: described(found) for name, found in comparisons.items()},
        "nash_conv_with_exact_cells": {
            name: spread(np.array([record["exact"][name] for record in records if name in record["exact"]]))
            for name in METHODS
        },
        "combined_game": {name: spread(values) for name, values in pooled.items()},
        "rank_correlation": mean_rank_correlation({name: truth[name][: len(whole)] for name in NAMES}, pooled),
        "curves": {name: curve(records, name) for name in NAMES},
    }
    return figures, bars


def final(records: Sequence[Mapping[str, Any]], name: str, plan: Plan, iteration: int | None = None) -> np.ndarray:
    """[N] true NashConv of a method by seed that has it, after all its iterations or those given."""
    place = plan.iterations if iteration is None else iteration
    return np.array([record["curves"][name][place][2] for record in records if name in record["curves"]])


def curve(records: Sequence[Mapping[str, Any]], name: str) -> dict[str, list[float]]:
    """Mean and standard error of true NashConv, by iteration and dialogues in cells."""
    table = np.array([record["curves"][name] for record in records if name in record["curves"]])
    errors = table[:, :, 2].std(axis=0, ddof=1) / np.sqrt(len(table))
    return {
        "dialogues": [round(float(value)) for value in table[:, :, 1].mean(axis=0)],
        "mean": rounded(table[:, :, 2].mean(axis=0)),
        "se": rounded(errors),
    }


def spread(values: np.ndarray) -> dict[str, float]:
    """Mean and standard deviation over seeds."""
    return {"mean": round(float(values.mean()), 5), "sd": round(float(values.std(ddof=1)), 5)}


def described(found: Any) -> dict[str, Any]:
    """A comparison, rounded."""
    return {name: value if isinstance(value, bool) else round(value, 5) for name, value in found._asdict().items()}


def rounded(values: Iterable[float]) -> list[float]:
    """To five places."""
    return [round(float(value), 5) for value in values]


# The figure

_STYLES: Final[Mapping[str, dict[str, Any]]] = {
    DEFAULT: {"color": "black", "linewidth": 2.4},
    "ours, all cells alike": {"color": "black", "linestyle": ":"},
    "ours + expected cardinality": {"color": "tab:blue", "linestyle": "--"},
    "ours + response diversity": {"color": "tab:cyan", "linestyle": "--"},
    "ours + nearest member": {"color": "tab:purple", "linestyle": "--"},
    "psro_v2, nash": {"color": "tab:red"},
    "psro_v2, prd": {"color": "tab:orange"},
    "self-play": {"color": "tab:gray"},
    "fictitious play": {"color": "tab:green"},
    "uniform": {"color": "tab:olive"},
    REPORTS_LOGIT: {"color": "black", "linestyle": "-."},
}


def draw(figures: Mapping[str, Mapping[str, Any]], last: int, out: Path) -> None:
    """True NashConv by dialogues in payoff cells, a panel per game; bands are one standard error.

    Args:
        figures: By game.
        last: The iteration that is judged; methods without cells go on after it, which is not drawn.
        out: An SVG or PNG file.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "population methods"  # otherwise the ids of its elements are random
    from matplotlib import pyplot as plt

    columns = min(3, len(figures))
    rows = -(-len(figures) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.2 * columns, 3.2 * rows + 0.9), squeeze=False)
    for axis, (game, found) in zip(axes.flat, figures.items(), strict=False):
        for name, line in found["curves"].items():
            x, mean, se = (np.array(line[key][: last + 1]) for key in ("dialogues", "mean", "se"))
            axis.plot(x, np.maximum(mean, 1e-4), label=name, **_STYLES[name])
            if name == DEFAULT:
                axis.fill_between(x, np.maximum(mean - se, 1e-4), mean + se, color="black", alpha=0.15, linewidth=0)
        axis.set(xscale="log", yscale="log", title=f"{game} ({found['seeds'][DEFAULT]} seeds)")
    figure.supxlabel("dialogues in payoff cells")
    figure.supylabel("true NashConv, share of the range of payoffs")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=4, fontsize="small", frameon=False)
    figure.tight_layout(rect=(0.0, 0.0, 1.0, 1.0 - 0.75 / (3.2 * rows + 0.9)))
    figure.savefig(out, dpi=120, metadata={"Date": None} if out.suffix == ".svg" else None)
    plt.close(figure)


def main() -> None:
    """Print figures by game, then the bars."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit with 1 if a bar is missed")
    parser.add_argument("--quick", action="store_true", help="two seeds and two iterations, to see that it runs")
    parser.add_argument(
        "--most", type=int, help="seeds of a game at most, fewer than the power calculation may ask for"
    )
    parser.add_argument("--only", action="append", choices=list(GAMES), help="a game; may be repeated")
    parser.add_argument("--runs", type=Path, help="keep finished runs in this file, and go on from it")
    parser.add_argument("--figure", type=Path, help="draw the curves into this SVG or PNG file")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    given = parser.parse_args()
    games = given.only or list(GAMES)
    scope, store = (quick if given.quick else full)(games), Store(given.runs)
    scope = scope._replace(most=given.most or scope.most)
    figures: dict[str, dict[str, Any]] = {}
    bars: list[Bar] = []
    needed = seeds_by_game(scope, store)
    for game, records in all_runs(scope, needed, store).items():
        figures[game], own = judged(game, records, needed[game], scope.plan)
        bars += own
        means = {name: value["mean"] for name, value in figures[game]["nash_conv"].items()}
        print(f"{game}, {len(records)} seeds: {json.dumps(means)}", flush=True)
    if given.figure:
        draw(figures, scope.plan.iterations, given.figure)
    record = {"quick": given.quick, "plan": repr(scope.plan), "sections": figures}
    finish(record, bars, out=given.out, check=given.check)


if __name__ == "__main__":
    main()
