"""What a model reads of its own earlier sentences: the ids that it sampled, where they belong, and text everywhere else."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rtg_agents.policy import ChatMessage, with_own_ids
from rtg_agents.tokens import ChatEncoder
from rtg_env.types import Action
from tests.backends import END, OTHER_END, START
from tests.doubles import ANY_TEXT
from tests.tiny import CHAT_TEMPLATE, tiny_tokenizer

# The tiny tokenizer: 0..2 are <|endoftext|>, <|im_start|>, <|im_end|>; then one id per byte, printable ASCII first:
# "!" is 3, "a" is 3 + 97 - 33 = 67. The newline is the eleventh of the bytes that come last: 191 + 10.
A, B, C, NEWLINE = 67, 68, 69, 201
USER = [START, *(67 + ord(char) - 97 for char in "user"), NEWLINE]
ASSISTANT = [START, *(67 + ord(char) - 97 for char in "assistant"), NEWLINE]


@cache
def encoder() -> ChatEncoder:
    return ChatEncoder(tiny_tokenizer())


@pytest.fixture
def chat() -> ChatEncoder:
    return encoder()


def asked(content: str, *ids: int) -> list[ChatMessage]:
    return [ChatMessage("user", "a"), ChatMessage("assistant", content, ids), ChatMessage("user", "c")]


def with_template(template: str) -> ChatEncoder:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return ChatEncoder(tokenizer)


# Where sampled ids stand


@pytest.mark.parametrize(
    ("ids", "closing"),
    [
        ((B, END), [NEWLINE]),  # it has ended its turn as the template does: that id is not said twice
        ((B, OTHER_END), [END, NEWLINE]),  # ended by another id: the template still closes the turn
        ((B, B, B), [END, NEWLINE]),  # out of tokens
        ((END,), [NEWLINE]),  # nothing but the end
        ((START, END, B), [END, NEWLINE]),  # control ids in mid-sentence stay what they were
        ((), [END, NEWLINE]),  # no ids: the text is tokenised
    ],
)
def test_sampled_ids_stand_in_place_of_the_text(chat: ChatEncoder, ids: tuple[int, ...], closing: list[int]) -> None:
    said = list(ids) or [B]
    before = [*USER, A, END, NEWLINE, *ASSISTANT]
    assert chat.encode(asked("b")[:1]) == before
    assert chat.encode(asked("b", *ids)) == [*before, *said, *closing, *USER, C, END, NEWLINE, *ASSISTANT]


def test_ids_of_the_reader_alone_are_taken_for_its_own(chat: ChatEncoder) -> None:
    hostile = [ChatMessage("user", "a", (END, START)), ChatMessage("system", "c", (END,))]
    assert chat.encode(hostile) == chat.encode([ChatMessage("user", "a"), ChatMessage("system", "c")])


def test_a_text_that_ends_as_the_template_closes_loses_nothing() -> None:
    chat = with_template(CHAT_TEMPLATE.replace("<|im_end|>", ""))
    assert chat.encode([ChatMessage("user", "a\n")]) == [*USER, A, NEWLINE, NEWLINE, *ASSISTANT]


@given(
    st.lists(st.tuples(ANY_TEXT, st.lists(st.integers(0, 258), min_size=1, max_size=6)), min_size=1, max_size=4),
    st.sampled_from([(), (ChatMessage("system", "Be brief."),)]),
)
@example([("\ud800", [A])], ())
def test_any_prompt_begins_with_the_one_before_it_and_what_was_sampled_then(turns, system) -> None:
    chat, messages, view = encoder(), [*system], []
    for text, ids in turns:
        messages.append(ChatMessage("user", text))
        prompt = chat.encode(messages)
        assert prompt[: len(view)] == view
        added = prompt[len(view) :]
        # One turn is opened for the other side and one for the model, whatever anybody typed.
        assert added.count(START) == 2 + (len(messages) == 2 and bool(system))
        view = [*prompt, *ids]
        messages.append(ChatMessage("assistant", "what the others heard", tuple(ids)))


@pytest.mark.parametrize(
    ("typed", "read"),
    [("a\ud800b", "a\ufffdb"), ("\udc00", "\ufffd"), ("\ud83d\ude42", "\U0001f642"), ("\ufeffa", "\ufeffa")],
)
def test_halves_of_surrogate_pairs_are_read_as_replacement_characters(chat: ChatEncoder, typed: str, read: str) -> None:
    assert chat.plain(typed) == chat.plain(read)
    assert chat.decode(chat.plain(typed)) == read


# Templates that do not keep what came before

THINKS = CHAT_TEMPLATE.replace("<|im_start|>assistant\n", "<|im_start|>assistant\n<think></think>")
COUNTS = "{{ messages|length }}" + CHAT_TEMPLATE
OPENS_NOTHING = CHAT_TEMPLATE.replace("{{ '<|im_start|>assistant\n' }}", "")
NEEDS_A_MESSAGE = "{% if not messages %}{{ raise_exception('no messages') }}{% endif %}" + CHAT_TEMPLATE


@pytest.mark.parametrize("template", [THINKS, COUNTS, OPENS_NOTHING])
def test_a_template_that_shows_history_otherwise_gets_it_as_text(template: str) -> None:
    chat = with_template(template)
    assert chat.encode(asked("b", B, B, END)) == chat.encode(asked("b"))


def test_a_prompt_that_cannot_have_been_answered_raises_nothing() -> None:
    chat = with_template(NEEDS_A_MESSAGE)
    first = [ChatMessage("assistant", "b", (C, END)), ChatMessage("user", "a")]
    assert chat.encode(first) == chat.encode([message._replace(ids=()) for message in first])
    assert C in chat.encode([*first, ChatMessage("assistant", "b", (C, END)), ChatMessage("user", "a")])


# Which messages are the policy's own


def action(text: str, *ids: int, policy: str = "me", **other) -> Action:
    return Action(text=text, policy=policy, token_ids=ids, **other)


def messages(*contents: str) -> list[ChatMessage]:
    """A user first, then in turn."""
    return [ChatMessage("assistant" if place % 2 else "user", content) for place, content in enumerate(contents)]


def ids_of(prompt: list[ChatMessage], *said: Action) -> list[tuple[int, ...]]:
    filled = with_own_ids(prompt, said, "me")
    assert [message[:2] for message in filled] == [message[:2] for message in prompt]
    assert not any(message.ids for message in filled if message.role != "assistant")
    return [message.ids for message in filled if message.role == "assistant"]


def test_own_sentences_get_their_ids() -> None:
    assert ids_of(messages("a", "b", "c", "d", "e"), action("b", 5), action("d", 6, 7)) == [(5,), (6, 7)]
    assert ids_of(messages("a")) == []


@pytest.mark.parametrize(
    "other",
    [
        action("B", 5),  # a filter or the prompting has changed it
        action("b", 5, policy="teammate"),
        action("b", 5, finish_reason="cut"),
        action("b"),
    ],
)
def test_a_message_that_is_not_what_was_sampled_stays_text(other: Action) -> None:
    assert ids_of(messages("a", "b", "c", "d", "e"), other, action("d", 6)) == [(), (6,)]


def test_examples_in_front_stay_text() -> None:
    examples = messages("x", "b")
    assert ids_of([*examples, *messages("a", "b", "c")], action("b", 5)) == [(), (5,)]


def test_a_prompting_may_leave_out_what_was_said_first() -> None:
    assert ids_of(messages("c", "d", "e"), action("b", 5), action("d", 6)) == [(6,)]


def test_equal_sentences_keep_their_own_ids() -> None:
    assert ids_of(messages("a", "b", "c", "b", "e"), action("b", 5), action("b", 6)) == [(5,), (6,)]
