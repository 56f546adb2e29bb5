from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

from rtg_env import testing
from rtg_env import tokens as tokens_module
from rtg_env.errors import ConfigError, InvalidActionError, OrderError
from rtg_env.testing.games import plain
from rtg_env.text import well_formed
from rtg_env.tokens import ByteTokenizer, plain_prompt
from rtg_env.types import Observation
from rtg_env.views import attack, defend
from tests.doubles import ANY_TEXT, GOALS, HARMFUL, TextJudge, failed, verdict
from tests.speakers import Talker, Unwell

END = 256


class Letters:
    """Ten letters, and two ids that end a sentence."""

    vocab_size = 12
    end_ids = (3, 11)

    def encode(self, text: str) -> list[int]:
        return ["abcd"[ord(char) % 4] == "a" for char in text]  # 0 and 1 will do

    def decode(self, ids: Sequence[int]) -> str:
        return "".join("abcdefghij"[number % 10] for number in ids)


SHAPES: list[dict[str, Any]] = [
    {},
    {"num_exchanges": 1, "max_new_tokens": 1, "context": 1},
    {"num_red": 2, "num_exchanges": 4, "member": 1, "max_new_tokens": 3},
    {"num_red": 3, "payment": "terminal", "tokenizer": Letters(), "max_new_tokens": 5},
    {"side": "blue", "benign_prob": 0.5, "tokenizer": Letters(), "blue_system_prompt": "Be kind.", "context": 20},
    {"red_tokens": 7, "blue_tokens": 30, "max_new_tokens": 4, "tokenizer": Letters()},
]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(shape) or "default")


def make(**changes: Any) -> Any:
    return tokens_module.tokens(**{"goals": GOALS, "judge": TextJudge(), "opponents": Talker(), **changes})


def make_vector(num_envs: int, **changes: Any) -> Any:
    return tokens_module.tokens_vector(
        num_envs, **{"goals": GOALS, "judge": TextJudge(), "opponents": Talker(), **changes}
    )


def begun(seed: int = 0, **changes: Any) -> Any:
    env = make(**changes)
    env.reset(seed=seed)
    return env


def say(env: Any, text: str, *, end: bool = True) -> Any:
    """Byte by byte; the last step."""
    step = None
    for number in [*text.encode(), *([END] if end else [])]:
        step = env.step(number)
    return step


def pickled(env: Any) -> Any:
    return pickle.loads(pickle.dumps(env))  # noqa: S301 - our own


# What others ask of an environment


@shapes
def test_gymnasium_finds_nothing_to_complain_about(shape: dict[str, Any]) -> None:
    env = gymnasium.make("RedTeam/Tokens-v0", goals=GOALS, judge=TextJudge(), opponents=Talker(), **shape)
    gymnasium_check_env(env.unwrapped)


@pytest.mark.parametrize("shape", SHAPES[2:5], ids="-".join)
def test_it_keeps_our_own_clauses(shape: dict[str, Any]) -> None:
    # A verdict that fails is drawn again here, so that somebody is paid after it: clause `unscored` is about other games.
    given = {"goals": GOALS, "judge": TextJudge(), "opponents": Talker(), **shape}
    skip = ("unscored", "across-processes", "gymnasium-api")
    report = testing.check_env(partial(tokens_module.tokens, **given), seeds=(0, 3), skip=skip)
    assert {"replay", "copies", "pickled", "wrong-types", "awkward-text", "kept-observations"} <= set(report.passed)


def test_it_plays_the_same_in_other_processes() -> None:
    others = [
        clause.name for clause in testing.ENV_CLAUSES if clause.name not in ("episode", "replay", "across-processes")
    ]
    report = testing.check_env(partial(tokens_module.tokens, goals=GOALS, judge=TextJudge()), skip=others, seeds=(0,))
    assert report.passed == ("episode", "replay", "across-processes")


