"""Ground truth where the truth is exact: dialogue games and teams, and a published matrix.

Sections of `ground_truth.py`: `dialogues`, the loop with exact oracles against OpenSpiel's linear program, and our
environment against the table; `seas`, the solvers on a published cross-play.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from ground_truth_parts import Section
from open_spiel.python.algorithms import cfr
from open_spiel.python.algorithms.expected_game_score import policy_value
from timing import Bar

from rtg_solvers import Samples, loop, solve_zero_sum, tabular, teams
from rtg_solvers.empirical import nash_conv
from rtg_solvers.meta_solvers import META_SOLVERS, nash
from rtg_solvers.oracles.exact import double_oracle, exact_context, true_nash_conv
from rtg_solvers.oracles.matrix import matrix_context, matrix_method
from rtg_solvers.payoffs import Cell, PayoffTensor
from rtg_solvers.tabular import TableSettings
from rtg_solvers.tabular_dialogue import TabularDialogue

SEAS = np.array(
    [
        [54.89, 16.44, 6.33, 3.12],
        [88.21, 59.02, 14.55, 7.08],
        [91.28, 90.55, 51.47, 24.92],
        [95.17, 97.06, 92.93, 73.97],
    ]
)
"""arXiv:2408.02632: attack success in percent, rows R0..R3, columns T0..T3."""


def dialogues(rounds: int) -> Section:
    """Exact loop on dialogue games of 1 to 3 exchanges; the environment's matrix of all members; teams of two."""
    shapes = {
        1: {"num_goals": 3, "num_tactics": 3, "num_styles": 4},
        2: {"num_goals": 2, "num_tactics": 2, "num_styles": 3},
        3: {"num_goals": 2, "num_tactics": 2, "num_styles": 2},
    }
    rows, bars = [], []
    for exchanges, shape in shapes.items():
        found = [_dialogue(TableSettings(num_exchanges=exchanges, seed=seed, **shape)) for seed in range(rounds)]
        rows += found
        for name, title, bar in (
            ("nash_conv", "true NashConv of the exact loop", 1e-6),
            ("value_error", "|value of the loop - sequence-form program|", 1e-6),
            ("matrix_error", "|payoffs in the environment - OpenSpiel's|", 1e-12),
        ):
            worst = max(row[name] for row in found)
            bars.append(Bar(f"T = {exchanges}, {title}, worst of {rounds} games", worst, bar, at_least=False))
    second = _second_opinion()
    bars.append(Bar("T = 1, |CFR+ - sequence-form program|", second, 2e-3, at_least=False))
    team = _team()
    bars += [
        Bar("team, |value of the loop over joint plans - 3/8|", abs(team["loop"] - 3 / 8), 1e-6, at_least=False),
        Bar("team, true NashConv of the loop over joint plans", team["nash_conv"], 1e-6, at_least=False),
        Bar("team, what joint play wins beyond the best independent play, proven", team["excess"], 0.12),
    ]
    return Section({"games": rows, "cfr_plus_error": second, "team": team, "random_teams": _random_teams(rounds)}, bars)


def _dialogue(settings: TableSettings) -> dict[str, Any]:
    begin = time.perf_counter()
    bridge = TabularDialogue(settings)
    context = exact_context(bridge.table)
    solution = loop.solve(double_oracle(), context)
    spent = time.perf_counter() - begin
    members = context.strategies
    policies = {name: members[name].policy for role in ("red", "blue") for name in members.names(role)}
    played = np.array(
        [
            [bridge.expected_utility(policies[r], policies[b]) for b in solution.payoffs.blue]
            for r in solution.payoffs.red
        ]
    )
    value = tabular.exact_value(bridge.table)
    return {
        "exchanges": settings.num_exchanges,
        "seed": settings.seed,
        "iterations": len(solution.iterations),
        "members": [len(solution.payoffs.red), len(solution.payoffs.blue)],
        "value": value,
        "value_error": abs(solution.mixture.value - value),
        "nash_conv": true_nash_conv(context, solution.mixture),
        "matrix_error": float(np.abs(played - solution.payoffs.mean).max()),
        "seconds": round(spent, 2),
    }


