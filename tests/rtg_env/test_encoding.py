from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtg_env.encoding import CachedEncoder, HashingEncoder
from rtg_env.errors import ConfigError
from tests.doubles import ANY_TEXT

ROOT = Path(__file__).resolve().parents[2]


class Counting:
    """Two numbers that follow from the text; remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.calls.append(list(texts))
        return np.array([[len(text), sum(map(ord, text)) % 97] for text in texts], dtype=np.float32) / 100


class Returning:
    """Whatever it was told to return, one after another."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return self.answers.pop(0)  # type: ignore[return-value]  # the point of this double


# HashingEncoder


def test_texts_that_share_words_are_near_and_others_are_not() -> None:
    play, same, other = HashingEncoder(256).encode(["Read the play aloud.", "read THE Play, aloud?", "Nein danke!"])
    assert play @ same == pytest.approx(1.0)
    assert abs(play @ other) < 0.5


def test_rows_of_words_have_length_one_and_those_without_are_zero() -> None:
    rows = HashingEncoder(8).encode(["one two", "", "?! ...", "\U0001f642"])
    assert rows.dtype == np.float32
    assert np.linalg.norm(rows, axis=1) == pytest.approx([1.0, 0.0, 0.0, 0.0])


@given(st.lists(ANY_TEXT, max_size=4))
def test_any_text_gets_a_row_in_range_that_does_not_depend_on_the_batch(texts: list[str]) -> None:
    encoder = HashingEncoder(4)
    rows = encoder.encode(texts)
    assert rows.shape == (len(texts), 4)
    assert (np.abs(rows) <= 1).all()
    for text, row in zip(texts, rows, strict=True):
        assert np.array_equal(encoder.encode([text])[0], row)


def test_an_encoder_needs_at_least_one_number() -> None:
    with pytest.raises(ConfigError, match="size must be >= 1, got 0"):
        HashingEncoder(0)


def test_other_processes_encode_alike() -> None:
    said = (
        "from rtg_env.encoding import HashingEncoder as H; print(H(16).encode(['a bad word', 'Grüße']).tobytes().hex())"
    )
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", said], env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == HashingEncoder(16).encode(["a bad word", "Grüße"]).tobytes().hex()


# CachedEncoder


def test_each_text_is_encoded_once_and_new_ones_in_one_call() -> None:
    inner = Counting()
    cached = CachedEncoder(inner)
    first = cached.encode(["a", "b", "a"])
    second = cached.encode(["c", "b", "d", "c"])
    assert inner.calls == [["a", "b"], ["c", "d"]]
    assert np.array_equal(first, Counting().encode(["a", "b", "a"]))
    assert np.array_equal(second, Counting().encode(["c", "b", "d", "c"]))


def test_the_text_that_was_not_asked_for_the_longest_is_forgotten() -> None:
    inner = Counting()
    cached = CachedEncoder(inner, capacity=2)
    for text in ("a", "b", "a", "c", "a", "b"):
        cached.encode([text])
    assert inner.calls == [["a"], ["b"], ["c"], ["b"]]


@given(st.lists(st.lists(st.sampled_from("abcdef"), max_size=8), max_size=8), st.integers(1, 4))
def test_a_cache_of_any_capacity_gives_what_the_encoder_gives(batches: list[list[str]], capacity: int) -> None:
    cached = CachedEncoder(Counting(), capacity)
    for batch in [["a"], *batches]:
        assert np.array_equal(cached.encode(batch), Counting().encode(batch).reshape(-1, 2))
        assert len(cached._rows) <= capacity


def test_no_texts_have_no_rows() -> None:
    cached = CachedEncoder(Counting())
    assert cached.encode([]).shape == (0, 0)
    cached.encode(["a"])
    assert cached.encode([]).shape == (0, 2)


def test_rows_can_be_changed_without_harm() -> None:
    cached = CachedEncoder(Counting())
    cached.encode(["a"])[:] = 9.0
    assert np.array_equal(cached.encode(["a"]), Counting().encode(["a"]))


def test_an_encoder_may_fill_its_array_again() -> None:
    array = np.zeros((1, 2), dtype=np.float32)

    class Reusing:
        def encode(self, texts: Sequence[str]) -> np.ndarray:
            array[:] = len(texts[0])
            return array

    cached = CachedEncoder(Reusing())
    cached.encode(["a"])
    cached.encode(["bbb"])
    assert cached.encode(["a"]).tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (np.zeros(2), r"expected \[2, 'D'\] finite numbers from Returning, got \[2\]"),
        (np.zeros((3, 2)), r"got \[3, 2\]"),
        (np.zeros((2, 2, 2)), r"got \[2, 2, 2\]"),
        (np.array([[0.0, np.nan], [0.0, 0.0]]), r"got \[2, 2\] with NaN or infinity; mend the encoder"),
        (np.array([[0.0, np.inf], [0.0, 0.0]]), "with NaN or infinity"),
    ],
)
def test_rows_of_a_wrong_shape_or_without_numbers_are_refused_and_not_kept(answer: np.ndarray, found: str) -> None:
    good = np.ones((2, 2))
    cached = CachedEncoder(Returning(answer, good))
    with pytest.raises(ConfigError, match=found):
        cached.encode(["a", "b"])
    assert np.array_equal(cached.encode(["a", "b"]), good)


def test_rows_that_become_longer_are_refused() -> None:
    cached = CachedEncoder(Returning(np.ones((1, 2)), np.ones((1, 3))))
    cached.encode(["a"])
    with pytest.raises(ConfigError, match=r"expected \[1, 2\] finite numbers from Returning, got \[1, 3\]"):
        cached.encode(["b"])


def test_a_cache_that_remembers_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="capacity must be >= 1, got 0"):
        CachedEncoder(Counting(), 0)
