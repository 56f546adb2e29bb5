"""Log-probabilities, entropies and their gradients against float64 autograd, draws against the distribution."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from rtg_agents import head
from rtg_agents.head import Barred, draw, heard, noise, noise_width

# What is heard


class Case:
    """N positions before a head of V ids."""

    def __init__(self, num_positions: int, num_ids: int, *, width: int = 6, bias: bool = True, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator)

        self.head = torch.nn.Linear(width, num_ids, bias=bias).requires_grad_(False)
        self.head.weight.copy_(normal(num_ids, width))
        if bias:
            self.head.bias.copy_(normal(num_ids))
        self.hidden = normal(num_positions, width)
        self.ids = torch.randint(0, num_ids, (num_positions,), generator=generator)
        self.temperatures = 0.3 + 2 * torch.rand(num_positions, generator=generator)
        self.weights = normal(2, num_positions).double()

    def heard(self, *, entropy: bool = True) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Values, and the gradient of a weighted sum of both."""
        hidden = self.hidden.clone().requires_grad_()
        found = heard(self.head, hidden, self.ids, self.temperatures, entropy=entropy)
        return *found, self._gradient(hidden, *found)

    def naive(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        hidden = self.hidden.double().requires_grad_()
        logits = hidden @ self.head.weight.double().T
        if self.head.bias is not None:
            logits = logits + self.head.bias.double()
        all_logps = torch.log_softmax(logits / self.temperatures.double()[:, None], -1)
        logps = all_logps[range(len(self.ids)), self.ids]
        entropies = -(all_logps.exp() * all_logps).sum(-1)
        return logps, entropies, self._gradient(hidden, logps, entropies)

    def _gradient(self, hidden: torch.Tensor, logps: torch.Tensor, entropies: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad((self.weights[0] * logps + self.weights[1] * entropies).sum(), hidden)[0]


def check(case: Case) -> None:
    for found, expected in zip(case.heard(), case.naive(), strict=True):
        torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=2e-5)


def test_two_ids_worked_by_hand() -> None:
    # Logits 2 and 0 at temperature 2: odds e to 1. With p = e / (1 + e): log p = 1 - log(1 + e), and the entropy is
    # log(1 + e) - p. The logits' slope in the hidden state is w = (2, 0): d log p = (1 - p) w0 / 2 = 1 - p,
    # d entropy = -p (1 - p) (log odds) (w0 - w1) / 2 = -p (1 - p).
    hidden, p = torch.ones(1, 1, requires_grad=True), math.e / (1 + math.e)
    layer = torch.nn.Linear(1, 2, bias=False).requires_grad_(False)
    layer.weight.copy_(torch.tensor([[2.0], [0.0]]))
    said = heard(layer, hidden, torch.tensor([0]), torch.tensor([2.0]), entropy=True)
    assert said.logps.item() == pytest.approx(1 - math.log(1 + math.e), abs=1e-6)
    assert said.entropies.item() == pytest.approx(math.log(1 + math.e) - p, abs=1e-6)
    slopes = [torch.autograd.grad(value.sum(), hidden, retain_graph=True)[0].item() for value in said]
    assert slopes == pytest.approx([1 - p, -p * (1 - p)], abs=1e-6)


@settings(deadline=None)
@given(st.integers(0, 9), st.integers(1, 40), st.booleans(), st.integers(0, 1000))
def test_values_and_joint_gradients_are_those_of_autograd(rows: int, num_ids: int, bias: bool, seed: int) -> None:
    check(Case(rows, num_ids, bias=bias, seed=seed))


@pytest.mark.parametrize("rows_at_once", [1, 2, 3, 6, 7, 8])
def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch, rows_at_once: int) -> None:
    monkeypatch.setitem(head._CHUNK_BYTES, "cpu", rows_at_once * 4 * 11 + 3)
    check(Case(7, 11))


def test_a_vocabulary_wider_than_a_chunk_goes_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(head._CHUNK_BYTES, "cpu", 1)
    check(Case(3, 11))


def test_entropies_are_left_out_unless_asked_for() -> None:
    case = Case(5, 11)
    case.weights[1] = 0
    logps, entropies, gradient = case.heard(entropy=False)
    expected, _, slopes = case.naive()
    assert not entropies.any()
    torch.testing.assert_close(logps.double(), expected, atol=2e-5, rtol=0)
    torch.testing.assert_close(gradient.double(), slopes, atol=2e-5, rtol=2e-5)


