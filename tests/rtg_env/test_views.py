from __future__ import annotations

import copy
import json
import math
import os
import pickle
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

import rtg_env
from rtg_env import Action, Limits, Pool
from rtg_env.engine import DialogueBatch
from rtg_env.errors import ConfigError, InvalidActionError, JudgeError, OrderError
from rtg_env.policies import Policy
from rtg_env.testing import check_env
from rtg_env.testing.games import plain
from rtg_env.tokens import tokens
from rtg_env.vector import SeatVectorEnv, attack_vector, defend_vector
from rtg_env.views import TextEnv, attack, defend
from tests.doubles import (
    ANY_TEXT,
    BENIGN,
    GOALS,
    HARMFUL,
    BreakingPolicy,
    FaultyJudge,
    LawlessJudge,
    RaisingJudge,
    ScriptedJudge,
    SeededPolicy,
    TextJudge,
    canonical,
    failed,
    verdict,
)

ROOT = Path(__file__).resolve().parents[2]
SINGLE: dict[str, Callable[..., TextEnv]] = {"Attack": attack, "Defend": defend}
MANY: dict[str, Callable[..., SeatVectorEnv]] = {"Attack": attack_vector, "Defend": defend_vector}
both = pytest.mark.parametrize("name", SINGLE)

SHAPES = [(n, t, p) for n in (1, 2, 3) for t in (1, 2, 3) for p in (0.0, 0.9)]
TEAM: dict[str, Any] = {"num_red": 2, "benign_prob": 0.4, "opponents": Pool([SeededPolicy("a"), SeededPolicy("b")])}


def make(name: str = "Attack", **chosen: Any) -> TextEnv:
    return SINGLE[name](**{"goals": GOALS, "judge": TextJudge(), "opponents": SeededPolicy(), **chosen})


def make_many(name: str = "Attack", num_envs: int = 3, **chosen: Any) -> SeatVectorEnv:
    return MANY[name](num_envs, **{"goals": GOALS, "judge": TextJudge(), "opponents": SeededPolicy(), **chosen})


def started(name: str = "Attack", **chosen: Any) -> TextEnv:
    env = make(name, **chosen)
    env.reset(seed=0, options={"goal": HARMFUL})
    return env


def rest(env: TextEnv, say: Callable[[int], Any] = lambda number: f"sentence {number}") -> list[tuple[Any, ...]]:
    """What is left of a dialogue, step by step."""
    steps: list[tuple[Any, ...]] = []
    while not steps or not (steps[-1][2] or steps[-1][3]):
        steps.append(env.step(say(len(steps))))
    return steps


def of_vector(result: tuple[Any, ...]) -> Any:
    """What a vector has returned, in plain values."""
    return plain(list(result))


# Gymnasium's own tests


@both
@pytest.mark.parametrize(("num_red", "num_exchanges", "benign_prob"), SHAPES)
def test_the_checker_of_gymnasium_passes(name: str, num_red: int, num_exchanges: int, benign_prob: float) -> None:
    shape = {"num_red": num_red, "num_exchanges": num_exchanges, "benign_prob": benign_prob}
    if name == "Attack" and num_exchanges < num_red:
        with pytest.raises(ConfigError, match="expected num_exchanges >= num_red"):
            make(name, **shape)
        return
    env = gymnasium.make(f"RedTeam/{name}-v0", goals=GOALS, judge=TextJudge(), **shape)
    gymnasium_check(env.unwrapped, skip_render_check=True)