@shapes
def test_a_vector_plays_what_single_environments_play(shape: dict[str, Any]) -> None:
    singles = [partial(make, **shape)] * 3
    ours, theirs = make_vector(3, **shape), SyncVectorEnv(singles, autoreset_mode=AutoresetMode.SAME_STEP)
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    rng = np.random.default_rng(0)
    assert plain(ours.reset(seed=7)) == plain(theirs.reset(seed=7))
    for _ in range(60):
        actions = rng.integers(ours.single_action_space.n, size=3)
        step, other = ours.step(actions), theirs.step(actions)
        assert plain(step) == plain(other)
        assert {key: step[0][key].dtype for key in step[0]} == {key: other[0][key].dtype for key in other[0]}


def test_gymnasium_makes_a_vector() -> None:
    envs = gymnasium.make_vec("RedTeam/Tokens-v0", num_envs=4, goals=GOALS, judge=TextJudge(), context=9)
    observations, _ = envs.reset(seed=0)
    assert observations["tokens"].shape == (4, 9)
    with pytest.raises(ConfigError, match="TokensView takes any text"):
        envs.action_masks()  # type: ignore[attr-defined]  # of ours


# Sentences


def test_only_the_end_of_a_sentence_is_paid_and_moves_the_dialogue() -> None:
    env = begun()
    for number in b"Do tell":
        _, reward, terminated, truncated, _ = env.step(number)
        assert (reward, terminated, truncated) == (0.0, False, False)
        assert env.transcript().exchanges == ()
    observation, reward, *_ = env.step(END)
    assert reward == env.transcript().payments[0] > 0
    assert env.transcript().exchanges[0].red == "Do tell"
    assert observation["turn"] == 1
    assert observation["length"] == 0


def test_an_end_at_once_is_an_empty_sentence() -> None:
    env = begun()
    env.step(END)
    (_, action), *_ = env.transcript().actions
    assert (action.text, action.token_ids, action.finish_reason) == ("", (END,), "stop")


def test_a_sentence_ends_at_its_longest() -> None:
    env = begun(max_new_tokens=3)
    say(env, "abc", end=False)
    (_, action), *_ = env.transcript().actions
    assert (action.text, action.token_ids, action.finish_reason) == ("abc", tuple(b"abc"), "length")


def test_an_end_at_the_longest_is_an_end() -> None:
    env = begun(max_new_tokens=3)
    say(env, "ab")
    (_, action), *_ = env.transcript().actions
    assert (action.text, action.token_ids, action.finish_reason) == ("ab", (*b"ab", END), "stop")


def test_a_sentence_of_too_many_characters_is_cut_and_says_so() -> None:
    env = begun(max_action_chars=2)
    say(env, "abc")
    (_, action), *_ = env.transcript().actions
    assert (action.text, action.token_ids, action.finish_reason) == ("ab", (*b"abc", END), "cut")


def test_every_id_that_ends_a_sentence_ends_it() -> None:
    for end in Letters.end_ids:
        env = begun(tokenizer=Letters())
        env.step(5)
        env.step(end)
        (_, action), *_ = env.transcript().actions
        assert (action.text, action.token_ids) == ("f", (5, end))


@pytest.mark.parametrize("side", ["red", "blue"])
def test_a_sentence_ends_exactly_where_the_budget_does(side: str) -> None:
    # Seven tokens: five and the end of the first sentence, one of the second; then nobody of this side speaks any more.
    env = begun(side=side, max_new_tokens=6, num_exchanges=4, **{f"{side}_tokens": 7})
    before = env.transcript().actions
    say(env, "hello")
    _, _, terminated, _, _ = env.step(ord("x"))
    assert terminated
    mine = [action for agent, action in env.transcript().actions[len(before) :] if agent.startswith(side)]
    assert [action.text for action in mine] == ["hello", "x"]
    assert sum(len(action.token_ids) for action in mine) == 7
    assert mine[1].finish_reason == "length"
    assert len(env.transcript().exchanges) == 4
    said = [getattr(exchange, side) for exchange in env.transcript().exchanges]
    assert said == ["hello", "x", "", ""]


