"""Advantages and returns against hand values, naive sums and Stable-Baselines3."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtg_env.errors import ConfigError
from rtg_solvers.advantages import group_advantages, kl_in_reward, leave_one_out, returns_to_go, turn_gae

ROWS = st.lists(st.tuples(st.floats(-5, 5), st.integers(0, 3)), min_size=1, max_size=30)


def test_leave_one_out_by_hand() -> None:
    # Group a: 1, 2, 6 -> 1 - 4, 2 - 3.5, 6 - 1.5; group b alone -> 0.
    found = leave_one_out(np.array([1.0, 2.0, 9.0, 6.0]), ["a", "a", "b", "a"])
    assert found == pytest.approx([-3.0, -1.5, 0.0, 4.5])


def test_group_advantages_by_hand() -> None:
    # Group a: mean 3 -> -2, -1, 3; sample variance (4 + 1 + 9) / 2 = 7; group b alone -> 0.
    rewards, groups = np.array([1.0, 2.0, 9.0, 6.0]), ["a", "a", "b", "a"]
    assert group_advantages(rewards, groups) == pytest.approx([-2.0, -1.0, 0.0, 3.0])
    scaled = np.array([-2.0, -1.0, 0.0, 3.0]) / (np.sqrt(7) + 1e-4)
    assert group_advantages(rewards, groups, divide_by_std=True) == pytest.approx(scaled)


@given(ROWS, st.sampled_from([leave_one_out, group_advantages]))
def test_advantages_sum_to_zero_in_every_group(rows, advantages_of) -> None:
    rewards, groups = np.array([r for r, _ in rows]), [g for _, g in rows]
    advantages = advantages_of(rewards, groups)
    for group in set(groups):
        assert sum(a for a, g in zip(advantages, groups, strict=True) if g == group) == pytest.approx(0.0, abs=1e-9)


@given(ROWS)
def test_the_group_mean_only_shrinks_the_leave_one_out_advantage(rows: list[tuple[float, int]]) -> None:
    rewards, groups = np.array([r for r, _ in rows]), [g for _, g in rows]
    sizes = np.array([groups.count(g) for g in groups])
    expected = leave_one_out(rewards, groups) * (sizes - 1) / sizes
    assert group_advantages(rewards, groups) == pytest.approx(expected, abs=1e-9)


def test_equal_rewards_teach_nothing_even_when_divided_by_their_spread() -> None:
    found = group_advantages(np.array([0.1 + 0.2, 0.3, 0.3]), ["a"] * 3, divide_by_std=True)
    assert np.abs(found).max() < 1e-9


def test_strong_opponents_do_not_leak_into_advantages() -> None:
    # The same skill against an easy (+10) and a hard opponent: within groups only the difference counts.
    found = leave_one_out(np.array([10.0, 11.0, 0.0, 1.0]), ["easy", "easy", "hard", "hard"])
    assert found == pytest.approx([-1.0, 1.0, -1.0, 1.0])


def test_returns_stay_inside_their_dialogue_in_any_order() -> None:
    # Dialogue a: 1, 2, 4 -> 1 + 2 + 4, 2 + 4, 4; b: 8, 16 -> 24, 16; with discount 1/2: 1 + 1 + 1, 2 + 2, 4; 16, 16.
    rewards, dialogues = np.array([1.0, 8.0, 2.0, 16.0, 4.0]), ["a", "b", "a", "b", "a"]
    assert returns_to_go(rewards, dialogues).tolist() == [7.0, 24.0, 6.0, 16.0, 4.0]
    assert returns_to_go(rewards, dialogues, discount=0.5).tolist() == [3.0, 16.0, 4.0, 16.0, 4.0]
    assert rewards.tolist() == [1.0, 8.0, 2.0, 16.0, 4.0]


REWARDS, VALUES = np.array([1.0, 0.0, 2.0]), np.array([0.5, 0.5, 1.0])


def test_turn_advantages_by_hand_where_the_rules_end_the_dialogue() -> None:
    # Surprises 1 + .5 - .5 = 1, 0 + 1 - .5 = .5, 2 + 0 - 1 = 1; with lambda 1/2: 1 + 1/2, 1/2 + 1/2, 1.
    found = turn_gae(REWARDS, VALUES, "aaa", last_values={}, trace_decay=0.5)
    assert found.advantages_S.tolist() == [1.5, 1.0, 1.0]
    assert found.returns_S.tolist() == [2.0, 1.5, 2.0]


def test_turn_advantages_by_hand_where_a_budget_cuts_the_dialogue_off() -> None:
    # The value 3 of what was left: last surprise 2 + 3 - 1 = 4; then .5 + 2, 1 + 1.25.
    found = turn_gae(REWARDS, VALUES, "aaa", last_values={"a": 3.0}, trace_decay=0.5)
    assert found.advantages_S.tolist() == [2.25, 2.5, 4.0]


def test_each_dialogue_is_bootstrapped_by_its_own_value() -> None:
    rewards, values = np.repeat(REWARDS, 2), np.repeat(VALUES, 2)
    found = turn_gae(rewards, values, "ababab", last_values={"b": 3.0}, trace_decay=0.5)
    assert found.advantages_S.tolist() == [1.5, 2.25, 1.0, 2.5, 1.0, 4.0]


@given(st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3)), min_size=1, max_size=8), st.floats(0, 1))
def test_full_traces_give_the_return_and_none_gives_the_one_step_surprise(rows, discount) -> None:
    rewards, values = np.array(rows).T
    labels = [0] * len(rows)
    full = turn_gae(rewards, values, labels, last_values={}, discount=discount, trace_decay=1.0)
    assert full.returns_S == pytest.approx(returns_to_go(rewards, labels, discount=discount), abs=1e-9)
    short = turn_gae(rewards, values, labels, last_values={0: 2.0}, discount=discount, trace_decay=0.0)
    assert short.returns_S == pytest.approx(rewards + discount * np.append(values[1:], 2.0), abs=1e-9)


def test_turn_advantages_are_those_of_stable_baselines3() -> None:
    buffers = pytest.importorskip("stable_baselines3.common.buffers")
    from gymnasium.spaces import Box

    rng = np.random.default_rng(0)
    num_turns, num_dialogues = 6, 4
    one = Box(-1, 1, (1,))
    buffer = buffers.RolloutBuffer(num_turns, one, one, gae_lambda=0.9, gamma=0.97, n_envs=num_dialogues)
    buffer.rewards, buffer.values = rng.normal(size=(2, num_turns, num_dialogues)).astype(np.float32)
    last = rng.normal(size=num_dialogues)
    cut_off = np.array([True, False, True, False])
    import torch

    buffer.compute_returns_and_advantage(torch.tensor(last), dones=~cut_off)
    labels = [dialogue for _ in range(num_turns) for dialogue in range(num_dialogues)]
    found = turn_gae(
        buffer.rewards.ravel(),
        buffer.values.ravel(),
        labels,
        last_values={int(d): last[d] for d in np.flatnonzero(cut_off)},
        discount=0.97,
        trace_decay=0.9,
    )
    assert found.advantages_S == pytest.approx(buffer.advantages.ravel(), abs=1e-5)
    assert found.returns_S == pytest.approx(buffer.returns.ravel(), abs=1e-5)


def test_kl_is_charged_per_nat() -> None:
    found = kl_in_reward(np.array([1.0, 1.0]), np.array([-2.0, -3.0]), np.array([-3.0, -3.0]), 0.1)
    assert found == pytest.approx([0.9, 1.0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: returns_to_go(REWARDS, "aaa", discount=1.5), "discount in .0, 1., got 1.5"),
        (lambda: turn_gae(REWARDS, VALUES, "aaa", last_values={}, trace_decay=float("nan")), "trace_decay .* got nan"),
        (lambda: turn_gae(REWARDS, VALUES, "aaa", last_values={"b": 1.0}), r"got \['b'\]; leave them out"),
        (lambda: turn_gae(REWARDS, VALUES[:2], "aaa", last_values={}), r"\(2,\) values and \(3,\) rewards"),
        (lambda: leave_one_out(REWARDS, "aa"), "2 labels for 3 sentences"),
        (lambda: group_advantages(REWARDS, "aaaa"), "4 labels for 3 sentences"),
    ],
)
def test_contradictory_arguments_are_refused(call, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()
