"""The trainer against a plain loop over PEFT, against itself cut in other ways, and against kills and damage."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rtg_agents.hf import Evaluated, TorchBackend
from rtg_agents.lora import LoraSettings
from rtg_agents.policy import BASE, TokenSequence
from rtg_env.errors import ConfigError, PolicyError, RunError
from rtg_solvers import trainer as trainer_module
from rtg_solvers.optimizer import OptimizerSettings
from rtg_solvers.sequence_losses import PairLogps, dpo_loss
from rtg_solvers.trainer import StepFigures, Trainer
from tests.adapters import shake
from tests.tiny import tiny_model, tiny_tokenizer

SETTINGS = {"learning_rate": 1e-3, "micro_batch": 3, "warmup_steps": 2, "decay_steps": 9, "weight_decay": 0.1}


def backend_of(*versions: str, family: str = "llama", dtype: torch.dtype = torch.float32) -> TorchBackend:
    model: Any = tiny_model(family).to(dtype)
    backend = TorchBackend(model, tiny_tokenizer(), model_id="tiny", lora=LoraSettings(rank=4, alpha=8.0))
    for seed, version in enumerate(versions):
        backend.create(version, seed=seed)
        shake(backend, version, seed + 10, size=0.1)
    return backend


def sequences_of(version: str, count: int, seed: int = 0) -> list[TokenSequence]:
    """Dialogues of one to three sentences with common beginnings, at two temperatures."""
    rng = np.random.default_rng(seed)
    beginning, found = rng.integers(3, 250, 6).tolist(), []
    for number in range(count):
        ids, spans = [*beginning[: 3 + number % 4]], []
        for _ in range(1 + number % 3):
            ids += rng.integers(3, 250, rng.integers(1, 4)).tolist()
            begin = len(ids)
            ids += rng.integers(3, 250, rng.integers(1, 5)).tolist()
            spans.append((begin, len(ids)))
        found.append(
            TokenSequence(policy=version, ids=tuple(ids), spans=tuple(spans), temperature=(1.0, 0.7)[number % 2])
        )
    return found


def weighted(weights: Sequence[float]) -> Callable[[Evaluated, Sequence[int]], torch.Tensor]:
    """A loss that reads all there is: log-probabilities, and entropies and values where they are given."""

    def objective(said: Evaluated, places: Sequence[int]) -> torch.Tensor:
        weight_S1 = torch.tensor([weights[place] for place in places])[:, None]
        loss_ST = -weight_S1 * said.logps
        if said.entropies is not None:
            loss_ST = loss_ST - 0.3 * said.entropies
        if said.values is not None:
            loss_ST = loss_ST + 0.5 * (said.values - weight_S1).square() * said.mask
        return loss_ST.sum(1)

    return objective


def tensors_of(backend: TorchBackend, version: str) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in backend.parameters(version).items()}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Within 1e-6, but for the few numbers whose gradient is near 0: Adam divides by its size, so rounding shows."""
    assert found.keys() == expected.keys()
    gap = torch.cat([(found[name] - tensor).abs().flatten() for name, tensor in expected.items()])
    assert float((gap > 1e-6).double().mean()) < 2e-3
    assert float(gap.max()) < 5e-5


# A plain loop


