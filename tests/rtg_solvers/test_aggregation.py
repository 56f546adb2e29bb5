"""How sequences are weighed: hand values, and that no way to cut a step into micro-batches changes it."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rtg_env.errors import ConfigError
from rtg_solvers.aggregation import Totals, aggregate, step_totals

MODES = ["sequence-sum", "sequence-mean", "token-mean", "constant"]
LOSS = torch.tensor([[1.0, 2.0, 3.0], [4.0, 100.0, 100.0], [6.0, 10.0, 100.0]], dtype=torch.float64)
MASK = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [1.0, 1.0, 0.0]], dtype=torch.float64)
TOTALS = Totals(num_sequences=3, num_tokens=6, max_tokens=5)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("sequence-sum", [6 / 3, 4 / 3, 16 / 3]),
        ("sequence-mean", [2 / 3, 4 / 3, 8 / 3]),
        ("token-mean", [6 / 6, 4 / 6, 16 / 6]),
        ("constant", [6 / 15, 4 / 15, 16 / 15]),
    ],
)
def test_contributions_by_hand(how, expected: list[float]) -> None:
    assert aggregate(LOSS, MASK, how, TOTALS).tolist() == pytest.approx(expected)
    assert aggregate(LOSS, MASK.bool(), how, TOTALS).tolist() == pytest.approx(expected)


def test_what_stands_under_the_mask_is_left_out_even_if_it_is_no_number() -> None:
    loss = torch.where(MASK == 1, LOSS, torch.nan)
    for how in MODES:
        assert aggregate(loss, MASK, how, TOTALS).tolist() == aggregate(LOSS, MASK, how, TOTALS).tolist()


STEPS = st.lists(st.tuples(st.integers(1, 5), st.sampled_from("abc")), min_size=1, max_size=12)


@pytest.mark.parametrize("how", MODES)
@given(STEPS, st.randoms(use_true_random=False))
def test_micro_batches_of_any_size_and_order_add_up_to_the_step(how, sequences, random) -> None:
    lengths, adapters = [n for n, _ in sequences], [a for _, a in sequences]
    loss = torch.randn(len(lengths), 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = (torch.arange(5) < torch.tensor(lengths)[:, None]).double()
    totals = step_totals(lengths, adapters, max_tokens=5)
    whole = aggregate(loss, mask, how, totals)
    order = list(range(len(lengths)))
    random.shuffle(order)
    cuts = sorted({0, len(order), *(random.randrange(len(order)) for _ in range(3))})
    parts = torch.zeros_like(whole)
    for begin, end in itertools.pairwise(cuts):
        rows = order[begin:end]
        width = max(lengths[row] for row in rows)  # a micro-batch is padded to its own longest sequence
        parts[rows] = aggregate(loss[rows, :width], mask[rows, :width], how, totals.rows(rows))
    assert parts.tolist() == pytest.approx(whole.tolist())


@pytest.mark.parametrize("how", MODES)
def test_adapters_in_one_batch_learn_as_if_each_were_alone(how) -> None:
    lengths, adapters = [3, 1, 2], ["a", "b", "a"]
    together = aggregate(LOSS, MASK, how, step_totals(lengths, adapters, max_tokens=5))
    for adapter in "ab":
        rows = [i for i in range(3) if adapters[i] == adapter]
        alone = Totals(num_sequences=len(rows), num_tokens=sum(lengths[i] for i in rows), max_tokens=5)
        assert together[rows].tolist() == pytest.approx(aggregate(LOSS[rows], MASK[rows], how, alone).tolist())


def test_only_the_mean_over_sequences_forgets_length() -> None:
    """One token of loss 1 each: a long sequence weighs its length, except under "sequence-mean"."""
    ones = torch.ones_like(LOSS)
    weights = {how: aggregate(ones, MASK, how, TOTALS) for how in MODES}
    assert weights["sequence-mean"][0] == weights["sequence-mean"][1]
    for how in ("sequence-sum", "token-mean", "constant"):
        assert float(weights[how][0] / weights[how][1]) == pytest.approx(3.0)


def test_totals_may_be_numbers_of_torch() -> None:
    totals = Totals(num_sequences=torch.tensor(3), num_tokens=MASK.sum(), max_tokens=5).rows([1])
    assert aggregate(LOSS[[1]], MASK[[1]], "token-mean", totals).tolist() == pytest.approx([4 / 6])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: aggregate(LOSS, MASK, "mean", TOTALS), "'constant', got 'mean'; 'sequence-sum' is"),
        (lambda: aggregate(LOSS, MASK, "token-mean", Totals(num_sequences=3)), "Totals.num_tokens for 'token-mean'"),
        (lambda: aggregate(LOSS, MASK, "constant", Totals(num_sequences=3)), "Totals.max_tokens for 'constant'"),
        (lambda: aggregate(LOSS, MASK[:, :2], "sequence-sum", TOTALS), r"mask of shape \(3, 3\), got \(3, 2\)"),
        (
            lambda: aggregate(LOSS, MASK, "sequence-sum", Totals(num_sequences=torch.ones(3, 1))),
            r"they spread to \(3, 3\); take the rows",
        ),
        (lambda: Totals(num_sequences=0), "num_sequences of the whole step to be at least 1, got 0"),
        (lambda: Totals(num_sequences=1, num_tokens=torch.tensor([2, 0])), "num_tokens of the whole step"),
    ],
)
def test_totals_that_do_not_fit_are_refused(call, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()