@both
@pytest.mark.parametrize("mode", [None, "human", "ansi"])
def test_the_checker_of_gymnasium_passes_in_every_render_mode(
    name: str, mode: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    gymnasium_check(gymnasium.make(f"RedTeam/{name}-v0", render_mode=mode).unwrapped)
    assert "goal" in capsys.readouterr().out


@both
def test_the_wrappers_of_gymnasium_play_a_dialogue(name: str) -> None:
    env = gymnasium.make(f"RedTeam/{name}-v0", goals=GOALS, judge=TextJudge(), opponents=SeededPolicy())
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step("too early")
    env.reset(seed=0, options={"goal": HARMFUL})
    rewards, over = [], False
    while not over:
        _, reward, terminated, truncated, info = env.step("x")
        rewards.append(reward)
        over = terminated or truncated
    sign = 1.0 if name == "Attack" else -1.0
    assert sum(rewards) == pytest.approx(sign * info["utility"], abs=1e-12)


def test_opponents_that_cannot_be_copied_are_fine() -> None:
    class Locked(SeededPolicy):
        def __init__(self) -> None:
            super().__init__()
            self.lock = threading.Lock()

    env = gymnasium.make("RedTeam/Attack-v0", opponents=Locked())
    env.reset(seed=0)
    env.step("x")
    envs = gymnasium.make_vec("RedTeam/Attack-v0", num_envs=2, opponents=Locked())
    envs.reset(seed=0)
    envs.step(["x", "y"])


@both
@pytest.mark.parametrize("num_envs", [1, 3])
def test_make_vec_makes_our_vector(name: str, num_envs: int) -> None:
    envs = gymnasium.make_vec(f"RedTeam/{name}-v0", num_envs=num_envs, goals=GOALS, opponents=SeededPolicy())
    assert isinstance(envs.unwrapped, SeatVectorEnv)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert (envs.num_envs, len(envs.reset(seed=0)[0]["messages"])) == (num_envs, num_envs)
    envs.close()


def test_the_asynchronous_vector_of_gymnasium_refuses_our_text_with_its_shared_memory() -> None:
    with pytest.raises(TypeError, match="not possible to make a static shared memory"):
        gymnasium.make_vec("RedTeam/Attack-v0", num_envs=2, vectorization_mode="async")


@both
@pytest.mark.parametrize(
    "shape",
    [
        {"opponents": TEAM["opponents"]},
        {"num_red": 2, "num_exchanges": 2, "benign_prob": 0.9},
        {"limits": Limits(calls=5)},
    ],
    ids=["pool", "team", "limits"],
)
def test_our_own_conformance_suite_passes(name: str, shape: dict[str, Any]) -> None:
    report = check_env(partial(SINGLE[name], goals=GOALS, **shape), seeds=(0,), skip=("across-processes",))
    assert {"judged", "unscored", "copies", "pickled", "replay", "gymnasium-api", "rendering"} <= set(report.passed)


@pytest.mark.parametrize("kind", [rtg_env.env, rtg_env.parallel_env])
def test_the_dialogue_environment_with_limits_passes_our_own_conformance_suite(kind: Callable[..., Any]) -> None:
    limited = partial(kind, goals=GOALS, limits=Limits(calls=3), num_red=2)
    report = check_env(limited, seeds=(0,), skip=("across-processes",))
    assert {"judged", "unscored", "copies", "zero-sum", "secrets"} <= set(report.passed)


# The same game as the engine and the PettingZoo environment


@both
@given(
    num_red=st.integers(1, 3),
    num_exchanges=st.integers(3, 4),
    aggregate=st.sampled_from(["max", "mean"]),
    payment=st.sampled_from(["exchange", "terminal"]),
    benign_prob=st.sampled_from([0.0, 0.5]),
    member=st.integers(0, 2),
    tokens=st.sampled_from([0, 6]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40)
def test_a_view_plays_what_the_engine_plays(
    name: str,
    num_red: int,
    num_exchanges: int,
    aggregate: str,
    payment: str,
    benign_prob: float,
    member: int,
    tokens: int,
    seed: int,
) -> None:
    learner = f"red_{member % num_red}" if name == "Attack" else "blue_0"
    chosen: dict[str, Any] = {"member": member % num_red} if name == "Attack" else {}
    red, blue, me = SeededPolicy("r"), SeededPolicy("b"), SeededPolicy("me")
    env = make(
        name,
        opponents={"red": red, "blue": blue},
        num_red=num_red,
        num_exchanges=num_exchanges,
        aggregate=aggregate,
        payment=payment,
        benign_prob=benign_prob,
        blue_tokens=tokens,
        helpfulness_weight=2.0,
        **chosen,
    )
    env.reset(seed=seed)
    table = env._play.table
    steps: list[tuple[Any, ...]] = []
    while not steps or not steps[-1][2]:
        turn = table._batch.turn(0)
        assert turn is not None
        assert turn.agent_id == learner
        steps.append(env.step(me.act([turn.observation], [turn.seed])[0]))

    deal = table.dialogue(0).state.deal
    batch = DialogueBatch(table.config, [deal], TextJudge())
    players: dict[str, Policy] = {**dict.fromkeys(table.config.red_agents, red), "blue_0": blue, learner: me}
    while turns := batch.pending():
        batch.submit({turn.dialogue: players[turn.agent_id].act([turn.observation], [turn.seed])[0] for turn in turns})
    played = batch.transcript(0)
    assert canonical(played) == canonical(env.transcript())
    assert steps[-1][4]["utility"] == played.utility
    sign = 1.0 if name == "Attack" else -1.0
    assert sum(reward for _, reward, *_ in steps) == pytest.approx(sign * played.utility, abs=1e-12)
    if payment == "terminal":
        assert all(reward == 0.0 for _, reward, *_ in steps[:-1])


@both
@pytest.mark.parametrize("num_red", [1, 3])
@pytest.mark.parametrize("payment", ["exchange", "terminal"])
def test_a_view_shows_and_pays_what_the_dialogue_environment_does(name: str, num_red: int, payment: str) -> None:
    game: dict[str, Any] = {
        "num_red": num_red,
        "payment": payment,
        "num_exchanges": 4,
        "blue_system_prompt": "Be kind.",
    }
    env = make(name, **game)
    learner = env._play.table.learner
    for seed in range(8):
        seen, info = env.reset(seed=seed, options={"goal_id": "o"})
        shown = [(seen, None, info), *((one[0], one[1], one[4]) for one in rest(env))]
        said = iter(env.transcript().actions)
        twin = with_order(env.transcript().red_order, **game)
        expected: list[tuple[Any, ...]] = []
        for agent in twin.agent_iter():
            observation, reward, terminated, _, told = twin.last()
            if agent == learner:
                expected.append((observation, reward, told))
            twin.step(None if terminated else next(said)[1])
        # A reset pays nothing: what is paid before the first turn comes with the first step.
        pays = [None, expected[0][1] + expected[1][1], *(reward for _, reward, _ in expected[2:])]
        assert [seen for seen, *_ in shown] == [seen for seen, *_ in expected]
        assert [reward for _, reward, _ in shown] == pytest.approx(pays, abs=1e-12)
        for (_, _, mine), (_, _, told) in zip(shown, expected, strict=True):
            assert {key: mine[key] for key in told} == told


def with_order(order: tuple[int, ...], **game: Any) -> rtg_env.raw_env:
    """A dialogue environment in which chance has drawn this order."""
    env = rtg_env.env(goals=GOALS, judge=TextJudge(), **game)
    for seed in range(200):
        env.reset(seed=seed, options={"goal_id": "o"})
        if env.transcript().red_order == order:
            return env
    raise AssertionError(f"{order} never came")


def test_what_teammates_have_won_before_the_first_turn_comes_with_the_first_step() -> None:
    for seed in range(10):
        judge = ScriptedJudge(verdict(0.75), verdict(0.25), verdict(1.0))
        env = make("Attack", num_red=2, judge=judge)
        env.reset(seed=seed)
        if env.transcript().exchanges:
            break
    assert [step[1] for step in rest(env)] == [0.75 + 0.25]
    assert env.transcript().red_order == (1, 0)


@both
def test_a_tie_pays_a_plain_zero(name: str) -> None:
    env = started(name, judge=ScriptedJudge(verdict(0.0)), num_exchanges=1)
    assert math.copysign(1.0, env.step("x")[1]) == 1.0


# What is seen


@both
def test_the_observation_is_that_of_the_agent(name: str) -> None:
    env = make(name, blue_system_prompt="Be kind.")
    seen, _ = env.reset(seed=0, options={"goal": HARMFUL})
    private = {"goal": HARMFUL.text, "reasoning": ()} if name == "Attack" else {"system_prompt": "Be kind."}
    assert {key: seen[key] for key in seen if key not in ("messages", "turn")} == private
    assert seen["turn"] == 0
    assert len(seen["messages"]) == (0 if name == "Attack" else 1)


def test_red_sees_its_own_reasoning_and_blue_does_not() -> None:
    seen = started("Attack").step(Action(text="x", reasoning="a secret plan"))[0]
    assert seen["reasoning"] == ("a secret plan",)
    assert "reasoning" not in started("Defend").step("x")[0]


@both
def test_infos_are_json_and_the_utility_comes_at_the_end(name: str) -> None:
    env = make(name, opponents=SeededPolicy("opponent@v7"))
    _, info = env.reset(seed=0)
    infos = [info, *(step[4] for step in rest(env))]
    assert ["utility" in one for one in infos] == [False, False, False, True]
    assert json.loads(json.dumps(infos, allow_nan=False)) == infos
    keys = {"unscored", "redrawn"} | ({"goal_id", "harmful"} if name == "Attack" else set())
    assert all(set(one) - {"utility"} == keys for one in infos)


def test_blue_is_told_neither_the_goal_nor_who_plays() -> None:
    class Quiet(SeededPolicy):
        def act(self, observations, seeds):
            return [Action(text="hello", policy=self.name) for _ in observations]

    for goal in (HARMFUL, BENIGN):
        env = make("Defend", opponents=Quiet("opponent@v7"))
        seen, info = env.reset(seed=0, options={"goal": goal})
        told = repr([seen, info, rest(env)])
        for secret in ("opponent@v7", "goal", "harmful", HARMFUL.text):
            assert secret not in told
        assert "opponent@v7" in repr(env.transcript()) or goal is BENIGN


def test_blue_is_shown_the_same_by_nature_and_by_a_red_that_says_the_same() -> None:
    class Nature(SeededPolicy):
        def act(self, observations, seeds):
            return [Action(text=BENIGN.nature_says(seen.turn)) for seen in observations]

    shown = []
    for goal in (HARMFUL, BENIGN):
        env = make("Defend", opponents=Nature(), judge=ScriptedJudge(*[verdict(0.0)] * 3))
        shown.append([env.reset(seed=0, options={"goal": goal}), *rest(env)])
    assert shown[0] == shown[1]


@both
def test_spoiling_what_was_returned_spoils_nothing(name: str) -> None:
    env, twin = started(name), started(name)
    for number in range(3):
        seen, *_, info = env.step(f"{number}")
        expected = twin.step(f"{number}")
        assert (seen, info) == (expected[0], expected[4])
        for message in seen["messages"]:
            message["content"] = "spoilt"
        seen.clear()
        info.update(unscored=True, utility=7.0)
    assert canonical(env.transcript()) == canonical(twin.transcript())


# Hostile text


@both
@given(texts=st.lists(ANY_TEXT, min_size=3, max_size=3))
def test_any_text_is_played_and_seen_in_the_space(name: str, texts: list[str]) -> None:
    env = started(name, render_mode="ansi")
    for text in texts:
        seen, reward, *_ = env.step(text)
        assert env.observation_space.contains(seen)
        assert math.isfinite(reward)
        json.dumps(seen).encode()
    shown = env.render()
    assert shown is not None
    assert not [char for char in shown if (ord(char) < 32 and char not in "\n\t") or 0x7F <= ord(char) < 0xA0]


@both
@pytest.mark.parametrize("bad", ["a\x00b", "a\ud800b", "\x1b[2J\x1b]0;title\x07gone", "\u202egnp.exe", "a\r\x08b"])
def test_hostile_text_of_either_side_is_harmless_in_a_rendering(name: str, bad: str) -> None:
    class Hostile(SeededPolicy):
        def act(self, observations, seeds):
            return [Action(text=bad) for _ in observations]

    many = make_many(name, 2, render_mode="ansi", opponents=Hostile())
    many.reset(seed=0)
    many.step([bad, "fine"])
    env = started(name, render_mode="ansi", opponents=Hostile())
    env.step(bad)
    single, several = env.render(), many.render()
    assert single is not None
    assert several is not None
    for text in (single, *several):
        assert not set("\x00\x1b\x07\r\x08\u202e\ud800") & set(text)
        text.encode()


def test_human_rendering_writes_every_sentence_once(capsys: pytest.CaptureFixture[str]) -> None:
    env = started("Attack", render_mode="human")
    rest(env)
    written = capsys.readouterr().out
    assert [written.count(f"sentence {number}") for number in range(3)] == [1, 1, 1]
    assert env.render() is None


# Actions


@both
def test_an_action_with_tokens_is_taken_and_kept(name: str) -> None:
    env = started(name)
    said = Action(text="hi", policy="me@v3", prompt_ids=(1,), token_ids=(5, 6), logps=(-0.5, -0.25))
    env.step(said)
    assert said in [action for _, action in env.transcript().actions]


@both
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (None, "action must be text, got None"),
        (3, "action must be text, got int; pass a str"),
        (b"x", "action must be text, got bytes"),
        (["x"], "action must be text, got list"),
        (Action(text=None), "action must be text, got NoneType"),  # type: ignore[arg-type]
        ("x" * 2001, "at most 2000 characters, got 2001; raise GameConfig.max_action_chars or shorten it"),
        (Action(text="x" * 2001), "at most 2000 characters, got 2001"),
    ],
)
def test_an_illegal_action_changes_nothing(name: str, bad: Any, message: str) -> None:
    env, twin = started(name), started(name)
    with pytest.raises(InvalidActionError, match=message):
        env.step(bad)
    assert rest(env) == rest(twin)


