"""Averages of policies against averages of weights."""

from __future__ import annotations

import pytest
import torch

from rtg_agents.bank import PolicyBank
from rtg_agents.fusion import fuse
from rtg_agents.lora import LoraSettings
from rtg_agents.policy import BASE
from rtg_env.errors import PolicyError
from tests.adapters import shake
from tests.tiny import tiny_model


def bank_of(*shapes: LoraSettings) -> PolicyBank:
    bank = PolicyBank(tiny_model(), LoraSettings(rank=4, alpha=8.0))
    for index, shape in enumerate(shapes):
        bank.lora = shape
        bank.create(f"p{index}", seed=index)
        shake(bank, f"p{index}", index)
    return bank


def update(factors, shape: LoraSettings) -> torch.Tensor:
    return shape.alpha / shape.rank * factors.up @ factors.down


SHAPES = (LoraSettings(rank=4, alpha=8.0), LoraSettings(rank=2, alpha=1.0))


def test_an_average_that_fits_is_exact() -> None:
    bank, wide = bank_of(*SHAPES), LoraSettings(rank=6, alpha=3.0)
    fusion = fuse(bank, {"p0": 0.25, "p1": 0.5, BASE: 0.25}, wide)
    assert fusion.kept == pytest.approx(1.0)
    for name in bank.layers:
        expected = 0.25 * update(bank.factors("p0")[name], SHAPES[0]) + 0.5 * update(
            bank.factors("p1")[name], SHAPES[1]
        )
        torch.testing.assert_close(update(fusion.factors[name], wide), expected, atol=1e-5, rtol=1e-4)


def test_a_smaller_rank_keeps_the_largest_part() -> None:
    bank, narrow = bank_of(SHAPES[0], SHAPES[0]), LoraSettings(rank=2, alpha=8.0)
    fusion = fuse(bank, {"p0": 0.5, "p1": 0.5}, narrow)
    kept = whole = 0.0
    for name in bank.layers:
        average = 0.5 * sum(update(bank.factors(p)[name], SHAPES[0]) for p in ("p0", "p1"))
        u, values, vt = torch.linalg.svd(average)
        best = u[:, :2] * values[:2] @ vt[:2]
        torch.testing.assert_close(update(fusion.factors[name], narrow), best, atol=1e-4, rtol=1e-3)
        kept, whole = kept + float(values[:2].square().sum()), whole + float(values.square().sum())
    assert fusion.kept == pytest.approx(kept / whole, rel=1e-4)


def test_one_policy_with_all_the_weight_stays_itself() -> None:
    bank = bank_of(SHAPES[0])
    fusion = fuse(bank, {"p0": 1.0, BASE: 0.0}, SHAPES[0])
    bank.add("q", fusion.factors, SHAPES[0])
    ids = torch.randint(3, 250, (1, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        both = []
        for version in ("p0", "q"):
            with bank.routed(bank.route([version])):
                both.append(bank.model(input_ids=ids, use_cache=False).logits)
    torch.testing.assert_close(both[0], both[1], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("weights", "match"),
    [
        ({}, "sum to 1"),
        ({"p0": 0.5}, "sum to 1"),
        ({"p0": 1.5, BASE: -0.5}, "sum to 1"),
        ({BASE: 1.0}, "beside the base"),
        ({"p7": 1.0}, "add it first"),
    ],
)
def test_weights_that_are_no_average_are_refused(weights, match: str) -> None:
    with pytest.raises(PolicyError, match=match):
        fuse(bank_of(SHAPES[0]), weights, SHAPES[0])