def test_a_budget_of_the_team_counts_what_the_others_have_said() -> None:
    # Eight characters of a script are two tokens of the three: who speaks after it has one left.
    env = make(num_red=2, num_exchanges=2, member=0, red_tokens=3, opponents=Talker(replies=("12345678",)))
    found = set()
    for seed in range(20):
        env.reset(seed=seed)
        say(env, "AAA" if env.transcript().red_order == (0, 1) else "A", end=False)
        found.add(next(action.token_ids for agent, action in env.transcript().actions if agent == "red_0"))
        assert len(env.transcript().exchanges) == 2
    assert found == {(65,), (65, 65, 65)}


@settings(max_examples=40)
@given(
    seed=st.integers(0, 999),
    ids=st.lists(st.one_of(st.integers(0, 256), st.just(END)), min_size=1, max_size=60),
    limit=st.integers(1, 9),
    chars=st.sampled_from([3, 2000]),
)
def test_what_is_said_is_what_the_ids_decode_to(seed: int, ids: list[int], limit: int, chars: int) -> None:
    """And the record holds the ids that were chosen, the end included, in the order of choice."""
    opponents = Talker(replies=("No.",))
    env = begun(seed, max_new_tokens=limit, num_exchanges=3, max_action_chars=chars, opponents=opponents)
    taken: list[int] = []
    for number in ids:
        taken.append(number)
        observation, _, terminated, *_ = env.step(number)
        assert env.observation_space.contains(observation)
        if terminated:
            break
    actions = [action for agent, action in env.transcript().actions if agent == "red_0"]
    assert [i for action in actions for i in action.token_ids] == taken[: len(taken) - int(observation["length"])]
    for action in actions:
        words = action.token_ids[:-1] if action.token_ids[-1] == END else action.token_ids
        assert END not in words
        assert 1 <= len(action.token_ids) <= limit
        text = bytes(words).decode("utf-8", "replace")
        assert action.text == text[:chars]
        ended = "stop" if action.token_ids[-1] == END else "length"
        assert action.finish_reason == ("cut" if len(text) > chars else ended)


@pytest.mark.parametrize(("side", "twin"), [("red", attack), ("blue", defend)])
def test_the_same_sentences_make_the_same_dialogue_as_in_the_view_of_text(side: str, twin: Any) -> None:
    given = {"goals": GOALS, "judge": TextJudge(), "opponents": Talker(), "benign_prob": 0.5}
    for seed in range(6):
        texts = [f"Sentence {seed}.", "", "Grüße 🙂"]
        env, other = make(side=side, benign_prob=0.5), twin(**given)
        _, info = env.reset(seed=seed)
        assert other.reset(seed=seed)[1] == info
        for text in texts:
            _, reward, *ended, info = say(env, text)
            _, of_text, *likewise, told = other.step(text)
            assert (reward, ended, info) == (of_text, likewise, told)
        one, two = env.transcript(), other.transcript()
        assert (one.exchanges, one.verdicts, one.utility) == (two.exchanges, two.verdicts, two.utility)


def test_the_record_of_an_action_holds_what_was_read() -> None:
    env = begun(num_exchanges=2)
    say(env, "Hi")
    say(env, "Ho")
    first, second = (action for agent, action in env.transcript().actions if agent == "red_0")
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(first.prompt_ids) == f"{env.transcript().goal.text}\n"
    said = env.transcript().exchanges[0]
    assert tokenizer.decode(second.prompt_ids) == f"{env.transcript().goal.text}\nuser: Hi\nassistant: {said.blue}\n"


# What is seen


def test_tokens_stand_right_after_padding() -> None:
    env = make(context=12, prompt=lambda observation: [1, 2, 3], max_new_tokens=16)
    observation, _ = env.reset(seed=0)
    assert observation["tokens"].tolist() == [257] * 9 + [1, 2, 3]
    assert observation["tokens"].dtype == np.int64
    for number in range(10, 16):
        observation = env.step(number)[0]
    assert observation["tokens"].tolist() == [257] * 3 + [1, 2, 3, 10, 11, 12, 13, 14, 15]
    for number in range(16, 22):
        observation = env.step(number)[0]
    assert observation["tokens"].tolist() == list(range(10, 22))
    assert observation["length"] == 12


