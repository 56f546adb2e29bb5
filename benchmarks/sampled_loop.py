"""The loop on a game of cached replies, with exact best responses and payoffs from dialogues that chance draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, NamedTuple

import numpy as np
from known_game import BehaviourPolicy, Known
from open_spiel.python.algorithms.best_response import BestResponsePolicy

from rtg_env.types import Role
from rtg_solvers import Pairing, draw_pairings, loop, play
from rtg_solvers.agreement import Interval
from rtg_solvers.cached_play import Behaviour, behaviour_of
from rtg_solvers.empirical import Mixture, nash_conv, solve_zero_sum
from rtg_solvers.gaps import deviating
from rtg_solvers.intervals import gain_interval, payoff_value_interval
from rtg_solvers.meta_solvers import nash
from rtg_solvers.oracles.exact import PLAYER, ExactContext, Strategies, Strategy, until_nothing_is_found
from rtg_solvers.payoffs import Cell, PayoffTensor, Samples
from rtg_solvers.rollout import utilities
from rtg_solvers.seeding import rng_for

PER_CELL: Final = 192
"""Dialogues of a payoff cell, and of each deviation afterwards."""

_MOST: Final = 40
"""Iterations at the most."""


class SampledStrategies(Strategies):
    """Populations of a cached game whose payoffs are played in the environment: red begins plainly, blue as it is.

    Args:
        known: The game.
        seed: Of the dialogues.
    """

    def __init__(self, known: Known, seed: int) -> None:
        super().__init__(known.openspiel, {"red": known.constant("red", 0), "blue": known.constant("blue", 0)})
        self.known, self.seed = known, seed
        self._plays: dict[str, dict[str, tuple[float, ...]]] = {}
        self._mixed: tuple[Mixture, Any] | None = None

    def aggregated(self, mixture: Mixture) -> Any:
        """As the base class does; both sides ask for the same mixture in turn."""
        if self._mixed is None or self._mixed[0] is not mixture:
            self._mixed = mixture, super().aggregated(mixture)
        return self._mixed[1]

    def plays(self, version: str) -> dict[str, tuple[float, ...]]:
        """What a member does where its own choices let it come."""
        if version not in self._plays:
            member = self[version]
            self._plays[version] = _reduced(self.known, member.role, member.policy.behaviour)
        return self._plays[version]

    def play_cells(self, wanted: Mapping[Cell, int]) -> dict[Cell, Samples]:
        """Every cell on a prefix of the same deals."""
        most = max(wanted.values())
        deals = draw_pairings(
            self.known.bridge.game, rng_for(self.seed, "cells"), count=most, red=lambda _: "", blue=lambda _: ""
        )
        pairings = {
            cell: [replace(deal, red=cell.red, blue=cell.blue) for deal in deals[:count]]
            for cell, count in wanted.items()
        }
        paid = self.paid([pairing for chosen in pairings.values() for pairing in chosen])
        found, begin = {}, 0
        for cell, chosen in pairings.items():
            goals = [pairing.deal.goal for pairing in chosen]
            found[cell] = Samples(
                utilities=paid[begin : begin + len(chosen)],
                goal_ids=tuple(goal.id for goal in goals),
                harmful=np.array([goal.harmful for goal in goals]),
            )
            begin += len(chosen)
        return found

    def paid(self, pairings: list[Pairing]) -> np.ndarray:
        """[N] u_red of dialogues between members."""
        bridge, members = self.known.bridge, self._members
        speakers = {name: bridge.speaker(name, member.policy.behaviour) for name, member in members.items()}
        return utilities(play(bridge.game, speakers, pairings))

    def exact(self, red: str, blue: str) -> float:
        """What red's member wins against blue's on average, from the table."""
        return self.known.bridge.expected_utility(self[red].policy.behaviour, self[blue].policy.behaviour)


class NewBestResponse:
    """The best response to a mixture, unless it is a member: payoffs with noise do not tell what it gains."""

    def respond(self, task: loop.Task[ExactContext]) -> Strategy | None:
        """A deterministic policy; None if a member plays as it does."""
        strategies: Any = task.context.strategies
        known, role = strategies.known, task.role
        best = BestResponsePolicy(known.openspiel, PLAYER[role], strategies.aggregated(task.mixture))
        behaviour = behaviour_of(best, known.states[role])
        played = _reduced(known, role, behaviour)
        if any(strategies.plays(name) == played for name in strategies.names(role)):
            return None
        return Strategy(task.version, role, BehaviourPolicy(behaviour))


def _reduced(known: Known, role: Role, behaviour: Behaviour) -> dict[str, tuple[float, ...]]:
    """A policy without what it would do where its own choices never let it come."""
    found: dict[str, tuple[float, ...]] = {}
    waiting = [known.openspiel.new_initial_state()]
    while waiting:
        state = waiting.pop()
        actions = state.legal_actions()
        if state.current_player() == PLAYER[role]:
            name = state.information_state_string(PLAYER[role])
            found[name] = tuple(behaviour[name])
            actions = [action for action in actions if found[name][action]]
        waiting += [state.child(action) for action in actions]
    return found


class Run(NamedTuple):
    """A sampled loop held against the truth."""

    iterations: int
    """Until neither side found a new best response."""

    members: tuple[int, int]
    """Of red and of blue."""

    inside: float
    """Value of the true game among the members."""

    by_deal: Interval
    """Of the value."""

    by_goal: Interval
    """Of the value, as a run reports it."""

    nash_conv: tuple[float, float]
    """Of the final mixture in truth: among the members, and in the whole game."""

    gains: Interval
    """NashConv among the members, from fresh dialogues."""


def run(known: Known, seed: int) -> Run:
    strategies = SampledStrategies(known, seed)
    oracle = NewBestResponse()
    method = loop.Method(
        meta_solver=nash, oracles={"red": oracle, "blue": oracle}, schedule=until_nothing_is_found(_MOST)
    )
    context = ExactContext(
        population=strategies,
        play_cells=strategies.play_cells,
        dialogues_per_cell=PER_CELL,
        bounds=(0.0, known.bridge.game.config.max_utility),
        seed=seed,
        strategies=strategies,
    )
    solution = loop.solve(method, context)
    mixture, payoffs = solution.mixture, solution.payoffs
    exact = np.array([[strategies.exact(r, b) for b in payoffs.blue] for r in payoffs.red])
    return Run(
        iterations=len(solution.iterations),
        members=(len(payoffs.red), len(payoffs.blue)),
        inside=solve_zero_sum(exact).value,
        by_deal=payoff_value_interval(_by_deal(payoffs)),
        by_goal=payoff_value_interval(payoffs),
        nash_conv=(
            nash_conv(exact, mixture.red, mixture.blue).total,
            known.nash_conv(strategies.aggregated(mixture)),
        ),
        gains=_gains(strategies, mixture, seed),
    )


def _by_deal(payoffs: PayoffTensor) -> PayoffTensor:
    """As if every deal were on a goal of its own: chance draws among the table's goals and no others."""
    samples = {
        cell: replace(found, goal_ids=tuple(str(number) for number in range(found.utilities.size)))
        for cell, found in payoffs.samples.items()
    }
    return replace(payoffs, samples=samples)


def _gains(strategies: SampledStrategies, mixture: Mixture, seed: int) -> Interval:
    """NashConv from fresh dialogues: every member against the other side's mixture, on the same deals."""
    game = strategies.known.bridge.game
    base = draw_pairings(
        game,
        rng_for(seed, "fresh"),
        count=PER_CELL,
        red=lambda rng: mixture.draw("red", rng),
        blue=lambda rng: mixture.draw("blue", rng),
    )
    sides: tuple[Role, Role] = ("red", "blue")
    rows = [[deviating(p, role, name) for p in base] for role in sides for name in strategies.names(role)]
    paid = strategies.paid([pairing for row in rows for pairing in row]).reshape(len(rows), -1)
    red, blue = np.split(paid, [len(strategies.names("red"))])
    deals = [str(number) for number in range(PER_CELL)]
    return gain_interval(red, blue, deals, bounds=(0.0, game.config.max_utility))
