"""What an observation holds of its own side's actions: all of them, up to its moment, and nothing of the other side."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtg_env.dialogue import Said
from rtg_env.engine import DialogueBatch, replay
from rtg_env.env import env
from rtg_env.policies import within_limit
from rtg_env.rules import Deal, GameConfig
from rtg_env.types import Action, Observation
from tests.doubles import ANY_TEXT, BENIGN, GOALS, HARMFUL, TextJudge

TWO = GameConfig(num_exchanges=2)


def batch_of(config: GameConfig = TWO, deal: Deal = Deal(goal=HARMFUL)) -> DialogueBatch:  # noqa: B008 - a value
    return DialogueBatch(config, [deal], TextJudge())


def spoken(text: str, *ids: int, policy: str = "red_00@v1") -> Action:
    return Action(text=text, policy=policy, prompt_ids=(9,), token_ids=ids, logps=(-0.5,) * len(ids))


def play(batch: DialogueBatch, *actions: Action | str) -> None:
    for action in actions:
        batch.submit({0: action})


def texts(batch: DialogueBatch, agent: str) -> list[str]:
    return [action.text for action in batch.observe(0, agent).said]


def test_a_side_sees_its_own_actions_alone() -> None:
    batch = batch_of()
    assert batch.observe(0, "red_0").said == batch.observe(0, "blue_0").said == ()
    mine, theirs = spoken("Do tell.", 1, 2), spoken("No.", 3, policy="blue_00@v1")
    play(batch, mine, theirs)
    assert batch.observe(0, "red_0").said == (mine,)
    assert batch.observe(0, "blue_0").said == (theirs,)
    (turn,) = batch.pending()
    assert (turn.observation.said[0], len(turn.observation.said), list(turn.observation.said)) == (mine, 1, [mine])


def test_an_earlier_observation_does_not_see_what_comes_later() -> None:
    batch = batch_of()
    play(batch, "a")
    before = batch.observe(0, "red_0")
    play(batch, "b", "c")
    assert [action.text for action in before.said] == ["a"]
    assert texts(batch, "red_0") == ["a", "c"]
    assert before != batch.observe(0, "red_0")


def test_an_observation_without_ids_or_actions_is_as_it_was() -> None:
    assert Observation("red_0", (), 0, 3).said == ()
    batch = batch_of()
    play(batch, "a\ud800")
    assert batch.observe(0, "red_0").said == (Action(text="a\ufffd"),)


def test_a_view_is_equal_to_the_tuple_of_its_actions() -> None:
    actions: list[tuple[str, Action | str]] = [("red_0", "a"), ("blue_0", "b"), ("red_1", "c")]
    view, same = Said(actions, "red_1"), Said(actions, "red_0")
    assert view == same == (Action(text="a"), Action(text="c"))
    assert view != Said(actions, "blue_0")
    assert view != ["a", "c"]
    assert hash(view) == hash(tuple(view))
    assert repr(view) == repr(tuple(view))
    assert view[-1] == Action(text="c")
    assert view[:1] == (Action(text="a"),)


def test_a_reader_can_change_nothing() -> None:
    batch = batch_of()
    play(batch, "a")
    said = batch.observe(0, "red_0").said
    for change in ("append", "__setitem__", "__delitem__", "__dict__"):
        assert not hasattr(said, change)
    with pytest.raises(AttributeError):
        said[0].text = "b"  # type: ignore[misc]  # the point of this test


@pytest.mark.parametrize("send", [copy.deepcopy, copy.copy, lambda seen: pickle.loads(pickle.dumps(seen))])  # noqa: S301 - our own bytes
def test_nothing_of_the_other_side_travels_with_an_observation(send) -> None:
    batch = batch_of()
    play(batch, spoken("Do tell.", 1, 2), Action(text="No.", policy="secret", token_ids=(77777,), reasoning="hidden"))
    seen = batch.observe(0, "red_0")
    assert send(seen) == seen
    assert b"secret" not in pickle.dumps(seen)
    assert b"hidden" not in pickle.dumps(seen)


def test_nature_takes_no_action() -> None:
    batch = batch_of(deal=Deal(goal=BENIGN))
    play(batch, "Here.")
    assert len(batch.observe(0, "red_0").messages) == 3
    assert texts(batch, "red_0") == []
    assert texts(batch, "blue_0") == ["Here."]


def test_an_action_is_what_was_said_and_a_message_what_got_through() -> None:
    batch = batch_of(GameConfig(num_exchanges=2, red_filters=("first-line",), blue_filters=("without-urls",)))
    play(batch, spoken("one\ntwo", 1, 2), "see www.x.org")
    assert texts(batch, "red_0") == ["one\ntwo"]
    assert texts(batch, "blue_0") == ["see www.x.org"]
    assert list(batch.observe(0, "red_0").messages) == [("user", "one"), ("assistant", "see [link]")]


def test_members_of_a_red_team_see_what_each_of_them_said() -> None:
    batch = batch_of(GameConfig(num_exchanges=3, num_red=2), Deal(goal=HARMFUL, red_order=(1, 0)))
    first, second = spoken("a", 1, policy="one"), spoken("c", 2, policy="other")
    play(batch, first, "b", second, "d")
    assert batch.observe(0, "red_0").said == batch.observe(0, "red_1").said == (first, second)


def test_who_has_no_tokens_left_takes_no_more_actions() -> None:
    # Each of red's sentences is one token: two, and then nothing, while blue goes on.
    batch = batch_of(GameConfig(num_exchanges=4, red_tokens=2))
    play(batch, "a", "b", "c", "d", "e", "f")
    assert batch.done
    assert texts(batch, "red_0") == ["a", "c"]
    assert texts(batch, "blue_0") == ["b", "d", "e", "f"]
    assert [exchange.red for exchange in batch.transcript(0).exchanges] == ["a", "c", "", ""]


def test_a_saved_a_copied_and_a_replayed_dialogue_hold_the_same_actions() -> None:
    batch = batch_of()
    play(batch, spoken("a", 1, 2), spoken("b", 3), "c")
    saved = json.loads(json.dumps(batch.save()))
    others = (DialogueBatch.restore(saved, TWO, GOALS, TextJudge()), batch.clone())
    for agent in TWO.agents:
        assert all(other.observe(0, agent) == batch.observe(0, agent) for other in others)
    play(others[1], "d")
    assert texts(others[1], "blue_0") == ["b", "d"]
    assert texts(batch, "blue_0") == ["b"]
    assert replay(TWO, others[1].transcript(0), TextJudge()).actions == others[1].transcript(0).actions


def test_dict_observations_leave_it_out() -> None:
    game = env(TWO, goals=GOALS, judge=TextJudge())
    game.reset(seed=0)
    assert all("said" not in game.observe(agent) for agent in game.agents)


@given(
    st.lists(ANY_TEXT, min_size=1, max_size=8),
    st.sampled_from([HARMFUL, BENIGN]),
    st.integers(1, 3),
    st.sampled_from([{}, {"red_tokens": 6}, {"blue_tokens": 6}]),
)
def test_at_every_moment_the_actions_of_a_side_are_its_first_sentences(lines, goal, num_red, budget) -> None:
    config = GameConfig(num_exchanges=4, num_red=num_red, **budget)
    batch = batch_of(config, Deal(goal=goal, red_order=tuple(range(num_red))))
    for line in lines * 8:
        record = batch.transcript(0)
        for agent in config.agents:
            seen = batch.observe(0, agent)
            role = "assistant" if agent == "blue_0" else "user"
            heard = [content for sender, content in seen.messages if sender == role]
            said = [action.text for action in seen.said]
            assert seen.said == tuple(a for who, a in record.actions if (who == "blue_0") == (agent == "blue_0"))
            assert said == heard[: len(said)]
            assert len(said) == len(heard) or budget or (role == "user" and goal is BENIGN)
        if batch.done:
            break
        assert len(batch.pending()[0].observation.said) == batch.pending()[0].observation.turn
        batch.submit({0: line})


def test_a_sentence_beyond_the_limit_on_characters_is_marked_as_cut() -> None:
    long = Action(text="abcdef", token_ids=(1, 2), logps=(-1.0, -2.0))
    cut = within_limit(long, 4)
    assert (cut.text, cut.token_ids, cut.finish_reason) == ("abcd", (1, 2), "cut")
    assert within_limit(long, 6) is long
    assert within_limit(Action(text="abcdef"), 4).finish_reason == "stop"
