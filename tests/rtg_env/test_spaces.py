from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given

from rtg_env.errors import ConfigError
from rtg_env.spaces import UnicodeText, messages_space
from tests.doubles import ANY_TEXT


@given(ANY_TEXT)
def test_any_text_within_the_limit_is_contained(text: str) -> None:
    assert text in UnicodeText(40)


@pytest.mark.parametrize("thing", ["xxxx", b"abc", None, 3, ["a"], "👩‍👩‍👧"])
def test_longer_text_and_other_types_are_not_contained(thing: object) -> None:
    assert thing not in UnicodeText(3)


def test_the_limits_themselves_are_contained() -> None:
    space = UnicodeText(3, min_length=2)
    assert [("x" * n) in space for n in range(5)] == [False, False, True, True, False]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 3), (1, 1), (0, 2000), (30, 60), (50, 50), (24, 25)])
def test_every_sample_is_contained(low: int, high: int) -> None:
    space = UnicodeText(high, min_length=low, seed=0)
    assert [text for text in (space.sample() for _ in range(50)) if text not in space] == []


def test_samples_follow_the_seed() -> None:
    one, two = UnicodeText(100, seed=3), UnicodeText(100, seed=3)
    assert [one.sample() for _ in range(5)] == [two.sample() for _ in range(5)]


def test_samples_of_two_seeds_differ() -> None:
    assert UnicodeText(100, seed=1).sample() != UnicodeText(100, seed=2).sample()


@pytest.mark.parametrize(("low", "high"), [(0, 0), (3, 2), (-1, 5)])
def test_impossible_limits_are_refused(low: int, high: int) -> None:
    with pytest.raises(ConfigError, match="min_length"):
        UnicodeText(high, min_length=low)


def test_equality_is_about_the_limits() -> None:
    assert UnicodeText(5) == UnicodeText(5, seed=1)
    assert UnicodeText(5) != UnicodeText(6)
    assert UnicodeText(5) != spaces.Text(5)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda space: pickle.loads(pickle.dumps(space))])  # noqa: S301 - own bytes
def test_a_copied_space_is_equal_and_goes_on_with_the_same_samples(duplicate) -> None:
    space = UnicodeText(100, seed=0)
    space.sample()
    twin = duplicate(space)
    assert twin == space
    assert twin.sample() == space.sample()


def test_the_repr_is_short() -> None:
    assert repr(UnicodeText(2000)) == "UnicodeText(0, 2000)"


def test_text_of_the_sample_alphabet_survives_flattening() -> None:
    space = UnicodeText(10)
    assert spaces.unflatten(space, spaces.flatten(space, "hello, é")) == "hello, é"


def test_other_text_flattens_to_the_replacement_character() -> None:
    space = UnicodeText(10)
    assert spaces.unflatten(space, spaces.flatten(space, "a日😀")) == "a\ufffd\ufffd"


def test_flattening_does_not_depend_on_the_order_of_a_set() -> None:
    assert spaces.flatten(UnicodeText(4), "ab").tolist() == [0, 1, 33, 33]


def test_the_dialogue_space_contains_dialogues_and_its_own_samples() -> None:
    space = messages_space(10)
    space.seed(0)
    assert ({"role": "user", "content": "hi 😀"}, {"role": "assistant", "content": ""}) in space
    assert space.sample() in space


def test_the_dialogue_space_refuses_a_sentence_over_the_limit() -> None:
    assert ({"role": "user", "content": "x" * 11},) not in messages_space(10)


def test_sampling_touches_no_global_generator() -> None:
    before = np.random.get_state()[1].tolist()  # noqa: NPY002 - the state that must not change
    UnicodeText(10, seed=0).sample()
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002