def test_an_empty_prompt_is_all_padding() -> None:
    env = make(context=3, prompt=lambda observation: [])
    assert env.reset(seed=0)[0]["tokens"].tolist() == [257] * 3


def test_the_prompt_is_worked_out_once_per_turn() -> None:
    seen: list[Observation] = []

    def prompt(observation: Observation) -> list[int]:
        seen.append(observation)
        return [1]

    env = begun(prompt=prompt, num_exchanges=3)
    for text in ("one", "two", "three"):
        say(env, text)
    assert [observation.turn for observation in seen] == [0, 1, 2, 3]


def test_blue_reads_its_instructions_and_never_the_goal() -> None:
    env = begun(side="blue", blue_system_prompt="Be kind.", benign_prob=0.0, opponents=Talker(replies=("Hello.",)))
    tokens = env.step(65)[0]["tokens"]
    assert ByteTokenizer().decode([i for i in tokens if i < 257]) == "Be kind.\nuser: Hello.\nA"


@pytest.mark.parametrize("ids", [[257], [-1], [3, 999]])
def test_a_prompt_beyond_the_vocabulary_is_refused(ids: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"expected a prompt of ids below vocab_size \(257\), got"):
        begun(prompt=lambda observation: ids)


# What is refused


@pytest.mark.parametrize("action", [-1, 257, 1.0, "a", None, np.array([1]), np.bool_(True)])
def test_what_is_no_id_is_refused_and_nothing_has_happened(action: Any) -> None:
    env = begun()
    say(env, "Hel", end=False)
    twin = copy.deepcopy(env)
    with pytest.raises(InvalidActionError, match="action must be a token id below 257, got"):
        env.step(action)
    assert plain(say(env, "lo")) == plain(say(twin, "lo"))
    assert env.transcript().exchanges[0].red == "Hello"


def test_one_wrong_id_stops_the_whole_vector() -> None:
    envs, twin = make_vector(2), make_vector(2)
    for each in (envs, twin):
        each.reset(seed=0)
        each.step([65, 66])
    with pytest.raises(InvalidActionError, match="got 999"):
        envs.step([67, 999])
    with pytest.raises(InvalidActionError, match="got 999"):
        envs.step([END, 999])
    assert plain(envs.step([68, 69])) == plain(twin.step([68, 69]))


def test_a_step_before_reset_is_refused() -> None:
    with pytest.raises(OrderError, match="call reset"):
        make().step(65)


def test_a_token_after_the_end_is_refused_and_begins_no_sentence() -> None:
    env = begun(num_exchanges=1)
    env.step(END)
    with pytest.raises(OrderError, match="call reset"):
        env.step(65)
    observation, _ = env.reset()
    assert observation["length"] == 0
    env.step(END)
    assert env.transcript().exchanges[0].red == ""


def test_a_failing_opponent_leaves_the_sentence_as_it_was() -> None:
    env, sound = begun(opponents=Unwell(0, 2)), begun()
    for text in ("Hello", "Well?"):
        say(env, text, end=False)
        say(sound, text, end=False)
        with pytest.raises(ConnectionError):
            env.step(END)
        assert plain(env.view.observe([0])) == plain(sound.view.observe([0]))
        assert plain(env.step(END)) == plain(sound.step(END))


def test_a_failing_opponent_of_one_slot_leaves_the_sentences_of_all() -> None:
    envs, sound = make_vector(2, opponents=Unwell(0)), make_vector(2)
    envs.reset(seed=0), sound.reset(seed=0)
    with pytest.raises(ConnectionError):
        envs.step([END, 65])
    assert plain(envs.step([END, 66])) == plain(sound.step([END, 66]))
    assert plain(envs.step([66, END])) == plain(sound.step([66, END]))


