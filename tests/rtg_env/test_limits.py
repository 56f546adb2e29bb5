from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pettingzoo.test import api_test, parallel_api_test, parallel_seed_test, seed_test

import rtg_env
from rtg_env import Limits
from rtg_env.errors import ConfigError, InvalidActionError, OrderError
from rtg_env.views import TextEnv, attack, defend
from tests.doubles import BENIGN, GOALS, HARMFUL, ScriptedJudge, SeededPolicy, TextJudge, canonical, verdict


class Clock:
    """Tells what it is told, and goes on by `tick` with every look at it."""

    def __init__(self, tick: float = 0.0) -> None:
        self.now, self.tick = 100.0, tick

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


def dialogue(limits: Limits | None, **settings: Any) -> rtg_env.raw_env:
    env = rtg_env.env(**{"goals": GOALS, "judge": TextJudge(), "limits": limits, **settings})
    env.reset(seed=0, options={"goal": HARMFUL})
    return env


def parallel(limits: Limits, **settings: Any) -> rtg_env.parallel_env:
    env = rtg_env.parallel_env(goals=GOALS, judge=TextJudge(), limits=limits, **settings)
    env.reset(seed=0, options={"goal": HARMFUL})
    return env


def seat(make: Callable[..., TextEnv], limits: Limits | None, **settings: Any) -> TextEnv:
    env = make(**{"goals": GOALS, "judge": TextJudge(), "limits": limits, "opponents": SeededPolicy(), **settings})
    env.reset(seed=0, options={"goal": HARMFUL})
    return env


def steps_until_the_end(env: TextEnv) -> tuple[int, bool, bool]:
    for count in range(1, 50):
        _, _, terminated, truncated, _ = env.step("x")
        if terminated or truncated:
            return count, terminated, truncated
    raise AssertionError("it never ends")


# Settings


@pytest.mark.parametrize("calls", [0, -1, True, 1.0, "3", float("nan")])
def test_a_number_of_calls_that_is_none_is_refused(calls: Any) -> None:
    with pytest.raises(ConfigError, match="calls must be None or a whole number >= 1, got"):
        Limits(calls=calls)


@pytest.mark.parametrize("seconds", [0, -1.5, True, "3", float("nan")])
def test_a_time_that_is_none_is_refused(seconds: Any) -> None:
    with pytest.raises(ConfigError, match="seconds must be None or a number > 0, got"):
        Limits(seconds=seconds)


def test_a_clock_that_cannot_be_asked_is_refused() -> None:
    with pytest.raises(ConfigError, match="clock must be a function"):
        Limits(seconds=1.0, clock=5.0)  # type: ignore[arg-type]  # the point of this test


@pytest.mark.parametrize("make", [rtg_env.env, rtg_env.parallel_env, attack, defend])
def test_limits_of_another_type_are_refused_with_the_right_one(make: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match=r"limits must be Limits, got dict; pass Limits\(calls="):
        make(goals=GOALS, judge=TextJudge(), limits={"calls": 3})


def test_without_limits_the_clock_is_never_asked() -> None:
    def clock() -> float:
        raise AssertionError("nobody needs the time")

    assert not Limits(clock=clock).reached(10**6, Limits(clock=clock).begin())


# Calls


@pytest.mark.parametrize("calls", [1, 2, 3, 4, 5])
def test_calls_truncate_after_that_sentence(calls: int) -> None:
    env = dialogue(Limits(calls=calls))
    for number in range(1, calls + 1):
        assert not any(env.truncations.values())
        env.step(f"sentence {number}")
    assert env.truncations == dict.fromkeys(env.possible_agents, True)
    assert not any(env.terminations.values())
    assert len(env.transcript().actions) == calls


@pytest.mark.parametrize("calls", [6, 7])
def test_a_dialogue_that_ends_by_itself_is_not_truncated(calls: int) -> None:
    env = dialogue(Limits(calls=calls))
    for _ in range(6):
        env.step("x")
    assert all(env.terminations.values())
    assert not any(env.truncations.values())


def test_what_nature_says_is_no_call() -> None:
    env = dialogue(Limits(calls=2))
    env.reset(options={"goal": BENIGN})
    env.step("one")
    assert not any(env.truncations.values())
    env.step("two")
    assert all(env.truncations.values())


def test_a_new_dialogue_begins_to_count_anew() -> None:
    env = dialogue(Limits(calls=2))
    env.step("x")
    env.reset(options={"goal": HARMFUL})
    env.step("x")
    assert not any(env.truncations.values())


