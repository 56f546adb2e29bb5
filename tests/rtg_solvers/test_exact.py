"""The loop with nothing estimated: it ends at an equilibrium of the whole game, along the published curve."""

from __future__ import annotations

import numpy as np
import pytest

pyspiel = pytest.importorskip("pyspiel")

from rtg_solvers import loop, tabular  # noqa: E402
from rtg_solvers.oracles.exact import (  # noqa: E402
    ExactOracle,
    double_oracle,
    exact_context,
    true_nash_conv,
    until_nothing_is_found,
)
from rtg_solvers.tabular import TableSettings  # noqa: E402
from tests.games import tensor  # noqa: E402


@pytest.mark.parametrize(
    "settings",
    [
        TableSettings(num_exchanges=1, num_goals=3, num_tactics=3, num_styles=4),
        TableSettings(num_exchanges=2),
        TableSettings(num_exchanges=3, num_goals=1, num_styles=2),
    ],
    ids=["one", "two", "three"],
)
def test_the_loop_ends_at_the_equilibrium_of_a_dialogue_game(settings: TableSettings) -> None:
    game = tabular.load(settings)
    context = exact_context(game)
    solution = loop.solve(double_oracle(), context)
    assert true_nash_conv(context, solution.mixture) <= 1e-6
    assert solution.mixture.value == pytest.approx(tabular.exact_value(game), abs=1e-8)
    assert solution.mixture.expected == pytest.approx(solution.mixture.value, abs=1e-8)


def test_kuhn_poker_goes_along_the_published_curve() -> None:
    context = exact_context(pyspiel.load_game("kuhn_poker"))
    solution = loop.solve(double_oracle(), context)
    mixtures = [iteration.mixture for iteration in solution.iterations]
    curve = [true_nash_conv(context, mixture) / 2 for mixture in mixtures]
    assert curve == pytest.approx([0.4583, 0.4167, 0.1667, 0.1, 0.0833, 0.0321, 0.0], abs=6e-5)
    assert solution.mixture.value == pytest.approx(-1 / 18, abs=1e-9)


def test_an_exact_oracle_finds_nothing_where_nothing_can_be_gained() -> None:
    context = exact_context(tabular.load(TableSettings(num_exchanges=1)))
    solution = loop.solve(double_oracle(), context)
    assert solution.iterations[-1].new == ()
    for role in ("red", "blue"):
        task = loop.Task(
            role=role,
            iteration=9,
            version="x",
            mixture=solution.mixture,
            payoffs=solution.payoffs,
            context=context,
        )
        assert ExactOracle().respond(task) is None


def test_the_schedule_ends_when_neither_side_has_grown_or_patience_has() -> None:
    schedule = until_nothing_is_found(3)
    one, two = tensor([[0.0]]), tensor([[0.0, 1.0]])
    assert schedule(0, one) == [("red", "blue")]
    assert schedule(1, two) == [("red", "blue")]
    assert schedule(2, two) == []
    limited = until_nothing_is_found(1)
    assert limited(0, one)
    assert not limited(1, two)


def test_a_matrix_game_is_solved_step_by_step_as_by_hand() -> None:
    """Rock, paper, scissors with a second action that loses to all, from rock against rock.

    Rock is answered by paper on both sides; paper by scissors (the restricted game of rock and paper has its saddle at
    paper); then the three are complete, the loop finds nothing more, and nobody ever plays the fourth.
    """
    rps = np.array([[0.0, -1, 1, 1], [1, 0, -1, 1], [-1, 1, 0, 1], [-1, -1, -1, 0]])
    game = pyspiel.convert_to_turn_based(pyspiel.create_matrix_game(rps, -rps))
    start = pyspiel_pure(game, 0)
    context = exact_context(game, {"red": start, "blue": start})
    solution = loop.solve(double_oracle(), context)
    assert [len(iteration.new) for iteration in solution.iterations] == [2, 2, 0]
    assert solution.payoffs.mean.tolist() == [[0, -1, 1], [1, 0, -1], [-1, 1, 0]]
    assert solution.mixture.red == pytest.approx(np.full(3, 1 / 3))
    assert true_nash_conv(context, solution.mixture) == pytest.approx(0.0, abs=1e-9)


def pyspiel_pure(game, action: int):
    from open_spiel.python.policy import TabularPolicy

    policy = TabularPolicy(game)
    policy.action_probability_array[:] = np.eye(policy.action_probability_array.shape[1])[action]
    return policy


def test_a_schedule_with_a_least_number_of_iterations_waits_for_them() -> None:
    schedule = until_nothing_is_found(9, least=3)
    assert [bool(schedule(k, tensor([[0.0]]))) for k in range(4)] == [True, True, True, False]