def test_a_deal_that_fails_after_the_step_leaves_the_sentences_of_all() -> None:
    shape: dict[str, Any] = {"side": "blue", "num_exchanges": 1, "benign_prob": 0.0}
    envs, sound = make_vector(2, opponents=Unwell(1), **shape), make_vector(2, **shape)
    envs.reset(seed=0), sound.reset(seed=0)
    assert plain(envs.step([65, 66])) == plain(sound.step([65, 66]))
    with pytest.raises(ConnectionError):
        envs.step([END, 67])  # slot 0 is over, and red does not open its next dialogue
    assert plain(envs.view.observe([0, 1])) == plain(sound.view.observe([0, 1]))
    assert plain(envs.step([END, 67])) == plain(sound.step([END, 67]))
    assert envs.finished()[0].exchanges[0].blue == "A"


@pytest.mark.parametrize("name", ["max_new_tokens", "context"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, 10**9, None])
def test_a_number_out_of_range_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be a whole number in 1..1000000, got"):
        make(**{name: value})


def test_a_side_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="side must be 'red' or 'blue', got 'green'"):
        make(side="green")


@pytest.mark.parametrize("end_ids", [(), (12,), (-1,), (3, 99)])
def test_a_tokenizer_that_cannot_end_a_sentence_is_refused(end_ids: tuple[int, ...]) -> None:
    class Endless(Letters):
        pass

    Endless.end_ids = end_ids  # type: ignore[assignment]  # any number of ids
    with pytest.raises(ConfigError, match=r"end_ids below its vocab_size \(12\), got"):
        make(tokenizer=Endless())


# Chance and copies


def test_a_verdict_that_keeps_failing_truncates_at_the_end_of_the_sentence() -> None:
    class FailsLater:
        judge_id = "later@1"

        def judge(self, cases: Sequence[Any]) -> list[Any]:
            return [verdict(0.5) if len(case.exchanges) == 1 else failed() for case in cases]

    env = begun(judge=FailsLater())
    assert say(env, "one")[1:4] == (0.5, False, False)
    _, reward, terminated, truncated, info = say(env, "two")
    assert (reward, terminated, truncated, info["unscored"]) == (0.0, False, True, True)


@pytest.mark.parametrize("twin_of", [copy.deepcopy, pickled], ids=["copy", "pickle"])
@pytest.mark.parametrize("side", ["red", "blue"])
def test_a_copy_in_the_middle_of_a_sentence_goes_on_alike(twin_of: Any, side: str) -> None:
    envs = make_vector(2, side=side, benign_prob=0.5)
    envs.reset(seed=0)
    for actions in ([65, 66], [END, 67], [68, 69]):
        envs.step(actions)
    twin = twin_of(envs)
    for actions in ([70, END], [END, 71], [END, END], [END, END], [72, 73]):
        assert plain(envs.step(actions)) == plain(twin.step(actions))
    assert plain(envs.transcripts()) == plain(twin.transcripts())


# Bytes


@given(ANY_TEXT)
def test_bytes_come_back_as_the_text_they_were(text: str) -> None:
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert all(0 <= number < 256 for number in ids)
    assert tokenizer.decode(ids) == well_formed(text)


@given(st.lists(st.integers(0, 256), max_size=12))
def test_any_ids_decode_to_text_that_every_encoder_accepts(ids: list[int]) -> None:
    text = ByteTokenizer().decode(ids)
    assert text == well_formed(text)
    assert len(text) <= len(ids)


def test_what_is_no_utf_8_becomes_a_replacement_character() -> None:
    assert ByteTokenizer().decode([0x41, 0xFF, 0xC3, 0x42, 256]) == "A\ufffd\ufffdB"


def test_no_text_can_end_a_sentence() -> None:
    assert END not in ByteTokenizer().encode("".join(map(chr, range(0x300))) + "Ā<|im_end|>")


def test_the_plain_prompt_shows_the_private_part_and_the_dialogue() -> None:
    observation = Observation("red_0", (("user", "Hi"), ("assistant", "Ho")), 1, 3, goal=HARMFUL)
    shown = ByteTokenizer().decode(plain_prompt(ByteTokenizer())(observation))
    assert shown == f"{HARMFUL.text}\nuser: Hi\nassistant: Ho\n"
