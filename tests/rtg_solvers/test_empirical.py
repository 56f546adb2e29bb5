"""Mixtures from payoffs: hand-solved games, OpenSpiel against scipy, and broken matrices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtg_env.errors import PayoffShapeError
from rtg_solvers.empirical import nash_conv, solve_zero_sum
from rtg_solvers.meta_solvers import nash
from tests.games import scipy_value, tensor


def test_matching_pennies_is_solved_by_hand_values() -> None:
    solution = solve_zero_sum(np.array([[1.0, -1.0], [-1.0, 1.0]]))
    assert solution.value == pytest.approx(0.0, abs=1e-9)
    assert solution.row == pytest.approx([0.5, 0.5], abs=1e-9)
    assert solution.column == pytest.approx([0.5, 0.5], abs=1e-9)


def test_attack_success_game_is_solved_by_hand_values() -> None:
    # .8p + .3(1-p) = .2p + .6(1-p) gives p = 1/3; .8q + .2(1-q) = .3q + .6(1-q) gives q = 4/9; value 7/15.
    solution = solve_zero_sum(np.array([[0.8, 0.2], [0.3, 0.6]]))
    assert solution.row == pytest.approx([1 / 3, 2 / 3], abs=1e-9)
    assert solution.column == pytest.approx([4 / 9, 5 / 9], abs=1e-9)
    assert solution.value == pytest.approx(7 / 15, abs=1e-9)


def test_the_published_seas_cross_play_has_its_saddle_at_the_last_pair() -> None:
    # SEAS, arXiv:2408.02632: rows R0..R3, columns T0..T3, attack success in percent.
    seas = np.array(
        [
            [54.89, 16.44, 6.33, 3.12],
            [88.21, 59.02, 14.55, 7.08],
            [91.28, 90.55, 51.47, 24.92],
            [95.17, 97.06, 92.93, 73.97],
        ]
    )
    solution = solve_zero_sum(seas)
    assert solution.value == pytest.approx(73.97, abs=1e-6)
    assert nash_conv(seas, np.eye(4)[0], np.eye(4)[0]).total == pytest.approx(92.05, abs=1e-9)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize(
    "matrix",
    [
        np.zeros((3, 3)),
        np.full((2, 5), 0.25),
        np.array([[0.1, 0.7, 0.3]]),
        np.array([[0.1], [0.7]]),
        np.array([[0.0, 1.0, -1.0], [-1.0, 0.0, 1.0], [1.0, -1.0, 0.0], [0.0, 1.0, -1.0]]),
    ],
)
def test_degenerate_games_are_solved_at_any_scale(matrix: np.ndarray, scale: float) -> None:
    solution = solve_zero_sum(scale * matrix)
    assert nash_conv(scale * matrix, solution.row, solution.column).total <= 1e-8 * scale
    assert solution.value == pytest.approx(scale * scipy_value(matrix), abs=1e-8 * scale)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 10_000))
def test_openspiel_agrees_with_an_independent_linear_program(rows: int, columns: int, seed: int) -> None:
    matrix = np.random.default_rng(seed).normal(size=(rows, columns))
    solution = solve_zero_sum(matrix)
    assert solution.value == pytest.approx(scipy_value(matrix), abs=1e-8)
    assert solution.row.sum() == pytest.approx(1.0)
    assert solution.column.min() >= 0.0
    assert nash_conv(matrix, solution.row, solution.column).total <= 1e-8


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(-5, 5))
def test_shifting_payoffs_moves_the_value_and_nothing_else(seed: int, shift: float) -> None:
    matrix = np.random.default_rng(seed).normal(size=(4, 3))
    before, after = solve_zero_sum(matrix), solve_zero_sum(matrix + shift)
    assert after.value == pytest.approx(before.value + shift, abs=1e-7)
    assert nash_conv(matrix, after.row, after.column).total <= 1e-6


def test_openspiel_is_left_as_it_was_found() -> None:
    from open_spiel.python.algorithms import lp_solver

    before = lp_solver.LinearProgram.solve.__defaults__
    solve_zero_sum(np.eye(2))
    assert lp_solver.LinearProgram.solve.__defaults__ == before


def test_nash_conv_splits_into_the_gains_of_both_sides() -> None:
    # Row plays 1, column plays 1 in [[1, 0], [2, 3]]: row gains 2 - 1, column gains 1 - 0.
    found = nash_conv(np.array([[1.0, 0.0], [2.0, 3.0]]), [1, 0], [1, 0])
    assert (found.row_gain, found.column_gain, found.total) == (1.0, 1.0, 2.0)


@pytest.mark.parametrize(
    ("matrix", "match"),
    [
        (np.array([[1.0, np.nan]]), "row 1, column 2"),
        (np.array([[np.inf]]), "finite"),
        (np.empty((0, 2)), "at least one"),
        (np.ones(3), "shape"),
    ],
)
def test_broken_matrices_are_refused(matrix: np.ndarray, match: str) -> None:
    with pytest.raises(PayoffShapeError, match=match):
        solve_zero_sum(matrix)


@pytest.mark.parametrize(
    ("row", "column"), [([0.5, 0.6], [1, 0]), ([1.2, -0.2], [1, 0]), ([1], [1, 0]), ([1, 0], [np.nan, 1])]
)
def test_mixtures_that_are_none_are_refused(row: list[float], column: list[float]) -> None:
    with pytest.raises(PayoffShapeError):
        nash_conv(np.eye(2), row, column)


def test_the_nash_meta_solver_reads_the_means() -> None:
    mixture = nash(tensor([[0.8, 0.2], [0.3, 0.6]]), None, np.random.default_rng(0))
    assert mixture.value == pytest.approx(7 / 15)
    assert mixture.red == pytest.approx([1 / 3, 2 / 3])
    assert mixture.diagnostics["nash_conv_in_matrix"] == pytest.approx(0.0, abs=1e-9)


def test_draws_follow_the_mixture() -> None:
    mixture = nash(tensor([[0.8, 0.2], [0.3, 0.6]]), None, np.random.default_rng(0))
    rng = np.random.default_rng(1)
    share = np.mean([mixture.draw("red", rng) == "r0" for _ in range(3000)])
    assert share == pytest.approx(1 / 3, abs=0.04)
