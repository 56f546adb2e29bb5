"""Whether what the solvers report is true: games with known answers, estimated from dialogues that chance decides.

    python benchmarks/ground_truth.py --check --out benchmarks/results/ground_truth.json     # minutes on one CPU core
    python benchmarks/ground_truth.py --quick                                                # seconds; says little

Sections: `--only intervals,sampling,..`. Each lives in a module beside this one and takes `Options`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import ground_truth_cost as cost
import ground_truth_diversity as diversity
import ground_truth_fakes as fakes
import ground_truth_games as games
import ground_truth_model as real
import ground_truth_statistics as statistics
from ground_truth_parts import Options, Section
from timing import Bar, finish


def section(run: Callable[[int], Section], rounds: int) -> Callable[[Options], Section]:
    """A section with the rounds that its bars are stated for; one for a quick look."""
    return lambda options: run(options.times(rounds, 1))


SECTIONS: dict[str, Callable[[Options], Section]] = {
    "dialogues": section(games.dialogues, 5),  # games per size
    "diversity": section(diversity.diversity, 10),  # seeds
    "seas": section(games.seas, 1),
    "fakes": section(fakes.fakes, 5),  # sixties of null runs
    **real.SECTIONS,
    "intervals": statistics.intervals,
    "sampling": statistics.sampling,
    "linear program": statistics.linear_program,
    "iteration cost": cost.iteration_cost,
}


def main() -> None:
    """Print figures by section, then the bars."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit with 1 if a bar is missed")
    parser.add_argument("--quick", action="store_true", help="a few repeats, to see that it runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, separated by commas")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    given = parser.parse_args()
    names = given.only.split(",")
    if unknown := [name for name in names if name not in SECTIONS]:
        parser.error(f"expected sections among {', '.join(SECTIONS)}, got {', '.join(unknown)}")
    bars: list[Bar] = []
    found, spent = {}, {}
    for name in names:
        begin = time.perf_counter()
        section = SECTIONS[name](Options(seed=given.seed, quick=given.quick))
        spent[name] = round(time.perf_counter() - begin, 1)
        found[name], bars = {**section.figures, "seconds": spent[name]}, bars + section.bars
        print(f"{name}: {json.dumps(section.figures)}", flush=True)
    record = {"seed": given.seed, "quick": given.quick, "sections": found}
    finish(record, bars, out=given.out, check=given.check)


if __name__ == "__main__":
    main()
