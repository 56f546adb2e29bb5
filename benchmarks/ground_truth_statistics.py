"""Intervals and sampling against games whose payoffs are known; dialogues are draws of success or failure.

**The reference of the intervals.** Someone who knows every dialogue's variance, and for the value of the game even the
true equilibrium, brackets all R rows' and C columns' means at once (normal, Bonferroni over R + C, 95 % together), from
all of the same dialogues. Value: from the least lower end of a column to the greatest upper end of a row. NashConv:
from the greatest lower end of a row less the least upper end of a column (at least 0) to the other ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from ground_truth_parts import Options, Section
from scipy.stats import norm
from timing import Bar, seconds

from rtg_solvers.agreement import Interval
from rtg_solvers.empirical import Equilibrium, nash_conv, solve_zero_sum
from rtg_solvers.intervals import (
    CellMeans,
    cells_of,
    deviations_of,
    independent_cells,
    nash_conv_interval,
    value_interval,
)
from rtg_solvers.payoffs import Cell, PayoffTensor, Samples
from rtg_solvers.sampling import SamplingSettings, Shared, apportioned, share_out

_LUCK = 0.1
"""Half the range of what a goal adds to chances, once for all cells and once more for each."""

MakeGame = Callable[[np.random.Generator, int], np.ndarray]


def scaled_skill(rng: np.random.Generator, size: int) -> np.ndarray:
    """Random game of skill: a cyclic part and skill, scaled to chances in [0, 1]."""
    return 0.5 + 0.5 * (skill := _skill(rng, size)) / np.abs(skill).max()


def squashed_skill(rng: np.random.Generator, size: int) -> np.ndarray:
    """The same through the logistic function, as Elo does."""
    return 1.0 / (1.0 + np.exp(-_skill(rng, size)))


def duplicates(rng: np.random.Generator, size: int) -> np.ndarray:
    """Every row and column twice."""
    half = squashed_skill(rng, -(-size // 2))
    return np.repeat(np.repeat(half, 2, axis=0), 2, axis=1)[:size, :size]


def ties(rng: np.random.Generator, size: int) -> np.ndarray:
    """Three kinds of row and column, repeated: everything ties with something."""
    return np.tile(squashed_skill(rng, 3), (-(-size // 3), -(-size // 3)))[:size, :size]


def saddle(rng: np.random.Generator, size: int) -> np.ndarray:
    """Rows and columns are better or worse, whatever the other side does."""
    return 0.5 + 0.4 * (rng.random(size)[:, None] - rng.random(size))


def rare(rng: np.random.Generator, size: int) -> np.ndarray:
    """Successes are rare: most cells have none."""
    return 0.01 + 0.06 * scaled_skill(rng, size)


def flat(rng: np.random.Generator, size: int) -> np.ndarray:
    """All cells the same."""
    return np.full((size, size), float(rng.uniform(0.2, 0.8)))


GAMES: dict[str, MakeGame] = {
    "scaled skill": scaled_skill,
    "squashed skill": squashed_skill,
    "duplicates": duplicates,
    "ties": ties,
    "saddle": saddle,
    "rare": rare,
    "flat": flat,
}


class Plan(NamedTuple):
    """A situation in which intervals are tested; the population is the first half of the game's rows and columns."""

    size: int = 20
    per_cell: int = 32
    per_deviation: int = 128
    goals: int = 0
    """Dialogues are on that many goals, whose common luck is added to chances; 0: independent."""
    adaptive: bool = False
    """Whether cells that decide got more dialogues; the reference has them spread equally."""


class Trial(NamedTuple):
    """One repeat: of the true figure, its interval, and that of the reference."""

    truth: float
    found: Interval
    known: tuple[float, float]


def intervals(options: Options) -> Section:
    """Cover and width of the intervals of the game's value, restricted and full NashConv."""
    figures, bars = {}, []
    repeats = options.times(300, 12)
    plans = {
        "": Plan(),
        ", 8 per cell": Plan(per_cell=8, per_deviation=32),
        ", 16 goals": Plan(size=12, goals=16),
        ", adaptive": Plan(adaptive=True),
    }
    for name, make in GAMES.items():
        for suffix, plan in plans.items():
            if suffix and name not in ("squashed skill", "ties"):
                continue
            trials: dict[str, list[Trial]] = {"value": [], "restricted NashConv": [], "full NashConv": []}
            for repeat in range(repeats):
                rng = np.random.default_rng([options.seed, repeat, plan.per_cell, plan.goals, plan.adaptive])
                for kind, trial in _repeat(make(rng, plan.size), plan, rng).items():
                    trials[kind].append(trial)
            for kind, made in trials.items():
                figures[f"{kind}, {name}{suffix}"] = _summary(made)
    for kind in ("value", "restricted NashConv", "full NashConv"):
        chosen = [found for name, found in figures.items() if name.startswith(kind)]
        bars += [
            Bar(f"{kind}: least cover over {len(chosen)} games", min(c["cover"] for c in chosen), 0.93),
            Bar(
                f"{kind}: greatest width : known variances", max(c["width_ratio"] for c in chosen), 2.2, at_least=False
            ),
        ]
    return Section({"repeats": repeats, **figures}, bars)


