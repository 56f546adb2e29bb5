"""Gradients of the whole path, lessons to trainer, against games whose every sentence is enumerated; and the first step.

The enumerated game is played by a language model of four ids: a sentence is two ids, or one if it is the end id.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rtg_agents.hf import Evaluated, TorchBackend
from rtg_agents.lora import LoraSettings
from rtg_agents.policy import BASE, ChatMessage, Request, Sampling, TokenSequence
from rtg_solvers.advantages import kl_in_reward, leave_one_out
from rtg_solvers.aggregation import Totals, aggregate
from rtg_solvers.diagnostics import clip_figures, kl_figures, mismatch
from rtg_solvers.lessons import Lessons, Sentence
from rtg_solvers.losses import Clipping, k2_loss, ppo_loss
from rtg_solvers.optimizer import OptimizerSettings
from rtg_solvers.sequence_losses import PairLogps, dpo_loss, preference_figures
from rtg_solvers.trainer import Trainer
from rtg_solvers.updates import reinforce
from tests.adapters import shake
from tests.tiny import tiny_tokenizer

END = 2
PROMPT = (1, 3)
SENTENCES = [(END,), *itertools.product((0, 1, 3), (0, 1, 2, 3))]
"""All that can be said: 13 sentences, whose probabilities sum to 1."""

REWARDS = np.random.default_rng(0).normal(size=len(SENTENCES)) + 2.0
EXACT = OptimizerSettings(learning_rate=0.0, max_grad_norm=math.inf, micro_batch=50)
"""Leaves the gradient as it is, and the policy where it is."""


def model_of_four_ids() -> Any:
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=4, eos_token_id=END, pad_token_id=END, bos_token_id=1, initializer_range=0.4, **shape
    )
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(0)
        return LlamaForCausalLM(config).eval()


@pytest.fixture
def four() -> TorchBackend:
    lora = LoraSettings(rank=2, alpha=4.0)
    backend = TorchBackend(model_of_four_ids(), tiny_tokenizer(), model_id="four", lora=lora)
    backend.create("red", seed=0)
    shake(backend, "red", 1)
    return backend


def said_by(policy: str, temperature: float = 1.0) -> list[TokenSequence]:
    return [TokenSequence.of_sentence(policy, PROMPT, sentence, temperature) for sentence in SENTENCES]


def gradient(backend: TorchBackend) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in backend.parameters("red").values()])


def plain_logps(backend: TorchBackend, temperature: float) -> tuple[torch.Tensor, dict[str, torch.nn.Parameter]]:
    """[13] of every sentence, in double precision: its update added to each weight of a fresh model, no bank."""
    own = {n: torch.nn.Parameter(p.detach().double()) for n, p in backend.parameters("red").items()}
    model = model_of_four_ids().double()
    weights = {
        f"{layer}.weight": model.get_submodule(layer).weight.detach()
        + 2.0 * own[f"{layer}.lora_B.weight"] @ own[f"{layer}.lora_A.weight"]
        for layer in backend.bank.layers
    }
    totals = []
    for sentence in SENTENCES:
        ids = torch.tensor([[*PROMPT, *sentence]])
        logits = torch.func.functional_call(model, weights, (ids,), {"use_cache": False}).logits[0, 1:-1] / temperature
        totals.append(torch.log_softmax(logits, -1).gather(1, torch.tensor(sentence)[:, None]).sum())
    return torch.stack(totals), own


def exact_gradient(
    backend: TorchBackend, value_of: Callable[[torch.Tensor], torch.Tensor], temperature: float = 1.0
) -> torch.Tensor:
    """Of an expectation over all sentences."""
    logp_S, own = plain_logps(backend, temperature)
    value_of(logp_S).backward()
    return torch.cat([parameter.grad.flatten() for parameter in own.values()]).float()


def lessons_of(sequences: Sequence[TokenSequence]) -> Lessons:
    sentences = (Sentence(n, s.num_sampled, 0.0, 0.0, (0, 0), n) for n, s in enumerate(sequences))
    return Lessons(tuple(sequences), tuple(sentences), 0.0)


def sums(backend: TorchBackend, sequences: Sequence[TokenSequence]) -> np.ndarray:
    return np.array([sum(logps) for logps in backend.score(sequences)])


def assert_gradient(found: torch.Tensor, expected: torch.Tensor) -> None:
    scale = float(expected.abs().max())
    assert scale > 1e-2
    torch.testing.assert_close(found, expected, atol=2e-5 * scale, rtol=1e-4)


# REINFORCE


def test_all_sentences_together_have_probability_one(four: TorchBackend) -> None:
    for temperature in (1.0, 0.6):
        probs = np.exp(sums(four, said_by("red", temperature)))
        assert probs.sum() == pytest.approx(1.0, abs=1e-6)
        plain = plain_logps(four, temperature)[0].exp().detach()
        assert probs == pytest.approx(plain.numpy(), abs=1e-6)
        assert np.ptp(probs) > 0.1


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("baseline", [0.0, 2.5])
def test_reinforce_has_the_gradient_of_the_expected_reward(
    four: TorchBackend, baseline: float, temperature: float
) -> None:
    sequences = said_by("red", temperature)
    probs = np.exp(sums(four, sequences))
    # One sample has the loss -(r - b) log p: its mean is that of 13 samples, each weighed by 13 times its probability.
    figures = reinforce(Trainer(four, ["red"], EXACT), lessons_of(sequences), 13 * probs * (REWARDS - baseline))
    rewards = torch.from_numpy(REWARDS)
    expected = exact_gradient(four, lambda logp: -(logp.exp() * rewards).sum(), temperature)
    assert_gradient(gradient(four), expected)
    assert figures is not None
    assert figures.grad_norm == pytest.approx(float(expected.norm()), rel=1e-4)


@pytest.mark.parametrize("kl_weight", [0.0, 0.7])
def test_leave_one_out_has_the_gradient_of_the_expected_reward_less_the_divergence(
    four: TorchBackend, kl_weight: float
) -> None:
    """All 169 pairs of sentences, each with its probability."""
    logps, reference = sums(four, said_by("red")), sums(four, said_by(BASE))
    shaped = kl_in_reward(REWARDS, logps, reference, kl_weight)
    pairs = list(itertools.product(range(13), repeat=2))
    places = [place for pair in pairs for place in pair]
    advantages = leave_one_out(shaped[places], [number for number in range(169) for _ in range(2)])
    chances = np.repeat([math.exp(logps[one] + logps[other]) for one, other in pairs], 2)
    sequences = said_by("red")
    # The loss of one pair is a mean over 2 sentences, this one over 338.
    lessons = lessons_of([sequences[place] for place in places])
    reinforce(Trainer(four, ["red"], EXACT), lessons, 169 * chances * advantages)
    rewards, base = torch.from_numpy(REWARDS), torch.from_numpy(reference)
    expected = exact_gradient(four, lambda logp: -(logp.exp() * (rewards - kl_weight * (logp - base))).sum())
    assert_gradient(gradient(four), expected)


def test_k2_through_the_trainer_has_the_gradient_of_the_divergence_from_the_base(four: TorchBackend) -> None:
    """Policy and reference are rows of one batch."""
    sequences = [*said_by("red"), *said_by(BASE)]
    probs = torch.from_numpy(np.exp(sums(four, said_by("red")))).float()

    def objective(said: Evaluated, places: Sequence[int]) -> torch.Tensor:
        logp_S = said.logps.sum(1)[np.argsort(places)]
        loss_S = probs * k2_loss(logp_S[:13], logp_S[13:])
        return torch.cat([loss_S, torch.zeros(13)])[list(places)]

    Trainer(four, ["red"], EXACT).step(sequences, objective, units=[range(26)])
    base = torch.from_numpy(sums(four, said_by(BASE)))
    assert_gradient(gradient(four), exact_gradient(four, lambda logp: (logp.exp() * (logp - base)).sum()))


def test_entropy_through_the_trainer_has_the_gradient_of_the_first_id_s_entropy(four: TorchBackend) -> None:
    one = TokenSequence.of_sentence("red", PROMPT, (END,), 0.6)
    Trainer(four, ["red"], EXACT).step([one], lambda said, _: said.entropies.sum(1), entropy=True)

    def entropy(logp: torch.Tensor) -> torch.Tensor:
        first = torch.stack(
            [logp[[s for s, said in enumerate(SENTENCES) if said[0] == a]].logsumexp(0) for a in range(4)]
        )
        return -(first.exp() * first).sum()

    assert_gradient(gradient(four), exact_gradient(four, entropy, 0.6))


# Sentences within dialogues


def dialogue() -> Lessons:
    """Two dialogues, of three sentences and of one; the first of 2, 1 and 3 ids."""
    long = TokenSequence(policy="red", ids=(1, 3, 0, 1, 3, 3, 2, 0, 0, 1, 3, 2), spans=((2, 4), (6, 7), (9, 12)))
    short = TokenSequence(policy="red", ids=(1, 0, 3, 2), spans=((2, 4),), temperature=0.6)
    sentences = [(0, 2, 0), (0, 1, 0), (0, 3, 0), (1, 2, 1)]
    return Lessons(
        (long, short), tuple(Sentence(s, n, 0.0, 0.0, (0, t), d) for t, (s, n, d) in enumerate(sentences)), 0.0
    )


def test_values_of_sentences_are_spread_over_their_ids_and_summed_again_by_hand() -> None:
    lessons = dialogue()
    spread = lessons.per_token(np.array([0.5, -1.0, 2.0, 3.0]))
    assert spread.tolist() == [[0.5, 0.5, -1.0, 2.0, 2.0, 2.0], [3.0, 3.0, 0.0, 0.0, 0.0, 0.0]]
    logps = [(-1.0, -2.0, -4.0, -8.0, -16.0, -32.0), (-64.0, -128.0)]
    assert lessons.per_sentence(logps).tolist() == [-3.0, -4.0, -56.0, -192.0]
    assert lessons.column("num_tokens").tolist() == [2, 1, 3, 2]


@pytest.mark.parametrize("advantages", [(0.5, -1.0, 2.0, 3.0), (0.0, 1.5, 0.0, 0.0), (1.0, 1.0, 1.0, 0.0)])
def test_each_sentence_of_a_dialogue_is_credited_by_itself(four: TorchBackend, advantages: tuple[float, ...]) -> None:
    """The sum over sentences, each read alone with all that came before as its prompt, over their number."""
    lessons = dialogue()
    figures = reinforce(Trainer(four, ["red"], EXACT), lessons, np.array(advantages))
    found = gradient(four)
    for parameter in four.parameters("red").values():
        parameter.grad = None
    alone = [
        TokenSequence.of_sentence("red", whole.ids[:begin], whole.ids[begin:end], whole.temperature)
        for whole in lessons.sequences
        for begin, end in whole.spans
    ]
    total = torch.zeros(())
    for sequence, advantage in zip(alone, advantages, strict=True):
        total = total - advantage / 4 * four.evaluate([sequence], trained=["red"]).logps.sum()
    total.backward()
    assert_gradient(found, gradient(four))
    assert figures is not None
    assert figures.loss == pytest.approx(float(total.detach()), rel=1e-5)


# The first step, on sentences that were generated


@pytest.fixture
def first(backend: TorchBackend) -> tuple[TorchBackend, list[TokenSequence], list[tuple[float, ...]]]:
    """A fresh policy, what it says at two temperatures, and the log-probabilities it drew that with."""
    backend.create("red", seed=0)
    requests = [
        Request(
            policy="red",
            messages=(ChatMessage("user", "hello " * (number % 3)),),
            sampling=Sampling(temperature=(1.0, 0.7)[number % 2], max_new_tokens=9),
            seed=number,
        )
        for number in range(8)
    ]
    done = backend.generate(requests)
    sequences = [
        TokenSequence.of_sentence("red", c.prompt_ids, c.token_ids, r.sampling.temperature)
        for r, c in zip(requests, done, strict=True)
    ]
    return backend, sequences, [c.logps for c in done]


def under(policy: str, sequences: Sequence[TokenSequence]) -> list[TokenSequence]:
    return [TokenSequence(policy=policy, ids=s.ids, spans=s.spans, temperature=s.temperature) for s in sequences]


def test_before_the_first_step_every_ratio_is_one_and_nothing_diverges(first) -> None:
    backend, sequences, drawn = first
    with torch.no_grad():
        said, base = backend.evaluate(sequences), backend.evaluate(under(BASE, sequences))
    sampled = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in drawn], batch_first=True)
    assert mismatch(said.logps, sampled, said.mask).mean_factor == pytest.approx(1.0, abs=1e-5)
    divergence = kl_figures(said.logps, base.logps, said.mask)
    assert (divergence.k1, divergence.k3) == (pytest.approx(0.0, abs=1e-6), pytest.approx(0.0, abs=1e-6))
    tight, ones = Clipping(low=1e-3, high=1e-3), torch.ones(8)
    for advantage in (ones, -ones):
        clipped = clip_figures(said.logps, sampled, said.mask, advantage, tight)
        assert (clipped.low, clipped.high, clipped.num_tokens) == (0.0, 0.0, int(said.mask.sum()))
        loss = ppo_loss(said.logps, sampled, said.mask, advantage, tight)[said.mask == 1]
        torch.testing.assert_close(loss, torch.full_like(loss, -float(advantage[0])), atol=1e-5, rtol=0.0)


def test_before_the_first_step_the_preference_loss_is_log_two_and_then_falls(first) -> None:
    backend, sequences, _ = first
    reference = torch.tensor(sums(backend, under(BASE, sequences)), dtype=torch.float32)
    trainer = Trainer(backend, ["red"], OptimizerSettings(learning_rate=1e-2, micro_batch=3))

    def objective(said: Evaluated, places: Sequence[int]) -> torch.Tensor:
        totals = dict(zip(places, said.logps.sum(1), strict=True))
        pairs = [place for place in places if place % 2 == 0]
        policy = PairLogps(*(torch.stack([totals[place + side] for place in pairs]) for side in (0, 1)))
        base = PairLogps(*(torch.stack([reference[place + side] for place in pairs]) for side in (0, 1)))
        loss_of = dict(zip(pairs, dpo_loss(policy, base) / 4, strict=True))
        return torch.stack([loss_of.get(place, torch.zeros(())) for place in places])

    units = [(place, place + 1) for place in range(0, 8, 2)]
    losses = [trainer.step(sequences, objective, units=units)["red"].loss for _ in range(3)]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses[0] > losses[1] > losses[2]
    now = torch.tensor(sums(backend, sequences), dtype=torch.float32)
    after = preference_figures(PairLogps(now[::2], now[1::2]), PairLogps(reference[::2], reference[1::2]))
    assert after.accuracy == 1.0
    assert after.margin > 0.01


def test_the_first_step_of_ppo_is_that_of_reinforce(first) -> None:
    backend, sequences, drawn = first
    advantages = np.linspace(-1, 1, 8)
    trainer = Trainer(backend, ["red"], OptimizerSettings(learning_rate=0.0, max_grad_norm=math.inf, micro_batch=3))
    plain = reinforce(trainer, lessons_of(sequences), advantages)
    expected = gradient(backend)

    def objective(said: Evaluated, places: Sequence[int]) -> torch.Tensor:
        old = torch.nn.utils.rnn.pad_sequence([torch.tensor(drawn[place]) for place in places], batch_first=True)
        loss = ppo_loss(said.logps, old, said.mask, torch.tensor(advantages[list(places)]).float(), Clipping())
        return aggregate(loss, said.mask, "sequence-sum", Totals(num_sequences=8))

    figures = trainer.step(sequences, objective)["red"]
    torch.testing.assert_close(gradient(backend), expected, atol=1e-4 * float(expected.abs().max()), rtol=0.0)
    assert plain is not None
    assert figures.grad_norm == pytest.approx(plain.grad_norm, rel=1e-4)
    assert figures.grad_norm > 0.1