@both
@pytest.mark.parametrize("bad", [None, 3, b"x", "x" * 2001])
def test_an_illegal_action_in_one_slot_plays_nothing_anywhere(name: str, bad: Any) -> None:
    envs, twins = make_many(name), make_many(name)
    envs.reset(seed=0)
    twins.reset(seed=0)
    with pytest.raises(InvalidActionError, match="action must be text"):
        envs.step(["fine", "fine", bad])
    for number in range(5):
        assert of_vector(envs.step([f"{number}"] * 3)) == of_vector(twins.step([f"{number}"] * 3))


@both
@pytest.mark.parametrize(
    "actions", ["abc", b"abc", ["a", "b"], [], ["a"] * 4, {"a": 1, "b": 2, "c": 3}, {"a", "b", "c"}, None, 3]
)
def test_anything_but_a_list_of_one_action_per_slot_is_refused(name: str, actions: Any) -> None:
    envs = make_many(name)
    envs.reset(seed=0)
    before = [canonical(transcript) for transcript in envs.transcripts()]
    with pytest.raises(InvalidActionError, match="expected 3 actions, one per slot, got"):
        envs.step(actions)
    assert [canonical(transcript) for transcript in envs.transcripts()] == before


def test_actions_come_as_a_tuple_or_an_array_too() -> None:
    for actions in (("a", "b", "c"), np.array(["a", "b", "c"]), np.array(["a", "b", "c"], dtype=object)):
        envs = make_many("Attack")
        envs.reset(seed=0)
        envs.step(actions)
        assert [transcript.actions[0][1].text for transcript in envs.transcripts()] == ["a", "b", "c"]
    assert envs.action_space.contains(("a", "b", "c"))


