"""The losses against TRL, an independent implementation: its own trainers run on a tiny model, a second or two in all.

TRL is no dependency of the project: pip install --no-deps trl==1.16.0
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rtg_solvers.advantages import group_advantages, kl_in_reward, leave_one_out
from rtg_solvers.aggregation import Totals, aggregate
from rtg_solvers.diagnostics import clip_figures, kl_figures
from rtg_solvers.losses import (
    Clipping,
    entropy_loss,
    k3_estimate,
    k3_ratio_loss,
    ppo_loss,
    reinforce_loss,
    sft_loss,
)
from rtg_solvers.sequence_losses import PairLogps, dpo_loss, preference_figures
from tests.tiny import tiny_tokenizer

trl = pytest.importorskip("trl", minversion="1.16", reason="pip install --no-deps trl==1.16.0")
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")

PROMPTS = [{"prompt": prompt} for prompt in ("ab", "cde", "xy", "q")]
PAIRS = [
    {"prompt": "ab", "chosen": "yes", "rejected": "nothing"},
    {"prompt": "cde", "chosen": "a long answer", "rejected": "no"},
    {"prompt": "x", "chosen": "one", "rejected": "two"},
]


def trainer_of(method: str, model: Path, output: Path, rows: list[dict[str, str]], **options: Any) -> Any:
    """A trainer of TRL under its documented options; a reference model, where it has one, differs from the policy."""
    from datasets import Dataset

    generates = method in ("GRPO", "RLOO")
    arguments = getattr(trl, f"{method}Config")(
        output_dir=str(output),
        use_cpu=True,
        bf16=False,
        report_to=[],
        max_steps=1,
        per_device_train_batch_size=8 if generates else len(rows),
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        save_strategy="no",
        disable_tqdm=True,
        **({"num_generations": 4, "max_completion_length": 6} if generates else {}),
        **options,
    )
    trainer = getattr(trl, f"{method}Trainer")(
        model=str(model),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny_tokenizer(),
        **({"reward_funcs": reward} if generates else {}),
    )
    if getattr(trainer, "ref_model", None) is not None:
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in trainer.ref_model.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    trainer.model.eval()
    return trainer


def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [len(set(ids)) / 3 + ids[0] % 5 for ids in completion_ids]


def played(trainer: Any) -> dict[str, torch.Tensor]:
    """Completions that the trainer sampled, with the advantages that it gave them."""
    trainer.model.train()
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    trainer.model.eval()
    return batch


def rewards_and_groups(batch: dict[str, torch.Tensor]) -> tuple[np.ndarray, list[tuple[int, ...]]]:
    rows = zip(batch["completion_ids"], batch["completion_mask"], strict=True)
    rewards = reward([ids[mask.bool()].tolist() for ids, mask in rows])
    return np.array(rewards), [tuple(row) for row in batch["prompt_ids"].tolist()]


def completion_logps(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    seen = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    return token_logps(model, ids, seen)[:, -batch["completion_ids"].shape[1] :]


def token_logps(model: Any, ids: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """[S, T - 1] of every token but the first, from the full logits."""
    logits = model(input_ids=ids, attention_mask=seen).logits
    return logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]


def gradients(loss: torch.Tensor, model: Any) -> torch.Tensor:
    return torch.cat([g.ravel() for g in torch.autograd.grad(loss, list(model.parameters()))])


@pytest.mark.parametrize("scale", ["group", "none"])
def test_group_advantages_are_those_of_trl(scale: str, tiny_folder: Path, tmp_path: Path) -> None:
    batch = played(trainer_of("GRPO", tiny_folder, tmp_path, PROMPTS, scale_rewards=scale))
    found = group_advantages(*rewards_and_groups(batch), divide_by_std=scale == "group")
    assert len(found) == 8
    assert np.abs(found).max() > 0.1
    assert found == pytest.approx(batch["advantages"].numpy(), abs=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_a_step_of_leave_one_out_with_kl_in_the_reward_is_that_of_trl(
    beta: float, tiny_folder: Path, tmp_path: Path
) -> None:
    """From what was sampled to the gradient of every parameter."""
    trainer = trainer_of("RLOO", tiny_folder, tmp_path, PROMPTS, beta=beta)
    batch = played(trainer)
    rewards, groups = rewards_and_groups(batch)
    logp, mask = completion_logps(trainer.model, batch), batch["completion_mask"]
    reference = completion_logps(trainer.ref_model, batch) if beta else logp
    sums = [(x * mask).sum(1).detach().numpy() for x in (logp, reference)]
    advantages = leave_one_out(kl_in_reward(rewards, *sums, beta), groups)
    assert advantages == pytest.approx(batch["advantages"].numpy(), abs=1e-5)
    assert beta == 0.0 or np.abs(sums[0] - sums[1]).max() > 0.1
    losses = reinforce_loss(logp, torch.tensor(advantages, dtype=logp.dtype))
    ours = gradients(aggregate(losses, mask, "sequence-sum", Totals(num_sequences=8)).sum(), trainer.model)
    theirs = gradients(trainer._compute_loss(trainer.model, batch), trainer.model)
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-5


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LOGP = -normal(4, 5, seed=1).abs()
OLD, REFERENCE = LOGP + 0.3 * normal(4, 5, seed=2), LOGP + 0.5 * normal(4, 5, seed=3)
MASK = (torch.arange(5) < torch.tensor([5, 1, 3, 4])[:, None]).long()
TOTALS = Totals(num_sequences=4, num_tokens=13, max_tokens=6)
KL = {"beta": 0.2}


@pytest.mark.parametrize("advantage", [normal(4, seed=4), normal(4, 5, seed=5)], ids=["sequence", "token"])
@pytest.mark.parametrize(
    ("options", "how", "clipping"),
    [
        ({"loss_type": "grpo"}, "sequence-mean", Clipping()),
        ({"loss_type": "dapo", "epsilon_high": 0.28}, "token-mean", Clipping(high=0.28)),
        ({"loss_type": "dr_grpo", "epsilon": 0.1}, "constant", Clipping(low=0.1, high=0.1)),
        ({"loss_type": "luspo"}, "sequence-sum", Clipping()),
        ({"loss_type": "grpo", "importance_sampling_level": "sequence"}, "sequence-mean", Clipping(ratio="sequence")),
        ({"loss_type": "luspo", "importance_sampling_level": "sequence"}, "sequence-sum", Clipping(ratio="sequence")),
        ({"loss_type": "grpo", "use_bias_correction_kl": False, **KL}, "sequence-mean", Clipping()),
        ({"loss_type": "dapo", "use_bias_correction_kl": True, **KL}, "token-mean", Clipping()),
    ],
    ids=lambda value: value.get("loss_type") if isinstance(value, dict) else None,
)
def test_surrogate_and_kl_per_token_are_those_of_trl(
    options: dict[str, Any], how, clipping: Clipping, advantage: torch.Tensor, tiny_folder: Path, tmp_path: Path
) -> None:
    """The same value, the same gradient of every token, the same share of clipped tokens."""
    trainer = trainer_of("GRPO", tiny_folder, tmp_path, PROMPTS, **options)
    logp = LOGP.clone().requires_grad_()
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (logp, torch.zeros_like(LOGP), None)
    ids = torch.zeros_like(MASK)
    theirs = trainer._compute_loss(
        trainer.model,
        {
            "prompt_ids": ids,
            "prompt_mask": ids,
            "completion_ids": ids,
            "completion_mask": MASK,
            "advantages": advantage,
            "old_per_token_logps": OLD,
            "ref_per_token_logps": REFERENCE,
            "num_items_in_batch": MASK.sum(),
        },
    )
    loss_ST = ppo_loss(logp, OLD, MASK, advantage, clipping)
    if "beta" in options:
        exact = options["use_bias_correction_kl"]
        kl_ST = k3_ratio_loss(logp, OLD, REFERENCE) if exact else k3_estimate(logp, REFERENCE)
        loss_ST = loss_ST + 0.2 * kl_ST
    ours = aggregate(loss_ST, MASK, how, TOTALS).sum()
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), abs=1e-12)
    same_weight_everywhere = clipping.ratio == "token" or advantage.dim() == 1
    if same_weight_everywhere:  # else GSPO-token, which TRL does not have: there only the values agree
        slopes = [torch.autograd.grad(loss, logp, retain_graph=True)[0] for loss in (ours, theirs)]
        assert torch.allclose(*slopes, rtol=0.0, atol=1e-12)
        assert slopes[0].any()
    metrics = {name: values[0] for name, values in trainer._metrics["eval"].items()}
    if clipping.ratio == "token":
        clipped = clip_figures(logp, OLD, MASK, advantage, clipping)
        assert clipped.low + clipped.high > 0
        assert clipped.low == pytest.approx(metrics["clip_ratio/low_mean"])
        assert clipped.high == pytest.approx(metrics["clip_ratio/high_mean"])
    if options.get("use_bias_correction_kl") is False:
        assert kl_figures(LOGP, REFERENCE, MASK).k3 == pytest.approx(metrics["kl"])


def test_the_first_grpo_step_of_trl_is_reinforce_on_group_advantages(tiny_folder: Path, tmp_path: Path) -> None:
    trainer = trainer_of("GRPO", tiny_folder, tmp_path, PROMPTS, loss_type="dapo")
    batch = played(trainer)
    logp, mask = completion_logps(trainer.model, batch), batch["completion_mask"]
    totals = Totals(num_sequences=8, num_tokens=mask.sum())
    ours = aggregate(reinforce_loss(logp, batch["advantages"]), mask, "token-mean", totals).sum()
    theirs = gradients(trainer._compute_loss(trainer.model, batch), trainer.model)
    assert float((gradients(ours, trainer.model) - theirs).norm() / theirs.norm()) < 1e-5


def preference_logps(model: Any, batch: dict[str, torch.Tensor]) -> PairLogps:
    logps = token_logps(model, batch["input_ids"], batch["attention_mask"])
    return PairLogps(*(logps * batch["completion_mask"][:, 1:]).sum(1).chunk(2))


def test_preference_loss_gradient_and_figures_are_those_of_trl(tiny_folder: Path, tmp_path: Path) -> None:
    trainer = trainer_of("DPO", tiny_folder, tmp_path, PAIRS, beta=0.3)
    batch = next(iter(trainer.get_train_dataloader()))
    theirs = trainer._compute_loss(trainer.model, batch, False)
    policy = preference_logps(trainer.model, batch)
    with torch.no_grad():
        reference = preference_logps(trainer.ref_model, batch)
    ours = dpo_loss(policy, reference, beta=0.3).mean()
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-5)
    slopes = [gradients(loss, trainer.model) for loss in (ours, theirs)]
    assert float((slopes[0] - slopes[1]).norm() / slopes[1].norm()) < 1e-5
    figures = preference_figures(policy, reference, beta=0.3)
    metrics = {name: values[0] for name, values in trainer._metrics["eval"].items()}
    assert figures.num_pairs == 3
    for name, found in (
        ("accuracies", figures.accuracy),
        ("margins", figures.margin),
        ("chosen", figures.chosen_reward),
        ("rejected", figures.rejected_reward),
    ):
        assert found == pytest.approx(metrics[f"rewards/{name}"], rel=1e-4)


def test_smoothed_preferences_are_those_of_trl(tiny_folder: Path, tmp_path: Path) -> None:
    """TRL smooths labels this way in its "aot" loss, which for a single pair is the sigmoid loss."""
    trainer = trainer_of("DPO", tiny_folder, tmp_path, PAIRS[:1], loss_type=["aot"], label_smoothing=0.2)
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        theirs = trainer._compute_loss(trainer.model, batch, False)
        pairs = preference_logps(trainer.model, batch), preference_logps(trainer.ref_model, batch)
    found = dpo_loss(*pairs, beta=0.1, label_smoothing=0.2)
    assert found.tolist() == pytest.approx([float(theirs)], rel=1e-5)
    assert abs(float(found - dpo_loss(*pairs, beta=0.1))) > 1e-3


def test_negative_log_likelihood_per_token_is_that_of_trl(tiny_folder: Path, tmp_path: Path) -> None:
    rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in PAIRS]
    trainer = trainer_of("SFT", tiny_folder, tmp_path, rows)
    batch = next(iter(trainer.get_train_dataloader()))
    theirs = trainer.compute_loss(trainer.model, dict(batch))
    mask = batch["labels"][:, 1:] != -100
    logp = token_logps(trainer.model, batch["input_ids"], batch["attention_mask"])
    totals = Totals(num_sequences=3, num_tokens=mask.sum())
    ours = aggregate(sft_loss(logp), mask, "token-mean", totals).sum()
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-5)
    assert 0 < int(mask.sum()) < mask.numel()


def test_entropy_is_that_of_trl() -> None:
    from trl.trainer.utils import entropy_from_logits

    logits = normal(3, 4, 11, seed=6)
    assert torch.allclose(-entropy_loss(logits), entropy_from_logits(logits), rtol=0.0, atol=1e-12)
