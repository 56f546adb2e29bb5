"""Ground truth on a real model: SmolLM2's replies to a few tactics under a few system prompts, solved exactly.

The games are `rtg_solvers.cached_dialogue` on the tables that `model_replies.py` builds. Here they are solved by
OpenSpiel's sequence-form program and by the loop with exact cells, played through our environment path by path, and then
solved by the loop as a run on a model would: exact best responses, but payoffs from dialogues that chance draws. What
that loop reports, the game's value and NashConv with their intervals, is held against the truth.

Chance draws among the goals of the table and no others. Then dialogues are independent, but for the deals that all cells
share: intervals that hold for this game are clustered by deal. Those of a run are clustered by goal, for goals that
stand for many more; they must cover, too, and are wider.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import model_replies
import numpy as np
import sampled_loop
from ground_truth_parts import Options, Section
from known_game import BehaviourPolicy, Known
from open_spiel.python.algorithms.expected_game_score import policy_value
from scipy.optimize import linprog
from timing import Bar

from rtg_agents import always_refuse
from rtg_env.judges.offline import OfflineJudge
from rtg_env.rules import Deal
from rtg_solvers import Pairing, loop, play
from rtg_solvers.agreement import Interval
from rtg_solvers.cached_play import Given, Speaker
from rtg_solvers.oracles.exact import double_oracle, exact_context, true_nash_conv
from rtg_solvers.rollout import utilities


def model(options: Options) -> Section:
    """Games of one and of two exchanges, solved exactly and from dialogues."""
    figures: dict[str, Any] = {}
    bars: list[Bar] = []
    if not all(plan.path.exists() for plan in model_replies.PLANS.values()):
        model_replies.write_tables(model_replies.texts_file())
    for name, plan in model_replies.PLANS.items():
        game, hearing = Known(plan.path), Known(plan.path, hears=True)
        runs = [sampled_loop.run(game, seed) for seed in range(options.times(100, 3))]
        figures[name] = {**_described(game, hearing), "sampled_loop": _summary(game, runs)}
        asked = [*_exact_bars(game), *_hearing_bars(hearing), *_sampled_bars(game, runs)]
        bars += [Bar(f"model, {name}: {bar.name}", bar.value, bar.bar, at_least=bar.at_least) for bar in asked]
    return Section(figures, bars)


def _described(game: Known, hearing: Known) -> dict[str, Any]:
    """What the game is and what its solution says."""
    table = game.bridge.table
    first = [state for states in game.states.values() for state in states.values() if len(state.node.path) <= 3]
    plays = {}
    for state in first:
        role, path = ("red", "blue")[state.current_player()], state.node.path
        where = "red, " + table.goals[path[0]].id if role == "red" else role
        probs = game.solution[state.information_state_string(state.current_player())]
        names = [choice.name for choice in (table.tactics[0] if role == "red" else table.prompts)]
        plays[where] = {name: round(prob, 4) for name, prob in zip(names, probs, strict=True) if prob > 1e-9}
    alone = {p.name: round(game.worth("blue", game.constant("blue", b)), 6) for b, p in enumerate(table.prompts)}
    return {
        "source": dict(table.source),
        "dialogues": len(game.leaves),
        "information_states": {role: len(states) for role, states in game.states.items()},
        "value": round(game.value, 9),
        "first_exchange_at_equilibrium": plays,
        "red_wins_if_blue_always_plays": {**alone, "a refusal (no model)": round(_refusing(game), 6)},
        "value_if_blue_hears_first": round(hearing.value, 9),
    }


def _refusing(game: Known) -> float:
    """What red wins by its best tactics against blue that refuses whatever it is asked, by the judge of the table."""
    bridge, table, pairings, speakers = game.bridge, game.bridge.table, [], {"refuse": always_refuse("refuse")}
    for goal, turns in enumerate(bridge.game.goals):
        for tactics in product(*(range(table.num_tactics(goal, turn)) for turn in range(table.num_exchanges))):
            name = f"red:{tactics}"
            speakers[name] = Speaker(name, bridge, Given([(tactic, 0) for tactic in tactics]))
            pairings.append(Pairing(red=name, blue="refuse", deal=Deal(turns), seed=0))
    paid = utilities(play(replace(bridge.game, judge=OfflineJudge()), speakers, pairings))
    places = [pairing.deal.goal.id for pairing in pairings]
    best = [max(pay for pay, place in zip(paid, places, strict=True) if place == goal.id) for goal in table.goals]
    return float(sum(table.goal_prob(index) * pay for index, pay in enumerate(best)))


def _exact_bars(game: Known) -> list[Bar]:
    """The truth by several ways."""
    table, context = game.bridge.table, exact_context(game.openspiel)
    found = loop.solve(double_oracle(), context).mixture
    apart = max(abs(paid - table.utility(path)) for path, paid in game.leaves.items())
    bars = [
        _at_most("true NashConv of the sequence-form program", game.nash_conv(BehaviourPolicy(game.solution)), 1e-6),
        _at_most("|value of the loop with exact cells - program|", abs(found.value - game.value), 1e-6),
        _at_most("true NashConv of the loop with exact cells", true_nash_conv(context, found), 1e-6),
        _at_most("|pay of a path in the environment - table|", apart, 1e-9),
    ]
    if table.num_exchanges == 1:
        means = _played_means(game)
        bars += [
            _at_most("|value - scipy's program on what was played|", abs(_program(game, means) - game.value), 1e-6),
            _at_most("|payoff of plans, played - OpenSpiel|", _matrix_error(game, means), 1e-9),
        ]
    return bars


def _hearing_bars(game: Known) -> list[Bar]:
    """Blue that hears first knows the goal where no two goals sound alike: with one exchange, a formula."""
    if game.bridge.table.num_exchanges > 1:
        context = exact_context(game.openspiel)
        found = loop.solve(double_oracle(), context).mixture
        return [_at_most("blue hears first, |value of the loop - program|", abs(found.value - game.value), 1e-6)]
    table = game.bridge.table
    formula = sum(table.goal_prob(goal) * mean.min(axis=1).max() for goal, mean in enumerate(_played_means(game)))
    return [_at_most("blue hears first, |value - its formula|", abs(formula - game.value), 1e-9)]


def _played_means(game: Known) -> list[np.ndarray]:
    """[tactics, prompts] of each goal: what the environment pays in one exchange, averaged over seeds."""
    table = game.bridge.table
    means = [np.zeros((table.num_tactics(goal, 0), len(table.prompts))) for goal in range(len(table.goals))]
    for (goal, tactic, prompt, _), paid in game.leaves.items():
        means[goal][tactic, prompt] += paid / table.num_seeds
    return means


def _program(game: Known, means: list[np.ndarray]) -> float:
    """The least that blue's mixture y of prompts loses: sum over goals of p_g t_g, where t_g >= tactic k's row times y."""
    table = game.bridge.table
    goals, prompts = len(table.goals), len(table.prompts)
    probs = [table.goal_prob(goal) for goal in range(goals)]
    rows = [np.r_[row, -np.eye(goals)[goal]] for goal, mean in enumerate(means) for row in mean]
    found = linprog(
        np.r_[np.zeros(prompts), probs],
        A_ub=np.array(rows),
        b_ub=np.zeros(len(rows)),
        A_eq=[np.r_[np.ones(prompts), np.zeros(goals)]],
        b_eq=[1.0],
        bounds=[(0, None)] * (prompts + goals),
    )
    return float(found.fun)


def _matrix_error(game: Known, means: list[np.ndarray]) -> float:
    """Over plans of red (a tactic for each goal) against each prompt; all constant plans, and some at random."""
    table, rng = game.bridge.table, np.random.default_rng(0)
    numbers = range(len(table.tactics[0]))
    plans = [dict.fromkeys(table.harmful, k) for k in numbers]
    plans += [{goal: int(rng.integers(len(numbers))) for goal in table.harmful} for _ in range(20)]
    worst = 0.0
    for plan in plans:
        red = BehaviourPolicy(
            {name: tuple(np.eye(len(numbers))[plan[state.node.path[0]]]) for name, state in game.states["red"].items()}
        )
        for prompt in range(len(table.prompts)):
            root, blue = game.openspiel.new_initial_state(), game.constant("blue", prompt)
            expected = policy_value(root, [red, blue])[0]
            played = sum(table.goal_prob(goal) * mean[plan.get(goal, 0), prompt] for goal, mean in enumerate(means))
            worst = max(worst, abs(played - expected))
    return worst


def _at_most(name: str, value: float, bar: float) -> Bar:
    return Bar(name, float(value), bar, at_least=False)


def _summary(game: Known, runs: list[sampled_loop.Run]) -> dict[str, Any]:
    """The first run, and what all of them have in common."""
    first = runs[0]
    return {
        "runs": len(runs),
        "dialogues_per_cell": sampled_loop.PER_CELL,
        "first_run": {
            "iterations": first.iterations,
            "members": list(first.members),
            "value": _written(first.by_deal),
            "value_clustered_by_goal": _written(first.by_goal),
            "nash_conv": _written(first.gains),
            "true_nash_conv_inside_and_whole": [round(total, 5) for total in first.nash_conv],
        },
        "iterations_mean": round(float(np.mean([run.iterations for run in runs])), 2),
        "value": _cover(runs, lambda run: run.by_deal, lambda _: game.value),
        "value_among_members": _cover(runs, lambda run: run.by_deal, lambda run: run.inside),
        "value_clustered_by_goal": _cover(runs, lambda run: run.by_goal, lambda _: game.value),
        "nash_conv_whole": _cover(runs, lambda run: run.gains, lambda run: run.nash_conv[1]),
        "nash_conv_inside": _cover(runs, lambda run: run.gains, lambda run: run.nash_conv[0]),
        "true_nash_conv_mean": round(float(np.mean([run.nash_conv[1] for run in runs])), 5),
        "true_nash_conv_whole_less_inside_most": float(max(run.nash_conv[1] - run.nash_conv[0] for run in runs)),
    }


def _sampled_bars(game: Known, runs: list[sampled_loop.Run]) -> list[Bar]:
    """Whether what the loop reports holds."""
    found = _summary(game, runs)
    return [
        Bar("the first sampled loop's interval holds the exact value", float(_holds(runs[0].by_deal, game.value)), 1.0),
        *(
            Bar(f"cover of {title} over {len(runs)} sampled loops", found[key]["cover"], 0.93)
            for key, title in (
                ("value", "the exact value"),
                ("value_clustered_by_goal", "the exact value, clustered by goal"),
                ("nash_conv_whole", "the mixture's NashConv in the whole game"),
            )
        ),
    ]


def _cover(
    runs: list[sampled_loop.Run],
    interval: Callable[[sampled_loop.Run], Interval],
    truth: Callable[[sampled_loop.Run], float],
) -> dict[str, float]:
    """How often an interval holds, and how wide it is."""
    held = [_holds(interval(run), truth(run)) for run in runs]
    error = [interval(run).value - truth(run) for run in runs]
    width = [interval(run).high - interval(run).low for run in runs]
    return {
        "cover": round(float(np.mean(held)), 4),
        "width": round(float(np.median(width)), 5),
        "error_mean": round(float(np.mean(error)), 5),
    }


def _holds(interval: Interval, truth: float) -> bool:
    return interval.low - 1e-9 <= truth <= interval.high + 1e-9


def _written(interval: Interval) -> list[float]:
    return [round(float(number), 5) for number in (interval.low, interval.value, interval.high)]


SECTIONS: dict[str, Callable[[Options], Section]] = {"model": model}