# Order


@both
def test_before_reset_every_call_says_to_reset(name: str) -> None:
    env, envs = make(name, render_mode="ansi"), make_many(name, render_mode="ansi")
    calls: list[Callable[[], Any]] = [
        lambda: env.step("x"),
        env.transcript,
        env.render,
        lambda: envs.step(["x"] * 3),
        envs.transcripts,
        envs.render,
    ]
    for call in calls:
        with pytest.raises(OrderError, match=r"reset\("):
            call()


@both
def test_after_the_end_a_step_says_to_reset(name: str) -> None:
    env = started(name)
    rest(env)
    before = canonical(env.transcript())
    for _ in range(2):
        with pytest.raises(OrderError, match=r"expected a dialogue that goes on.*call reset\(\)"):
            env.step("x")
    assert canonical(env.transcript()) == before
    env.reset()
    env.step("x")


def test_after_the_end_no_action_that_is_no_whole_sentence_is_taken_either() -> None:
    env = tokens(goals=GOALS, judge=TextJudge(), opponents=SeededPolicy(), num_exchanges=1)
    with pytest.raises(OrderError, match=r"call reset\(\)"):
        env.step(65)
    env.reset(seed=0)
    env.step(65)
    assert env.step(256)[2]
    with pytest.raises(OrderError, match=r"call reset\(\)"):
        env.step(65)


@both
def test_a_dialogue_may_be_left_for_another(name: str) -> None:
    env, twin = started(name), make(name)
    env.step("x")
    assert env.reset(seed=5) == twin.reset(seed=5)
    assert rest(env) == rest(twin)


# Options


@both
def test_options_hold_for_one_dialogue(name: str) -> None:
    env, twin = make(name, opponents=SeededPolicy("usual")), make(name, opponents=SeededPolicy("usual"))
    env.reset(seed=3, options={"opponents": SeededPolicy("other"), "goal": HARMFUL})
    rest(env)
    assert "other" in repr(env.transcript())
    twin.reset(seed=3, options={"goal": HARMFUL})
    rest(twin)
    assert env.reset() == twin.reset()
    assert rest(env) == rest(twin)
    assert "other" not in repr(env.transcript())


def test_options_of_a_vector_hold_until_the_dialogue_ends() -> None:
    envs = make_many("Attack", 2, opponents=SeededPolicy("usual"), num_exchanges=1)
    envs.reset(seed=0, options={"opponents": SeededPolicy("other"), "goal_id": "o"})
    seen = envs.step(["x", "y"])[4]["final_obs"][0]["messages"][1]["content"]
    assert seen.startswith("other")
    assert envs.step(["x", "y"])[4]["final_obs"][0]["messages"][1]["content"].startswith("usual")


