"""Which cells get more dialogues: the rule by hand, its rounds, and callbacks that go wrong."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtg_env.errors import ConfigError, PayoffShapeError
from rtg_solvers import loop
from rtg_solvers.empirical import nash_conv, solve_zero_sum
from rtg_solvers.intervals import CellMeans, independent_cells
from rtg_solvers.meta_solvers import uniform
from rtg_solvers.payoffs import Cell, PayoffTensor, Samples
from rtg_solvers.sampling import (
    SamplingSettings,
    apportioned,
    cell_weights,
    plan_round,
    sample_adaptively,
    share_out,
)

NAN = float("nan")
PURE = (np.array([1.0, 0.0]), np.array([1.0, 0.0]))


class Dealer:
    """Cells of success and failure on one common order of luck; remembers what it was asked for.

    Args:
        chances: [R, C].
        spare: How many more dialogues come back than were asked for.
    """

    def __init__(self, chances: np.ndarray, *, spare: int = 0) -> None:
        self.chances, self.spare = chances, spare
        self.calls: list[dict[Cell, int]] = []
        self.luck = np.random.default_rng(3).random((*chances.shape, 4000))

    def __call__(self, wanted: Mapping[Cell, int]) -> dict[Cell, Samples]:
        self.calls.append(dict(wanted))
        return {cell: self.samples(cell, count + self.spare) for cell, count in wanted.items()}

    def samples(self, cell: Cell, count: int) -> Samples:
        r, c = int(cell.red[1:]), int(cell.blue[1:])
        return Samples(
            utilities=(self.luck[r, c, :count] < self.chances[r, c]).astype(float),
            goal_ids=tuple(f"g{number}" for number in range(count)),
            harmful=np.ones(count, bool),
        )

    def start(self, count: int) -> PayoffTensor:
        red, blue = ([f"{side}{k}" for k in range(n)] for side, n in zip("rb", self.chances.shape, strict=True))
        return PayoffTensor().extended(red, blue, self, count)


def test_shares_are_whole_and_remainders_go_to_the_largest() -> None:
    # 7 x (.5, .3, .2) = 3.5, 2.1, 1.4: the one that is left goes to the first.
    assert apportioned(np.array([0.5, 0.3, 0.2]), 7).tolist() == [4, 2, 1]
    assert apportioned(np.ones(3), 4).tolist() == [2, 1, 1]
    assert apportioned(np.zeros((1, 2)), 3).tolist() == [[2, 1]]


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=20), st.integers(0, 500))
def test_shares_sum_to_the_total_and_round_by_less_than_one(weights: list[float], total: int) -> None:
    found = apportioned(np.array(weights), total)
    assert found.sum() == total
    exact = (
        np.array(weights) / sum(weights) * total if sum(weights) > 0 else np.full(len(weights), total / len(weights))
    )
    assert (np.abs(found - exact) < 1 + 1e-6).all()


def test_weights_are_those_of_the_formula() -> None:
    # The saddle is (0, 0), worth 0.5; row 1 and column 1 regret 0.4. Variance 0.09 stays 0.09 when shrunk to itself,
    # se^2 = 0.09 / 9 = 0.01, so w = v = (1, exp(-0.16 / 0.02)) and cell (0, 0) counts twice, (1, 1) not at all.
    mean = np.array([[0.5, 0.9], [0.1, 0.4]])
    found = cell_weights(mean, np.full((2, 2), 0.3), np.full((2, 2), 9), PURE)
    assert found == pytest.approx(0.3 * np.array([[2.0, np.exp(-8)], [np.exp(-8), 0.0]]))


def test_a_row_that_noise_may_have_left_out_is_played_and_one_that_is_surely_worse_is_not() -> None:
    mean = np.array([[0.50, 0.9], [0.48, 0.9], [0.10, 0.9]])
    mixture = (np.array([1.0, 0.0, 0.0]), np.array([1.0, 0.0]))
    plan = plan_round(mean, np.full((3, 2), 0.5), np.full((3, 2), 100), mixture, 100)
    assert plan[1, 0] > 25
    assert plan[2, 0] == 0


def test_cells_that_vary_more_get_more() -> None:
    sd = np.array([[0.1, 0.4]])
    plan = plan_round(np.array([[0.5, 0.5]]), sd, np.full((1, 2), 1000), (np.ones(1), np.array([0.5, 0.5])), 1000)
    assert plan[0, 1] / plan[0, 0] == pytest.approx(4.0, rel=0.05)


def test_cells_whose_few_dialogues_agree_are_not_held_to_be_known() -> None:
    mixture = (np.ones(1), np.array([0.5, 0.5]))
    some = plan_round(np.array([[0.5, 0.5]]), np.array([[0.0, 0.5]]), np.full((1, 2), 4), mixture, 60)
    none = plan_round(np.array([[0.5, 0.5]]), np.zeros((1, 2)), np.full((1, 2), 4), mixture, 60)
    assert some[0, 0] > 10
    assert none.tolist() == [[30, 30]]


@pytest.mark.parametrize("count", [0, 3], ids=["not played", "unscored"])
def test_cells_without_a_scored_dialogue_come_first_with_an_equal_share(count: int) -> None:
    mean = np.array([[0.5, NAN], [0.1, 0.4]])
    plan = plan_round(mean, np.full((2, 2), 0.3), np.array([[9, count], [9, 9]]), PURE, 20)
    assert plan[0, 1] == 5
    assert plan.sum() == 20
    assert plan_round(mean, np.full((2, 2), 0.3), np.array([[9, count], [9, 9]]), PURE, 1)[0, 1] == 1
    assert plan_round(np.full((2, 2), NAN), mean, np.zeros((2, 2)), PURE, 6).tolist() == [[2, 2], [1, 1]]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 300), st.integers(0, 10_000))
def test_any_plan_is_whole_spends_the_budget_and_is_the_same_again(
    rows: int, columns: int, budget: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    count = rng.integers(0, 4, (rows, columns))
    mean = np.where(count > 0, rng.integers(0, 2, (rows, columns)).astype(float), NAN)
    sd = np.where(count > 1, rng.choice([0.0, 0.5], (rows, columns)), NAN)
    mixture = rng.dirichlet(np.ones(rows)), rng.dirichlet(np.ones(columns))
    plan = plan_round(mean, sd, count, mixture, budget)
    assert plan.dtype.kind == "i"
    assert plan.min() >= 0
    assert plan.sum() == budget
    assert (plan == plan_round(mean, sd, count, mixture, budget)).all()


def test_what_makes_no_plan_is_refused() -> None:
    cell = np.ones((1, 1))
    with pytest.raises(ConfigError, match="budget of at least 0"):
        plan_round(cell, cell, cell, (np.ones(1), np.ones(1)), -1)
    with pytest.raises(PayoffShapeError, match="one shape"):
        plan_round(cell, cell, cell, PURE, 1)
    for wrong in ({"start_share": 0.0}, {"num_rounds": 0}, {"tolerance": NAN}, {"confidence": 1.0}):
        with pytest.raises(ConfigError, match="expected"):
            SamplingSettings(**wrong)


def test_rounds_ask_once_each_and_spend_the_budget_to_the_last_dialogue() -> None:
    dealer = Dealer(np.random.default_rng(0).random((4, 5)))
    start = dealer.start(6)
    found = sample_adaptively(start, dealer, 20 * 20 + 3, SamplingSettings(num_rounds=5))
    assert found.num_rounds == len(dealer.calls) - 1 == 5
    assert found.payoffs.num_played.sum() == 403
    assert found.payoffs.num_played.min() >= 6
    assert np.ptp(found.payoffs.num_played) > 20


def test_every_cell_stays_a_prefix_and_more_than_was_asked_for_changes_nothing() -> None:
    chances = np.random.default_rng(0).random((3, 3))
    exact, generous = Dealer(chances), Dealer(chances, spare=7)
    found = [sample_adaptively(dealer.start(6), dealer, 300).payoffs for dealer in (exact, generous)]
    assert exact.calls == generous.calls
    for cell, samples in found[0].samples.items():
        wanted = exact.samples(cell, samples.utilities.size)
        for payoffs in found:
            assert (payoffs.samples[cell].utilities == wanted.utilities).all()
            assert payoffs.samples[cell].goal_ids == wanted.goal_ids


def test_a_budget_that_is_spent_asks_for_nothing() -> None:
    dealer = Dealer(np.full((2, 2), 0.5))
    found = sample_adaptively(dealer.start(6), dealer, 24)
    assert (found.num_rounds, len(dealer.calls)) == (0, 1)


def test_sampling_stops_once_the_bound_is_low_enough() -> None:
    chances = np.array([[0.5, 0.95], [0.05, 0.5]])
    loose, strict = (
        sample_adaptively(dealer.start(30), dealer, 4000, SamplingSettings(tolerance=tolerance))
        for dealer, tolerance in ((Dealer(chances), 0.5), (Dealer(chances), 0.0))
    )
    assert loose.bound <= 0.5
    assert loose.num_rounds < strict.num_rounds == 8
    assert strict.bound < loose.bound


def test_a_callback_that_plays_too_few_is_an_error_that_names_the_cell() -> None:
    dealer = Dealer(np.full((2, 2), 0.5))
    start = dealer.start(6)
    dealer.spare = -1
    with pytest.raises(PayoffShapeError, match=r"expected \d+ dialogues of r\d against b\d, got \d+"):
        sample_adaptively(start, dealer, 100)
    with pytest.raises(PayoffShapeError, match=r"dialogues of r\d against b\d, got 0"):
        sample_adaptively(start, lambda wanted: {}, 100)


def test_a_cell_without_any_verdict_is_an_error_that_names_it() -> None:
    dealer = Dealer(np.full((2, 2), 0.5))
    start = dealer.start(6)
    samples = dict(start.samples)
    samples[Cell("r1", "b0")] = Samples(utilities=np.full(6, NAN), goal_ids=("g0",) * 6, harmful=np.ones(6, bool))
    with pytest.raises(PayoffShapeError, match="r1 against b0"):
        sample_adaptively(PayoffTensor(red=start.red, blue=start.blue, samples=samples), dealer, 100)


def test_cells_that_decide_find_better_mixtures_with_the_same_dialogues() -> None:
    def truth(seed: int, share: float) -> float:
        rng = np.random.default_rng(seed)
        cyclic, skill = rng.normal(size=(14, 14)), rng.normal(size=14)
        chances = 1 / (1 + np.exp(cyclic.T - cyclic + skill - skill[:, None]))
        hits, played = np.zeros((14, 14)), np.zeros((14, 14), int)

        def grow(wanted: np.ndarray) -> CellMeans:
            nonlocal hits, played
            hits, played = hits + rng.binomial(wanted - played, chances), wanted
            mean = hits / played
            return independent_cells(mean, np.sqrt(mean * (1 - mean)), played)

        start = np.full((14, 14), round(share * 30))
        rule = SamplingSettings(num_rounds=4)
        found = share_out(grow(start), start, grow, 30 * 14 * 14, rule).equilibrium
        return nash_conv(chances, found.row, found.column).total

    adaptive, equal = (np.mean([truth(seed, share) for seed in range(8)]) for share in (0.3, 1.0))
    assert adaptive < 0.7 * equal


class Names:
    """Populations that are names only."""

    def __init__(self) -> None:
        self.members = {"red": ["r0"], "blue": ["b0"]}

    def names(self, role: str) -> tuple[str, ...]:
        return tuple(self.members[role])

    def next_version(self, role: str, missed: int = 0) -> str:
        return f"{role[0]}{len(self.members[role]) + missed}"

    def restored(self, version: str) -> None:
        return None

    def extend(self, members) -> None:
        for version in members:
            self.members["red" if version[0] == "r" else "blue"].append(version)


class Next:
    def respond(self, task: loop.Task) -> str:
        return task.version


@pytest.mark.parametrize("rule", [None, SamplingSettings(num_rounds=2)], ids=["equal", "adaptive"])
def test_the_loop_plays_new_rows_and_columns_and_shares_out_the_rest(rule: SamplingSettings | None) -> None:
    dealer = Dealer(np.random.default_rng(1).random((3, 3)))
    context = loop.Context(population=Names(), play_cells=dealer, dialogues_per_cell=20, sampling=rule)
    method = loop.Method(
        meta_solver=uniform,
        oracles={"red": Next(), "blue": Next()},
        schedule=lambda k, payoffs: [("red", "blue")] if k < 2 else [],
    )
    payoffs = loop.solve(method, context).payoffs
    assert payoffs.num_played.sum() == 9 * 20
    if rule is None:
        assert [len(call) for call in dealer.calls] == [1, 3, 5]
        assert (payoffs.num_played == 20).all()
    else:
        assert payoffs.num_played.min() >= 6
        assert np.ptp(payoffs.num_played) > 5
        assert [set(call.values()) for call in dealer.calls if len(call) == 5][:1] == [{6}]


def test_hand_worked_equilibria_are_those_of_the_means() -> None:
    mean = np.array([[0.8, 0.2], [0.3, 0.6]])
    cells = independent_cells(mean, np.full((2, 2), 0.4), np.full((2, 2), 50))
    found = share_out(cells, np.full((2, 2), 50), lambda wanted: cells, 200)
    assert found.equilibrium.value == pytest.approx(solve_zero_sum(mean).value) == pytest.approx(7 / 15)
