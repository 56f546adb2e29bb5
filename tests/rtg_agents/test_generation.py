"""Cached, packed and refilled batches against one row at a time with nothing remembered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rtg_agents import hf
from rtg_agents.head import draw, noise
from rtg_agents.hf import TorchBackend
from rtg_agents.lora import LoraSettings
from rtg_agents.policy import BASE, ChatMessage, Completion, Request, Sampling, TokenSequence
from rtg_env.errors import ConfigError
from tests.adapters import added_up, shake
from tests.tiny import tiny_model, tiny_tokenizer

RED, BLUE = "red_03@v1", "blue_01@v1"
VERSIONS = (BASE, RED, BLUE)
SYSTEM = ChatMessage("system", "Be brief.")


def made(family: str = "llama", *, end_ids: list[int] | None = None, **options) -> TorchBackend:
    model = tiny_model(family)
    model.generation_config.eos_token_id = end_ids
    lora = LoraSettings(rank=4, alpha=8.0)
    backend = TorchBackend(model, tiny_tokenizer(), model_id="tiny", lora=lora, **options)
    for seed, version in enumerate((RED, BLUE)):
        backend.create(version, seed=seed)
        shake(backend, version, seed)
    return backend


def request(
    text: str, seed: int = 0, policy: str = BASE, *, tokens: int = 8, temperature: float = 1.0, earlier=()
) -> Request:
    sampling = Sampling(temperature=temperature, max_new_tokens=tokens)
    messages = (SYSTEM, *earlier, ChatMessage("user", text))
    return Request(policy=policy, messages=messages, sampling=sampling, seed=seed)


def go_on(asked: Request, done: Completion, text: str, **changes) -> Request:
    """The same dialogue's next turn."""
    earlier = (*asked.messages[1:], ChatMessage("assistant", done.text, done.token_ids))
    options = {"tokens": asked.sampling.max_new_tokens, "temperature": asked.sampling.temperature} | changes
    return request(text, asked.seed + 100, asked.policy, earlier=earlier, **options)


def check_equal(one: Sequence[Completion], other: Sequence[Completion]) -> None:
    assert [c.prompt_ids for c in one] == [c.prompt_ids for c in other]
    assert [c.token_ids for c in one] == [c.token_ids for c in other]
    assert [(c.text, c.finish_reason) for c in one] == [(c.text, c.finish_reason) for c in other]
    for left, right in zip(one, other, strict=True):
        assert left.logps == pytest.approx(right.logps, abs=1e-4)


class Naive:
    """Samples one row at a time and reads all of it for every token, each policy added to the weights of a model."""

    def __init__(self, backend: TorchBackend, family: str = "llama", end_ids: Sequence[int] = (2,)) -> None:
        self.backend = backend
        self.end_ids = end_ids
        self.models = {version: added_up(backend.bank, version, family) for version in backend.versions}

    @torch.no_grad()
    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        return [self._sentence(asked) for asked in requests]

    def _sentence(self, asked: Request) -> Completion:
        prompt = self.backend.chat.encode(asked.messages)
        ids: list[int] = []
        logps: list[float] = []
        own = noise(asked.seed, asked.sampling.max_new_tokens, 259)
        temperature = torch.tensor([asked.sampling.temperature])
        while len(ids) < asked.sampling.max_new_tokens and not set(ids) & set(self.end_ids):
            logits = self.models[asked.policy](torch.tensor([prompt + ids]))[:, -1]
            token = int(draw(logits, temperature, own[None, len(ids)])[0])
            logps.append(float(torch.log_softmax(logits[0].double() / asked.sampling.temperature, -1)[token]))
            ids.append(token)
        ended = ids[-1] in self.end_ids
        text = self.backend.chat.decode(ids[: len(ids) - ended]).strip()
        reason = "stop" if ended else "length"
        return Completion(
            text=text, prompt_ids=tuple(prompt), token_ids=tuple(ids), logps=tuple(logps), finish_reason=reason
        )


def count_tokens(backend: TorchBackend, requests: Sequence[Request]) -> int:
    before = backend.forward.num_tokens
    backend.generate(requests)
    return backend.forward.num_tokens - before


def distinct_beginnings(backend: TorchBackend, requests: Sequence[Request]) -> int:
    prompts = [backend.chat.encode(asked.messages) for asked in requests]
    return len({tuple(prompt[:end]) for prompt in prompts for end in range(1, len(prompt) + 1)})