@both
@pytest.mark.parametrize("options", [{}, {"options": 1}, {"goals": "h", "max": None}, {"goal": None, "goal_id": None}])
def test_unknown_options_change_nothing(name: str, options: dict[str, Any]) -> None:
    env, twin = make(name), make(name)
    assert env.reset(seed=1, options=options) == twin.reset(seed=1)
    assert rest(env) == rest(twin)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"goal": "h"}, r"options\['goal'\] must be a Goal"),
    ({"goal_id": "nowhere"}, "expected a goal id of doubles, got 'nowhere'"),
    ({"opponents": 3}, "expected policies with a name and act"),
    ({"opponents": {"green": SeededPolicy()}}, "'green'; there is no such seat"),
]


@both
@pytest.mark.parametrize(("options", "message"), WRONG)
@pytest.mark.parametrize("seed", [None, 9])
def test_a_wrong_option_keeps_the_dialogue_and_the_generator(
    name: str, options: dict[str, Any], message: str, seed: int | None
) -> None:
    env, twin = started(name), started(name)
    with pytest.raises(ConfigError, match=message):
        env.reset(seed=seed, options=options)
    assert rest(env) == rest(twin)
    assert env.reset() == twin.reset()
    assert env.np_random_seed == twin.np_random_seed == 0
    envs, twins = make_many(name), make_many(name)
    envs.reset(seed=0)
    twins.reset(seed=0)
    with pytest.raises(ConfigError, match=message):
        envs.reset(seed=seed, options=options)
    for number in range(4):
        assert of_vector(envs.step([f"{number}"] * 3)) == of_vector(twins.step([f"{number}"] * 3))


def test_red_is_refused_a_benign_goal() -> None:
    with pytest.raises(ConfigError, match="expected a harmful goal for a learner in red's seat, 'b' is benign"):
        make("Attack").reset(seed=0, options={"goal": BENIGN})
    make("Defend").reset(seed=0, options={"goal": BENIGN})


@both
@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"num_exchanges": 0}, "num_exchanges must be a whole number >= 1"),
        ({"exchanges": 3}, "expected arguments among opponents, .*, got exchanges; correct the name"),
        ({"goals": [HARMFUL]}, r"goals must be a GoalSet, got list; wrap them: GoalSet\(goals\)"),
        ({"render_mode": "rgb_array"}, "render_mode must be None or"),
        ({"opponents": []}, "expected at least one policy"),
        ({"config": rtg_env.GameConfig(), "num_red": 2}, "expected either config or its fields"),
    ],
)
def test_a_wrong_setting_says_what_was_expected(name: str, chosen: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(name, **chosen)
    with pytest.raises(ConfigError, match=message):
        make_many(name, **chosen)


def test_a_member_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected a learner among red_0, red_1, blue_0, got 'red_2'"):
        make("Attack", num_red=2, member=2)


@both
def test_a_vector_of_nothing_and_one_that_writes_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="expected at least one dialogue at a time, got 0"):
        make_many(name, 0)
    with pytest.raises(ConfigError, match="render_mode must be None or 'ansi' for many dialogues, got 'human'"):
        make_many(name, render_mode="human")


@both
def test_text_has_no_action_mask(name: str) -> None:
    for env in (make(name), make_many(name)):
        with pytest.raises(ConfigError, match="expected a view with discrete actions, TextView takes any text"):
            env.action_masks()


# Seeds


@both
def test_the_same_seed_plays_the_same_dialogues(name: str) -> None:
    env, twin = make(name, **TEAM), make(name, **TEAM)
    twin.reset(seed=99)
    twin.step("something else before")
    for seed in (4, None, None):
        assert env.reset(seed=seed) == twin.reset(seed=seed)
        assert rest(env) == rest(twin)


@both
def test_seeds_deal_different_dialogues(name: str) -> None:
    env, seen = make(name, goals=None), set()
    for seed in range(10):
        env.reset(seed=seed)
        seen.add(env.transcript().goal.id)
    assert len(seen) > 5


@both
def test_the_environment_tells_its_seed_and_its_generator(name: str) -> None:
    env = make(name)
    env.reset(seed=7)
    assert env.np_random_seed == 7
    assert env.np_random is env._play.table.rng(0)
    env.reset()
    assert env.np_random_seed == 7


def test_a_seed_that_is_none_of_gymnasium_is_refused_and_changes_nothing() -> None:
    env, twin = started(), started()
    for seed in (-1, "7", 1.5):
        with pytest.raises(gymnasium.error.Error):
            env.reset(seed=seed)  # type: ignore[arg-type]
    assert rest(env) == rest(twin)


@both
def test_no_global_generator_is_read_or_touched(name: str) -> None:
    env, shown = make(name, **TEAM), []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - the global generator is what this is about
        before = random.getstate(), repr(np.random.get_state())  # noqa: NPY002
        shown.append([env.reset(seed=0), rest(env)])
        assert (random.getstate(), repr(np.random.get_state())) == before  # noqa: NPY002
    assert shown[0] == shown[1]


CHILD = """
import hashlib
from tests.rtg_env.test_views import TEAM, make_many
digest = hashlib.sha256()
for name in ("Attack", "Defend"):
    envs = make_many(name, 4, **TEAM)
    digest.update(repr(envs.reset(seed=0)).encode())
    for number in range(6):
        digest.update(repr(envs.step([f"{number} {slot}" for slot in range(4)])).encode())
print(digest.hexdigest())
"""


def test_processes_with_other_hash_seeds_play_the_same() -> None:
    path = os.pathsep.join(str(ROOT / folder) for folder in (".", "agents", "solvers"))
    running = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": seed},
        )
        for seed in ("1", "2")
    ]
    digests = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert digests[0] == digests[1] != ""


# Copies


def pickled(env: Any) -> Any:
    return pickle.loads(pickle.dumps(env))  # noqa: S301 - our own