class PlainLoop:
    """PEFT, one sequence at a time, torch's own AdamW: nothing of the bank, the packing or the trainer."""

    def __init__(self, start: dict[str, torch.Tensor], family: str, settings: OptimizerSettings, values: bool) -> None:
        layers = {name.partition(".lora_")[0].rpartition(".")[2] for name in start}
        config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=layers, fan_in_fan_out=family == "gpt2")
        self.model = peft.get_peft_model(tiny_model(family), config).eval()
        named = dict(self.model.named_parameters())
        self.own = {name: named["base_model.model." + name.replace(".weight", ".default.weight")] for name in start}
        with torch.no_grad():
            for name, parameter in self.own.items():
                parameter.copy_(start[name])
        if values:
            self.own["value.weight"] = torch.nn.Parameter(torch.zeros(32))
            self.own["value.bias"] = torch.nn.Parameter(torch.zeros(1))
        self.settings = settings
        self.optimizer = torch.optim.AdamW(
            list(self.own.values()), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )

    def said(self, sequence: TokenSequence) -> Evaluated:
        result = self.model(torch.tensor([sequence.ids]), output_hidden_states=True, use_cache=False)
        before = [place - 1 for begin, end in sequence.spans for place in range(begin, end)]
        logp = torch.log_softmax(result.logits[0, before] / sequence.temperature, -1)
        hidden = result.hidden_states[-1][0, before]
        values = hidden @ self.own["value.weight"] + self.own["value.bias"] if "value.bias" in self.own else None
        return Evaluated(
            logps=logp.gather(1, torch.tensor(sequence.sampled)[:, None]).T,
            mask=torch.ones(1, len(before)),
            entropies=-(logp.exp() * logp).sum(-1)[None],
            values=None if values is None else values[None],
        )

    def step(self, sequences: Sequence[TokenSequence], objective: Any, learning_rate: float) -> StepFigures:
        self.optimizer.zero_grad()
        loss = sum((objective(self.said(s), [place]).sum() for place, s in enumerate(sequences)), torch.zeros(()))
        loss.backward()
        norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in self.own.values()))
        for parameter in self.own.values():
            parameter.grad *= min(1.0, self.settings.max_grad_norm / norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        return StepFigures(float(loss.detach()), norm)


@pytest.mark.parametrize("max_grad_norm", [0.5, 1e6])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_training_is_that_of_a_plain_loop_over_peft(family: str, max_grad_norm: float) -> None:
    settings = OptimizerSettings(**SETTINGS, max_grad_norm=max_grad_norm)
    backend = backend_of("red", family=family)
    plain = PlainLoop(tensors_of(backend, "red"), family, settings, values=True)
    trainer = Trainer(backend, ["red"], settings, values=True)
    # Warm-up over 2 steps, decay to 0 at step 9: 1/2 * 9/9, 1 * 8/9, 1 * 7/9.
    for step, rate in enumerate((0.5, 8 / 9, 7 / 9)):
        sequences = sequences_of("red", 7, seed=step)
        objective = weighted(np.linspace(-1, 2, 7))
        expected = plain.step(sequences, objective, 1e-3 * rate)
        found = trainer.step(sequences, objective, entropy=True)["red"]
        assert found.loss == pytest.approx(expected.loss, rel=1e-5)
        assert found.grad_norm == pytest.approx(expected.grad_norm, rel=1e-4)
        assert (found.grad_norm > max_grad_norm) == (max_grad_norm == 0.5)
        for name, parameter in backend.parameters("red").items():
            other = plain.own[name].grad
            torch.testing.assert_close(parameter.grad, other, atol=2e-5 * float(other.abs().max()), rtol=1e-3, msg=name)
    assert_close(tensors_of(backend, "red"), {n: p.detach() for n, p in plain.own.items() if "lora" in n})


# Values


def test_values_are_a_linear_map_of_the_last_hidden_state_and_each_policy_has_its_own() -> None:
    # With a head of zeros the first gradient is that of the head alone, and Adam's first step is the rate times its
    # sign: red, whose values should rise, gets the opposite of blue's head on its own hidden states.
    backend = backend_of("red", "blue")
    before = {version: tensors_of(backend, version) for version in ("red", "blue")}
    trainer = Trainer(backend, ["red", "blue"], OptimizerSettings(learning_rate=0.25), values=True)
    sequences = [*sequences_of("red", 3), *sequences_of("blue", 3), *sequences_of(BASE, 2)]
    sign_S = torch.tensor([-1.0] * 3 + [1.0] * 3 + [5.0] * 2)
    heard: dict[int, torch.Tensor] = {}

    def objective(said: Evaluated, places: Sequence[int]) -> torch.Tensor:
        assert said.values is not None
        heard.update({place: row.detach() for place, row in zip(places, said.values, strict=True)})
        return (said.values * sign_S[list(places), None]).sum(1)

    trainer.step(sequences, objective)
    assert not any(row.any() for row in heard.values())
    for version in ("red", "blue"):
        assert_same(tensors_of(backend, version), before[version])
    figures = trainer.step(sequences, objective)
    settings = OptimizerSettings()
    for version, places, sign in (("red", range(3), 1.0), ("blue", range(3, 6), -1.0)):
        plain = PlainLoop(before[version], "llama", settings, values=True)
        for place in places:
            plain.said(sequences[place]).values.sum().backward()
        with torch.no_grad():
            for name in ("value.weight", "value.bias"):
                plain.own[name].copy_(0.25 * sign * plain.own[name].grad.sign())
        plain.optimizer.zero_grad()
        for place in places:
            values = plain.said(sequences[place]).values
            torch.testing.assert_close(heard[place][: values.shape[1]], values[0], atol=1e-4, rtol=1e-4)
            assert not heard[place][values.shape[1] :].any()
            (-sign * values).sum().backward()
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in plain.own.values()))
        assert figures[version].grad_norm == pytest.approx(norm, rel=1e-4)
        found = torch.cat([p.grad.flatten() for p in backend.parameters(version).values()])
        exact = torch.cat([p.grad.flatten() for n, p in plain.own.items() if "lora" in n]) / max(1.0, norm)
        torch.testing.assert_close(found, exact, atol=1e-5 * float(exact.abs().max()), rtol=1e-3)
        assert found.abs().max() > 1e-3
    assert not heard[6].any()
    assert not heard[7].any()


