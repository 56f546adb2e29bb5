"""What a bonus for being different costs, in games whose truth is exact: section `diversity` of `ground_truth.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matrix_games
import numpy as np
from ground_truth_parts import Section
from scipy import stats
from timing import Bar

from rtg_solvers import loop
from rtg_solvers.meta_solvers import nash
from rtg_solvers.oracles.matrix import MatrixOracle, matrix_context, matrix_method

_ANNEALING = 15
"""Iterations over which an annealed bonus falls to 0."""

_PLACES = (0, 1, 2, 4, 8, 12, 16, 24, 32, 48)
"""Iterations whose NashConv is recorded."""


def diversity(seeds: int) -> Section:
    """Final true NashConv under a bonus for red, constant or lowered to 0, vanishing on members or not."""
    bars, figures = [], {}
    weights = (0.03, 0.1, 0.3)
    none = _runs(seeds, None, 0.0, annealed=False)
    figures["none"] = _curve(none)
    for kind, bonus in (("vanishing", nearest_member), ("staying", all_members), ("taste", taste)):
        for weight in weights:
            for annealed in (False, True):
                runs = _runs(seeds, bonus, weight, annealed=annealed)
                title = f"{kind}, lambda {weight}, {'annealed' if annealed else 'constant'}"
                figures[title] = _curve(runs)
                if kind == "vanishing" or annealed:
                    worst = max(run.curve[-1] for run in runs)
                    bars.append(Bar(f"{title}: largest final true NashConv", worst, 1e-6, at_least=False))
                else:
                    worst = max(run.curve[-1] / run.bound for run in runs)
                    bars.append(Bar(f"{title}: largest NashConv / (lambda range)", worst, 1.0, at_least=False))
    return Section(figures, bars)


class DiversityRun(NamedTuple):
    """One game under one bonus."""

    game: str
    curve: list[float]
    """True NashConv before each iteration, and at the end."""

    bound: float
    """lambda times the range of the bonus at the end."""

    members: int
    """Of both sides."""


def nearest_member(payoff: np.ndarray, own: np.ndarray) -> np.ndarray:
    """[A] squared distance of a row of payoffs to that of the nearest member, the largest distance of two rows being 1."""
    return _distances(payoff, own).min(axis=1)


def all_members(payoff: np.ndarray, own: np.ndarray) -> np.ndarray:
    """[A] the same, averaged over all members: it does not vanish on any of them."""
    return _distances(payoff, own).mean(axis=1)


def taste(payoff: np.ndarray, own: np.ndarray) -> np.ndarray:
    """[A] a liking for some actions that has nothing to do with payoffs or members; the worst that a bonus can be."""
    del own
    return np.random.default_rng(payoff.shape[0]).random(payoff.shape[0])


def _distances(payoff: np.ndarray, own: np.ndarray) -> np.ndarray:
    rows = own @ payoff
    apart = ((payoff[:, None] - payoff[None]) ** 2).sum(axis=2).max()
    return ((payoff[:, None] - rows[None]) ** 2).sum(axis=2) / apart


def games_of(seed: int) -> dict[str, np.ndarray]:
    """Four games of one seed; where the game has no seed, the order of its actions has."""
    rng = np.random.default_rng(seed)
    blotto, kuhn = matrix_games.blotto(6, 3), matrix_games.normal_form("kuhn_poker")
    table = {"num_exchanges": 1, "num_goals": 2, "num_tactics": 3, "num_styles": 3, "seed": seed}
    found = {
        "skill": matrix_games.skill(30, rng),
        "blotto": blotto,
        "kuhn": kuhn,
        "dialogue": matrix_games.normal_form("tiny_redteam", table),
    }
    return {
        name: payoff[rng.permutation(payoff.shape[0])][:, rng.permutation(payoff.shape[1])]
        for name, payoff in found.items()
    }


def _runs(
    seeds: int, bonus: Callable[[np.ndarray, np.ndarray], np.ndarray] | None, weight: float, *, annealed: bool
) -> list[DiversityRun]:
    runs = []
    for seed in range(seeds):
        for name, payoff in games_of(seed).items():
            oracle = MatrixOracle()
            if bonus is not None:
                oracle = MatrixOracle(
                    bonus=lambda _, own, payoff=payoff: bonus(payoff, own),
                    bonus_weight=lambda k: weight * (max(0.0, 1 - k / _ANNEALING) if annealed else 1.0),
                )
            context = matrix_context(payoff, seed=seed)
            method = matrix_method(nash, oracle, least=_ANNEALING + 1 if annealed else 0)
            solution = loop.solve(method, context)
            mixtures = [*(iteration.mixture for iteration in solution.iterations), solution.mixture]
            own = context.members.weights(solution.payoffs.red)
            spread = float(np.ptp(bonus(payoff, own))) if bonus is not None else 0.0
            curve = [context.members.nash_conv(mixture).total for mixture in mixtures]
            sizes = len(solution.payoffs.red) + len(solution.payoffs.blue)
            runs.append(DiversityRun(name, curve, weight * spread, sizes))
    return runs


def _curve(runs: Sequence[DiversityRun]) -> dict[str, Any]:
    """Per game: mean NashConv with the half-width of its 95 % interval over seeds, by iteration; a run that has ended stays."""
    found: dict[str, Any] = {}
    for game in dict.fromkeys(run.game for run in runs):
        own = [run for run in runs if run.game == game]
        table = np.array([[run.curve[min(place, len(run.curve) - 1)] for place in _PLACES] for run in own])
        reached = [next((k for k, conv in enumerate(run.curve) if conv <= 0.01), float("nan")) for run in own]
        found[game] = {
            "nash_conv": {str(p): _interval(column) for p, column in zip(_PLACES, table.T, strict=True)},
            "final": _interval([run.curve[-1] for run in own]),
            "iterations": _interval([len(run.curve) - 1 for run in own]),
            "iterations_to_0.01": _interval([k for k in reached if not np.isnan(k)]),
            "never_at_0.01": int(np.isnan(reached).sum()),
            "members": _interval([run.members for run in own]),
        }
    return found


def _interval(values: Sequence[float] | np.ndarray) -> list[float | None]:
    """Mean and half-width; None where there are too few to say."""
    x = np.asarray(values, dtype=float)
    if x.size < 2:
        return [round(float(x.mean()), 5) if x.size else None, None]
    half = stats.t.ppf(0.975, x.size - 1) * x.std(ddof=1) / np.sqrt(x.size)
    return [round(float(x.mean()), 5), round(float(half), 5)]