def _second_opinion() -> float:
    game = tabular.load(TableSettings(num_exchanges=1))
    solver = cfr.CFRPlusSolver(game)
    for _ in range(100):
        solver.evaluate_and_update_policy()
    average = solver.average_policy()
    return abs(float(policy_value(game.new_initial_state(), [average, average])[0]) - tabular.exact_value(game))


def _team() -> dict[str, float]:
    game = teams.rendezvous(0.75)
    context = matrix_context(teams.joint_payoff(game))
    solution = loop.solve(matrix_method(nash), context)
    truth, alone = solve_zero_sum(teams.joint_payoff(game)).value, teams.best_independent(game)
    return {
        "joint": truth,
        "loop": solution.mixture.value,
        "nash_conv": context.members.nash_conv(solution.mixture).total,
        "independent_low": alone.low,
        "independent_high": alone.high,
        "excess": truth - alone.high,
    }


def _random_teams(count: int) -> dict[str, Any]:
    """Two members, two signals each, three tactics of which a signal allows two; blue guards one of four ways."""
    subsets = (((0, 1), (1, 2)), ((0, 2), (0, 1)))
    excess = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        prob = rng.random((2, 2))
        game = teams.TeamGame(prob / prob.sum(), subsets, rng.random((3, 3, 4)))
        alone = teams.best_independent(game, tolerance=0.01)
        excess.append(solve_zero_sum(teams.joint_payoff(game)).value - alone.high)
    return {"games": count, "proven_excess_mean": float(np.mean(excess)), "proven_excess_most": float(max(excess))}


def seas(rounds: int) -> Section:
    """Every meta-solver on the published cross-play; its saddle is the last pair."""
    del rounds
    samples = {
        Cell(f"R{r}", f"T{c}"): Samples(utilities=np.array([SEAS[r, c]]), goal_ids=("x",), harmful=np.array([True]))
        for r in range(4)
        for c in range(4)
    }
    names = [tuple(f"{side}{index}" for index in range(4)) for side in "RT"]
    payoffs = PayoffTensor(red=names[0], blue=names[1], bounds=(0.0, 100.0), samples=samples)
    found = {name: solver(payoffs, None, np.random.default_rng(0)) for name, solver in META_SOLVERS.items()}
    weights = {name: float(mixture.red[3] * mixture.blue[3]) for name, mixture in found.items()}
    bars = [
        Bar(f"SEAS cross-play, {name}: weight of (R3, T3)", weights[name], 0.98)
        for name in META_SOLVERS
        if name not in ("uniform", "latest")  # the one does not look at payoffs, the other has it by definition
    ]
    worst = max(abs(mixture.value - 73.97) for mixture in found.values())
    bars.append(Bar("SEAS cross-play, |value - 73.97|, worst solver", worst, 1e-6, at_least=False))
    context = matrix_context(SEAS)
    solution = loop.solve(matrix_method(nash), context)
    bars.append(
        Bar(
            "SEAS cross-play, the loop from (R0, T0): |value - 73.97|",
            abs(solution.mixture.value - 73.97),
            1e-6,
            at_least=False,
        )
    )
    pairs = [round(nash_conv(SEAS, np.eye(4)[i], np.eye(4)[i]).total, 2) for i in range(4)]
    wrong = max(abs(a - b) for a, b in zip(pairs, (92.05, 89.98, 68.01, 0.0), strict=True))
    bars.append(
        Bar("SEAS cross-play, NashConv of (Ri, Ti) against 92.05, 89.98, 68.01, 0", wrong, 0.005, at_least=False)
    )
    return Section({"weight": weights, "nash_conv_of_pairs": pairs, "iterations": len(solution.iterations)}, bars)
