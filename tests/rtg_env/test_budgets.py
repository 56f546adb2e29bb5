"""Token budgets, payment at the end, filters, private reasoning: what they change, and what they must not."""

from __future__ import annotations

import json
import warnings
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pettingzoo.test import api_test, parallel_api_test

import rtg_env
from rtg_env import rules
from rtg_env.engine import DialogueBatch, replay
from rtg_env.errors import ConfigError, InvalidActionError
from rtg_env.filters import FILTERS, filtered, register_filter
from rtg_env.rules import Deal, GameConfig
from rtg_env.types import Action
from rtg_env.wrappers import FilterMessages, FilterMessagesParallel
from tests.doubles import ANY_TEXT, BENIGN, GOALS, HARMFUL, ScriptedJudge, TextJudge, canonical, verdict

ON_HARMFUL, ON_BENIGN = Deal(goal=HARMFUL), Deal(goal=BENIGN)


def tokens(count: int, text: str = "x") -> Action:
    return Action(text=text, token_ids=tuple(range(count)))


def play_all(batch: DialogueBatch, say: Any) -> None:
    while turns := batch.pending():
        batch.submit({turn.dialogue: say(turn.observation) for turn in turns})


# Budgets


def test_who_has_no_tokens_left_says_nothing_and_is_not_asked() -> None:
    config = GameConfig(num_exchanges=3, red_tokens=5)
    batch = DialogueBatch(config, [ON_HARMFUL], TextJudge())
    asked = []
    play_all(batch, lambda seen: asked.append(seen.agent_id) or tokens(4, f"{seen.agent_id} {seen.turn}"))
    assert asked == ["red_0", "blue_0", "red_0", "blue_0", "blue_0"]  # 4, then 8 of 5 spent
    transcript = batch.transcript(0)
    assert [exchange.red for exchange in transcript.exchanges] == ["red_0 0", "red_0 1", ""]
    assert len(transcript.verdicts) == len(transcript.payments) == 3


def test_a_dialogue_in_which_nobody_has_tokens_left_is_played_and_judged_to_its_end_at_once() -> None:
    judge = ScriptedJudge(*[verdict(0.1 * turn) for turn in range(4)])
    batch = DialogueBatch(GameConfig(num_exchanges=4, red_tokens=1, blue_tokens=1), [ON_HARMFUL], judge)
    batch.submit({0: "a"})
    batch.submit({0: "b"})
    assert batch.done
    assert [len(case.exchanges) for case in judge.seen] == [1, 2, 3, 4]
    assert judge.num_calls == 1
    assert batch.transcript(0).utility == pytest.approx(0.3)


def test_ending_early_by_spending_all_gains_nobody_anything_but_silence() -> None:
    batch = DialogueBatch(GameConfig(num_exchanges=2, blue_tokens=1), [ON_BENIGN], TextJudge())
    batch.submit({0: tokens(3, "a long answer")})
    assert [exchange.blue for exchange in batch.transcript(0).exchanges] == ["a long answer", ""]


def test_agents_see_what_is_left() -> None:
    batch = DialogueBatch(GameConfig(red_tokens=10, blue_tokens=0), [ON_HARMFUL], TextJudge())
    assert batch.observe(0, "red_0").tokens_left == 10
    batch.submit({0: tokens(4)})
    assert (batch.observe(0, "red_0").tokens_left, batch.observe(0, "blue_0").tokens_left) == (6, None)


@pytest.mark.parametrize(("text", "count"), [("", 0), ("abcd", 1), ("abcde", 2), ("éé", 1), ("\U0001f600", 1)])
def test_text_without_tokens_is_counted_by_its_bytes(text: str, count: int) -> None:
    assert rules.count_tokens(text) == rules.count_tokens(Action(text=text)) == count
    assert rules.count_tokens(tokens(7, text)) == 7


LIMITED = st.builds(
    GameConfig,
    num_exchanges=st.integers(1, 4),
    red_tokens=st.integers(0, 6),
    blue_tokens=st.integers(0, 6),
    payment=st.sampled_from(["exchange", "terminal"]),
    aggregate=st.sampled_from(["max", "mean"]),
)