@pytest.mark.parametrize("calls", [1, 3, 4])
def test_every_agent_leaves_by_one_dead_step(calls: int) -> None:
    env = dialogue(Limits(calls=calls), num_red=3)
    for _ in range(calls):
        env.step("x")
    left = []
    for agent in env.agent_iter():
        _, _, termination, truncation, _ = env.last()
        assert (termination, truncation) == (False, True)
        with pytest.raises(InvalidActionError, match="must be None"):
            env.step("too late")
        left.append(agent)
        env.step(None)
    assert sorted(left) == sorted(env.possible_agents)
    with pytest.raises(OrderError, match="all agents have left"):
        env.step(None)


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_the_parallel_environment_is_truncated_after_the_same_sentence(calls: int) -> None:
    env = parallel(Limits(calls=calls), num_red=2)
    for _ in range(calls):
        agents = env.agents
        _, rewards, terminations, truncations, infos = env.step(dict.fromkeys(agents, "x"))
    assert truncations == dict.fromkeys(agents, True)
    assert terminations == dict.fromkeys(agents, False)
    assert set(rewards) == set(infos) == set(agents)
    assert env.agents == []
    assert env.step({}) == ({}, {}, {}, {}, {})


# An attacker's k-th step brings the calls to 2k, or to 2k - 1 where the limit stops blue; a defender's brings them to 2k,
# and a red sentence to 2k + 1.
@pytest.mark.parametrize("calls", [1, 2, 3, 4, 5])
def test_calls_truncate_the_attacker_after_the_right_sentence(calls: int) -> None:
    env = seat(attack, Limits(calls=calls))
    assert steps_until_the_end(env) == ((calls + 1) // 2, False, True)
    assert len(env.transcript().actions) == calls


@pytest.mark.parametrize("calls", [2, 3, 4, 5])
def test_calls_truncate_the_defender_after_the_right_sentence(calls: int) -> None:
    env = seat(defend, Limits(calls=calls))
    assert steps_until_the_end(env) == (calls // 2, False, True)
    assert len(env.transcript().actions) == calls


@pytest.mark.parametrize("make", [attack, defend])
def test_a_view_whose_dialogue_ends_by_itself_is_not_truncated(make: Callable[..., TextEnv]) -> None:
    assert steps_until_the_end(seat(make, Limits(calls=6))) == (3, True, False)


@pytest.mark.parametrize(
    ("make", "settings", "least"),
    [
        (defend, {}, 2),
        (attack, {"num_red": 2, "num_exchanges": 2}, 3),
        (attack, {"num_red": 3, "member": 2}, 5),
    ],
)
def test_calls_that_leave_the_learner_none_are_refused(
    make: Callable[..., TextEnv], settings: dict[str, Any], least: int
) -> None:
    with pytest.raises(ConfigError, match=rf"limits.calls >= {least}, so that .* speaks in every dialogue, got 1"):
        make(limits=Limits(calls=1), **settings)
    env = make(limits=Limits(calls=least), goals=GOALS, judge=TextJudge(), **settings)
    for seed in range(12):  # every order of the team
        env.reset(seed=seed)
        env.step("mine")
        assert any(action.text == "mine" for _, action in env.transcript().actions)


@given(
    num_red=st.integers(1, 3),
    num_exchanges=st.integers(3, 4),
    calls=st.integers(5, 9),
    member=st.integers(-1, 2),
    seed=st.integers(0, 50),
)
def test_nobody_but_the_learner_says_what_the_learner_says(
    num_red: int, num_exchanges: int, calls: int, member: int, seed: int
) -> None:
    settings: dict[str, Any] = {"num_red": num_red, "num_exchanges": num_exchanges, "benign_prob": 0.5}
    learner = "blue_0" if member < 0 else f"red_{member % num_red}"
    env = (
        seat(defend, Limits(calls=calls), **settings)
        if member < 0
        else seat(attack, Limits(calls=calls), member=member % num_red, **settings)
    )
    env.reset(seed=seed)
    over = False
    while not over:
        _, _, terminated, truncated, _ = env.step("mine")
        over = terminated or truncated
    actions = env.transcript().actions
    assert len(actions) <= calls
    assert {agent for agent, action in actions if action.text == "mine"} == {learner}
    assert truncated == (len(env.transcript().exchanges) < num_exchanges)


@pytest.mark.parametrize("make", [attack, defend])
def test_a_step_after_truncation_is_refused(make: Callable[..., TextEnv]) -> None:
    env = seat(make, Limits(calls=2))
    env.step("x")
    before = canonical(env.transcript())
    with pytest.raises(OrderError, match=r"call reset\(\)"):
        env.step("too late")
    assert canonical(env.transcript()) == before
    env.reset(seed=1)
    env.step("x")


# Seconds


def test_seconds_truncate_once_they_are_over() -> None:
    clock = Clock()
    env = dialogue(Limits(seconds=10.0, clock=clock))
    clock.now += 9.5
    env.step("in time")
    assert not any(env.truncations.values())
    clock.now += 0.5
    env.step("too late")
    assert all(env.truncations.values())


def test_seconds_count_from_the_deal() -> None:
    clock = Clock()
    env = dialogue(Limits(seconds=10.0, clock=clock))
    clock.now += 9.0
    env.reset(options={"goal": HARMFUL})
    clock.now += 9.0
    env.step("in time")
    assert not any(env.truncations.values())


@pytest.mark.parametrize("make", [attack, defend])
def test_seconds_truncate_a_view(make: Callable[..., TextEnv]) -> None:
    clock = Clock()
    env = seat(make, Limits(seconds=10.0, clock=clock))
    assert env.step("in time")[2:4] == (False, False)
    clock.now += 10.0
    assert env.step("too late")[2:4] == (False, True)


def test_an_opponent_that_takes_its_time_is_stopped_with_its_sentence() -> None:
    clock = Clock()

    class Slow(SeededPolicy):
        def act(self, observations, seeds):
            clock.now += 6.0
            return super().act(observations, seeds)

    env = seat(attack, Limits(seconds=10.0, clock=clock), opponents=Slow())
    assert env.step("one")[2:4] == (False, False)
    assert env.step("two")[2:4] == (False, True)
    assert len(env.transcript().exchanges) == 2


@pytest.mark.parametrize("make", [attack, defend])
def test_time_that_is_over_before_the_learner_has_spoken_leaves_it_one_sentence(make: Callable[..., TextEnv]) -> None:
    clock = Clock(tick=1.0)  # every look takes longer than the limit
    limits = Limits(seconds=0.5, clock=clock)
    env = make(goals=GOALS, judge=TextJudge(), limits=limits, opponents=SeededPolicy(), num_red=2, num_exchanges=2)
    for seed in range(6):  # both orders of the team
        env.reset(seed=seed)
        assert env.step("mine")[2:4] == (False, True)
        speaker, action = env.transcript().actions[-1]
        assert (speaker, action.text) == ("red_0" if make is attack else "blue_0", "mine")


def test_a_clock_that_is_put_back_does_not_bring_a_stopped_dialogue_back() -> None:
    times = iter([0.0, 99.0, 0.0, 0.0, 0.0])  # the deal; the learner has spoken: over; and then it is early again
    env = seat(attack, Limits(seconds=10.0, clock=lambda: next(times)))
    assert env.step("x")[2:4] == (False, True)
    with pytest.raises(OrderError):
        env.step("y")


# What a truncated dialogue is worth


def test_rewards_before_the_truncation_are_kept_and_there_is_no_utility() -> None:
    env = dialogue(Limits(calls=3), judge=ScriptedJudge(verdict(0.25)))
    env.step("red")
    env.step("blue")
    assert env.rewards == {"red_0": 0.25, "blue_0": -0.25}
    env.step("red")
    assert env.rewards == {"red_0": 0.0, "blue_0": 0.0}
    assert {agent: env._cumulative_rewards[agent] for agent in env.agents} == {"red_0": 0.0, "blue_0": -0.25}
    transcript = env.transcript()
    assert transcript.payments == (0.25,)
    assert math.isnan(transcript.utility)
    assert not transcript.unscored


def test_the_sentence_at_which_a_dialogue_is_truncated_is_paid() -> None:
    env = dialogue(Limits(calls=2), judge=ScriptedJudge(verdict(0.25)))
    env.step("red")
    env.step("blue")
    assert env.rewards == {"red_0": 0.25, "blue_0": -0.25}
    assert all(env.truncations.values())


def test_a_truncated_dialogue_that_is_paid_at_the_end_pays_nothing() -> None:
    env = seat(attack, Limits(calls=4), payment="terminal", judge=ScriptedJudge(verdict(1.0), verdict(1.0)))
    assert env.step("x")[1] == 0.0
    _, reward, _, truncated, info = env.step("x")
    assert (reward, truncated) == (0.0, True)
    assert "utility" not in info


@pytest.mark.parametrize(("make", "paid"), [(attack, 0.25), (defend, -0.25)])
def test_a_truncated_view_pays_what_was_played_and_tells_no_utility(make: Callable[..., TextEnv], paid: float) -> None:
    env = seat(make, Limits(calls=2), judge=ScriptedJudge(verdict(0.25)))
    _, reward, terminated, truncated, info = env.step("x")
    assert (reward, terminated, truncated) == (paid, False, True)
    assert "utility" not in info
    assert info["unscored"] is False


def test_a_failed_verdict_and_a_limit_in_one_sentence_are_both_told() -> None:
    class Down(TextJudge):
        def judge(self, cases):
            raise ConnectionError("down")

    env = dialogue(Limits(calls=2), judge=Down())
    env.step("red")
    env.step("blue")
    assert all(env.truncations.values())
    assert all(info["unscored"] for info in env.infos.values())
    assert env.rewards == {"red_0": 0.0, "blue_0": 0.0}


# PettingZoo's own tests


@pytest.mark.parametrize("calls", [1, 2, 3])
@pytest.mark.parametrize("num_red", [1, 2])
@pytest.mark.filterwarnings("ignore:Observation is not a NumPy array:UserWarning")
@pytest.mark.filterwarnings("ignore:Action space for each agent probably should be:UserWarning")
@pytest.mark.filterwarnings("ignore:Observation space for each agent probably should be:UserWarning")
@pytest.mark.filterwarnings("ignore:Agents have different observation space sizes:UserWarning")  # their private parts
def test_the_tests_of_pettingzoo_pass_with_limits(calls: int, num_red: int) -> None:
    settings: dict[str, Any] = {"goals": GOALS, "judge": TextJudge(), "limits": Limits(calls=calls), "num_red": num_red}
    api_test(rtg_env.env(**settings), num_cycles=20)
    seed_test(lambda: rtg_env.env(**settings), num_cycles=20)
    parallel_api_test(rtg_env.parallel_env(**settings), num_cycles=20)
    parallel_seed_test(lambda: rtg_env.parallel_env(**settings), num_cycles=20)


# Copies


def restored(env: rtg_env.raw_env) -> rtg_env.raw_env:
    twin = dialogue(env.limits, num_red=env.config.num_red)
    twin.set_state(json.loads(json.dumps(env.get_state())))
    return twin


def pickled(env: rtg_env.raw_env) -> rtg_env.raw_env:
    return pickle.loads(pickle.dumps(env))  # noqa: S301 - our own


def shown(env: rtg_env.raw_env) -> list[Any]:
    """What is left of a dialogue, step by step."""
    seen = []
    while env.agents:
        _, reward, terminated, truncated, info = env.last()
        seen.append([env.agent_selection, dict(env.rewards), reward, terminated, truncated, info])
        env.step(None if terminated or truncated else "x")
    return seen


@pytest.mark.parametrize("duplicate", [restored, pickled, copy.deepcopy, rtg_env.raw_env.clone])
@pytest.mark.parametrize("num_steps", range(7))
def test_a_copy_is_truncated_where_the_original_is(
    duplicate: Callable[[rtg_env.raw_env], rtg_env.raw_env], num_steps: int
) -> None:
    env = dialogue(Limits(calls=4), num_red=2)
    for _ in range(num_steps):
        truncated = env.truncations[env.agent_selection]
        env.step(None if truncated else "x")
    twin = duplicate(env)
    assert (twin.agents, twin.truncations, twin.terminations) == (env.agents, env.truncations, env.terminations)
    rest = shown(twin)
    assert rest == shown(env)
    assert twin.transcript().payments == env.transcript().payments


def test_a_limit_on_time_begins_anew_in_a_restored_environment() -> None:
    clock = Clock()
    env = dialogue(Limits(seconds=10.0, clock=clock))
    env.step("x")
    saved = env.get_state()
    clock.now += 9.0
    twin = dialogue(Limits(seconds=10.0, clock=clock))
    twin.set_state(saved)
    clock.now += 9.0
    twin.step("in time")
    env.step("too late")
    assert (twin.truncations["red_0"], env.truncations["red_0"]) == (False, True)
