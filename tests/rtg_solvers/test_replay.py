"""The replay buffer against a stream worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtg_env.errors import ConfigError
from rtg_solvers.replay import Added, Kept, ReplayBuffer, ReplaySettings


def kept(ids: str, score: float, context: str = "g", embedding: tuple[float, ...] = (0.0, 0.0)) -> Kept:
    tokens = tuple(ord(char) for char in ids)
    return Kept(context, (1,), tokens, ids, score, np.array(embedding), len(tokens))


def texts(buffer: ReplayBuffer, context: str = "g") -> list[str]:
    return [attack.text for attack in buffer.of(context)]


def test_a_stream_worked_out_by_hand() -> None:
    buffer = ReplayBuffer(ReplaySettings(capacity=3))
    assert buffer.add([kept("abcdefgh", 0.5)]) == Added(1, 0, 0, 0)
    # One substitution: distance 1 < 0.25 * 16 = 4, and worse: left out.
    assert buffer.add([kept("abcdefgX", 0.4)]) == Added(0, 1, 0, 0)
    # The same, better: takes its place.
    assert buffer.add([kept("abcdefgY", 0.6)]) == Added(1, 0, 1, 0)
    # Distance 4 is not below 4: a different attack.
    assert buffer.add([kept("abcdWXYZ", 0.1)]) == Added(1, 0, 0, 0)
    assert buffer.add([kept("12345678", 0.3)]) == Added(1, 0, 0, 0)
    assert texts(buffer) == ["abcdefgY", "abcdWXYZ", "12345678"]
    # Full: the worst goes.
    assert buffer.add([kept("qrstuvwx", 0.2)]) == Added(1, 0, 0, 1)
    assert texts(buffer) == ["abcdefgY", "12345678", "qrstuvwx"]
    # Worse than all: it goes itself.
    assert buffer.add([kept("!?!?!?!?", 0.05)]) == Added(1, 0, 0, 1)
    assert texts(buffer) == ["abcdefgY", "12345678", "qrstuvwx"]


def test_embeddings_that_point_the_same_way_are_near() -> None:
    buffer = ReplayBuffer(ReplaySettings(max_cosine=0.4))
    buffer.add([kept("aaaaaaaa", 0.5, embedding=(1.0, 0.0))])
    assert buffer.add([kept("zzzzzzzz", 0.4, embedding=(0.41, 0.912))]).worse == 1
    assert buffer.add([kept("yyyyyyyy", 0.4, embedding=(0.39, 0.921))]).kept == 1


def test_a_better_one_takes_the_place_of_all_that_are_near() -> None:
    buffer = ReplayBuffer(ReplaySettings(max_cosine=0.4))
    buffer.add([kept("aaaaaaaa", 0.1, embedding=(1.0, 0.0)), kept("zzzzzzzz", 0.2, embedding=(0.0, 1.0))])
    assert buffer.add([kept("mmmmmmmm", 0.3, embedding=(0.7, 0.7))]).replaced == 2
    assert texts(buffer) == ["mmmmmmmm"]


def test_contexts_do_not_meet() -> None:
    buffer = ReplayBuffer(ReplaySettings(capacity=4), num_contexts=2)
    buffer.add([kept("same text", 0.5, "g"), kept("same text", 0.4, "h")])
    assert (texts(buffer, "g"), texts(buffer, "h"), len(buffer)) == (["same text"], ["same text"], 2)
    buffer.add([kept("another one", 0.3, "g"), kept("a third, longer", 0.9, "g")])
    assert texts(buffer, "g") == ["same text", "a third, longer"]  # 4 / 2 places for each


def test_draws_are_in_proportion_to_the_score_and_never_twice() -> None:
    buffer = ReplayBuffer(ReplaySettings(edit_share=0.0, max_cosine=1.0))
    buffer.add([kept("a", 0.6), kept("b", 0.3), kept("c", 0.1)])
    rng = np.random.default_rng(0)
    firsts = [buffer.draw(rng, num_groups=1, group_size=1)[0][0].text for _ in range(3000)]
    assert firsts.count("a") / 3000 == pytest.approx(0.6, abs=0.03)
    assert firsts.count("c") / 3000 == pytest.approx(0.1, abs=0.03)
    for _ in range(20):
        (group,) = buffer.draw(rng, num_groups=1, group_size=3)
        assert sorted(attack.text for attack in group) == ["a", "b", "c"]


def test_a_context_has_room_for_a_group_however_many_there_are() -> None:
    settings = ReplaySettings(capacity=4, edit_share=0.0, max_cosine=1.0)
    buffer = ReplayBuffer(settings, num_contexts=251, group_size=3)
    buffer.add([kept(text, 0.5) for text in "abcd"])
    assert (len(buffer), buffer.contexts(3)) == (3, ("g",))


def test_contexts_that_are_wanted_first_come_first() -> None:
    buffer = ReplayBuffer(ReplaySettings(edit_share=0.0, max_cosine=1.0))
    buffer.add([kept(text, 0.5, context) for context in "ghijk" for text in "ab"] + [kept("a", 0.5, "poor")])
    for seed in range(10):
        rng = np.random.default_rng(seed)
        groups = buffer.draw(rng, num_groups=3, group_size=2, first=["poor", "k", "unknown", "h", "k"])
        assert [group[0].context for group in groups[:2]] == ["k", "h"]
        assert groups[2][0].context in {"g", "i", "j"}


def test_only_contexts_with_a_whole_group_are_drawn() -> None:
    buffer = ReplayBuffer(ReplaySettings(edit_share=0.0, max_cosine=1.0))
    buffer.add([kept("a", 0.5, "g"), kept("b", 0.5, "g"), kept("c", 0.5, "h")])
    groups = buffer.draw(np.random.default_rng(0), num_groups=4, group_size=2)
    assert [group[0].context for group in groups] == ["g"]
    assert buffer.draw(np.random.default_rng(0), num_groups=4, group_size=3) == []


@given(st.lists(st.tuples(st.text("ab", min_size=1, max_size=8), st.floats(0.01, 1.0)), max_size=30))
def test_no_two_are_near_and_the_best_is_there(stream: list[tuple[str, float]]) -> None:
    buffer = ReplayBuffer(ReplaySettings(capacity=1000, max_cosine=1.0))
    buffer.add([kept(ids, score) for ids, score in stream])
    own = buffer.of("g")
    for index, first in enumerate(own):
        for second in own[:index]:
            assert not buffer._near(first, second)
    if stream:
        assert max(attack.score for attack in own) == max(score for _, score in stream)


@given(st.lists(st.tuples(st.text("abcd", min_size=1, max_size=6), st.floats(0.01, 1.0)), max_size=20))
def test_adding_the_same_stream_again_gives_the_same_buffer(stream: list[tuple[str, float]]) -> None:
    first, second = ReplayBuffer(ReplaySettings(capacity=5)), ReplayBuffer(ReplaySettings(capacity=5))
    attacks = [kept(ids, score) for ids, score in stream]
    first.add(attacks)
    for attack in attacks:
        second.add([attack])
    assert texts(first) == texts(second)


@pytest.mark.parametrize("changes", [{"capacity": 0}, {"edit_share": 1.5}, {"max_cosine": 0.0}])
def test_settings_out_of_range_are_refused(changes: dict) -> None:
    with pytest.raises(ConfigError):
        ReplaySettings(**changes)