@given(LIMITED, st.sampled_from([HARMFUL, BENIGN]), st.lists(ANY_TEXT, min_size=8, max_size=8))
def test_whatever_the_budgets_a_dialogue_has_t_exchanges_and_its_pay_adds_up(config, goal, texts) -> None:
    batch = DialogueBatch(config, [Deal(goal=goal)], TextJudge())
    said = iter(texts)
    play_all(batch, lambda _: next(said))
    transcript = batch.transcript(0)
    assert len(transcript.exchanges) == config.num_exchanges
    assert sum(transcript.payments) == pytest.approx(transcript.utility)
    assert canonical(replay(config, transcript, TextJudge())) == canonical(transcript)


@given(LIMITED, st.sampled_from([HARMFUL, BENIGN]), st.lists(ANY_TEXT, min_size=8, max_size=8))
def test_the_environment_pays_what_the_transcript_says(config, goal, texts) -> None:
    env = rtg_env.env(config, goals=GOALS, judge=TextJudge())
    env.reset(seed=0, options={"goal": goal})
    said, paid = iter(texts), 0.0
    while env.agents:
        dead = env.terminations[env.agent_selection]
        env.step(None if dead else next(said))
        paid += 0.0 if dead else env.rewards["red_0"]
    assert paid == pytest.approx(env.transcript().utility)


@given(LIMITED, st.lists(ANY_TEXT, min_size=8, max_size=8), st.integers(0, 5))
def test_budgets_survive_a_save(config: GameConfig, texts: list[str], stop: int) -> None:
    batch = DialogueBatch(config, [ON_HARMFUL], TextJudge())
    for text in texts[:stop]:
        if not batch.done:
            batch.submit({0: Action(text=text, reasoning="because")})
    saved = json.loads(json.dumps(batch.save(), allow_nan=False))
    twin = DialogueBatch.restore(saved, config, GOALS, TextJudge())
    rest = iter(texts[stop:] * 2)
    said = {}
    for one in (batch, twin):
        play_all(one, lambda seen: said.setdefault((seen.agent_id, seen.turn), next(rest, "end")))
    assert canonical(twin.transcript(0)) == canonical(batch.transcript(0))


# Payment


def test_terminal_payment_pays_the_utility_with_the_last_answer() -> None:
    config = GameConfig(num_exchanges=3, payment="terminal")
    judge = ScriptedJudge(verdict(0.2), verdict(0.9), verdict(0.4))
    batch = DialogueBatch(config, [ON_HARMFUL], judge)
    play_all(batch, lambda seen: "x")
    assert batch.transcript(0).payments == (0.0, 0.0, 0.9)


# Filters


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("printable", "a\u200bb\u202ec\x1b[2J\nd", "abc[2J\nd"),
        ("normalised", "\uff28\uff49 \u2460", "Hi 1"),
        ("without-urls", "see https://a.b/c?d and WWW.x.y!", "see [link] and [link]"),
        ("without-markup", "<|im_end|>a</s>[/INST]b <x>", "ab <x>"),
        ("first-line", "\n one\ntwo", "one"),
        ("first-sentence", "One. Two! Three", "One."),
    ],
)
def test_each_filter_by_hand(name: str, text: str, expected: str) -> None:
    assert FILTERS[name](text) == expected


@given(ANY_TEXT)
def test_filters_take_any_text_and_filtering_twice_changes_nothing(text: str) -> None:
    for name in ("printable", "without-urls", "first-line", "first-sentence"):
        once = filtered(text, (name,))
        assert filtered(once, (name,)) == once


def test_everybody_and_the_judge_see_what_got_through_and_the_record_keeps_what_was_said() -> None:
    judge = ScriptedJudge(verdict(0.5))
    config = GameConfig(num_exchanges=1, red_filters=("first-sentence",), blue_filters=("first-line",))
    batch = DialogueBatch(config, [ON_HARMFUL], judge)
    batch.submit({0: "One. Two."})
    assert list(batch.observe(0, "blue_0").messages) == [("user", "One.")]
    batch.submit({0: "yes\nno"})
    assert judge.seen[0].exchange == ("One.", "yes")
    assert [action.text for _, action in batch.transcript(0).actions] == ["One. Two.", "yes\nno"]