# One batch cut in many ways


def states_after(settings: OptimizerSettings, *, steps: int = 3) -> dict[str, torch.Tensor]:
    """Two policies and some rows of the base, every kind of loss."""
    backend = backend_of("red", "blue")
    trainer = Trainer(backend, ["red", "blue"], settings, values=True)
    for step in range(steps):
        sequences = [*sequences_of("blue", 4, step), *sequences_of(BASE, 3, step), *sequences_of("red", 5, step)]
        trainer.step(sequences, weighted(np.linspace(1, -2, 12)), entropy=True)
    return {f"{v} {n}": t for v in ("red", "blue") for n, t in tensors_of(backend, v).items()}


@pytest.mark.parametrize(("micro_batch", "checkpointing"), [(1, False), (3, False), (5, True), (100, True)])
def test_neither_micro_batches_nor_checkpointing_change_the_result(micro_batch: int, checkpointing: bool) -> None:
    whole = states_after(OptimizerSettings(learning_rate=1e-3, micro_batch=100))
    cut = states_after(OptimizerSettings(learning_rate=1e-3, micro_batch=micro_batch, checkpointing=checkpointing))
    assert_close(cut, whole)
    start = backend_of("red")
    assert max(float((whole[f"red {n}"] - t).abs().max()) for n, t in tensors_of(start, "red").items()) > 1e-3


def test_policies_trained_together_end_where_each_ends_alone(tmp_path: Path) -> None:
    versions = ("red", "blue", "green")
    settings = OptimizerSettings(**SETTINGS)
    together, alone = backend_of(*versions), backend_of(*versions)
    joint = Trainer(together, versions, settings)
    single = {version: Trainer(alone, [version], settings) for version in versions}
    for step, counts in enumerate(((5, 2, 1), (1, 0, 4), (2, 3, 7), (0, 6, 0))):
        rows = {v: sequences_of(v, count, seed=step) for v, count in zip(versions, counts, strict=True)}
        weights = {v: np.linspace(-1, 1.5, count).tolist() for v, count in zip(versions, counts, strict=True)}
        found = joint.step(
            [row for v in versions for row in rows[v]], weighted([w for v in versions for w in weights[v]])
        )
        assert list(found) == [v for v, count in zip(versions, counts, strict=True) if count]
        for version, trainer in single.items():
            for own in trainer.step(rows[version], weighted(weights[version])).values():
                assert found[version].loss == pytest.approx(own.loss, rel=1e-4, abs=1e-5)
                assert found[version].grad_norm == pytest.approx(own.grad_norm, rel=1e-4)
    for version in versions:
        assert_close(tensors_of(together, version), tensors_of(alone, version))
    joint.save(tmp_path / "checkpoint")
    state = json.loads((tmp_path / "checkpoint" / "state.json").read_text())
    assert state["updates"] == {"red": 3, "blue": 3, "green": 3}
    assert joint.steps_done == state["steps_done"] == 4