@both
@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled])
@pytest.mark.parametrize("num_steps", [0, 1, 2, 3])
def test_a_copy_goes_on_alike_and_alone(name: str, duplicate: Callable[[Any], Any], num_steps: int) -> None:
    env = make(name, **TEAM, num_exchanges=8)
    env.reset(seed=2)
    for number in range(num_steps):
        env.step(f"{number}")
    twin, before = duplicate(env), canonical(env.transcript())
    expected = [rest(twin), twin.reset(), rest(twin)]
    assert canonical(env.transcript()) == before
    assert [rest(env), env.reset(), rest(env)] == expected


@both
@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled])
def test_a_copy_of_a_vector_goes_on_alike_and_alone(name: str, duplicate: Callable[[Any], Any]) -> None:
    envs = make_many(name, **TEAM)
    envs.reset(seed=0)
    envs.step(["a", "b", "c"])
    twin = duplicate(envs)
    expected = [of_vector(twin.step([f"{number}"] * 3)) for number in range(7)]
    assert [of_vector(envs.step([f"{number}"] * 3)) for number in range(7)] == expected


def test_an_environment_that_was_never_reset_can_be_copied() -> None:
    assert copy.deepcopy(make()).reset(seed=0) == pickled(make()).reset(seed=0) == make().reset(seed=0)


# A judge that fails


@both
@pytest.mark.parametrize("chosen", [{}, {"payment": "terminal"}, {"num_exchanges": 1}])
def test_a_judge_that_always_fails_truncates_unpaid_and_unscored(name: str, chosen: dict[str, Any]) -> None:
    env = started(name, judge=RaisingJudge(), **chosen)
    _, reward, terminated, truncated, info = env.step("x")
    assert (reward, terminated) == (0.0, False)
    if chosen.get("payment") == "terminal" or truncated:
        assert (truncated, info["unscored"], info["redrawn"]) == (True, True, 3)
        assert "utility" not in info
    with pytest.raises(OrderError):
        env.step("too late")
    _, info = env.reset()
    assert (info["unscored"], info["redrawn"]) == (False, 0)


@both
def test_a_judge_that_fails_once_costs_a_drawing_and_no_dialogue(name: str) -> None:
    env = started(name, judge=ScriptedJudge(failed(), verdict(0.5)), num_exchanges=1)
    _, reward, terminated, truncated, info = env.step("x")
    assert (abs(reward), terminated, truncated) == (0.5, True, False)
    assert (info["unscored"], info["redrawn"], info["utility"]) == (False, 1, 0.5)


def test_a_vector_goes_on_in_every_slot_but_the_one_that_could_not_be_judged() -> None:
    class FailsOn(TextJudge):
        def judge(self, cases):
            good = super().judge(cases)
            return [failed() if "bad" in case.exchange.red else one for case, one in zip(cases, good, strict=True)]

    sound, mixed = make_many("Attack"), make_many("Attack", judge=FailsOn())
    sound.reset(seed=0)
    mixed.reset(seed=0)
    expected, got = sound.step(["x", "y", "z"]), mixed.step(["x", "bad", "z"])
    assert got[3].tolist() == [False, True, False]
    assert got[4]["final_info"]["unscored"].tolist() == [False, True, False]
    assert got[4]["unscored"].tolist() == [False, False, False]  # of the new dialogue
    assert got[1][1] == 0.0
    for part in (1, 2):
        assert got[part][[0, 2]].tolist() == expected[part][[0, 2]].tolist()
    assert [got[0]["messages"][slot] for slot in (0, 2)] == [expected[0]["messages"][slot] for slot in (0, 2)]


@both
def test_a_judge_that_breaks_its_protocol_leaves_every_dialogue_where_it_was(name: str) -> None:
    env, envs = started(name, judge=LawlessJudge()), make_many(name, judge=LawlessJudge())
    envs.reset(seed=0)
    before = [canonical(one) for one in (env.transcript(), *envs.transcripts())]
    for _ in range(2):
        with pytest.raises(JudgeError, match="expected judge lawless@1 to return a list of Verdict"):
            env.step("x")
        with pytest.raises(JudgeError, match="expected judge lawless@1"):
            envs.step(["x"] * 3)
    assert [canonical(one) for one in (env.transcript(), *envs.transcripts())] == before


# A policy that fails


def boom(said: list[Action]) -> object:
    raise ZeroDivisionError("a bug in a policy")


@both
def test_a_policy_that_fails_in_any_step_or_reset_of_one_dialogue_leaves_no_trace(name: str) -> None:
    for call in range(9):
        env = make(name, opponents=BreakingPolicy(boom, calls=[call]), num_exchanges=2)
        twin = make(name, num_exchanges=2)
        num_failures = 0
        for seed in (5, None):
            expected = twin.reset(seed=seed)
            got, more = insisting(partial(env.reset, seed=seed))
            num_failures += more
            assert got == expected
            for number in range(2):
                got, more = insisting(partial(env.step, f"{number}"))
                num_failures += more
                assert got == twin.step(f"{number}")
        assert num_failures == (call < 4)


@both
@pytest.mark.parametrize("chosen", [{}, {"num_red": 2, "benign_prob": 0.4}], ids=["plain", "team"])
def test_a_policy_that_fails_in_any_step_of_a_vector_leaves_no_trace(name: str, chosen: dict[str, Any]) -> None:
    # Among the calls are those of the dialogues that a step deals after others have ended.
    total = 0
    for call in range(14):
        envs = make_many(name, opponents=BreakingPolicy(boom, calls=[call]), num_exchanges=2, **chosen)
        twins = make_many(name, num_exchanges=2, **chosen)
        got, num_failures = insisting(partial(envs.reset, seed=5))
        assert of_vector(got) == of_vector(twins.reset(seed=5))
        for number in range(6):
            got, more = insisting(partial(envs.step, [f"{number} {slot}" for slot in range(3)]))
            num_failures += more
            assert of_vector(got) == of_vector(twins.step([f"{number} {slot}" for slot in range(3)]))
        total += num_failures
    assert total >= 6