# What was read before

TURNS = ("and then?", "why is that so, if I may ask you?", "no", "tell me more of it, please")


def talk(backend, opening: Sequence[Request], *, forget: bool = False) -> list[list[Completion]]:
    asked, found = list(opening), []
    for turn in (*TURNS, ""):
        if forget:
            backend.forget()
        found.append(backend.generate(asked))
        asked = [go_on(one, done, turn) for one, done in zip(asked, found[-1], strict=True)]
    return found


OPENING = [
    request("hello", 1),
    request("hello", 2, RED, tokens=5),
    request("hello", 3, RED, temperature=0.6),
    request("a longer question about the weather in spring", 4, BLUE),
    request("who?", 5, BLUE, tokens=3, temperature=1.7),
]


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_a_growing_chat_reads_on_from_what_it_has_read(family: str) -> None:
    backend = made(family)
    remembered = talk(backend, OPENING)
    cost = backend.forward.num_tokens
    anew = talk(backend, OPENING, forget=True)
    assert 2 * cost < backend.forward.num_tokens - cost
    naive = talk(Naive(backend, family), OPENING)
    for turn in range(5):
        check_equal(remembered[turn], anew[turn])
        check_equal(remembered[turn], naive[turn])


@pytest.mark.parametrize("cache_bytes", [0, 1, 20_000, 100_000])
def test_a_small_cache_forgets_and_changes_nothing(cache_bytes: int) -> None:
    small, large = made(cache_bytes=cache_bytes), made()
    for one, other in zip(talk(small, OPENING), talk(large, OPENING), strict=True):
        check_equal(one, other)
    assert small.forward.num_tokens > large.forward.num_tokens
    assert small._views.num_bytes <= cache_bytes
    assert bool(len(small._views)) == (cache_bytes >= 20_000)


def test_a_version_that_was_trained_reads_its_prompt_anew() -> None:
    backend = made()
    asked = request("a question that is longer than one block", 1, RED)
    followed = go_on(asked, backend.generate([asked])[0], "go on")
    before = backend.generate([followed])
    for seed in (5, 6):
        shake(backend, RED, seed, 0.1)
        after = backend.generate([followed])
        check_equal(after, Naive(backend).generate([followed]))
        assert after[0].token_ids != before[0].token_ids
        before = after


def test_a_version_that_was_trained_leaves_the_others_what_they_have_read() -> None:
    backend = made()
    asked = [request("a question that is longer than one block", 1, version, tokens=1) for version in (RED, BLUE)]
    backend.generate(asked)
    length = len(backend.chat.encode(asked[0].messages))
    shake(backend, RED, 5)
    assert count_tokens(backend, asked[1:]) == 1
    assert count_tokens(backend, asked[:1]) == length


@pytest.mark.parametrize("trained", [False, True])
def test_a_name_that_is_dropped_and_given_anew_reads_its_prompt_anew(trained: bool) -> None:
    backend = made()
    asked = request("a question that is longer than one block", 1, "other")
    found = []
    for source in (RED, BLUE):
        backend.bank.copy(source, "other")
        if trained:
            shake(backend, "other", 5, 0.1)
        found += backend.generate([asked])
        check_equal(found[-1:], Naive(backend).generate([asked]))
        backend.drop("other")
    assert found[0].token_ids != found[1].token_ids


# What is read once


def test_equal_prompts_are_read_once() -> None:
    backend = made()
    asked = [request("hello", seed, RED, tokens=1, temperature=0.5 + seed) for seed in range(5)]
    assert count_tokens(backend, asked) == len(backend.chat.encode(asked[0].messages))


def test_a_beginning_that_prompts_share_is_read_once() -> None:
    backend = made()
    asked = [request(text, 1, RED, tokens=1) for text in ("hello", "help", "who are you?", "hello you", "hello")]
    assert count_tokens(backend, asked) == distinct_beginnings(backend, asked)


def test_each_policy_reads_for_itself() -> None:
    backend = made()
    asked = [request("hello", 1, version, tokens=1) for version in VERSIONS]
    assert count_tokens(backend, asked) == 3 * len(backend.chat.encode(asked[0].messages))


