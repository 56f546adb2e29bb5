"""The loop on plain matrices: by hand, with noise, with handicaps, and with a price on being different."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("pyspiel")

from rtg_env.errors import ConfigError, PayoffShapeError
from rtg_solvers import loop
from rtg_solvers.meta_solvers import latest, nash, uniform
from rtg_solvers.oracles.matrix import MatrixOracle, matrix_context, matrix_method
from rtg_solvers.payoffs import Cell
from tests.games import scipy_value

ROCK = np.array([[0.0, -1, 1, 1], [1, 0, -1, 1], [-1, 1, 0, 1], [-1, -1, -1, 0]])
"""Rock, paper, scissors, and a fourth action that loses to all."""


def solved(payoff, meta=nash, oracle=None, *, most=60, **changes):
    context = matrix_context(np.asarray(payoff, dtype=float), **changes)
    return context, loop.solve(matrix_method(meta, oracle, most=most), context)


def test_double_oracle_goes_from_rock_to_all_three_and_never_to_the_loser() -> None:
    context, solution = solved(ROCK)
    # Rock is answered by paper; in {rock, paper} the saddle is paper, answered by scissors; then nothing gains.
    assert [len(iteration.new) for iteration in solution.iterations] == [2, 2, 0]
    assert context.members.played(solution.mixture).red == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])
    conv = [context.members.nash_conv(iteration.mixture).total for iteration in solution.iterations]
    assert conv == pytest.approx([2.0, 2.0, 0.0], abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_random_games_are_solved_without_all_their_actions(seed: int) -> None:
    payoff = np.random.default_rng(seed).normal(size=(15, 12))
    context, solution = solved(payoff)
    assert solution.mixture.value == pytest.approx(scipy_value(payoff), abs=1e-8)
    assert context.members.nash_conv(solution.mixture).total <= 1e-8


def test_noisy_cells_pay_all_or_nothing_around_the_truth_and_longer_plays_begin_alike() -> None:
    context, solution = solved([[0.2, 0.7], [0.6, 0.4]], start={"red": 1}, dialogues_per_cell=400, most=2)
    few, many = (context.members.dialogues(Cell("red_00@v1", "blue_00@v1"), count) for count in (50, 4000))
    assert set(many.utilities) == {0.2, 0.7}
    assert few.utilities.tolist() == many.utilities[:50].tolist()
    assert many.utilities.mean() == pytest.approx(0.6, abs=0.02)
    assert set(many.goal_ids) == {f"dialogue-{index}" for index in range(4000)}
    assert context.members.num_dialogues == 400 * (solution.payoffs.mean.size - 1) + 4000


def test_nearly_best_responses_are_drawn_among_all_that_are_near() -> None:
    payoff = np.array([[0.0], [0.5], [0.95], [1.0]])
    found = set()
    for seed in range(8):
        context, _ = solved(payoff, oracle=MatrixOracle(epsilon=0.1), most=1, seed=seed)
        found.add(int(context.members.weights(["red_01@v1"]).argmax()))
    assert found == {2, 3}


def test_a_learner_of_rate_one_half_goes_half_the_way_from_its_newest_member() -> None:
    context, _ = solved(ROCK, latest, MatrixOracle(rate=0.5), most=2)
    weights = context.members.weights(context.members.names("red"))
    # Rock; half way to paper; blue is there too, half rock and half paper: paper wins 1/2, so half way again.
    assert weights.tolist() == [[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.25, 0.75, 0, 0]]


def test_fictitious_play_counts_repeats_and_drifts_to_the_equilibrium() -> None:
    context, solution = solved(ROCK[:3, :3], uniform, MatrixOracle(repeats=True), most=36)
    played = context.members.played(solution.mixture)
    assert len(solution.payoffs.red) > 30
    assert played.red == pytest.approx(np.full(3, 1 / 3), abs=0.15)
    assert context.members.nash_conv(solution.mixture).total < 0.6


def distance(role, own):
    """1 for actions that are no member yet, 0 for members."""
    return 1.0 - own.max(axis=0)


def preference(role, own):
    """Always the last action, member or not."""
    return np.eye(own.shape[1])[-1]


def test_a_bonus_that_vanishes_on_members_still_ends_at_an_equilibrium() -> None:
    for weight in (0.1, 1.0, 10.0):
        oracle = MatrixOracle(bonus=distance, bonus_weight=lambda _, w=weight: w)
        context, solution = solved(ROCK, oracle=oracle)
        assert context.members.nash_conv(solution.mixture).total == pytest.approx(0.0, abs=1e-9)


def test_a_bonus_that_stays_ends_within_its_weight_times_its_range() -> None:
    # One column: red's first action wins 1, the last 0.9. With a weight of 0.3 on the last, red stops there, 0.1 short;
    # with 0.05 it finds the first.
    payoff = np.array([[0.0], [1.0], [0.9]])
    for weight, short in ((0.3, 0.1), (0.05, 0.0)):
        oracle = MatrixOracle(bonus=preference, bonus_weight=lambda _, w=weight: w)
        context, solution = solved(payoff, oracle=oracle)
        assert context.members.nash_conv(solution.mixture).total == pytest.approx(short, abs=1e-9)
        assert short <= weight


@pytest.mark.parametrize("wrong", [{"epsilon": -0.1}, {"rate": 0.0}, {"rate": 1.5}])
def test_handicaps_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="epsilon >= 0 and rate"):
        MatrixOracle(**wrong)


def test_games_that_are_none_are_refused() -> None:
    with pytest.raises(PayoffShapeError):
        matrix_context(np.array([[np.nan]]))
    with pytest.raises(PayoffShapeError, match="first strategy over 4 actions"):
        matrix_context(ROCK, {"red": 4})
    with pytest.raises(PayoffShapeError, match="blue"):
        matrix_context(ROCK, {"blue": np.array([0.5, 0.4, 0.0, 0.0])})
    with pytest.raises(ConfigError, match="dialogues_per_cell"):
        matrix_context(ROCK, dialogues_per_cell=-1)
