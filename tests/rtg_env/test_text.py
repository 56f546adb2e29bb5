from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtg_env.text import for_terminal, one_line, well_formed
from tests.doubles import ANY_TEXT

HOSTILE = st.lists(
    st.sampled_from(
        [
            "\x1b",
            "[",
            "]",
            "2J",
            "0;",
            "\x07",
            "\\",
            "\x9b",
            "\x9d",
            "m",
            "\u202e",
            "\u2066",
            "\r",
            "\b",
            "a",
            "\n",
            "\ud800",
            "\x1b[",
        ]
    )
).map("".join)


def dangerous(text: str) -> list[str]:
    """Characters that a terminal must not see, by their Unicode properties (an independent statement of the rule)."""
    bidi = {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"}
    return [
        char
        for char in text
        if (unicodedata.category(char) in ("Cc", "Cs") and char not in "\n\t")
        or unicodedata.bidirectional(char) in bidi
    ]


@given(ANY_TEXT)
def test_well_formed_text_can_be_encoded(text: str) -> None:
    assert well_formed(text).encode("utf-8").decode("utf-8") == well_formed(text)


@given(ANY_TEXT)
def test_well_formed_keeps_the_number_of_characters(text: str) -> None:
    assert len(well_formed(text)) == len(text)


@given(st.text())
def test_well_formed_leaves_good_text_alone(text: str) -> None:
    assert well_formed(text) == text


@pytest.mark.parametrize(
    ("text", "expected"), [("\ud800", "\ufffd"), ("é\udfff!", "é\ufffd!"), ("\ud83d\ude00", "\ufffd\ufffd")]
)
def test_a_lone_surrogate_becomes_the_replacement_character(text: str, expected: str) -> None:
    assert well_formed(text) == expected


@given(st.one_of(ANY_TEXT, HOSTILE))
def test_nothing_dangerous_reaches_the_terminal(text: str) -> None:
    assert dangerous(for_terminal(text)) == []


@given(st.one_of(ANY_TEXT, HOSTILE), st.integers(1, 30))
def test_nothing_dangerous_reaches_the_terminal_when_a_sequence_is_cut(text: str, max_chars: int) -> None:
    assert dangerous(for_terminal(text, max_chars=max_chars)) == []


@given(st.one_of(ANY_TEXT, HOSTILE))
def test_terminal_text_can_be_encoded(text: str) -> None:
    assert for_terminal(text).encode("utf-8").decode("utf-8") == for_terminal(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[2Jhello", "hello"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07hello", "hello"),
        ("\x1b]8;;http://x.test\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bchello", "chello"),
        ("\x9b2Jhello", "2Jhello"),
        ("safe\rbad", "safebad"),
        ("a\x08\x08b", "ab"),
        ("\u202egnp.exe", "gnp.exe"),
        ("\x1b\u202e[2Jhello", "[2Jhello"),
        ("\x1b\x1b[2J[2Jhello", "[2Jhello"),
        ("a\x00b\x7fc\x85d", "abcd"),
    ],
)
def test_escape_sequences_are_removed_and_words_stay(text: str, expected: str) -> None:
    assert for_terminal(text) == expected


@pytest.mark.parametrize("text", ["", "two\nlines\tand a tab", "naïve 日本語", "👩‍👩‍👧", "مرحبا", "[2J is just text"])
def test_harmless_text_is_shown_as_it_is(text: str) -> None:
    assert for_terminal(text) == text


def test_text_of_exactly_the_limit_is_not_shortened() -> None:
    assert for_terminal("x" * 10, max_chars=10) == "x" * 10


def test_longer_text_is_shortened_and_says_so() -> None:
    assert for_terminal("x" * 11, max_chars=10) == "x" * 10 + " [..]"


@given(ANY_TEXT)
def test_one_line_is_one_line(text: str) -> None:
    assert len(one_line(text).splitlines()) <= 1


def test_one_line_joins_words_with_single_blanks() -> None:
    assert one_line("  a\n\n b\t\u2028c ") == "a b c"
