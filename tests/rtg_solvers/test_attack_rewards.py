"""The GFlowNet's reward: hand-worked numbers, floors, and temperatures that move."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtg_env.errors import ConfigError
from rtg_solvers.attack_rewards import AttackRewardSettings, Ramp, log_score


def test_the_score_is_the_geometric_mean_of_what_was_scored() -> None:
    harm = np.array([[0.5, 0.125, np.nan], [1.0, 1.0, 1.0], [np.nan, np.nan, np.nan]])
    found = log_score(harm, floor=1e-6)
    assert found[0] == pytest.approx(math.log(0.25))  # sqrt(1/2 * 1/8) = 1/4
    assert found[1] == 0.0
    assert math.isnan(found[2])


def test_a_score_of_zero_is_lifted_to_the_floor() -> None:
    assert log_score(np.array([[0.0, 1.0]]), floor=1e-6)[0] == pytest.approx(math.log(1e-6) / 2)


def test_the_reward_is_the_tempered_product() -> None:
    settings = AttackRewardSettings(beta=0.5, gamma=Ramp(start=2.0, end=2.0), tau=Ramp(start=4.0, end=4.0))
    # (-10 / 2 + log(1/4) / 0.5) / 4
    found = settings.log_reward(np.array([math.log(0.25)]), np.array([-10.0]), np.array([5]), step=0)
    assert found[0] == pytest.approx((-5.0 + 2 * math.log(0.25)) / 4)


def test_too_short_an_attack_counts_as_impossible_to_say() -> None:
    settings = AttackRewardSettings(tau=Ramp(start=1.0, end=1.0))
    found = settings.log_reward(np.zeros(2), np.array([-3.0, -3.0]), np.array([4, 5]), step=0)
    np.testing.assert_allclose(found, [-500.0, -3.0])


def test_temperatures_move_to_their_end_and_stay() -> None:
    tau = AttackRewardSettings().tau
    assert [tau.at(step) for step in (0, 250, 500, 5000)] == [2.0, 1.5, 1.0, 1.0]
    assert Ramp(start=3.0, end=1.2).at(0) == 1.2


@given(
    harm=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=6),
    reference=st.floats(-1e4, 0.0),
    tokens=st.integers(0, 40),
    step=st.integers(0, 10_000),
)
def test_every_reward_is_finite(harm: list[float], reference: float, tokens: int, step: int) -> None:
    settings = AttackRewardSettings()
    score = log_score(np.array([harm]), floor=settings.floor)
    assert np.isfinite(settings.log_reward(score, np.array([reference]), np.array([tokens]), step)).all()


@pytest.mark.parametrize("changes", [{"beta": 0.0}, {"floor": 0.0}, {"floor": 1.0}, {"min_tokens": 0}])
def test_settings_out_of_range_are_refused(changes: dict) -> None:
    with pytest.raises(ConfigError):
        AttackRewardSettings(**changes)


@pytest.mark.parametrize("ramp", [(0.0, 1.0, 0), (1.0, 0.0, 0), (1.0, 1.0, -1), (math.inf, 1.0, 1)])
def test_a_ramp_that_reaches_zero_is_refused(ramp: tuple[float, float, int]) -> None:
    with pytest.raises(ConfigError):
        Ramp(start=ramp[0], end=ramp[1], steps=ramp[2])


def test_scores_outside_their_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="harm in"):
        log_score(np.array([[1.1]]), floor=1e-6)