def test_a_further_turn_reads_its_new_tokens_and_the_last_id_that_was_sampled() -> None:
    backend = made()
    asked = request("hello", 1, RED, tokens=1)
    (done,) = backend.generate([asked])
    followed = go_on(asked, done, "go on")
    again = [replace(followed, seed=seed) for seed in range(3)]  # a group of samples costs no more
    assert count_tokens(backend, again) == len(backend.chat.encode(followed.messages)) - len(done.prompt_ids)


def test_each_sampled_id_but_the_last_costs_one_token() -> None:
    backend = made()
    asked = request("hello", 3, RED, tokens=9)
    length = len(backend.chat.encode(asked.messages))
    assert count_tokens(backend, [asked]) == length + len(backend.generate([asked])[0].token_ids) - 1


def test_prompts_of_any_length_are_read_in_passes_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["x" * 300, "x" * 280 + "y", "short", "x" * 20, "shorter", "x" * 299, "other " * 60]
    asked = [request(text, seed, VERSIONS[seed % 3], tokens=3) for seed, text in enumerate(texts)]
    backend = made()
    expected = talk(backend, asked)
    check_equal(expected[0], Naive(backend).generate(asked))
    monkeypatch.setattr(hf, "_PACK_TOKENS", 40)
    monkeypatch.setattr(hf, "_PASS_TOKENS", 64)
    for one, other in zip(talk(made(), asked), expected, strict=True):
        check_equal(one, other)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_long_known_prompt_is_read_on_next_to_one_with_much_that_is_new(family: str) -> None:
    # 2048 positions: read row by row, the shorter rest is padded beyond them.
    backend = made(family)
    nearly_full = request("x" * 1950, 1, tokens=2)
    brief = request("y" * 20, 2, tokens=2)
    first, second = backend.generate([nearly_full, brief])
    asked = [go_on(nearly_full, first, "a"), go_on(brief, second, "z" * 200)]
    together = backend.generate(asked)
    backend.forget()
    check_equal(together, [backend.generate([one])[0] for one in asked])


# Rows that leave and rows that come


def of_many_lengths() -> list[Request]:
    lengths = [1, 20, 2, 13, 1, 1, 30, 4, 9, 3, 25, 1, 6, 2, 17, 5, 11]
    return [
        request("word " * (seed * 7 % 5), seed, VERSIONS[seed * 5 % 3], tokens=length, temperature=0.5 + seed % 4)
        for seed, length in enumerate(lengths)
    ]


@pytest.mark.parametrize("max_batch", [1, 3, 16])
def test_requests_that_wait_for_a_row_get_what_they_would_get_at_once(max_batch: int) -> None:
    narrow, wide = made(max_batch=max_batch), made(max_batch=64)
    heights: list[int] = []
    hidden = narrow.forward.hidden
    narrow.forward.hidden = lambda ids, *others: heights.append(len(ids)) or hidden(ids, *others)
    asked = of_many_lengths()
    found = narrow.generate(asked)
    check_equal(found, wide.generate(asked))
    assert max(heights) == max_batch
    check_equal(found, Naive(wide).generate(asked))


def test_ended_rows_are_not_carried_along() -> None:
    backend = made()
    asked = [request("hello", seed, RED, tokens=2) for seed in range(15)] + [request("hello", 15, RED, tokens=40)]
    lengths = [len(done.token_ids) for done in backend.generate(asked)]
    backend.forget()
    # The prompt once; a pass of sixteen rows at most for the second id; the longest sentence alone.
    expected = len(backend.chat.encode(asked[0].messages)) + 16 + max(lengths)
    assert count_tokens(backend, asked) <= expected


@cache
def shared(max_batch: int) -> TorchBackend:
    return made(max_batch=max_batch)


@cache
def expected_of_any_order() -> list[Completion]:
    return [shared(2).generate([asked])[0] for asked in OPENING]


@settings(max_examples=12, deadline=None)
@given(st.permutations(range(5)), st.sets(st.integers(1, 4)), st.sampled_from([2, 64]), st.booleans())
def test_order_and_batching_do_not_change_what_a_seed_says(order, cuts, max_batch: int, forget: bool) -> None:
    backend, found = shared(max_batch), []
    for begin, end in zip([0, *sorted(cuts)], [*sorted(cuts), 5], strict=True):
        if forget:
            backend.forget()
        found += backend.generate([OPENING[index] for index in order[begin:end]])
    check_equal(found, [expected_of_any_order()[index] for index in order])


# How sentences end