def sampling(options: Options) -> Section:
    """Dialogues to a true NashConv of 0.025 on 20 x 20 games: cells that decide against all cells alike."""
    target, games = 0.025, options.times(150, 8)
    grids = {"adaptive": (4, 8, 12, 16, 24, 32), "equal": (32, 64, 128, 192, 256, 384, 512)}
    figures, bars = {}, []
    for name in ("scaled skill", "squashed skill"):
        curves = {method: _curve(name, method, grid, games, options.seed) for method, grid in grids.items()}
        needed = {method: _crossing(grids[method], curve["mean"], target) for method, curve in curves.items()}
        figures[name] = {"per_cell": grids, "curves": curves, "per_cell_needed": needed}
        title = f"dialogues to a true NashConv of {target}, 20 x 20 {name}, equal : adaptive"
        bars.append(Bar(title, needed["equal"] / needed["adaptive"], 8.0))
        held = np.mean([held for curve in curves.values() for held in curve["bound_held"]])
        bars.append(Bar(f"the bound that sampling stops by held, 20 x 20 {name}", float(held), 0.95))
    return Section({"games": games, **figures}, bars)


def linear_program(options: Options) -> Section:
    """Seconds of one solution at 100 x 100."""
    matrix = np.random.default_rng(options.seed).random((100, 100))
    solve_zero_sum(matrix)
    spent = float(np.median([seconds(lambda: solve_zero_sum(matrix)) for _ in range(5)]))
    return Section({"seconds": round(spent, 3)}, [Bar("linear program at 100 x 100, s", spent, 1.0, at_least=False)])


def _skill(rng: np.random.Generator, size: int) -> np.ndarray:
    cyclic, skill = rng.normal(size=(size, size)), rng.normal(size=size)
    return (cyclic - cyclic.T) / 2 + skill[:, None] - skill


