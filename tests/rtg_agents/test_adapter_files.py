"""Adapter files against PEFT itself, in both directions, and files that must not be taken for plain LoRA."""

from __future__ import annotations

import json
import logging
import math
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers.pytorch_utils import Conv1D

from rtg_agents import adapter_files
from rtg_agents.adapter_files import read_adapter, write_adapter
from rtg_agents.bank import PolicyBank
from rtg_agents.lora import LoraSettings
from rtg_agents.routing import Factors
from rtg_env.errors import ModelError, PolicyError
from tests.adapters import shake
from tests.tiny import tiny_model

IDS = torch.tensor([[1, 40, 41, 42, 2, 97, 12], [1, 7, 7, 200, 3, 3, 150]])
LINEAR = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "qwen2": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
}
PLAIN = {"llama": "q_proj", "qwen2": "q_proj", "gpt2": "c_attn"}
"""A layer of each family to be treated differently from the others."""


def bank_of(family: str = "llama", rank: int = 4, alpha: float = 8.0) -> PolicyBank:
    return PolicyBank(tiny_model(family), LoraSettings(rank=rank, alpha=alpha))


def load(bank: PolicyBank, folder: Path, version: str = "red") -> None:
    bank.add(version, *read_adapter(bank, folder, model_id="tiny"))


def bank_logits(bank: PolicyBank, version: str) -> torch.Tensor:
    with torch.no_grad(), bank.routed(bank.route([version] * len(IDS))):
        return bank.model(input_ids=IDS, use_cache=False).logits