def insisting(call: Callable[[], Any]) -> tuple[Any, int]:
    """What a call returns, at the second attempt if the first fails; and how often it has failed."""
    try:
        return call(), 0
    except ZeroDivisionError:
        return call(), 1


# Vectors


def both_ways(name: str, num_envs: int, **chosen: Any) -> tuple[SeatVectorEnv, SyncVectorEnv]:
    """Our vector, and gymnasium's over single environments."""
    singles = [partial(make, name, **chosen)] * num_envs
    return make_many(name, num_envs, **chosen), SyncVectorEnv(singles, autoreset_mode=AutoresetMode.SAME_STEP)


def compare(ours: SeatVectorEnv, theirs: SyncVectorEnv, seed: Any, script: Sequence[Sequence[str]]) -> int:
    """Play both and compare all that they return; how many dialogues have ended."""
    assert of_vector(ours.reset(seed=seed)) == of_vector(theirs.reset(seed=seed))
    num_ended = 0
    for actions in script:
        mine, other = ours.step(actions), theirs.step(tuple(actions))
        assert of_vector(mine) == of_vector(other)
        assert [mine[part].dtype for part in (1, 2, 3)] == [other[part].dtype for part in (1, 2, 3)]
        assert {key: type(value) for key, value in mine[4].items()} == {
            key: type(value) for key, value in other[4].items()
        }
        num_ended += int((mine[2] | mine[3]).sum())
    return num_ended


@both
def test_the_spaces_of_a_vector_are_those_of_gymnasium(name: str) -> None:
    ours, theirs = both_ways(name, 3)
    assert ours.single_observation_space == theirs.single_observation_space
    assert ours.single_action_space == theirs.single_action_space
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    seen, _ = ours.reset(seed=0)
    assert ours.observation_space.contains(seen)


@both
def test_a_vector_plays_what_single_environments_play(name: str) -> None:
    rng = np.random.default_rng(0)
    chosen = {**TEAM, "judge": FaultyJudge(TextJudge(), share=0.3), "limits": Limits(calls=9), "num_exchanges": 5}
    ours, theirs = both_ways(name, 4, **chosen)
    script = [[f"text {rng.integers(1000)}" for _ in range(4)] for _ in range(60)]
    assert compare(ours, theirs, 17, script) > 40


@both
@given(data=st.data())
@settings(max_examples=25)
def test_a_vector_plays_what_single_environments_play_whatever_the_game(name: str, data: st.DataObject) -> None:
    chosen = {
        "num_red": data.draw(st.integers(1, 3)),
        "num_exchanges": data.draw(st.integers(3, 4)),
        "benign_prob": data.draw(st.sampled_from([0.0, 0.5])),
        "aggregate": data.draw(st.sampled_from(["max", "mean"])),
        "payment": data.draw(st.sampled_from(["exchange", "terminal"])),
        "red_tokens": data.draw(st.sampled_from([0, 9])),
        "blue_tokens": data.draw(st.sampled_from([0, 9])),
        "limits": data.draw(st.sampled_from([None, Limits(calls=6)])),
        "judge": FaultyJudge(TextJudge(), share=data.draw(st.sampled_from([0.0, 0.5]))),
        "opponents": data.draw(
            st.sampled_from(
                [SeededPolicy("a"), TEAM["opponents"], {"red": TEAM["opponents"], "blue": [SeededPolicy("c")]}]
            )
        ),
    }
    num_envs = data.draw(st.integers(1, 3))
    script = data.draw(st.lists(st.lists(ANY_TEXT, min_size=num_envs, max_size=num_envs), max_size=8))
    compare(*both_ways(name, num_envs, **chosen), data.draw(st.integers(0, 10**6)), script)


@both
def test_a_slot_plays_the_dialogues_of_a_single_environment_with_its_seed(name: str) -> None:
    envs = make_many(name, 3, **TEAM)
    envs.reset(seed=40)
    ended: list[list[Any]] = [[], [], []]
    for number in range(9):
        _, rewards, terminated, truncated, infos = envs.step([f"{number}"] * 3)
        for slot in np.flatnonzero(terminated | truncated):
            ended[slot].append((infos["final_obs"][slot], infos["final_info"]["utility"][slot], rewards[slot]))
    for slot in range(3):
        env = make(name, **TEAM)
        env.reset(seed=40 + slot)
        expected = []
        for number in range(9):
            seen, reward, terminated_, truncated_, info = env.step(f"{number}")
            if terminated_ or truncated_:
                expected.append((seen, info["utility"], reward))
                env.reset()
        assert ended[slot] == expected


@both
@pytest.mark.parametrize("seed", [[5, 6, 7], [5, None, 7], (5, 5, 5)])
def test_a_vector_takes_a_seed_for_each_slot(name: str, seed: Any) -> None:
    ours, theirs = both_ways(name, 3, **TEAM)
    ours.reset(seed=1)
    theirs.reset(seed=1)
    assert compare(ours, theirs, list(seed), [["a", "b", "c"]] * 5) > 0


@both
def test_a_vector_without_a_seed_goes_on_with_its_generators(name: str) -> None:
    ours, theirs = both_ways(name, 3, **TEAM)
    compare(ours, theirs, 0, [["a", "b", "c"]] * 2)
    compare(ours, theirs, None, [["a", "b", "c"]] * 4)