def test_a_policy_with_a_huge_gradient_does_not_shrink_the_steps_of_another() -> None:
    settings = OptimizerSettings(learning_rate=1e-3, max_grad_norm=100.0)
    figures = {}
    ends = {}
    for weight in (0.0, 1.0, 1e6):
        backend = backend_of("red", "blue")
        rows = [*sequences_of("red", 3), *sequences_of("blue", 3)]
        trainer = Trainer(backend, ["red", "blue"], settings)
        figures[weight] = trainer.step(rows, weighted([weight] * 3 + [0.1] * 3))
        ends[weight] = tensors_of(backend, "blue")
        own = torch.cat([p.grad.flatten() for p in backend.parameters("red").values()])
        assert float(own.norm()) == pytest.approx(min(figures[weight]["red"].grad_norm, 100.0), rel=1e-4)
    assert figures[1e6]["red"].grad_norm > 1e6
    assert figures[1e6]["red"].grad_norm == pytest.approx(1e6 * figures[1.0]["red"].grad_norm, rel=1e-4)
    assert len({figure["blue"] for figure in figures.values()}) == 1
    for weight in (1.0, 1e6):
        assert_same(ends[weight], ends[0.0])


# Units


def preference(batches: list[list[int]], mates: dict[int, int]) -> Callable[[Evaluated, Sequence[int]], torch.Tensor]:
    """DPO between places and their mates; what a place without one says is raised by itself."""

    def objective(said: Evaluated, places: Sequence[int]) -> torch.Tensor:
        batches.append(list(places))
        total = {place: row.sum() for place, row in zip(places, said.logps, strict=True)}
        zero = torch.zeros(1)
        parts = []
        for place in places:
            if place in mates:
                pair = PairLogps(total[place][None], total[mates[place]][None])
                parts.append(dpo_loss(pair, PairLogps(zero, zero))[0])
            else:
                parts.append(0.0 * total[place] if place in mates.values() else -total[place])
        return torch.stack(parts)

    return objective