def _repeat(game: np.ndarray, plan: Plan, rng: np.random.Generator) -> dict[str, Trial]:
    """Estimate the population's game, solve it, report its value and the mixture's NashConv from fresh dialogues."""
    mixed = game[rng.permutation(len(game))][:, rng.permutation(len(game))]  # red's members are no twins of blue's
    table = 0.2 + 0.6 * mixed if plan.goals else mixed  # leaves room for luck
    members = table[: len(table) // 2, : len(table) // 2]
    cells = (_tensor_cells if plan.goals else _cells)(members, plan, rng)
    solved, truth = solve_zero_sum(cells.mean), solve_zero_sum(members)
    found = {"value": Trial(truth.value, value_interval(cells), _known_value(members, truth, plan, rng))}
    for kind, candidates in (("restricted NashConv", members), ("full NashConv", table)):
        x, y = (np.r_[weights, np.zeros(len(candidates) - len(weights))] for weights in (solved.row, solved.column))
        chances = np.r_[candidates @ y, x @ candidates]
        dialogues = _dialogues(chances, plan.per_deviation, plan.goals, rng)
        red, blue = np.split(dialogues, 2)
        goal_ids = None if not plan.goals else [str(n % plan.goals) for n in range(plan.per_deviation)]
        found[kind] = Trial(
            nash_conv(candidates, x, y).total,
            nash_conv_interval(deviations_of(red, blue, goal_ids)),
            _known_nash_conv(dialogues.mean(axis=1), np.sqrt(_variance(chances, plan.per_deviation, plan.goals))),
        )
    return found


def _dialogues(chances: np.ndarray, count: int, goals: int, rng: np.random.Generator) -> np.ndarray:
    """[K, count] successes; every goal has luck of its own, one part for all and one for each of the K."""
    if not goals:
        return (rng.random((chances.size, count)) < chances[:, None]).astype(float)
    luck = rng.uniform(-_LUCK, _LUCK, goals) + rng.uniform(-_LUCK, _LUCK, (chances.size, goals))
    return (rng.random((chances.size, count)) < chances[:, None] + luck[:, np.arange(count) % goals]).astype(float)


def _variance(chances: np.ndarray, count: int, goals: int, *, common: bool = True) -> np.ndarray:
    """Of the mean of such dialogues; without the common luck, if so wished."""
    if not goals:
        return chances * (1 - chances) / count
    each = _LUCK**2 / 3
    return (chances * (1 - chances) - 2 * each) / count + each * (1 + common) / goals


def _cells(chances: np.ndarray, plan: Plan, rng: np.random.Generator) -> CellMeans:
    """Independent cells, each with its dialogues."""
    return _shared_out(chances, plan.per_cell, SamplingSettings(start_share=0.3 if plan.adaptive else 1.0), rng).cells


def _tensor_cells(chances: np.ndarray, plan: Plan, rng: np.random.Generator) -> CellMeans:
    """Cells on common goals, as a payoff tensor has them."""
    rows = _dialogues(chances.ravel(), plan.per_cell, plan.goals, rng)
    goal_ids = tuple(str(n % plan.goals) for n in range(plan.per_cell))
    red, blue = (tuple(f"{side}{k}" for k in range(len(chances))) for side in "rb")
    pairs = [Cell(r, b) for r in red for b in blue]
    harmful = np.ones(plan.per_cell, bool)
    samples = {
        cell: Samples(utilities=row, goal_ids=goal_ids, harmful=harmful) for cell, row in zip(pairs, rows, strict=True)
    }
    return cells_of(PayoffTensor(red=red, blue=blue, samples=samples))


def _known_value(chances: np.ndarray, solved: Equilibrium, plan: Plan, rng: np.random.Generator) -> tuple[float, float]:
    """The reference for the value, on dialogues of its own."""
    drawn = _dialogues(chances.ravel(), plan.per_cell, plan.goals, rng).mean(axis=1).reshape(chances.shape)
    own = _variance(chances, plan.per_cell, plan.goals, common=False)
    shared = _variance(chances, plan.per_cell, plan.goals) - own
    width = norm.ppf(1 - 0.025 / sum(chances.shape))
    above = drawn @ solved.column + width * np.sqrt(own @ solved.column**2 + shared[:, 0])
    below = solved.row @ drawn - width * np.sqrt(solved.row**2 @ own + shared[0])
    return float(below.min()), float(above.max())


def _known_nash_conv(means: np.ndarray, errors: np.ndarray) -> tuple[float, float]:
    """The reference for NashConv: means and their known errors, rows then as many columns."""
    reach = norm.ppf(1 - 0.025 / means.size) * errors
    (red_low, blue_low), (red_high, blue_high) = np.split(means - reach, 2), np.split(means + reach, 2)
    return max(0.0, red_low.max() - blue_high.min()), max(0.0, red_high.max() - blue_low.min())


def _summary(trials: list[Trial]) -> dict[str, float]:
    """Cover, and median widths; a miss by less than rounding is none."""
    tiny = 1e-9
    low = np.mean([trial.found.low <= trial.truth + tiny for trial in trials])
    high = np.mean([trial.truth <= trial.found.high + tiny for trial in trials])
    width = float(np.median([trial.found.high - trial.found.low for trial in trials]))
    known = float(np.median([trial.known[1] - trial.known[0] for trial in trials]))
    known_cover = np.mean([trial.known[0] - tiny <= trial.truth <= trial.known[1] + tiny for trial in trials])
    figures = {
        "cover": low + high - 1.0,  # never both ends at once
        "low_holds": low,
        "high_holds": high,
        "truth": float(np.median([trial.truth for trial in trials])),
        "width": width,
        "width_ratio": width / known,
        "known_cover": known_cover,
    }
    return {name: round(float(number), 4) for name, number in figures.items()}


def _curve(name: str, method: str, grid: tuple[int, ...], games: int, seed: int) -> dict[str, list[float]]:
    """True NashConv by dialogues per cell, and how often the bound held."""
    curve: dict[str, list[float]] = {"mean": [], "se": [], "bound_held": []}
    for per_cell in grid:
        found = [_sampled(name, method, per_cell, np.random.default_rng([seed, game])) for game in range(games)]
        truths = np.array([truth for truth, _ in found])
        curve["mean"].append(round(float(truths.mean()), 5))
        curve["se"].append(round(float(truths.std(ddof=1) / np.sqrt(games)), 5))
        curve["bound_held"].append(round(float(np.mean([truth <= bound for truth, bound in found])), 4))
    return curve


def _sampled(name: str, method: str, per_cell: int, rng: np.random.Generator) -> tuple[float, float]:
    """True NashConv of the equilibrium that was found, and the bound on it."""
    chances = GAMES[name](rng, 20)
    found = _shared_out(chances, per_cell, SamplingSettings(start_share=0.3 if method == "adaptive" else 1.0), rng)
    return nash_conv(chances, found.equilibrium.row, found.equilibrium.column).total, found.bound


def _shared_out(chances: np.ndarray, per_cell: int, rule: SamplingSettings, rng: np.random.Generator) -> Shared:
    """An equal start and the rounds after it."""
    hits, played = np.zeros(chances.shape), np.zeros(chances.shape, int)

    def grow(wanted: np.ndarray) -> CellMeans:
        nonlocal hits, played
        hits, played = hits + rng.binomial(wanted - played, chances), wanted
        mean = hits / played
        return independent_cells(mean, np.sqrt(mean * (1 - mean) * played / (played - 1)), played)

    budget = per_cell * chances.size
    start = apportioned(np.ones(chances.shape), max(2 * chances.size, round(rule.start_share * budget)))
    return share_out(grow(start), start, grow, budget, rule)


def _crossing(grid: tuple[int, ...], means: list[float], target: float) -> float:
    """Dialogues per cell at which the curve, both axes in logarithms, first meets the target; an end if outside it."""
    below = next((k for k, mean in enumerate(means) if mean <= target), len(grid))
    if below in (0, len(grid)):
        return float(grid[min(below, len(grid) - 1)])
    (x0, x1), (y0, y1) = np.log(grid[below - 1 : below + 1]), np.log(means[below - 1 : below + 1])
    return round(float(np.exp(x0 + (x1 - x0) * (y0 - np.log(target)) / (y0 - y1))), 1)
