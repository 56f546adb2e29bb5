"""Intervals: hand-worked values, unscored dialogues, and cover."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtg_env.errors import ConfigError
from rtg_solvers.measures import mean_estimate, paired_estimate

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