def test_units_meet_in_one_micro_batch_and_change_nothing() -> None:
    mates, units = {0: 5, 7: 1, 2: 6}, [[0, 5], [7, 1], [2, 6]]
    ends, cuts = [], []
    for micro_batch in (2, 3, 5, 100):
        backend, batches = backend_of("red"), []
        trainer = Trainer(backend, ["red"], OptimizerSettings(learning_rate=1e-3, micro_batch=micro_batch))
        for step in range(2):
            trainer.step(sequences_of("red", 9, step), preference(batches, mates), units=units)
        for step in range(2):
            cut = batches[step * len(batches) // 2 : (step + 1) * len(batches) // 2]
            assert sorted(place for places in cut for place in places) == list(range(9))
            assert all(len(places) <= micro_batch for places in cut)
            for unit in units:
                assert sum(set(unit) <= set(places) for places in cut) == 1
        ends.append(tensors_of(backend, "red"))
        cuts.append(len(batches) // 2)
    assert cuts[0] > cuts[1] >= cuts[2] > cuts[3] == 1
    for end in ends[:-1]:
        assert_close(end, ends[-1])


def test_a_unit_larger_than_a_micro_batch_goes_through_whole() -> None:
    batches: list[list[int]] = []
    trainer = Trainer(backend_of("red"), ["red"], OptimizerSettings(micro_batch=2))
    trainer.step(sequences_of("red", 7), preference(batches, {}), units=[[4, 0, 6], [1, 2]])
    assert sorted(sorted(places) for places in batches if len(places) > 2) == [[0, 4, 6]]
    assert any({1, 2} <= set(places) for places in batches)
    assert sorted(place for places in batches for place in places) == list(range(7))


def test_a_place_in_two_units_is_refused_since_it_would_count_twice() -> None:
    trainer = Trainer(backend_of("red"), ["red"], OptimizerSettings())
    with pytest.raises(ConfigError, match=r"in one unit at most, got \[\[0, 1\], \[1, 2\]\]"):
        trainer.step(sequences_of("red", 3), weighted([1, 1, 1]), units=[[0, 1], [1, 2]])


# Nothing, and no number


def test_a_learning_rate_of_zero_changes_nothing() -> None:
    backend = backend_of("red")
    before = tensors_of(backend, "red")
    revision = backend.bank.refresh(["red"])
    trainer = Trainer(backend, ["red"], OptimizerSettings(learning_rate=0.0, weight_decay=0.5))
    for step in range(2):
        assert trainer.step(sequences_of("red", 4, step), weighted([1, -1, 2, 3]))["red"].grad_norm > 0.1
    assert_same(tensors_of(backend, "red"), before)
    assert backend.bank.refresh(["red"]) == revision


def test_the_learning_rate_by_hand() -> None:
    # Rises by thirds to step 2, falls linearly from step 0 on to 0 at step 10.
    both = OptimizerSettings(learning_rate=0.6, warmup_steps=3, decay_steps=10)
    expected = [0.2, 0.6 * 2 / 3 * 0.9, 0.6 * 0.8, 0.6 * 0.7]
    assert [both.rate(step) for step in range(4)] == pytest.approx(expected)
    assert (both.rate(9), both.rate(10), both.rate(50)) == (pytest.approx(0.06), 0.0, 0.0)
    assert [OptimizerSettings(learning_rate=0.6).rate(step) for step in (0, 7, 10**6)] == [0.6] * 3
    assert [OptimizerSettings(learning_rate=0.6, warmup_steps=2).rate(step) for step in range(4)] == [
        0.3,
        0.6,
        0.6,
        0.6,
    ]


def nothing(said: torch.Tensor) -> torch.Tensor:
    return math.nan * said


def infinity_of_no_slope(said: torch.Tensor) -> torch.Tensor:
    return 0.0 * said + math.inf


def zero_of_no_slope(said: torch.Tensor) -> torch.Tensor:
    return (0.0 * said).sqrt()


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (nothing, r"of blue in step 1, got StepFigures\(loss=nan, grad_norm=nan\)"),
        (infinity_of_no_slope, r"got StepFigures\(loss=inf, grad_norm=\d+\.\d+\)"),
        (zero_of_no_slope, r"got StepFigures\(loss=-?[\d.]+, grad_norm=nan\); nothing was changed"),
    ],
)
def test_a_loss_that_is_no_number_is_refused_before_any_policy_moves(broken: Any, message: str, tmp_path: Path) -> None:
    backend, spared = backend_of("red", "blue"), backend_of("red", "blue")
    trainers = [Trainer(one, ["red", "blue"], OptimizerSettings(**SETTINGS)) for one in (backend, spared)]
    rows = [*sequences_of("red", 4), *sequences_of("blue", 4)]
    plain = weighted([1.0] * 8)

    def objective(said: Evaluated, places: Sequence[int]) -> torch.Tensor:
        parts = zip(places, said.logps.sum(1), plain(said, places), strict=True)
        return torch.stack([broken(total) if place == 6 else loss for place, total, loss in parts])

    for trainer in trainers:
        trainer.step(rows, plain)
    before = {version: tensors_of(backend, version) for version in ("red", "blue")}
    with pytest.raises(PolicyError, match=message):
        trainers[0].step(rows, objective)
    for version in ("red", "blue"):
        assert_same(tensors_of(backend, version), before[version])
    assert trainers[0].steps_done == 1
    for trainer, name in zip(trainers, "ab", strict=True):
        trainer.step(rows, plain)
        trainer.save(tmp_path / name)
    assert_same(load_file(tmp_path / "a" / "state.safetensors"), load_file(tmp_path / "b" / "state.safetensors"))


