"""Exact best responses in games that OpenSpiel can enumerate: the loop with nothing estimated.

Any two-player game of OpenSpiel whose utilities sum to 0 will do: player 0 is red, player 1 blue. Payoff cells are
expected values, best responses are OpenSpiel's, so that the loop is double oracle (McMahan et al. 2003) and ends at a
Nash equilibrium of the whole game.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from rtg_env.types import Role
from rtg_solvers.empirical import Mixture
from rtg_solvers.loop import Context, Method, Schedule, Task
from rtg_solvers.meta_solvers import nash
from rtg_solvers.oracles.members import MembersInMemory
from rtg_solvers.payoffs import Cell, PayoffTensor, Samples

PLAYER: Final[Mapping[Role, int]] = {"red": 0, "blue": 1}
_TOLERANCE: Final = 1e-9
"""A best response that gains less is none."""


@dataclass(frozen=True, slots=True, eq=False)
class Strategy:
    """A member: a policy of the whole game, of which one side is used."""

    version: str
    role: Role
    policy: Any
    """OpenSpiel's."""


class Strategies(MembersInMemory[Strategy]):
    """The members of both sides, and what they win against each other.

    Args:
        game: Of OpenSpiel.
        start: First policy of each side; default: uniformly random.
    """

    def __init__(self, game: Any, start: Mapping[Role, Any] | None = None) -> None:
        from open_spiel.python.policy import UniformRandomPolicy

        self.game = game
        super().__init__()
        uniform = UniformRandomPolicy(game)
        for role in PLAYER:
            policy = (start or {}).get(role, uniform)
            self.extend([Strategy(self.next_version(role), role, policy)])

    def play_cells(self, wanted: Mapping[Cell, int]) -> dict[Cell, Samples]:
        """The exact expected utility of each pair, as one dialogue."""
        return {cell: self._exact(cell) for cell in wanted}

    def _exact(self, cell: Cell) -> Samples:
        from open_spiel.python.algorithms.expected_game_score import policy_value

        policies = [self._members[cell.red].policy, self._members[cell.blue].policy]
        value = policy_value(self.game.new_initial_state(), policies)[0]
        return Samples(utilities=np.array([value]), goal_ids=("exact",), harmful=np.array([True]))

    def aggregated(self, mixture: Mixture) -> Any:
        """One policy that plays as a mixture does: a member is drawn once and kept.

        Args:
            mixture: Over members; those that came later play no part in it.
        """
        from open_spiel.python.algorithms.policy_aggregator import PolicyAggregator

        names = (mixture.red_names, mixture.blue_names)
        policies = [[self._members[name].policy for name in side] for side in names]
        return PolicyAggregator(self.game).aggregate([0, 1], policies, [list(mixture.red), list(mixture.blue)])


class ExactOracle:
    """The best response to a mixture, if it gains anything."""

    def respond(self, task: Task[ExactContext]) -> Strategy | None:
        """A deterministic policy; None where the mixture leaves nothing to gain."""
        from open_spiel.python.algorithms.best_response import BestResponsePolicy

        strategies, player = task.context.strategies, PLAYER[task.role]
        best = BestResponsePolicy(strategies.game, player, strategies.aggregated(task.mixture))
        value = best.value(strategies.game.new_initial_state())
        sign = 1.0 if task.role == "red" else -1.0
        if value - sign * task.mixture.expected <= _TOLERANCE:
            return None
        return Strategy(task.version, task.role, best)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExactContext(Context):
    """A run on an enumerated game."""

    strategies: Strategies
    """The populations."""


def exact_context(game: Any, start: Mapping[Role, Any] | None = None) -> ExactContext:
    """A run on a game of OpenSpiel, nothing played yet."""
    strategies = Strategies(game, start)
    return ExactContext(
        population=strategies,
        play_cells=strategies.play_cells,
        bounds=(game.min_utility(), game.max_utility()),
        strategies=strategies,
    )


def until_nothing_is_found(most: int, *, least: int = 0) -> Schedule:
    """Both sides learn until neither population has grown.

    Args:
        most: Iterations at the most.
        least: Iterations at the least, whether populations grow or not: while a bonus is lowered, they may grow again.
    """
    sizes: list[tuple[int, int]] = []

    def schedule(k: int, payoffs: PayoffTensor) -> Sequence[tuple[Role, ...]]:
        sizes.append((len(payoffs.red), len(payoffs.blue)))
        grown = k == 0 or k < least or sizes[-1] != sizes[-2]
        return [("red", "blue")] if grown and k < most else []

    return schedule


def double_oracle(most: int = 200) -> Method[ExactContext]:
    """The loop with exact oracles and the linear program."""
    oracle = ExactOracle()
    return Method(meta_solver=nash, oracles={"red": oracle, "blue": oracle}, schedule=until_nothing_is_found(most))


def true_nash_conv(context: ExactContext, mixture: Mixture) -> float:
    """NashConv of a mixture in the whole game, by OpenSpiel: that of a solution, or of an iteration on the way.

    Args:
        context: The run that the mixture is of.
        mixture: Over members of that run.

    Returns:
        Sum of both sides' gains, in utility; the exploitability is half of it.
    """
    from open_spiel.python.algorithms import exploitability

    return float(exploitability.nash_conv(context.strategies.game, context.strategies.aggregated(mixture)))