def peft_logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def peft_model(family: str, **options: Any) -> Any:
    """An adapter that PEFT makes; both of its factors are random."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": LINEAR[family], "fan_in_fan_out": family == "gpt2"}
    model = peft.get_peft_model(tiny_model(family), peft.LoraConfig(**{**settings, **options})).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def saved(model: Any, folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of what some of these adapters are
        model.save_pretrained(str(folder))
    return folder


def changed_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def changed_tensors(folder: Path, change: Any) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return saved(peft_model("llama"), tmp_path / "peft")


# From PEFT

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rank-stabilised": {"use_rslora": True},
    "an alpha of its own": {"alpha_pattern": {"PLAIN": 3}},
    "a rank of its own": {"rank_pattern": {"PLAIN": 7}},
    "all at once": {"use_rslora": True, "alpha_pattern": {"PLAIN": 3}, "rank_pattern": {"PLAIN": 2}},
    "one layer by its path": {"alpha_pattern": {r"^[a-z.]+\.1\.\w+\.PLAIN": 5}},
    "some layers": {"target_modules": ["PLAIN"]},
    "the last block": {"layers_to_transform": [1]},
}


def of_family(options: Any, family: str) -> Any:
    if isinstance(options, dict):
        return {of_family(key, family): of_family(value, family) for key, value in options.items()}
    if isinstance(options, list):
        return [of_family(value, family) for value in options]
    return options.replace("PLAIN", PLAIN[family]) if isinstance(options, str) else options


@pytest.mark.parametrize("family", LINEAR)
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_made_by_peft_says_here_what_it_says_there(family: str, kind: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns that rslora and patterns together cannot be converted later
        model = peft_model(family, **of_family(KINDS[kind], family))
    bank = bank_of(family)
    load(bank, saved(model, tmp_path / "peft"))
    found = bank_logits(bank, "red")
    torch.testing.assert_close(found, peft_logits(model), atol=2e-4, rtol=1e-3)
    assert (found - bank_logits(bank, "base")).abs().max() > 0.1


def test_tensors_in_two_bytes_are_taken_for_the_numbers_they_are(folder: Path) -> None:
    rounded = {}

    def halve(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({name: tensor.bfloat16() for name, tensor in tensors.items()})
        rounded.update({name: tensor.float() for name, tensor in tensors.items()})

    changed_tensors(folder, halve)
    bank = bank_of()
    load(bank, folder)
    own = bank.factors("red")["model.layers.1.mlp.up_proj"]
    assert torch.equal(own.down, rounded["base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"])
    assert torch.equal(own.up, rounded["base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"])
    outside = peft.PeftModel.from_pretrained(tiny_model(), str(folder)).eval()
    torch.testing.assert_close(bank_logits(bank, "red"), peft_logits(outside), atol=2e-4, rtol=1e-3)


def test_scalings_of_single_layers_go_into_their_second_factor(tmp_path: Path) -> None:
    # alpha 8 at rank 4 scales by 2, and the widest layer has rank 16: the version's one scaling is 8 / 16 = 1/2.
    # q_proj at rank 16 and alpha 6: 6/16 = 3/8 = 3/4 of it. All others: 2 = 4 times it.
    model = peft_model("llama", rank_pattern={"q_proj": 16}, alpha_pattern={"q_proj": 6})
    bank = bank_of()
    factors, shape = read_adapter(bank, saved(model, tmp_path / "peft"), model_id="tiny")
    assert shape == LoraSettings(rank=16, alpha=8.0)
    tensors = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    for leaf, rank, ratio in (("q_proj", 16, 0.75), ("k_proj", 4, 4.0)):
        name = f"model.layers.0.self_attn.{leaf}"
        up = tensors[f"base_model.model.{name}.lora_B.weight"]
        assert torch.equal(factors[name].up[:, :rank], ratio * up)
        assert factors[name].up.shape == (up.shape[0], 16)
        assert not factors[name].up[:, rank:].any()


def test_layers_that_a_file_does_not_name_stay_those_of_the_base(tmp_path: Path) -> None:
    bank = bank_of()
    load(bank, saved(peft_model("llama", target_modules=["v_proj"]), tmp_path / "peft"))
    factors = bank.factors("red")
    assert {name.rpartition(".")[2] for name, own in factors.items() if own.up.any()} == {"v_proj"}
    assert len(factors) == 14


# To PEFT


@pytest.mark.parametrize("alpha", [8.0, 2.5])
@pytest.mark.parametrize("family", LINEAR)
def test_a_policy_saved_here_says_the_same_in_peft(family: str, alpha: float, tmp_path: Path) -> None:
    bank = bank_of(family, alpha=alpha)
    bank.create("red", seed=0)
    shake(bank, "red", 1)
    write_adapter(bank, "red", tmp_path / "red", model_id="tiny")
    outside = peft.PeftModel.from_pretrained(tiny_model(family), str(tmp_path / "red")).eval()
    torch.testing.assert_close(bank_logits(bank, "red"), peft_logits(outside), atol=2e-4, rtol=1e-3)
    config = outside.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (4, alpha, 0.0)
    stores_transposed = any(isinstance(layer.base, Conv1D) for layer in bank.layers.values())
    assert config.fan_in_fan_out == stores_transposed == (family == "gpt2")


@pytest.mark.parametrize("family", LINEAR)
def test_a_policy_saved_here_comes_back_bit_for_bit(family: str, tmp_path: Path) -> None:
    bank = bank_of(family, rank=3, alpha=1 / 3)
    bank.create("red", seed=0)
    shake(bank, "red", 1)
    write_adapter(bank, "red", tmp_path / "red", model_id="tiny")
    other = bank_of(family, rank=16)
    load(other, tmp_path / "red")
    assert other.shape("red") == bank.shape("red") == LoraSettings(rank=3, alpha=1 / 3)
    before, after = bank.factors("red"), other.factors("red")
    assert before.keys() == after.keys()
    for name, own in before.items():
        assert torch.equal(own.down, after[name].down)
        assert torch.equal(own.up, after[name].up)


def test_what_a_bank_in_two_bytes_says_is_what_it_saves(tmp_path: Path) -> None:
    bank = PolicyBank(tiny_model().to(torch.bfloat16), LoraSettings(rank=4, alpha=8.0))
    bank.create("red", seed=0)
    shake(bank, "red", 1)
    said = bank.factors("red")
    write_adapter(bank, "red", tmp_path / "red", model_id="tiny")
    other = PolicyBank(tiny_model().to(torch.bfloat16), LoraSettings(rank=4, alpha=8.0))
    load(other, tmp_path / "red")
    for name, own in other.factors("red").items():
        assert own.up.dtype == torch.bfloat16
        assert torch.equal(own.up, said[name].up)
        assert torch.equal(own.down, said[name].down)
    assert torch.equal(bank_logits(bank, "red"), bank_logits(other, "red"))


def test_an_adapter_of_peft_that_is_saved_again_still_says_the_same(tmp_path: Path) -> None:
    model = peft_model("llama", alpha_pattern={"q_proj": 3}, rank_pattern={"q_proj": 7})
    bank = bank_of()
    load(bank, saved(model, tmp_path / "peft"))
    write_adapter(bank, "red", tmp_path / "again", model_id="tiny")
    again = peft.PeftModel.from_pretrained(tiny_model(), str(tmp_path / "again")).eval()
    torch.testing.assert_close(peft_logits(again), peft_logits(model), atol=2e-4, rtol=1e-3)


# Refusals


def refusal(folder: Path, bank: PolicyBank | None = None) -> str:
    bank = bank or bank_of()
    with pytest.raises(ModelError) as caught:
        load(bank, folder)
    assert bank.versions == ("base",)
    assert str(folder) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, "use_dora is True"),
        ({"bias": "lora_only"}, "bias is 'lora_only'"),
        ({"lora_bias": True}, "lora_bias is True"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save is ['lm_head']"),
        ({"alora_invocation_tokens": [5, 6]}, "alora_invocation_tokens is [5, 6]"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"init_lora_weights": "olora"}, "init_lora_weights is 'olora'"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "model.embed_tokens.base_layer.weight is no factor"),
        ({"target_modules": ["q_proj", "lm_head"]}, "lm_head.base_layer.weight is no factor"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices is [1, 2]"),
        ({"layer_replication": [(0, 2), (0, 2)]}, "layer_replication is [[0, 2], [0, 2]]"),
    ],
)
def test_what_is_more_than_plain_lora_is_refused_by_its_name(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft_model("llama", **{"task_type": "CAUSAL_LM", **options})
    assert message in refusal(saved(model, tmp_path / "peft"))


@pytest.mark.parametrize("kind", ["LoHaConfig", "LoKrConfig", "OFTConfig", "IA3Config"])
def test_other_methods_are_refused_by_their_name(kind: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"target_modules": ["q_proj"]}
    options |= (
        {"feedforward_modules": []} if kind == "IA3Config" else {"oft_block_size": 4} if kind == "OFTConfig" else {}
    )
    model = peft.get_peft_model(tiny_model(), getattr(peft, kind)(**options))
    assert f"peft_type is '{kind.removesuffix('Config').upper()}'" in refusal(saved(model, tmp_path / "peft"))


def test_a_tensor_of_another_method_is_refused_whatever_the_config_says(tmp_path: Path) -> None:
    folder = saved(peft_model("llama", use_dora=True), tmp_path / "peft")
    changed_config(folder, use_dora=False)
    assert "lora_magnitude_vector" in refusal(folder)


FACTOR = "base_model.model.model.layers.1.self_attn.q_proj.lora_{}.weight"


def one_value(value: float) -> Any:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[FACTOR.format("B")][3, 2] = value

    return change


def widened(value: torch.Tensor) -> Any:
    return lambda tensors: tensors.update({FACTOR.format("B"): value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (one_value(math.nan), "model.layers.1.self_attn.q_proj, scaled by 1, hold NaN or infinity"),
        (one_value(-math.inf), "model.layers.1.self_attn.q_proj, scaled by 1, hold NaN or infinity"),
        (widened(torch.full((32, 4), 1e300, dtype=torch.float64)), "q_proj, scaled by 1, hold NaN or infinity"),
        (widened(torch.ones(32, 4, dtype=torch.int64)), "q_proj.lora_B.weight holds torch.int64"),
        (widened(torch.ones(32, 4, dtype=torch.complex64)), "q_proj.lora_B.weight holds torch.complex64"),
        (widened(torch.ones(33, 4)), "lora_B of model.layers.1.self_attn.q_proj has shape [33, 4], not [32, 4]"),
        (widened(torch.ones(32, 5)), "has shape [32, 5], not [32, 4]"),
        (widened(torch.ones(4)), "has shape [4], not [32, 4]"),
        (widened(torch.ones(0, 4)), "has shape [0, 4], not [32, 4]"),
        (lambda t: t.pop(FACTOR.format("B")), "lora_B of model.layers.1.self_attn.q_proj is missing"),
        (lambda t: t.pop(FACTOR.format("A")), "lora_A of model.layers.1.self_attn.q_proj is missing"),
        (lambda t: t.update({"q_proj.lora_A.weight": torch.ones(4, 32)}), "q_proj.lora_A.weight is no factor"),
        (
            lambda t: t.update({"base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight": torch.ones(4, 32)}),
            "model.layers.7.self_attn.q_proj.lora_A.weight is no factor",
        ),
        (lambda t: t.update({FACTOR.format("C"): torch.ones(4, 32)}), "lora_C.weight is no factor"),
        (lambda t: t.clear(), "it holds no factors"),
    ],
)
def test_factors_that_do_not_fit_are_refused_by_their_name(change: Any, message: str, folder: Path) -> None:
    changed_tensors(folder, change)
    assert message in refusal(folder)


def test_factors_of_a_rank_that_the_config_does_not_say_are_refused(folder: Path) -> None:
    """PEFT refuses them too; by their own rank they would be scaled by another number."""
    changed_config(folder, r=8)
    assert "mlp.down_proj has shape [4, 64], not [8, 64]" in refusal(folder)
    with pytest.raises(RuntimeError, match="size mismatch"):
        peft.PeftModel.from_pretrained(tiny_model(), str(folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": None}, "r is None, a number is needed"),
        ({"r": 0}, "has shape [4, 64], not [0, 64]"),
        ({"lora_alpha": "8"}, "lora_alpha is '8', a number is needed"),
        ({"lora_alpha": -8}, "alpha > 0"),
        ({"lora_alpha": math.nan}, "alpha > 0"),
        ({"lora_alpha": 10**400}, "too large"),
        ({"alpha_pattern": {"q_proj": math.inf}}, "scaled by inf, hold NaN or infinity"),
        ({"alpha_pattern": {"q_proj": 1e60}}, "scaled by 1.25e+59, hold NaN or infinity"),
        ({"alpha_pattern": {"q_proj": "high"}}, "high"),
        ({"alpha_pattern": {"q_proj(": 3}}, "unterminated subpattern"),
        ({"alpha_pattern": ["q_proj"]}, "alpha_pattern is ['q_proj'], an object of numbers"),
        ({"alpha_pattern": {"(\\w+\\.?)+!": 3}}, "could match for ever"),
        ({"rank_pattern": {".*" * 9 + "!": 3}}, "could match for ever"),
        ({"rank_pattern": {"q" * 300: 3}}, "could match for ever"),
        ({"rank_pattern": 7}, "rank_pattern is 7, an object of numbers"),
        ({"kasa_config": {"beta": 1e-4}}, "kasa_config is {'beta': 0.0001}"),
    ],
)
def test_numbers_of_a_config_that_make_no_policy_are_refused(
    changes: dict[str, Any], message: str, folder: Path
) -> None:
    changed_config(folder, **changes)
    assert message in refusal(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"r: 4", "Expecting value"),
        (b"", "Expecting value"),
        (b"\xff\xfe{}", "can't decode"),
        (b"[1, 2]", "adapter_config.json holds no JSON object but list"),
        (b"null", "adapter_config.json holds no JSON object but NoneType"),
        (b"[" * 500_000, "recursion"),
        (b" " * (2 << 20) + b"{}", "adapter_config.json has 2097154 bytes, at most 1048576 are read"),
        (None, "No such file"),
    ],
)
def test_a_config_that_cannot_be_read_is_refused(content: bytes | None, message: str, folder: Path) -> None:
    path = folder / "adapter_config.json"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert message in refusal(folder)


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    assert "is no factor of one of its linear layers" in refusal(saved(peft_model("gpt2"), tmp_path / "peft"))
    small = saved(peft_model("llama"), tmp_path / "small")
    assert "has shape [32, 4], not [64, 4]" in refusal(small, PolicyBank(wide_model(), LoraSettings()))


def wide_model() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=259, num_key_value_heads=2, **shape)).eval()


def test_a_pickle_is_never_opened(folder: Path, tmp_path: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    opened = tmp_path / "opened"
    opening = f"cbuiltins\nopen\n(V{opened}\nVw\ntR."  # a pickle that makes a file when it is loaded
    (folder / "adapter_model.bin").write_bytes(opening.encode())
    assert "expected adapter_model.safetensors" in refusal(folder)
    assert not opened.exists()


def test_a_path_that_is_no_folder_holds_no_adapter(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "it is not there" in refusal(tmp_path / "file")
    assert "it is not there" in refusal(tmp_path / "nowhere")


def test_a_folder_may_be_reached_through_a_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    bank = bank_of()
    load(bank, tmp_path / "link")
    assert bank.versions == ("base", "red")


# Writing


@pytest.fixture
def bank() -> PolicyBank:
    bank = bank_of()
    bank.create("red", seed=0)
    shake(bank, "red", 1)
    return bank


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("error", [OSError("disk full"), SafetensorError("disk full")])
@pytest.mark.parametrize("place", ["tensors", "config", "text"])
def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(
    bank: PolicyBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, place: str
) -> None:
    write_adapter(bank, "red", tmp_path / "red", model_id="tiny", extra={"lineage.json": "{}"})
    before = contents(tmp_path / "red")
    shake(bank, "red", 2)

    def fail(*_: Any, **__: Any) -> None:
        raise error

    target = {"tensors": (adapter_files, "save_file"), "config": (peft.LoraConfig, "save_pretrained")}
    monkeypatch.setattr(*target.get(place, (Path, "write_text")), fail)
    with pytest.raises(OSError, match="disk full"):
        write_adapter(bank, "red", tmp_path / "red", model_id="tiny", extra={"lineage.json": "{}"})
    assert contents(tmp_path / "red") == before
    assert [path.name for path in tmp_path.iterdir()] == ["red"]


def test_a_folder_is_replaced_with_all_that_was_in_it(bank: PolicyBank, tmp_path: Path) -> None:
    (tmp_path / "red").mkdir()
    (tmp_path / "red" / "stale.json").write_text("{}")
    write_adapter(bank, "red", tmp_path / "red", model_id="tiny")
    assert "stale.json" not in contents(tmp_path / "red")
    assert [path.name for path in tmp_path.iterdir()] == ["red"]


def test_neither_a_file_nor_a_link_is_replaced_by_a_policy(bank: PolicyBank, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "mine").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    names = {path.name for path in tmp_path.iterdir()}
    for name in ("file", "link", "broken"):
        with pytest.raises(OSError, match=name):
            write_adapter(bank, "red", tmp_path / name, model_id="tiny")
    assert (tmp_path / "file").read_text() == "mine"
    assert contents(tmp_path / "target") == {"mine": b"mine"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_neither_the_base_nor_an_unknown_version_is_written(bank: PolicyBank, tmp_path: Path) -> None:
    for version, message in (("base", "got the base"), ("blue", "add it first")):
        with pytest.raises(PolicyError, match=message):
            write_adapter(bank, version, tmp_path / "out", model_id="tiny")
    assert not list(tmp_path.iterdir())


def test_writing_says_nothing_and_a_fresh_policy_loads_as_the_base(
    bank: PolicyBank, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bank.create("fresh", seed=5)
    with caplog.at_level(logging.DEBUG):
        write_adapter(bank, "fresh", tmp_path / "deep" / "er", model_id="tiny")
    assert not caplog.records
    other = bank_of()
    load(other, tmp_path / "deep" / "er")
    assert torch.equal(bank_logits(other, "red"), bank_logits(other, "base"))


def test_a_version_with_factors_in_some_layers_is_written_with_zeros_in_the_others(tmp_path: Path) -> None:
    bank = bank_of()
    own = Factors(torch.ones(2, 32), torch.ones(64, 2))
    bank.add("red", {"model.layers.0.mlp.up_proj": own}, LoraSettings(rank=2, alpha=1.0))
    write_adapter(bank, "red", tmp_path / "red", model_id="tiny")
    tensors = load_file(tmp_path / "red" / "adapter_model.safetensors")
    assert {name for name, tensor in tensors.items() if tensor.any()} == {
        f"base_model.model.model.layers.0.mlp.up_proj.lora_{which}.weight" for which in "AB"
    }
    outside = peft.PeftModel.from_pretrained(tiny_model(), str(tmp_path / "red")).eval()
    torch.testing.assert_close(bank_logits(bank, "red"), peft_logits(outside), atol=2e-4, rtol=1e-3)