def test_nothing_asked_is_nothing_said() -> None:
    assert made().generate([]) == []


def test_one_id_is_the_first_of_more() -> None:
    backend = made()
    for version in VERSIONS:
        (one,) = backend.generate([request("hello", 7, version, tokens=1)])
        backend.forget()
        (more,) = backend.generate([request("hello", 7, version, tokens=6)])
        assert one.token_ids == more.token_ids[:1]
        assert one.finish_reason == "length"


def test_each_of_several_end_ids_ends_a_sentence() -> None:
    asked = [request("hello", seed, VERSIONS[seed % 3], tokens=10) for seed in range(12)]
    uncut = made().generate(asked)
    others = [uncut[0].token_ids[3], uncut[1].token_ids[0], uncut[2].token_ids[9]]
    end_ids = {2, *others}
    found = made(end_ids=others).generate(asked)
    for before, after in zip(uncut, found, strict=True):
        length = next((place + 1 for place, token in enumerate(before.token_ids) if token in end_ids), 10)
        assert after.token_ids == before.token_ids[:length]
        assert after.logps == pytest.approx(before.logps[:length], abs=1e-4)
        assert after.finish_reason == ("stop" if after.token_ids[-1] in end_ids else "length")
        spoken = after.token_ids[:-1] if after.finish_reason == "stop" else after.token_ids
        assert after.text == tiny_tokenizer().decode(list(spoken), skip_special_tokens=True).strip()
    assert {done.finish_reason for done in found} == {"stop", "length"}
    assert [found[row].token_ids[-1] for row in range(3)] == others


def test_an_end_id_at_the_last_place_is_a_stop() -> None:
    (uncut,) = made().generate([request("hello", 1, tokens=4)])
    (cut,) = made(end_ids=[uncut.token_ids[3]]).generate([request("hello", 1, tokens=4)])
    assert uncut.finish_reason == "length"
    assert (cut.token_ids, cut.finish_reason) == (uncut.token_ids, "stop")


def test_a_sentence_that_ended_at_once_can_be_followed() -> None:
    (uncut,) = made().generate([request("hello", 1, tokens=1)])
    backend = made(end_ids=[*uncut.token_ids])
    asked = request("hello", 1)
    (done,) = backend.generate([asked])
    assert (done.token_ids, done.text, done.finish_reason) == (uncut.token_ids, "", "stop")
    followed = [go_on(asked, done, "go on")]
    check_equal(backend.generate(followed), Naive(backend, end_ids=[2, *uncut.token_ids]).generate(followed))


def test_a_cold_policy_says_what_is_most_probable() -> None:
    backend = made()
    asked = [request("hello", seed, RED, temperature=1e-6) for seed in range(3)]
    found = backend.generate(asked)
    assert len({done.token_ids for done in found}) == 1
    assert found[0].logps == pytest.approx([0.0] * len(found[0].token_ids), abs=1e-4)
    check_equal(found[:1], Naive(backend).generate(asked[:1]))


def test_a_sentence_may_not_end_before_it_has_begun() -> None:
    """Ends are barred early, in sampler and scorer alike; without the bar many sentences end at once."""
    backend = made(end_ids=list(range(10, 90)))
    free = [request("hi", seed, tokens=6) for seed in range(60)]
    assert 1 in [len(sentence.token_ids) for sentence in backend.generate(free)]
    found = backend.generate([replace(one, sampling=replace(one.sampling, min_new_tokens=2)) for one in free])
    ended = [len(sentence.token_ids) for sentence in found if sentence.finish_reason == "stop"]
    assert min(ended) == 3
    views = [
        TokenSequence.of_sentence(BASE, sentence.prompt_ids, sentence.token_ids, min_tokens=2) for sentence in found
    ]
    for sentence, scored in zip(found, backend.score(views), strict=True):
        assert scored == pytest.approx(sentence.logps, abs=1e-4)
    plain = backend.score([replace(view, min_tokens=0) for view in views])
    assert all(sum(row[:2]) < sum(sentence.logps[:2]) for row, sentence in zip(plain, found, strict=True))


@pytest.mark.parametrize("least", [-1, 4, True])
def test_a_least_length_outside_the_longest_is_refused(least) -> None:
    with pytest.raises(ConfigError, match="min_new_tokens"):
        Sampling(max_new_tokens=4, min_new_tokens=least)
