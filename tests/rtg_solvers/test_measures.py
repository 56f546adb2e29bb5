"""Intervals: hand-worked values, unscored dialogues, and cover."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rtg_env.errors import ConfigError
from rtg_solvers.measures import mean_estimate, paired_estimate, share_estimate

NAN = float("nan")


def test_one_dialogue_per_goal_gives_the_textbook_interval() -> None:
    # 0.2, 0.4, 0.6, 0.8: mean 0.5, s = 0.25820, se = s / 2 = 0.12910, t(0.975, 3) = 3.18245.
    found = mean_estimate([0.2, 0.4, 0.6, 0.8], ["a", "b", "c", "d"], bounds=(0, 1))
    assert found.mean == pytest.approx(0.5)
    assert found.se == pytest.approx(0.129099, abs=1e-6)
    assert (found.low, found.high) == pytest.approx((0.5 - 3.182446 * 0.129099, 0.5 + 3.182446 * 0.129099), abs=1e-5)


def test_dialogues_on_one_goal_are_not_independent() -> None:
    # Two goals, all variance between them: cluster sums of deviations are -1 and +1, se = sqrt(2 / 1 * 2) / 4 = 0.5.
    found = mean_estimate([0, 0, 1, 1], ["a", "a", "b", "b"], bounds=(0, 1))
    assert found.se == pytest.approx(0.5)
    assert found.num_clusters == 2


def test_unscored_dialogues_are_left_out_counted_and_bounded() -> None:
    scored = mean_estimate([0.4, 0.5, 0.6], ["a", "b", "c"], bounds=(0, 1))
    found = mean_estimate([0.4, 0.5, 0.6, NAN], ["a", "b", "c", "d"], bounds=(0, 1))
    assert found.mean == pytest.approx(0.5)
    assert (found.count, found.num_unscored) == (3, 1)
    # Imputed at both ends the mean moves to 0.375 and 0.625.
    assert found.low < min(scored.low, 0.375)
    assert found.high > max(scored.high, 0.625)


def test_too_few_goals_say_nothing_instead_of_something_wrong() -> None:
    found = mean_estimate([0.1, 0.9], ["a", "a"], bounds=(0, 1))
    assert found.mean == pytest.approx(0.5)
    assert np.isnan(found.se)
    assert np.isnan(found.low)
    assert np.isnan(mean_estimate([NAN], ["a"], bounds=(0, 1)).mean)


def test_values_outside_their_bounds_are_an_error() -> None:
    with pytest.raises(ConfigError, match="expected values in"):
        mean_estimate([0.5, 1.5], ["a", "b"], bounds=(0, 1))


def test_lengths_must_agree() -> None:
    with pytest.raises(ConfigError, match="one cluster per value"):
        mean_estimate([0.5], ["a", "b"], bounds=(0, 1))


def test_pairing_removes_what_both_share() -> None:
    goals = [str(i) for i in range(20)]
    luck = np.linspace(0, 0.8, 20)
    found = paired_estimate(luck + 0.1, luck, goals, max_utility=1.0)
    assert found.mean == pytest.approx(0.1)
    assert found.high - found.low < 1e-6


def test_a_pair_with_one_unscored_side_is_unscored() -> None:
    found = paired_estimate([0.5, NAN, 0.5], [0.4, 0.4, NAN], ["a", "b", "c"], max_utility=1.0)
    assert (found.count, found.num_unscored) == (1, 2)


@given(st.lists(st.floats(0, 1), min_size=3, max_size=30), st.integers(0, 5))
def test_intervals_hold_their_mean_and_stay_in_bounds(values: list[float], missing: int) -> None:
    found = mean_estimate(values + [NAN] * missing, [str(i) for i in range(len(values) + missing)], bounds=(0, 1))
    assert 0 <= found.low <= found.mean + 1e-12
    assert found.mean - 1e-12 <= found.high <= 1


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(1000):
        goal_effect = np.repeat(rng.normal(0, 0.05, size=24), 3)
        values = np.clip(0.4 + goal_effect + rng.normal(0, 0.1, size=72), 0, 1)
        found = mean_estimate(values, [str(i // 3) for i in range(72)], bounds=(0, 1))
        hits += found.low <= 0.4 <= found.high
    assert 0.93 <= hits / 1000 <= 0.975


def test_a_share_without_clusters_is_clopper_and_pearsons() -> None:
    # One value per goal: x = 2 of n = 10. Clopper-Pearson: [0.0252, 0.5561] (tables of the binomial distribution).
    found = share_estimate([1.0, 1.0] + [0.0] * 8, [f"g{i}" for i in range(10)])
    # The cluster-robust variance divides by n - 1: effective size 10 * 9 / 10 = 9.
    exact = stats.beta.ppf([0.025, 0.975], [1.8, 2.8], [8.2, 7.2])
    assert (found.low, found.high) == pytest.approx(tuple(exact))
    assert found.mean == pytest.approx(0.2)
    assert found.low < 0.0252 + 0.01
    assert found.high > 0.5561


def test_no_success_in_all_goals_is_no_proof_of_none() -> None:
    # 0 of 20 goals, 5 values each: the upper end is that of 20 independent values, 1 - 0.025^(1/20), a little wider.
    found = share_estimate(np.zeros(100), [f"g{i // 5}" for i in range(100)])
    assert found.low == 0.0
    assert 1 - 0.025 ** (1 / 20) < found.high < 0.2
    assert share_estimate(np.ones(100), [f"g{i // 5}" for i in range(100)]).low == pytest.approx(1 - found.high)


def test_unscored_values_widen_a_share_to_what_they_could_be() -> None:
    goals = [f"g{i}" for i in range(12)]
    values = np.array([1.0] * 6 + [0.0] * 4 + [np.nan] * 2)
    found = share_estimate(values, goals)
    assert found.mean == pytest.approx(0.6)
    assert found.low == pytest.approx(share_estimate(np.nan_to_num(values, nan=0.0), goals).low)
    assert found.high == pytest.approx(share_estimate(np.nan_to_num(values, nan=1.0), goals).high)
    assert math.isnan(share_estimate([np.nan], ["g"]).mean)


def test_intervals_of_shares_cover_when_goals_differ() -> None:
    # 30 goals of 4 dialogues, each goal with its own chance; truth 0.2.
    rng, hits = np.random.default_rng(0), 0
    goals = [f"g{i // 4}" for i in range(120)]
    for _ in range(400):
        chance = np.repeat(rng.beta(0.5, 2.0, size=30), 4)
        found = share_estimate((rng.random(120) < chance).astype(float), goals)
        hits += found.low <= 0.2 <= found.high
    assert hits >= 0.93 * 400


@pytest.mark.parametrize("values", [[0.5], [1.0, 0.0]])
def test_shares_of_anything_but_zero_and_one_are_refused(values: list[float]) -> None:
    with pytest.raises(ConfigError, match="0, 1 or NaN"):
        share_estimate(values, ["g"])