# Save and resume


def lesson(trainer: Trainer, rng: np.random.Generator) -> None:
    rows = sequences_of("red", 4, int(rng.integers(1 << 30)))
    rows += sequences_of("blue", 3, int(rng.integers(1 << 30))) if trainer.steps_done != 1 else []
    trainer.step(rows, weighted(rng.normal(size=7)), entropy=True)


def new_trainer(dtype: torch.dtype = torch.float32, others: int = 0) -> tuple[TorchBackend, Trainer, Any]:
    backend = backend_of(*(f"other{number}" for number in range(others)), dtype=dtype)
    for seed, version in enumerate(("red", "blue")):
        backend.create(version, seed=seed)
    rng = np.random.default_rng(5)
    settings = OptimizerSettings(**{**SETTINGS, "learning_rate": 1e-2})
    return backend, Trainer(backend, ["red", "blue"], settings, values=True, generators={"draws": rng}), rng


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_run_that_was_cut_ends_bit_for_bit_where_an_uncut_one_does(
    cut: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    whole, trainer, rng = new_trainer(dtype)
    for step in range(4):
        if step == cut:
            trainer.save(tmp_path / "middle")
        lesson(trainer, rng)
    trainer.save(tmp_path / "whole")
    fresh, other, draws = new_trainer(dtype, others=2)
    assert other.resume(tmp_path / "middle")
    assert other.steps_done == cut
    for _ in range(cut, 4):
        lesson(other, draws)
    other.save(tmp_path / "cut")
    assert_same(load_file(tmp_path / "cut" / "state.safetensors"), load_file(tmp_path / "whole" / "state.safetensors"))
    assert (tmp_path / "cut" / "state.json").read_text() == (tmp_path / "whole" / "state.json").read_text()
    assert draws.random() == rng.random()
    rows = [*sequences_of("red", 3, 9), *sequences_of("blue", 3, 9)]
    assert fresh.score(rows) == whole.score(rows)


def test_a_policy_in_two_bytes_keeps_what_four_bytes_have_learnt(tmp_path: Path) -> None:
    _, trainer, rng = new_trainer(torch.bfloat16)
    lesson(trainer, rng)
    trainer.save(tmp_path / "checkpoint")
    backend, other, _ = new_trainer(torch.bfloat16)
    assert other.resume(tmp_path / "checkpoint")
    masters = tensors_of(backend, "red")
    assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in masters.values())
    for name, own in backend.bank.factors("red").items():
        assert torch.equal(own.up, masters[f"{name}.lora_B.weight"].bfloat16())
        assert torch.equal(own.down, masters[f"{name}.lora_A.weight"].bfloat16())


def drop_tensor(kind: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / "state.safetensors")
        tensors.pop(next(name for name in tensors if name.startswith(kind)))
        save_file(tensors, folder / "state.safetensors")

    return damage


def cut_tensor(kind: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / "state.safetensors")
        name = next(name for name in tensors if name.startswith(kind))
        save_file({**tensors, name: tensors[name][:1].clone()}, folder / "state.safetensors")

    return damage


def change_state(**changes: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "state.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return damage


def cut_file(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:100]) and None


