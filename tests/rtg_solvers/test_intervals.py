"""Intervals of the value and of NashConv: by hand, under ties and clusters, and how often they cover."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtg_env.errors import ConfigError, PayoffShapeError
from rtg_solvers.empirical import nash_conv, solve_zero_sum
from rtg_solvers.gaps import Gap
from rtg_solvers.intervals import (
    cells_of,
    deviations_of,
    gain_interval,
    independent_cells,
    nash_conv_bound,
    nash_conv_interval,
    payoff_value_interval,
    value_interval,
)
from rtg_solvers.measures import Estimate, mean_estimate
from rtg_solvers.payoffs import Cell, PayoffTensor, Samples

NAN = float("nan")


def random_tensor(seed: int, rows: int = 3, columns: int = 2, goals: int = 6, count: int = 12) -> PayoffTensor:
    rng = np.random.default_rng(seed)
    luck = rng.uniform(0, 0.2, goals)
    goal_ids = tuple(f"g{number % goals}" for number in range(count))
    red, blue = tuple(f"r{k}" for k in range(rows)), tuple(f"b{k}" for k in range(columns))
    samples = {
        Cell(r, b): Samples(
            utilities=rng.uniform(0, 0.8, count) + luck[np.arange(count) % goals],
            goal_ids=goal_ids,
            harmful=np.ones(count, bool),
        )
        for r in red
        for b in blue
    }
    return PayoffTensor(red=red, blue=blue, samples=samples)


def test_one_row_against_one_column_has_students_interval() -> None:
    # Red 1.2, 1.4, 1.6, 1.8 against blue 0.1: difference 1.4; variance of red's mean 0.2 / 3 / 4 = 0.016667, of blue's
    # 0. Shrinking adds a quarter of their average 0.0083333 to each: 0.0208333, se 0.144338. High: t(0.975, 3) =
    # 3.182446. Low: a tenth of the error is spent on screening: 3.182446 * z(0.9775) / z(0.975) = 3.25515.
    found = nash_conv_interval(deviations_of(np.array([[1.2, 1.4, 1.6, 1.8]]), np.full((1, 4), 0.1)))
    assert found.value == pytest.approx(1.4)
    assert found.high == pytest.approx(1.4 + 3.182446 * 0.144338, abs=1e-5)
    assert found.low == pytest.approx(1.4 - 3.25515 * 0.144338, abs=0.01)


def test_deviations_of_cells_weigh_means_and_variances() -> None:
    # Row 0 against half of each column: mean 0.5, variance (0.04 + 0.16) / 4; it shares half of a cell with each column.
    cells = independent_cells(np.array([[0.2, 0.8]]), np.array([[0.2, 0.4]]), np.ones((1, 2), int) * 2)
    found = cells.deviations(np.ones(1), np.array([0.5, 0.5]))
    assert (found.red.tolist(), found.blue.tolist()) == ([0.5], [0.2, 0.8])
    assert found.covariance == pytest.approx(np.array([[0.025, 0.01, 0.04], [0.01, 0.02, 0.0], [0.04, 0.0, 0.08]]))


def test_clustered_cells_have_the_variances_of_their_estimates() -> None:
    payoffs = random_tensor(0)
    cells = cells_of(payoffs)
    assert np.sqrt(cells.variance) == pytest.approx(payoffs.se)
    found = cells.deviations(np.eye(3)[1], np.eye(2)[0])
    assert np.sqrt(np.diag(found.covariance)) == pytest.approx([*payoffs.se[:, 0], *payoffs.se[1]])
    first, second = (payoffs.samples[Cell(r, "b0")] for r in ("r0", "r1"))
    paired = mean_estimate(first.utilities - second.utilities, first.goal_ids, bounds=(-1, 1))
    variance = found.covariance[0, 0] + found.covariance[1, 1] - 2 * found.covariance[0, 1]
    assert np.sqrt(variance) == pytest.approx(paired.se)


def test_repeating_dialogues_on_the_same_goals_narrows_nothing() -> None:
    rng = np.random.default_rng(0)
    red, blue = rng.random((3, 12)), rng.random((2, 12))
    goals = [f"g{number}" for number in range(12)]
    once = nash_conv_interval(deviations_of(red, blue, goals))
    thrice = nash_conv_interval(deviations_of(np.tile(red, 3), np.tile(blue, 3), goals * 3))
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high), abs=1e-9)
    independent = nash_conv_interval(deviations_of(np.tile(red, 3), np.tile(blue, 3)))
    assert independent.high - independent.low < 0.8 * (once.high - once.low)


def test_luck_that_all_deviations_share_cancels() -> None:
    luck = np.random.default_rng(0).random(40)
    goals = [str(number) for number in range(40)]
    found = nash_conv_interval(deviations_of(np.stack([luck + 0.1, luck]), np.stack([luck, luck + 0.2]), goals))
    apart = nash_conv_interval(deviations_of(np.stack([luck + 0.1, luck]), np.stack([luck, luck + 0.2])))
    assert found.low <= 0.1 <= found.high
    assert found.high - found.low < 0.5 * (apart.high - apart.low)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 5), st.integers(1, 5), st.integers(0, 10_000), st.floats(-3, 3), st.sampled_from([1e-3, 1.0, 1e3])
)
def test_shift_and_scale_move_intervals_as_they_move_payoffs(
    rows: int, columns: int, seed: int, shift: float, scale: float
) -> None:
    rng = np.random.default_rng(seed)
    red, blue = rng.random((rows, 8)), rng.random((columns, 8))
    before = nash_conv_interval(deviations_of(red, blue))
    after = nash_conv_interval(deviations_of(scale * (red + shift), scale * (blue + shift)))
    assert (after.low, after.high) == pytest.approx((scale * before.low, scale * before.high), abs=1e-6 * scale)
    assert 0 <= before.low <= before.value <= before.high


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 10_000))
def test_the_interval_of_the_value_holds_its_estimate_and_mirrors_when_sides_change(
    rows: int, columns: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    mean, sd, count = rng.random((rows, columns)), rng.uniform(0.1, 0.5, (rows, columns)), np.full((rows, columns), 30)
    found = value_interval(independent_cells(mean, sd, count))
    assert found.low <= found.value <= found.high
    mirrored = value_interval(independent_cells(-mean.T, sd.T, count.T))
    assert mirrored.value == pytest.approx(-found.value, abs=1e-7)
    assert (-mirrored.high, -mirrored.low) == pytest.approx((found.low, found.high), rel=0.1, abs=0.01)


def test_singular_games_have_intervals() -> None:
    for mean in (np.full((3, 4), 0.5), np.array([[0.3]]), np.array([[0.2, 0.2, 0.9]])):
        found = value_interval(independent_cells(mean, np.full(mean.shape, 0.1), np.full(mean.shape, 25)))
        assert found.low < mean.min(axis=1).max() < found.high
        assert found.high - found.low < 0.2


def test_dialogues_that_all_paid_the_same_leave_a_point() -> None:
    found = nash_conv_interval(deviations_of(np.full((2, 5), 0.75), np.full((2, 5), 0.25)))
    assert (found.low, found.value, found.high) == (0.5, 0.5, 0.5)


def coverage(kind: str, repeats: int = 60) -> float:
    held = 0
    for seed in range(repeats):
        rng = np.random.default_rng(seed)
        chances = np.full((6, 6), 0.4) if kind == "ties" else 1 / (1 + np.exp(-rng.normal(size=(6, 6))))
        x, y = rng.dirichlet(np.ones(6)), rng.dirichlet(np.ones(6))
        if kind == "value":
            mean = rng.binomial(30, chances) / 30
            found = value_interval(independent_cells(mean, np.sqrt(mean * (1 - mean)), np.full((6, 6), 30)))
            truth = solve_zero_sum(chances).value
        else:
            rows, columns = chances @ y, x @ chances
            red, blue = (rng.random((6, 40)) < rows[:, None], rng.random((6, 40)) < columns[:, None])
            found = nash_conv_interval(deviations_of(red.astype(float), blue.astype(float)))
            truth = nash_conv(chances, x, y).total
        held += found.low - 1e-12 <= truth <= found.high + 1e-12
    return held / repeats


@pytest.mark.parametrize("kind", ["ties", "random", "value"])
def test_intervals_cover_the_truth_also_where_everything_ties(kind: str) -> None:
    assert coverage(kind) >= 0.93


def test_nothing_to_gain_holds_zero_and_a_planted_weakness_shows() -> None:
    rng = np.random.default_rng(0)
    nothing, weak = np.full(8, 0.3), np.array([0.3] * 7 + [0.7])
    for chances, least in ((nothing, 0.0), (weak, 0.1)):
        red, blue = (rng.random((8, 200)) < chances[:, None], rng.random((2, 200)) < 0.3)
        found = nash_conv_interval(deviations_of(red.astype(float), blue.astype(float)))
        assert found.low >= least
        assert (found.low == 0.0) == (least == 0.0)
        assert found.high >= chances.max() - 0.3


def test_rows_that_cannot_be_the_best_cost_nothing() -> None:
    rng = np.random.default_rng(0)
    good, poor = 0.8 + 0.1 * rng.random((1, 50)), 0.1 * rng.random((30, 50))
    blue = 0.1 * rng.random((1, 50))
    alone = nash_conv_interval(deviations_of(good, blue))
    among = nash_conv_interval(deviations_of(np.r_[good, poor], blue))
    assert (among.low, among.high) == pytest.approx((alone.low, alone.high), abs=0.003)


def test_the_bound_for_a_mixture_solved_on_the_same_dialogues_is_the_wider() -> None:
    rng = np.random.default_rng(0)
    found = deviations_of(rng.random((5, 30)), rng.random((5, 30)))
    assert nash_conv_bound(found) > nash_conv_interval(found).high
    assert nash_conv_bound(found, confidence=0.99) > nash_conv_bound(found)


def test_unscored_deviations_widen_both_ends_by_what_they_might_have_won() -> None:
    rng = np.random.default_rng(0)
    red, blue = rng.uniform(0.4, 0.8, (2, 40)), rng.uniform(0.1, 0.4, (2, 40))
    scored = gain_interval(red, blue, bounds=(0.0, 1.0))
    assert (scored.low, scored.high) == (
        nash_conv_interval(deviations_of(red, blue)).low,
        nash_conv_interval(deviations_of(red, blue)).high,
    )
    red[:, :4] = NAN
    missing = gain_interval(red, blue, bounds=(0.0, 1.0))
    # A tenth of red's dialogues is unknown: its means lie in [0.9 m, 0.9 m + 0.1].
    assert missing.low < scored.low - 0.03
    assert missing.high > scored.high + 0.01


def test_unscored_dialogues_of_a_tensor_widen_the_interval_of_its_value() -> None:
    payoffs = random_tensor(1, goals=12, count=24)
    found = payoff_value_interval(payoffs)
    assert found == value_interval(cells_of(payoffs))
    cell = Cell("r0", "b0")
    holed = payoffs.samples[cell].utilities.copy()
    holed[:12] = NAN
    samples = {**payoffs.samples, cell: replace(payoffs.samples[cell], utilities=holed)}
    wider = payoff_value_interval(replace(payoffs, samples=samples))
    assert wider.low <= found.low + 0.05
    assert wider.high - wider.low > found.high - found.low


def test_a_cell_without_a_verdict_is_named() -> None:
    payoffs = random_tensor(0)
    samples = dict(payoffs.samples)
    samples[Cell("r2", "b1")] = replace(samples[Cell("r2", "b1")], utilities=np.full(12, NAN))
    with pytest.raises(PayoffShapeError, match="r2 against b1"):
        payoff_value_interval(replace(payoffs, samples=samples))


def test_what_has_no_interval_is_refused() -> None:
    with pytest.raises(PayoffShapeError, match="at least two goals"):
        cells_of(random_tensor(0, goals=1))
    with pytest.raises(PayoffShapeError, match="at least two goals"):
        deviations_of(np.ones((1, 3)), np.ones((1, 3)), ["a", "a", "a"])
    with pytest.raises(PayoffShapeError, match="a goal for each of 3"):
        deviations_of(np.ones((1, 3)), np.ones((1, 3)), ["a", "b"])
    with pytest.raises(PayoffShapeError, match="finite"):
        deviations_of(np.array([[0.1, NAN]]), np.ones((1, 2)))
    with pytest.raises(PayoffShapeError, match="of one shape"):
        independent_cells(np.ones((1, 2)), np.ones((1, 2)), np.ones((1, 2)))
    with pytest.raises(ConfigError, match="confidence"):
        nash_conv_interval(deviations_of(np.ones((1, 3)), np.ones((1, 3))), confidence=95)


def test_a_gap_tells_the_interval_of_both_sides_together_where_it_was_measured() -> None:
    gain = Estimate(mean=0.2, se=0.05, low=0.1, high=0.3, count=40, num_unscored=0, num_clusters=40)
    ends = Gap(red_deviation="r1", blue_deviation="b1", red_gain=gain, blue_gain=gain)
    assert ends.interval == pytest.approx((0.2, 0.6))
    assert replace(ends, total_interval=(0.3, 0.5)).interval == (0.3, 0.5)
