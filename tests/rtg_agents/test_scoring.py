"""Scoring against naive passes and PEFT: whatever is scored together, padded or packed."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from rtg_agents import hf
from rtg_agents.hf import TorchBackend
from rtg_agents.lora import LoraSettings
from rtg_agents.policy import BASE, ChatMessage, Request, Sampling, TokenSequence
from tests.adapters import added_up, shake
from tests.tiny import tiny_model, tiny_tokenizer

RED, BLUE = "red_03@v1", "blue_01@v1"
VERSIONS = (BASE, RED, BLUE)
FAMILIES = ("llama", "qwen2", "gpt2")


def made(family: str = "llama") -> TorchBackend:
    lora = LoraSettings(rank=4, alpha=8.0)
    backend = TorchBackend(tiny_model(family), tiny_tokenizer(), model_id="tiny", lora=lora)
    for seed, version in enumerate((RED, BLUE)):
        backend.create(version, seed=seed)
        shake(backend, version, seed)
    return backend


@cache
def shared(family: str = "llama") -> TorchBackend:
    return made(family)


def mixed() -> list[TokenSequence]:
    """Lengths, policies, temperatures and spans of every kind; beginnings that are shared and a sequence that repeats."""
    rng = np.random.default_rng(5)
    beginning = tuple(rng.integers(3, 259, 20).tolist())
    shapes = [
        (2, ((1, 2),)),
        (30, ((20, 30),)),
        (33, ((5, 6), (9, 12), (25, 33))),
        (27, ((1, 27),)),
        (60, ((20, 25), (25, 31), (40, 58))),  # two spans side by side, and ids after the last
        (300, ((100, 130), (290, 300))),
        (21, ((20, 21),)),
        (9, ((3, 5),)),
    ]
    found = []
    for number, (length, spans) in enumerate(shapes):
        ids = (beginning + tuple(rng.integers(3, 259, 300).tolist()))[:length]
        for version in (VERSIONS[number % 3], VERSIONS[(number + 1) % 3]):
            found.append(TokenSequence(policy=version, ids=ids, spans=spans, temperature=0.5 + number % 4))
    return [*found, found[3]]


def naive(backend: TorchBackend, one: TokenSequence, family: str = "llama") -> tuple[torch.Tensor, ...]:
    """Logits [n, V] before each sampled id, its log-probability and the entropy there; differentiable."""
    places = [place for begin, end in one.spans for place in range(begin, end)]
    logits = added_up(backend.bank, one.policy, family)(torch.tensor([one.ids]))[0]
    logits = logits[[place - 1 for place in places]].double()
    all_logps = torch.log_softmax(logits / one.temperature, -1)
    logps = all_logps[range(len(places)), [one.ids[place] for place in places]]
    return logits, logps, -(all_logps.exp() * all_logps).sum(-1)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_naive_passes(family: str) -> None:
    backend, asked = shared(family), mixed()
    for one, logps in zip(asked, backend.score(asked), strict=True):
        assert len(logps) == one.num_sampled
        assert logps == pytest.approx(naive(backend, one, family)[1].tolist(), abs=2e-4)


def test_scores_do_not_depend_on_what_is_scored_together() -> None:
    backend, asked = shared(), mixed()
    together = backend.score(asked)
    alone = [backend.score([one])[0] for one in asked]
    backwards = backend.score(asked[::-1])[::-1]
    by_policy = {version: iter(backend.score([one for one in asked if one.policy == version])) for version in VERSIONS}
    grouped = [next(by_policy[one.policy]) for one in asked]
    for logps, *others in zip(together, alone, backwards, grouped, strict=True):
        for other in others:
            assert logps == pytest.approx(other, abs=1e-5)


@pytest.mark.parametrize(("pack_tokens", "pass_tokens"), [(1, 1), (16, 64), (40, 5000), (5000, 5000)])
def test_scores_do_not_depend_on_the_size_of_packs_and_passes(
    monkeypatch: pytest.MonkeyPatch, pack_tokens: int, pass_tokens: int
) -> None:
    backend, asked = shared(), mixed()
    expected = backend.evaluate(asked, entropy=True, hidden=True)
    monkeypatch.setattr(hf, "_PACK_TOKENS", pack_tokens)
    monkeypatch.setattr(hf, "_PASS_TOKENS", pass_tokens)
    found = backend.evaluate(asked, entropy=True, hidden=True)
    torch.testing.assert_close(found.logps, expected.logps, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.entropies, expected.entropies, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.hidden, expected.hidden, atol=1e-4, rtol=0)
    assert torch.equal(found.mask, expected.mask)


def test_what_is_said_stands_in_the_order_of_its_spans_and_zero_beyond() -> None:
    backend, asked = shared(), mixed()
    found = backend.evaluate(asked, entropy=True, hidden=True)
    widths = [one.num_sampled for one in asked]
    assert found.logps.shape == found.mask.shape == found.entropies.shape == (len(asked), max(widths))
    assert found.hidden.shape == (len(asked), max(widths), 32)
    assert found.mask.sum(1).tolist() == widths
    for row, one in enumerate(asked):
        _, logps, entropies = naive(backend, one)
        assert found.logps[row, : widths[row]].tolist() == pytest.approx(logps.tolist(), abs=2e-4)
        assert found.entropies[row, : widths[row]].tolist() == pytest.approx(entropies.tolist(), abs=2e-4)
        for beyond in (found.logps, found.entropies, found.hidden, found.mask):
            assert not beyond[row, widths[row] :].any()


def test_hidden_states_are_those_before_each_id() -> None:
    # The head maps 32 numbers to 259 logits: only the right state gives the right ones.
    backend, asked = shared(), mixed()
    found = backend.evaluate(asked, hidden=True).hidden
    for row, one in enumerate(asked):
        said = backend.forward.logits(found[row, : one.num_sampled]).double()
        torch.testing.assert_close(said, naive(backend, one)[0], atol=2e-4, rtol=1e-4)


def test_nothing_is_computed_that_was_not_asked_for() -> None:
    backend = shared()
    found = backend.evaluate(mixed())
    assert (found.entropies, found.hidden, found.values) == (None, None, None)
    assert not found.logps.requires_grad


def test_what_all_sequences_begin_with_is_read_once() -> None:
    backend = shared()
    beginning = tuple(range(3, 103))
    asked = [TokenSequence.of_sentence(RED, beginning, (200 + last, 2)) for last in range(20)]
    before = backend.forward.num_tokens
    backend.score(asked)
    assert backend.forward.num_tokens - before == 100 + 20  # an id that is only predicted is not read


@pytest.mark.parametrize("trained", [(RED,), (RED, BLUE)])
def test_gradients_of_log_probabilities_and_entropies_are_those_of_naive_passes(trained: tuple[str, ...]) -> None:
    backend, asked = made(), mixed()
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(2, len(asked), max(one.num_sampled for one in asked), generator=generator)

    def gradients() -> list[torch.Tensor]:
        own = [parameter for version in trained for parameter in backend.parameters(version).values()]
        found = [parameter.grad.clone() for parameter in own]
        for parameter in own:
            parameter.grad = None
        return found

    said = backend.evaluate(asked, trained=trained, entropy=True)
    (weights[0] * said.logps + weights[1] * said.entropies).sum().backward()
    batched = gradients()
    for row, one in enumerate(asked):
        if one.policy in trained:
            _, logps, entropies = naive(backend, one)
            own = weights[:, row, : one.num_sampled]
            (own[0] * logps + own[1] * entropies).sum().backward()
    for found, expected in zip(batched, gradients(), strict=True):
        assert float(expected.norm()) > 0
        assert float((found - expected).norm()) < 5e-4 * float(expected.norm())


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_peft_on_one_padded_batch_of_many_adapters(family: str, side: str, tmp_path) -> None:
    import peft

    backend = shared(family)
    for version in (RED, BLUE):
        backend.save_adapter(version, tmp_path / version)
    outside = peft.PeftModel.from_pretrained(tiny_model(family), str(tmp_path / RED), adapter_name=RED)
    outside.load_adapter(str(tmp_path / BLUE), adapter_name=BLUE)
    asked = [one for one in mixed() if len(one.ids) < 100]
    width = max(len(one.ids) for one in asked)
    begins = [width - len(one.ids) if side == "left" else 0 for one in asked]
    ids = torch.full((len(asked), width), 2)
    seen = torch.zeros(len(asked), width, dtype=torch.long)
    for row, (one, begin) in enumerate(zip(asked, begins, strict=True)):
        ids[row, begin : begin + len(one.ids)] = torch.tensor(one.ids)
        seen[row, begin : begin + len(one.ids)] = 1
    with torch.no_grad():
        logits = outside.eval()(
            input_ids=ids,
            attention_mask=seen,
            position_ids=(seen.cumsum(1) - 1).clamp(min=0),
            adapter_names=["__base__" if one.policy == BASE else one.policy for one in asked],
            use_cache=False,
        ).logits.double()
    for row, (one, begin, logps) in enumerate(zip(asked, begins, backend.score(asked), strict=True)):
        places = [place for low, high in one.spans for place in range(low, high)]
        all_logps = torch.log_softmax(logits[row] / one.temperature, -1)
        expected = [float(all_logps[begin + place - 1, one.ids[place]]) for place in places]
        assert logps == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fresh_policy_has_ratio_one_to_itself_and_no_divergence_from_the_base(family: str) -> None:
    backend = made(family)
    backend.create("fresh", seed=9)
    sampling = Sampling(temperature=0.8, max_new_tokens=20)
    done = backend.generate(
        [
            Request(policy="fresh", messages=(ChatMessage("user", text),), sampling=sampling, seed=seed)
            for seed, text in enumerate(("hello", "hello", "what is the weather like in spring?", ""))
        ]
    )
    sentences = [(c.prompt_ids, c.token_ids, 0.8) for c in done]
    own = [TokenSequence.of_sentence("fresh", *sentence) for sentence in sentences]
    base = [TokenSequence.of_sentence(BASE, *sentence) for sentence in sentences]
    said = backend.evaluate([*own, *base], trained=["fresh"], hidden=True)
    logps, references = said.logps.detach().split(len(done))
    for row, completion in enumerate(done):
        ratios = np.exp(logps[row, : len(completion.logps)].numpy() - np.array(completion.logps))
        assert ratios == pytest.approx(1, abs=2e-5)
    torch.testing.assert_close(logps, references, atol=1e-5, rtol=0)
    states = said.hidden.detach()[said.mask.bool()].split(sum(len(c.token_ids) for c in done))
    ours, theirs = (torch.log_softmax(backend.forward.logits(state).double() / 0.8, -1) for state in states)
    assert float((ours.exp() * (ours - theirs)).sum(-1).abs().max()) < 1e-9


def test_nothing_to_score_is_no_score() -> None:
    backend = shared()
    assert backend.score([]) == []
    found = backend.evaluate([], entropy=True, hidden=True)
    assert found.logps.shape == found.mask.shape == found.entropies.shape == (0, 0)
    assert found.hidden.shape == (0, 0, 0)