DAMAGE: dict[str, Callable[[Path], None]] = {
    "no state": lambda folder: (folder / "state.json").unlink(),
    "no tensors": lambda folder: (folder / "state.safetensors").unlink(),
    "state cut": cut_file("state.json"),
    "state not text": lambda folder: (folder / "state.json").write_bytes(b"\xff\xfe\x00") and None,
    "state a list": lambda folder: (folder / "state.json").write_text("[1]") and None,
    "tensors cut": cut_file("state.safetensors"),
    "a parameter missing": drop_tensor("parameter/blue"),
    "a value head missing": drop_tensor("parameter/red/value"),
    "a moment missing": drop_tensor("exp_avg_sq/red"),
    "a parameter of another shape": cut_tensor("parameter/blue"),
    "a moment of another shape": cut_tensor("exp_avg/blue"),
    "another policy": change_state(updates={"red": 1}),
    "no count": change_state(steps_done=None),
    "an endless count": change_state(steps_done=math.inf),
    "no generator": change_state(generators={}),
    "a broken generator": change_state(generators={"draws": {"bit_generator": "PCG64"}}),
    "another generator": change_state(
        generators={"draws": {"bit_generator": "MT19937", "state": {"key": [], "pos": 0}}}
    ),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("trainer") / "checkpoint"
    _, trainer, rng = new_trainer()
    lesson(trainer, rng)
    trainer.save(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def written(checkpoint: dict[str, bytes], folder: Path) -> Path:
    folder.mkdir()
    for name, content in checkpoint.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_told_and_training_begins_anew(
    kind: str, checkpoint: dict[str, bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = written(checkpoint, tmp_path / "checkpoint")
    DAMAGE[kind](folder)
    backend, trainer, rng = new_trainer()
    before, draws = tensors_of(backend, "red"), rng.bit_generator.state
    with caplog.at_level(logging.WARNING):
        assert not trainer.resume(folder)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "training begins anew" in caplog.text
    assert str(folder) in caplog.text
    assert_same(tensors_of(backend, "red"), before)
    assert rng.bit_generator.state == draws
    assert trainer.steps_done == 0
    lesson(trainer, rng)
    trainer.save(tmp_path / "again")
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()} == checkpoint


def test_no_checkpoint_is_no_cause_for_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, trainer, _ = new_trainer()
    assert not trainer.resume(tmp_path / "checkpoint")
    assert not caplog.records


def test_a_checkpoint_that_is_no_folder_is_damaged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "checkpoint").write_text("x")
    _, trainer, _ = new_trainer()
    assert not trainer.resume(tmp_path / "checkpoint")
    assert "is damaged" in caplog.text


class Killed(BaseException):
    """Not an error that anything catches."""


def test_a_kill_between_the_two_renames_leaves_the_previous_checkpoint(
    checkpoint: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = written(checkpoint, tmp_path / "checkpoint")
    _, trainer, rng = new_trainer()
    assert trainer.resume(folder)
    lesson(trainer, rng)
    real, moves = os.replace, []

    def replace(source: Path, target: Path) -> None:
        moves.append(target)
        if len(moves) == 2:
            raise Killed
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(Killed):
        trainer.save(folder)
    monkeypatch.undo()
    assert not folder.exists()
    _, other, _ = new_trainer()
    assert other.resume(folder)
    assert other.steps_done == 1
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == checkpoint
    trainer.save(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    assert other.resume(folder)
    assert other.steps_done == 2


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("No space left on device")])
def test_a_full_disk_leaves_the_previous_checkpoint_and_says_what_to_do(
    error: Exception, checkpoint: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = written(checkpoint, tmp_path / "checkpoint")
    _, trainer, rng = new_trainer()
    lesson(trainer, rng)

    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr(trainer_module, "save_file", full)
    with pytest.raises(RunError, match=r"No space left on device; free space and run the same command again"):
        trainer.save(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == checkpoint
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_checkpoint_that_has_no_place_is_told_like_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    _, trainer, _ = new_trainer()
    with pytest.raises(RunError, match="expected to write a checkpoint into"):
        trainer.save(tmp_path / "file" / "checkpoint")
