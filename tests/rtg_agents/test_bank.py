"""The bank against policies that are added to the weights, one at a time."""

from __future__ import annotations

import math

import pytest
import torch

from rtg_agents.bank import PolicyBank
from rtg_agents.lora import LoraSettings
from rtg_agents.policy import BASE
from rtg_agents.routing import Factors
from rtg_env.errors import ModelError, PolicyError
from tests.adapters import added_up, shake
from tests.tiny import tiny_model

FAMILIES = ("llama", "qwen2", "gpt2")


def bank_of(count: int, family: str = "llama", rank: int = 4) -> PolicyBank:
    bank = PolicyBank(tiny_model(family), LoraSettings(rank=rank, alpha=8.0))
    for index in range(count):
        bank.create(f"p{index}", seed=index)
        shake(bank, f"p{index}", index)
    return bank


def logits(bank: PolicyBank, ids: torch.Tensor, versions: list[str], trained: tuple[str, ...] = ()) -> torch.Tensor:
    with bank.routed(bank.route(versions, trained=trained)):
        return bank.model(input_ids=ids, use_cache=False).logits


def some_ids(rows: int, length: int = 7) -> torch.Tensor:
    return torch.randint(3, 250, (rows, length), generator=torch.Generator().manual_seed(rows))


SHARES = {
    "equal": ["p0", "p0", "p1", "p1", "p2", "p2"],
    "one": ["p1"] * 4,
    "base": [BASE] * 3,
    "base among them": [BASE, BASE, "p0", "p1"],
    "base last": ["p0", "p1", BASE],
    "skewed": ["p0", "p0", "p0", "p0", "p1", "p2", "p2"],
    "mixed up": ["p2", "p0", BASE, "p2", "p1", BASE, "p0", "p0"],
    "mixed up, equal": ["p2", "p0", "p1", "p1", "p0", "p2"],
    "neighbours left out": ["p0", "p0", "p2", "p2"],
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("share", SHARES)
def test_each_row_speaks_for_its_own_policy(family: str, share: str) -> None:
    bank, versions = bank_of(3, family), SHARES[share]
    ids = some_ids(len(versions))
    with torch.no_grad():
        found = logits(bank, ids, versions)
        for row, version in enumerate(versions):
            expected = added_up(bank, version, family)(ids[row : row + 1])[0]
            torch.testing.assert_close(found[row], expected, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("share", SHARES)
def test_gradients_are_those_of_each_policy_alone(share: str) -> None:
    bank, versions = bank_of(3), SHARES[share]
    ids, weights = some_ids(len(versions)), torch.linspace(-1, 1, len(versions))
    trained = tuple(sorted({version for version in versions if version != BASE}))

    def gradients() -> dict[str, torch.Tensor]:
        found = {}
        for version in trained:
            for name, parameter in bank.parameters(version).items():
                found[f"{version} {name}"], parameter.grad = parameter.grad.clone(), None
        return found

    if not trained:
        return
    together = logits(bank, ids, versions, trained)
    (together.logsumexp(-1).sum(1) * weights).sum().backward()
    batched = gradients()
    for row, version in enumerate(versions):
        alone = added_up(bank, version)(ids[row : row + 1])
        value = alone.logsumexp(-1).sum() * weights[row]
        if version != BASE:
            value.backward()
    for name, expected in gradients().items():
        torch.testing.assert_close(batched[name], expected, atol=1e-4, rtol=1e-3, msg=name)


def test_a_policy_that_is_not_trained_gets_no_gradient() -> None:
    bank = bank_of(2)
    logits(bank, some_ids(2), ["p0", "p1"], ("p0",)).sum().backward()
    assert all(parameter.grad is not None for parameter in bank.parameters("p0").values())
    assert all(parameter.grad is None for parameter in bank.parameters("p1").values())


@pytest.mark.parametrize("share", ["equal", "mixed up"])
def test_checkpointed_layers_give_the_same_gradients_whatever_is_routed_in_between(share: str) -> None:
    bank, versions = bank_of(3), SHARES[share]
    ids, found = some_ids(len(versions)), []
    for checkpointed in (False, True):
        if checkpointed:
            with bank.checkpointed():
                loss = logits(bank, ids, versions, ("p0", "p1", "p2")).logsumexp(-1).sum()
                with torch.no_grad():
                    logits(bank, ids[:1], ["p1"])  # another route, before the layers are computed again
                loss.backward()
        else:
            logits(bank, ids, versions, ("p0", "p1", "p2")).logsumexp(-1).sum().backward()
        found.append([p.grad.clone() for v in ("p0", "p1", "p2") for p in bank.parameters(v).values()])
        for version in ("p0", "p1", "p2"):
            for parameter in bank.parameters(version).values():
                parameter.grad = None
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(plain, again, atol=1e-6, rtol=1e-5)


def test_the_base_stays_the_base_bit_for_bit() -> None:
    bank, ids = bank_of(2), some_ids(3)
    with torch.no_grad():
        found = logits(bank, ids, [BASE, "p0", BASE])
        alone = logits(bank, ids, [BASE] * 3)
        expected = tiny_model()(input_ids=ids, use_cache=False).logits
    assert torch.equal(alone, expected)
    torch.testing.assert_close(found[[0, 2]], expected[[0, 2]], atol=1e-5, rtol=1e-5)


def test_policies_keep_their_values_and_their_optimizers_when_the_bank_grows() -> None:
    bank = bank_of(3)
    parameters = bank.parameters("p1")
    optimizer = torch.optim.SGD(list(parameters.values()), lr=0.1)
    before = logits(bank, some_ids(1), ["p1"]).detach()
    for index in range(3, 30):
        bank.create(f"p{index}", seed=index)
    assert torch.equal(before, logits(bank, some_ids(1), ["p1"]).detach())
    logits(bank, some_ids(1), ["p1"], ("p1",)).logsumexp(-1).sum().backward()
    optimizer.step()
    with torch.no_grad():
        after = logits(bank, some_ids(1), ["p1"])
        torch.testing.assert_close(after, added_up(bank, "p1")(some_ids(1)), atol=2e-4, rtol=1e-3)
    assert not torch.allclose(before, after)


def test_ranks_of_any_size_live_together() -> None:
    bank, ids = bank_of(2), some_ids(4)
    generator = torch.Generator().manual_seed(3)
    for version, rank in (("wide", 19), ("thin", 1)):
        factors = {
            name: Factors(
                torch.randn(rank, layer.size[0], generator=generator) / 8,
                torch.randn(layer.size[1], rank, generator=generator) / 8,
            )
            for name, layer in bank.layers.items()
        }
        bank.add(version, factors, LoraSettings(rank=rank, alpha=3.0))
    versions = ["wide", "thin", "p1", "wide"]
    with torch.no_grad():
        found = logits(bank, ids, versions)
        for row, version in enumerate(versions):
            expected = added_up(bank, version)(ids[row : row + 1])[0]
            torch.testing.assert_close(found[row], expected, atol=2e-4, rtol=1e-3)
    assert bank.factors("thin")["model.layers.0.mlp.up_proj"].down.shape == (1, 32)


def test_a_dropped_slot_is_used_again_and_empty() -> None:
    bank, ids = bank_of(3), some_ids(1)
    slot = bank.slot("p1")
    bank.drop("p1")
    for index in range(20):
        bank.create(f"q{index}", seed=index)
    assert slot in {bank.slot(f"q{index}") for index in range(20)}
    with torch.no_grad():
        for version in ("q0", "q19"):  # fresh ones are the base
            assert torch.equal(logits(bank, ids, [version]), logits(bank, ids, [BASE]))
    with pytest.raises(PolicyError, match="add it first"):
        bank.slot("p1")


def test_a_copy_starts_as_its_source_and_goes_its_own_way() -> None:
    bank, ids = bank_of(1), some_ids(1)
    bank.copy("p0", "p0_later")
    with torch.no_grad():
        assert torch.equal(logits(bank, ids, ["p0"]), logits(bank, ids, ["p0_later"]))
        shake(bank, "p0_later", 5)
        assert not torch.allclose(logits(bank, ids, ["p0"]), logits(bank, ids, ["p0_later"]))


def test_revisions_tell_values_apart() -> None:
    bank = bank_of(2)
    bank.copy("p0", "frozen")
    first = bank.refresh(["p0", "p1", "frozen", BASE])
    assert bank.refresh(["p0", "p1", "frozen", BASE]) == first
    with torch.no_grad():
        next(iter(bank.parameters("p0").values()))[0, 0] += 1e-3
    second = bank.refresh(["p0", "p1", "frozen", BASE])
    assert [before != after for before, after in zip(first, second, strict=True)] == [True, False, False, False]


def test_a_name_that_is_given_anew_has_a_new_revision() -> None:
    bank, found = bank_of(1), []
    for trained in (False, True, False, True):
        bank.copy("p0", "other")
        if trained:
            shake(bank, "other", 5)
        found += bank.refresh(["other"])
        bank.drop("other")
    assert len(set(found)) == 4
    with pytest.raises(PolicyError, match="add it first"):
        bank.refresh(["other"])


def test_gradients_reach_parameters_that_nobody_has_asked_for_yet() -> None:
    bank = PolicyBank(tiny_model(), LoraSettings(rank=4))
    bank.create("p0", seed=0)
    logits(bank, some_ids(1), ["p0"], ("p0",)).sum().backward()
    assert all(parameter.grad is not None for parameter in bank.parameters("p0").values())


def test_a_bank_in_two_bytes_trains_in_four() -> None:
    model = tiny_model().to(torch.bfloat16)
    bank = PolicyBank(model, LoraSettings(rank=4, alpha=8.0))
    bank.create("p0", seed=0)
    parameters = bank.parameters("p0")
    assert {parameter.dtype for parameter in parameters.values()} == {torch.float32}
    before = logits(bank, some_ids(1), ["p0"]).detach()
    logits(bank, some_ids(1), ["p0"], ("p0",)).float().logsumexp(-1).sum().backward()
    assert all(parameter.grad is not None for parameter in parameters.values())
    shake(bank, "p0", 1)
    bank.refresh(["p0"])
    with torch.no_grad():
        after = logits(bank, some_ids(1), ["p0"])
        trained = logits(bank, some_ids(1), ["p0"], ("p0",))
    assert not torch.allclose(before, after)
    assert torch.equal(after, trained)


class RoundedLinear(torch.nn.Module):
    """A linear layer with int8 weights, and activations rounded row by row: any callable may be a base."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.weight = torch.nn.Parameter((linear.weight.detach() / self.scale).round(), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = x.abs().amax(-1, keepdim=True) / 127
        return ((x / scale).round() @ self.weight.T) * scale * self.scale[:, 0]


def test_any_callable_linear_layer_may_be_the_base() -> None:
    model = tiny_model()
    for block in model.model.layers:
        block.mlp.down_proj = RoundedLinear(block.mlp.down_proj)
        block.mlp.up_proj = RoundedLinear(block.mlp.up_proj)
    bank = PolicyBank(model, LoraSettings(rank=4, alpha=8.0))
    for index in range(2):
        bank.create(f"p{index}", seed=index)
        shake(bank, f"p{index}", index)
    assert "model.layers.0.mlp.down_proj" in bank.layers
    ids = some_ids(3)
    with torch.no_grad():
        together = logits(bank, ids, ["p1", BASE, "p0"])
        for row, version in enumerate(["p1", BASE, "p0"]):
            alone = logits(bank, ids[row : row + 1], [version])[0]
            torch.testing.assert_close(together[row], alone, atol=1e-4, rtol=1e-4)


def test_misuse_is_refused_in_words() -> None:
    bank = bank_of(1)
    with pytest.raises(PolicyError, match=r"nobody said which policies speak"):
        bank.model(input_ids=some_ids(1))
    with pytest.raises(PolicyError, match="2 rows as routed, got 3"):
        logits(bank, some_ids(3), ["p0", "p0"])
    with pytest.raises(PolicyError, match="add it first"):
        bank.route(["p7"])
    with pytest.raises(PolicyError, match="got the base"):
        bank.parameters(BASE)
    with pytest.raises(PolicyError, match="the base, which stays"):
        bank.drop(BASE)
    for name in ("p0", "", "a.b", BASE):
        with pytest.raises(PolicyError, match="never overwritten"):
            bank.create(name, seed=0)
    shape = LoraSettings(rank=2)
    with pytest.raises(ModelError, match="no linear layer lm_head"):
        bank.add("q", {"lm_head": Factors(torch.zeros(2, 32), torch.zeros(259, 2))}, shape)
    with pytest.raises(ModelError, match=r"expected factors \[2, 32\]"):
        bank.add("q", {"model.layers.0.mlp.up_proj": Factors(torch.zeros(2, 31), torch.zeros(64, 2))}, shape)


def test_a_fresh_policy_is_drawn_as_peft_draws_it() -> None:
    bank = PolicyBank(tiny_model(), LoraSettings(rank=16))
    bank.create("p0", seed=0)
    down = bank.parameters("p0")["model.layers.0.mlp.down_proj.lora_A.weight"].detach()
    bound = math.sqrt(1 / 64)  # kaiming_uniform_(a=sqrt(5)) on 64 inputs
    assert float(down.abs().max()) <= bound
    assert float(down.std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert all(not p.any() for name, p in bank.parameters("p0").items() if "lora_B" in name)