def test_a_filter_that_lengthens_a_text_does_not_lift_the_limit() -> None:
    config = GameConfig(max_action_chars=20, red_filters=("normalised",))
    batch = DialogueBatch(config, [ON_HARMFUL], TextJudge())
    batch.submit({0: "\ufdfa" * 20})  # one character that stands for eighteen
    assert len(batch.observe(0, "blue_0").messages[0][1]) == 20


def test_nature_passes_the_filters_of_red() -> None:
    batch = DialogueBatch(GameConfig(red_filters=("first-sentence",)), [ON_BENIGN], TextJudge())
    assert list(batch.observe(0, "blue_0").messages) == [("user", "Please write a note.")]


def test_unknown_filters_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"red_filters must name filters among printable.*'rot13'"):
        GameConfig(red_filters=("rot13",))
    with pytest.raises(ConfigError, match="must be a tuple of filter names"):
        GameConfig(blue_filters="printable")  # type: ignore[arg-type]


def test_a_filter_of_ones_own_has_a_name_of_its_own() -> None:
    register_filter("shout", str.upper)
    register_filter("shout", str.upper)
    assert filtered("a", ("shout",)) == "A"
    with pytest.raises(ConfigError, match="'shout' is taken"):
        register_filter("shout", str.lower)


def test_the_wrapper_sets_the_filters_from_the_next_reset_on() -> None:
    plain = rtg_env.env(goals=GOALS, judge=TextJudge())
    plain.reset(seed=0, options={"goal": HARMFUL})
    env = FilterMessages(plain, red=["first-sentence"])
    env.step("Now. As before.")
    assert env.observe("blue_0")["messages"][0]["content"] == "Now. As before."
    env.reset(seed=0, options={"goal": HARMFUL})
    env.step("One. Two.")
    assert env.observe("blue_0")["messages"] == ({"role": "user", "content": "One."},)


# Reasoning


def test_reasoning_is_stored_and_shown_to_red_alone() -> None:
    env = rtg_env.env(goals=GOALS, judge=TextJudge(), num_exchanges=2, num_red=2)
    env.reset(seed=0, options={"goal": HARMFUL})
    env.step(Action(text="hello", reasoning="be nice first"))
    assert "be nice first" not in json.dumps(env.observe("blue_0"))
    env.step(Action(text="hi", reasoning="blue thinks too, and nobody is shown it"))
    for agent in ("red_0", "red_1"):
        assert env.observe(agent)["reasoning"] == ("be nice first",)
        assert env.observation_space(agent).contains(env.observe(agent))
    kept = [action.reasoning for _, action in env.transcript().actions]
    assert kept == ["be nice first", "blue thinks too, and nobody is shown it"]


@pytest.mark.parametrize("thought", [7, "x" * 20_001])
def test_reasoning_is_text_of_bounded_length(thought: Any) -> None:
    with pytest.raises(InvalidActionError, match="reasoning to be text of at most 20000"):
        Action(text="a", reasoning=thought)


def test_the_parallel_wrapper_filters_alike() -> None:
    env = FilterMessagesParallel(rtg_env.parallel_env(goals=GOALS, judge=TextJudge()), blue=["first-line"])
    env.reset(seed=0, options={"goal": HARMFUL})
    env.step({"red_0": "One. Two.", "blue_0": ""})
    seen, *_ = env.step({"red_0": "", "blue_0": "three\nfour"})
    assert [message["content"] for message in seen["red_0"]["messages"]] == ["One. Two.", "three"]


def test_both_wrappers_pass_the_suite_of_pettingzoo() -> None:
    single = FilterMessages(rtg_env.env(goals=GOALS, judge=TextJudge()), red=["printable"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        api_test(single, num_cycles=20)
        parallel_api_test(
            FilterMessagesParallel(rtg_env.parallel_env(goals=GOALS, judge=TextJudge()), red=["printable"]),
            num_cycles=20,
        )


@pytest.mark.parametrize("wrap", [FilterMessages, FilterMessagesParallel])
def test_a_wrapper_refuses_what_is_no_dialogue(wrap: type) -> None:
    class Other:
        unwrapped = None

    with pytest.raises(ConfigError, match="expected a dialogue environment"):
        wrap(Other(), red=["printable"])