@pytest.mark.parametrize("seed", [[1, 2], [], "123", 1.5, np.int64(3), {1, 2, 3}])
def test_seeds_that_do_not_fit_are_refused_and_change_nothing(seed: Any) -> None:
    envs, twins = make_many("Attack"), make_many("Attack")
    envs.reset(seed=0)
    twins.reset(seed=0)
    with pytest.raises(ConfigError, match="expected one seed, or a list of 3, one per dialogue, got"):
        envs.reset(seed=seed)
    with pytest.raises(gymnasium.error.Error):
        envs.reset(seed=[1, 2, -3])
    assert of_vector(envs.step(["x"] * 3)) == of_vector(twins.step(["x"] * 3))


@both
def test_a_mask_resets_some_slots_alone(name: str) -> None:
    ours, theirs = both_ways(name, 3, **TEAM)
    compare(ours, theirs, 0, [["a", "b", "c"]])
    for mask in ([True, False, False], [False, True, True]):
        options = {"reset_mask": np.array(mask), "goal_id": "o"}
        mine = ours.reset(seed=[11, 12, 13], options=options)
        assert of_vector(mine) == of_vector(theirs.reset(seed=[11, 12, 13], options=dict(options)))
        assert options["reset_mask"].tolist() == mask
        assert of_vector(ours.step(["a", "b", "c"])) == of_vector(theirs.step(("a", "b", "c")))


@pytest.mark.parametrize("mask", [[False] * 3, [True] * 2, [1, 0, 1], "yes", [[True] * 3]])
def test_a_mask_that_does_not_fit_is_refused_and_changes_nothing(mask: Any) -> None:
    envs, twins = make_many("Attack"), make_many("Attack")
    envs.reset(seed=0)
    twins.reset(seed=0)
    with pytest.raises(ConfigError, match="expected reset_mask to be 3 booleans, one of them true, got"):
        envs.reset(seed=5, options={"reset_mask": mask})
    assert of_vector(envs.step(["x"] * 3)) == of_vector(twins.step(["x"] * 3))


def test_a_mask_before_the_first_reset_says_what_is_missing() -> None:
    envs = make_many("Attack")
    with pytest.raises(OrderError, match="expected reset"):
        envs.reset(seed=0, options={"reset_mask": [True, False, True]})
    with pytest.raises(OrderError, match="expected a dialogue that goes on in slot 1"):
        envs.step(["x"] * 3)
    envs.reset(seed=0)
    envs.step(["x"] * 3)


def test_a_masked_reset_returns_new_objects_for_the_other_slots() -> None:
    envs = make_many("Defend", 2)
    first, _ = envs.reset(seed=0)
    second, _ = envs.reset(options={"reset_mask": [True, False]})
    kept = copy.deepcopy(second["messages"][1])
    first["messages"][1][0]["content"] = "spoilt"
    assert second["messages"][1] == kept


def test_the_reset_of_a_vector_keeps_its_options() -> None:
    options = {"reset_mask": [True] * 3, "goal_id": "h"}
    make_many("Attack").reset(seed=0, options=options)
    assert options == {"reset_mask": [True] * 3, "goal_id": "h"}


def test_the_transcripts_of_a_vector_are_those_of_its_slots() -> None:
    envs = make_many("Attack", 2, render_mode="ansi")
    envs.reset(seed=0)
    envs.step(["one", "two"])
    assert [transcript.actions[0][1].text for transcript in envs.transcripts()] == ["one", "two"]
    shown = envs.render()
    assert shown is not None
    assert ["one" in shown[0], "two" in shown[1]] == [True, True]


# Public names


def documented() -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield "RedTeam/Attack-v0", {"opponents": SeededPolicy(), "member": 1, "num_red": 2}
    yield "RedTeam/Defend-v0", {"opponents": Pool([SeededPolicy("a"), SeededPolicy("b")], [0.25, 0.75])}


def test_what_a_user_needs_is_in_the_package_itself() -> None:
    assert isinstance(SeededPolicy(), rtg_env.Policy)
    for name, chosen in documented():
        env = gymnasium.make(name, limits=rtg_env.Limits(calls=20), **chosen)
        assert env.reset(seed=0)[1]["unscored"] is False


def test_the_dialogues_that_a_step_has_ended_can_be_had() -> None:
    envs = make_many(num_exchanges=2)
    envs.reset(seed=0)
    assert envs.finished() == []
    envs.step(["a", "b", "c"])
    assert envs.finished() == []
    envs.step(["d", "e", "f"])
    ended = envs.finished()
    assert [[exchange.red for exchange in transcript.exchanges] for transcript in ended] == [
        ["a", "d"],
        ["b", "e"],
        ["c", "f"],
    ]
    assert all(not transcript.exchanges for transcript in envs.transcripts())
    envs.step(["a", "b", "c"])
    assert envs.finished() == []


@pytest.mark.parametrize("many", [False, True])
def test_opponents_can_be_exchanged_for_good(many: bool) -> None:
    def speakers() -> set[str]:
        records = envs.transcripts() if many else [env.transcript()]
        return {action.policy for record in records for _, action in record.actions} - {""}

    envs, env = make_many("Defend", benign_prob=0.0), make("Defend", benign_prob=0.0)
    chosen: Any = envs if many else env
    chosen.reset(seed=0)
    before = speakers()
    chosen.set_opponents(SeededPolicy("other"))
    assert speakers() == before
    for _ in range(2):
        chosen.reset()
        assert speakers() == {"other"}
    with pytest.raises(ConfigError):
        chosen.set_opponents([])
