"""Meta-solvers: games solved by hand, what each promises, and OpenSpiel against an independent linear program."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtg_env.errors import ConfigError, PayoffShapeError
from rtg_solvers import meta_solvers
from rtg_solvers.empirical import nash_conv, solve_zero_sum
from rtg_solvers.meta_solvers import META_SOLVERS, logit, logit_equilibrium, meta_solver, nash
from tests.games import scipy_value, tensor

RNG = np.random.default_rng(0)
PENNIES = [[1.0, -1.0], [-1.0, 1.0]]
ROCK = [[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]
DOMINANT = [[0.5, 0.9], [0.1, 0.4]]
"""Red's first row beats its second, blue's first column its second: (0, 0), worth 0.5."""

EQUILIBRIUM = [name for name in META_SOLVERS if name not in ("uniform", "latest", "alpha-rank", "logit")]


def solved(name: str, matrix):
    return META_SOLVERS[name](tensor(matrix), None, np.random.default_rng(0))


@pytest.mark.parametrize("name", EQUILIBRIUM)
@pytest.mark.parametrize("matrix", [PENNIES, ROCK], ids=["pennies", "rock"])
def test_cyclic_games_are_mixed_alike(name: str, matrix: list[list[float]]) -> None:
    mixture = solved(name, matrix)
    for weights in (mixture.red, mixture.blue):
        assert weights == pytest.approx(np.full(len(matrix), 1 / len(matrix)), abs=0.02)
    assert mixture.value == pytest.approx(0.0, abs=1e-9)
    assert mixture.expected == pytest.approx(0.0, abs=0.02)


@pytest.mark.parametrize("name", [*EQUILIBRIUM, "alpha-rank"])
def test_dominated_members_are_not_prepared_for(name: str) -> None:
    mixture = solved(name, DOMINANT)
    assert mixture.red[0] > 0.98
    assert mixture.blue[0] > 0.98
    assert mixture.value == pytest.approx(0.5, abs=1e-9)
    assert mixture.expected == pytest.approx(0.5, abs=0.01)


def test_alpha_rank_gives_cyclic_members_the_same_mass() -> None:
    mixture = solved("alpha-rank", ROCK)
    assert mixture.red == pytest.approx([1 / 3] * 3, abs=1e-6)
    assert mixture.blue == pytest.approx([1 / 3] * 3, abs=1e-6)


def test_alpha_rank_takes_a_single_pair() -> None:
    assert solved("alpha-rank", [[0.3]]).expected == pytest.approx(0.3)


@pytest.mark.parametrize("name", EQUILIBRIUM)
def test_approximate_solvers_reach_the_value_of_random_games(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meta_solvers, "_LEARNING_STEPS", 3000)
    for seed in range(20 if name == "regret-matching" else 6):
        rng = np.random.default_rng(seed)
        matrix = rng.normal(size=rng.integers(2, 7, 2)) * 10.0 ** rng.integers(-6, 7)
        mixture = solved(name, matrix)
        assert mixture.diagnostics["nash_conv_in_matrix"] <= 0.05 * np.ptp(matrix)
        assert abs(mixture.expected - scipy_value(matrix)) <= 0.03 * np.ptp(matrix)


def test_uniform_and_latest_say_so_and_still_report_the_value_of_the_game() -> None:
    matrix = [[0.8, 0.2], [0.3, 0.6]]
    alike, newest = solved("uniform", matrix), solved("latest", matrix)
    assert alike.red.tolist() == [0.5, 0.5]
    assert alike.expected == pytest.approx((0.8 + 0.2 + 0.3 + 0.6) / 4)
    assert (newest.red.tolist(), newest.blue.tolist(), newest.expected) == ([0.0, 1.0], [0.0, 1.0], 0.6)
    assert alike.value == newest.value == pytest.approx(7 / 15)
    assert alike.diagnostics["nash_conv_in_matrix"] == pytest.approx(0.5 - 0.4)  # red's first row, blue's second column


def test_logit_weighs_by_payoff_over_tau() -> None:
    red, blue = logit_equilibrium(np.array([[1.0], [0.0]]), 1.0)
    assert red == pytest.approx([np.e / (1 + np.e), 1 / (1 + np.e)])
    assert blue == pytest.approx([1.0])


def test_logit_shares_alike_among_equal_members_where_a_vertex_takes_one() -> None:
    mixture = logit(tensor([*ROCK, ROCK[0]]), None, RNG, tau=0.002)
    assert mixture.red == pytest.approx([1 / 6, 1 / 3, 1 / 3, 1 / 6], abs=2e-3)
    vertex = nash(tensor([*ROCK, ROCK[0]]), None, RNG)
    assert min(vertex.red[0], vertex.red[3]) == pytest.approx(0.0, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 10_000), st.sampled_from([1.0, 0.1, 0.02, 0.005]))
def test_logit_is_the_fixed_point_and_within_its_entropy_of_nash(
    rows: int, columns: int, seed: int, tau: float
) -> None:
    rng = np.random.default_rng(seed)
    matrix = rng.choice([0.0, 0.5, 1.0], size=(rows, columns)) if seed % 2 else rng.random((rows, columns))
    red, blue = logit_equilibrium(matrix, tau)
    for own, payoff in ((red, matrix @ blue), (blue, -(red @ matrix))):
        weights = np.exp((payoff - payoff.max()) / tau)
        assert own == pytest.approx(weights / weights.sum(), abs=1e-7)
    assert nash_conv(matrix, red, blue).total <= tau * (np.log(rows) + np.log(columns)) + 1e-9


def test_logit_solves_large_and_extreme_games() -> None:
    for matrix in (np.random.default_rng(0).random((100, 100)), 1e6 * np.eye(30), np.zeros((4, 7))):
        unit = (matrix - matrix.min()) / (np.ptp(matrix) or 1.0)
        red, blue = logit_equilibrium(unit, 0.02)
        bound = 0.02 * (np.log(len(red)) + np.log(len(blue)))
        assert nash_conv(unit, red, blue).total <= bound


def test_logit_needs_a_price_of_entropy() -> None:
    with pytest.raises(ConfigError, match="tau > 0"):
        logit_equilibrium(np.eye(2), 0.0)


@pytest.mark.parametrize("name", META_SOLVERS)
def test_every_solver_answers_with_distributions_over_the_members(name: str) -> None:
    mixture = solved(name, np.random.default_rng(3).random((3, 4)))
    assert (mixture.red_names, mixture.blue_names) == (("r0", "r1", "r2"), ("b0", "b1", "b2", "b3"))
    for weights in (mixture.red, mixture.blue):
        assert weights.min() >= 0.0
        assert weights.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("name", META_SOLVERS)
def test_every_solver_names_a_cell_without_a_verdict(name: str) -> None:
    with pytest.raises(PayoffShapeError, match="r0 against b1"):
        solved(name, [[0.8, float("nan")]])


@pytest.mark.parametrize("name", META_SOLVERS)
def test_no_solver_moves_a_global_generator(name: str) -> None:
    np.random.seed(0)  # noqa: NPY002 - the legacy generator, to see that nobody draws from it
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    solved(name, [[0.8, 0.2], [0.3, 0.6]])
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def test_an_unknown_name_is_answered_with_those_that_exist() -> None:
    with pytest.raises(ConfigError, match=r"nash, logit.*got 'nsh'"):
        meta_solver("nsh")


def games(count: int):
    """Random and degenerate matrices at scales from 1e-6 to 1e6."""
    rng = np.random.default_rng(7)
    for number in range(count):
        rows, columns = rng.integers(1, 9, 2)
        kind = number % 5
        matrix = rng.normal(size=(rows, columns))
        if kind == 1:
            matrix = np.vstack([matrix, matrix[rng.integers(rows, size=2)]])
        if kind == 2:
            matrix = np.zeros_like(matrix)
        if kind == 3:
            matrix = matrix[:1] if number % 2 else matrix[:, :1]
        if kind == 4:
            matrix = rng.integers(0, 2, size=(rows, columns)).astype(float)
        yield matrix * 10.0 ** rng.integers(-6, 7)


def test_openspiel_and_an_independent_program_agree_on_200_games() -> None:
    for matrix in games(200):
        scale = float(np.abs(matrix).max()) or 1.0
        solution = solve_zero_sum(matrix)
        assert abs(solution.value - scipy_value(matrix / scale) * scale) <= 1e-8 * scale
        assert nash_conv(matrix, solution.row, solution.column).total <= 1e-8 * scale