def test_gradients_point_where_finite_differences_do() -> None:
    case, step = Case(4, 30), 1e-2
    gradient = case.heard()[2]

    def value(hidden: torch.Tensor) -> float:
        said = heard(case.head, hidden, case.ids, case.temperatures, entropy=True)
        return float((case.weights[0] * said.logps + case.weights[1] * said.entropies).sum())

    for place in np.ndindex(*case.hidden.shape):
        move = torch.zeros_like(case.hidden)
        move[place] = step
        slope = (value(case.hidden + move) - value(case.hidden - move)) / (2 * step)
        assert float(gradient[place]) == pytest.approx(slope, abs=5e-3)


def test_a_head_in_two_bytes_is_heard_in_four() -> None:
    case = Case(6, 300, width=16)
    case.head, case.hidden = case.head.to(torch.bfloat16), case.hidden.to(torch.bfloat16)
    logits = torch.nn.functional.linear(case.hidden, case.head.weight, case.head.bias).double()
    expected = torch.log_softmax(logits / case.temperatures.double()[:, None], -1)[range(6), case.ids]
    logps, _, gradient = case.heard()
    assert (logps.dtype, gradient.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(logps.double(), expected, atol=2e-5, rtol=2e-5)
    slopes = case.naive()[2]
    assert float((gradient.double() - slopes).norm() / slopes.norm()) < 0.02


def test_second_derivatives_are_refused() -> None:
    case = Case(3, 11)
    hidden = case.hidden.clone().requires_grad_()
    said = heard(case.head, hidden, case.ids, case.temperatures)
    (slope,) = torch.autograd.grad(said.logps.square().sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.square().sum().backward()


# What is drawn


def naive_draw(logits: torch.Tensor, temperature: float, own: torch.Tensor) -> int:
    """Gumbel-max over blocks of 256, in float64: the first numbers choose a block by its mass, the others an id of it."""
    scaled = logits.double() / temperature
    blocks = scaled.split(256)
    masses = torch.stack([block.logsumexp(-1) for block in blocks])
    which = int((masses + own[: len(blocks)].double()).argmax())
    inner = own[len(blocks) :][: len(blocks[which])].double()
    return 256 * which + int((blocks[which] + inner).argmax())


@pytest.mark.parametrize("num_ids", [1, 5, 255, 256, 257, 700, 1024])
def test_draws_follow_the_distribution(num_ids: int) -> None:
    num_draws, generator = 6000, torch.Generator().manual_seed(num_ids)
    logits = 2 * torch.randn(num_ids, generator=generator)
    logits[num_ids // 2] += 3
    expected = torch.softmax(logits.double() / 1.3, -1).numpy()
    own = noise(num_ids, num_draws, num_ids)
    ids, logps = draw(logits.expand(num_draws, -1), torch.full((num_draws,), 1.3), own)
    assert logps.numpy() == pytest.approx(np.log(expected)[ids], abs=1e-5)
    counts = np.bincount(ids, minlength=num_ids)
    assert len(counts) == num_ids
    often = expected * num_draws >= 5  # the others as one cell, as the test wants it
    cells = [*counts[often], counts[~often].sum()], [*expected[often] * num_draws, expected[~often].sum() * num_draws]
    if often.all():
        cells = cells[0][:-1], cells[1][:-1]
    assert num_ids == 1 or chisquare(*cells).pvalue > 1e-3


@settings(deadline=None)
@given(
    st.sampled_from([1, 3, 256, 300, 600]),
    st.lists(st.tuples(st.floats(0.05, 20), st.integers(0, 1 << 62)), min_size=1, max_size=6),
    st.randoms(use_true_random=False),
)
def test_a_row_is_drawn_alike_wherever_it_stands(num_ids: int, rows: list[tuple[float, int]], random) -> None:
    logits = torch.stack([torch.randn(num_ids, generator=torch.Generator().manual_seed(seed)) for _, seed in rows])
    temperatures = torch.tensor([temperature for temperature, _ in rows])
    own = torch.stack([noise(seed, 1, num_ids)[0] for _, seed in rows])
    ids, logps = draw(logits, temperatures, own)
    assert ids.tolist() == [naive_draw(*row) for row in zip(logits, temperatures.tolist(), own, strict=True)]
    expected = torch.log_softmax(logits.double() / temperatures.double()[:, None], -1)[range(len(rows)), ids]
    torch.testing.assert_close(logps.double(), expected, atol=2e-5, rtol=1e-5)
    order = random.sample(range(len(rows)), random.randint(1, len(rows)))
    for found, whole in zip(draw(logits[order], temperatures[order], own[order]), (ids, logps), strict=True):
        assert torch.equal(found, whole[order])


@pytest.mark.parametrize("num_ids", [7, 600])
def test_what_has_no_probability_is_never_drawn(num_ids: int) -> None:
    allowed = torch.tensor([1, num_ids // 2, num_ids - 1])
    logits = torch.full((num_ids,), -torch.inf)
    logits[allowed] = torch.tensor([0.0, 1.0, -2.0])
    ids, logps = draw(logits.expand(3000, -1), torch.ones(3000), noise(1, 3000, num_ids))
    assert set(ids.tolist()) == set(allowed.tolist())
    assert torch.isfinite(logps).all()


@pytest.mark.parametrize("temperature", [1e-3, 1e-20, 1e-38])
def test_a_cold_draw_is_the_most_probable_id(temperature: float) -> None:
    logits = torch.randn(50, 600, generator=torch.Generator().manual_seed(0))
    logits[:, 77] = logits.amax(-1) + 0.1
    before = logits.clone()
    ids, logps = draw(logits, torch.full((50,), temperature), noise(0, 50, 600))
    assert set(ids.tolist()) == {77}
    assert logps.tolist() == [0.0] * 50
    assert torch.equal(logits, before)


def test_a_hot_draw_is_uniform() -> None:
    logits = torch.randn(600, generator=torch.Generator().manual_seed(0))
    ids, logps = draw(logits.expand(6000, -1), torch.full((6000,), 1e30), noise(2, 6000, 600))
    assert logps.numpy() == pytest.approx(-math.log(600), abs=1e-5)
    assert chisquare(np.bincount(ids, minlength=600)).pvalue > 1e-3


# Noise


@given(st.integers(0, (1 << 63) - 1), st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, 256, 257, 2000]))
def test_noise_at_a_position_does_not_depend_on_how_many_follow(seed: int, few: int, more: int, num_ids: int) -> None:
    short, long = noise(seed, few, num_ids), noise(seed, few + more, num_ids)
    assert short.shape == (few, noise_width(num_ids))
    assert torch.equal(short, long[:few])
    assert len({float(row[0]) for row in long}) == few + more


@pytest.mark.parametrize(("num_ids", "width"), [(1, 257), (256, 257), (257, 258), (49152, 192 + 256)])
def test_a_draw_takes_a_number_per_block_and_per_id_of_a_block(num_ids: int, width: int) -> None:
    assert noise_width(num_ids) == width


def test_seeds_have_noise_of_their_own() -> None:
    found = torch.stack([noise(seed, 4, 300) for seed in (*range(20), 1 << 40, (1 << 63) - 1)])
    assert len(found.unique()) > 0.999 * found.numel()
    together = np.corrcoef(found.flatten(1).numpy())
    # 1032 numbers a seed: a standard error of 0.031, and 231 pairs.
    assert np.abs(together - np.eye(len(together))).max() < 5 * 0.031


def test_noise_is_gumbel_distributed() -> None:
    own = noise(5, 200, 1000).numpy()
    # Mean: Euler's constant; variance: pi^2 / 6; 52,000 numbers.
    assert own.mean() == pytest.approx(0.5772, abs=0.025)
    assert own.var() == pytest.approx(math.pi**2 / 6, abs=0.08)
    assert np.exp(-np.exp(-1.0)) == pytest.approx((own < 1).mean(), abs=0.01)


@pytest.mark.parametrize("chunk", [1 << 30, 1])
def test_barred_ids_leave_their_probability_to_the_others(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "_CHUNK_BYTES", {"cpu": chunk})
    case = Case(6, 9)
    case.ids = torch.tensor([0, 3, 4, 5, 8, 2])
    where, ids = torch.tensor([True, False, True, False, False, True]), torch.tensor([1, 7])
    hidden = case.hidden.clone().requires_grad_()
    found = heard(case.head, hidden, case.ids, case.temperatures, entropy=True, barred=Barred(where, ids))
    exact = case.hidden.double().requires_grad_()
    logits = exact @ case.head.weight.double().T + case.head.bias.double()
    bars = torch.zeros_like(logits)
    bars[where.nonzero(), ids] = -torch.inf
    all_logps = torch.log_softmax(logits / case.temperatures.double()[:, None] + bars, -1)
    logps = all_logps[range(6), case.ids]
    entropies = -torch.where(all_logps.isinf(), 0.0, all_logps.exp() * all_logps).sum(-1)
    torch.testing.assert_close(found.logps.double(), logps, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(found.entropies.double(), entropies, atol=2e-5, rtol=2e-5)
    slopes = torch.autograd.grad((case.weights[0] * found.logps).sum(), hidden)[0]
    expected = torch.autograd.grad((case.weights[0] * logps).sum(), exact)[0]
    torch.testing.assert_close(slopes.double(), expected, atol=2e-5, rtol=2e-5)


def test_an_id_that_was_barred_is_impossible() -> None:
    case = Case(1, 5)
    case.ids = torch.tensor([2])
    found = heard(
        case.head, case.hidden, case.ids, case.temperatures, barred=Barred(torch.tensor([True]), torch.tensor([2]))
    )
    assert found.logps.item() == -math.inf
