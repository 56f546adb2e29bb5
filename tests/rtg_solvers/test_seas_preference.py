"""Preference learning as SEAS uses it: against TRL, its checks in every iteration, what it learns, and resuming after a kill."""

from __future__ import annotations

import json
import logging
import math
import multiprocessing
import os
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rtg_agents.hf import TorchBackend
from rtg_agents.lora import LoraSettings
from rtg_agents.policy import BASE, ChatMessage, Request, Sampling
from rtg_agents.population import Population
from rtg_env.errors import ConfigError, PolicyError, RunError
from rtg_env.goals import builtin
from rtg_env.transcripts import TranscriptStore
from rtg_env.types import Action
from rtg_solvers import loop
from rtg_solvers.general import builtin_general_pairs, builtin_instructions
from rtg_solvers.losses import sft_loss
from rtg_solvers.optimizer import OptimizerSettings
from rtg_solvers.oracles.preference import PreferenceSettings, prefer
from rtg_solvers.pair_accuracy import heldout_places, pair_accuracies
from rtg_solvers.pairs import PreferencePair
from rtg_solvers.preference_updates import pair_logps, preference_step
from rtg_solvers.token_pairs import TokenPair, said_pair, token_pairs, user_says
from rtg_solvers.trainer import Trainer
from tests.adapters import added_up, shake
from tests.tiny import tiny_model, tiny_tokenizer

FAST = OptimizerSettings(learning_rate=1e-2)


class Meter:
    """Adds up what it is told."""

    def __init__(self) -> None:
        self.units = 0.0

    def add(self, units: float) -> None:
        self.units += units


def fresh_backend() -> TorchBackend:
    return TorchBackend(tiny_model(), tiny_tokenizer(), model_id="tiny", lora=LoraSettings(rank=4, alpha=8.0))


def task(folder: Path, backend: TorchBackend, version: str = "blue_01@v1", iteration: int = 0) -> loop.Task:
    folder.mkdir(exist_ok=True)
    sampling = Sampling(max_new_tokens=6)
    context = loop.DialogueContext(
        game=None,
        population=Population(folder / "population", backend, {"red": sampling, "blue": sampling}),
        play_cells=None,
        store=TranscriptStore(folder / "run.db", builtin()),
        seed=0,
        workdir=folder / "work",
        meter=Meter(),
    )
    return loop.Task(role="blue", iteration=iteration, version=version, mixture=None, payoffs=None, context=context)


def word_pairs(backend: TorchBackend, count: int = 24, *, flipped: bool = False) -> list[TokenPair]:
    """After any prompt, words that begin with a are better than words that begin with z."""
    pairs = []
    for number in range(count):
        sides = [f"a{number % 7}", f"z{number % 5}"]
        chosen, rejected = reversed(sides) if flipped else sides
        pairs.append(said_pair(backend, [ChatMessage("user", f"q{number}")], chosen, rejected, max_new_tokens=8))
    return pairs


def learn(folder: Path, backend: TorchBackend, pairs: list[TokenPair], settings: PreferenceSettings, **changes):
    asked = task(folder, backend, **{key: changes.pop(key) for key in ("version", "iteration") if key in changes})
    options = {"reference": BASE, "clusters": [f"c{number}" for number in range(len(pairs))], **changes}
    return prefer(asked, backend, pairs, settings, **options), asked


def steps_of(asked: loop.Task) -> list[dict]:
    store = asked.context.store
    return [store.block_data(name) for name in store.block_names() if name.startswith(f"step/{asked.version}/")]


# Against independent implementations


def naive_logps(backend: TorchBackend, version: str, pairs: list[TokenPair]) -> np.ndarray:
    """[N, 2] by a plain forward of each sentence alone through a model whose weights hold the update."""
    logits_of, rows = added_up(backend.bank, version), []
    for pair in pairs:
        for side in pair.of(version):
            with torch.no_grad():
                logp = logits_of(torch.tensor([side.ids]))[0].log_softmax(-1)
            begin, end = side.spans[0]
            rows.append(sum(float(logp[place - 1, side.ids[place]]) for place in range(begin, end)))
    return np.array(rows).reshape(-1, 2)


def test_log_probabilities_of_pairs_are_those_of_a_naive_forward(backend) -> None:
    backend.create("blue_01@v1", seed=1)
    shake(backend, "blue_01@v1", seed=2)
    pairs = word_pairs(backend, 5)
    found = pair_logps(backend, pairs, "blue_01@v1")
    np.testing.assert_allclose(found, naive_logps(backend, "blue_01@v1", pairs), atol=1e-4)
    assert np.abs(found - pair_logps(backend, pairs, BASE)).min() > 1e-2


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
def test_the_loss_of_a_step_is_that_of_trl_on_the_same_pairs(backend, tiny_folder: Path, tmp_path: Path) -> None:
    """Player and reference are adapters here, and the same updates added to the weights of whole models there."""
    pytest.importorskip("trl", minversion="1.16", reason="pip install --no-deps trl==1.16.0")
    from tests.rtg_solvers.test_losses_against_trl import PAIRS, trainer_of

    for seed, version in enumerate(("player@v1", "reference@v1")):
        backend.create(version, seed=seed)
        shake(backend, version, seed=seed + 10, size=0.1)
    theirs = trainer_of("DPO", tiny_folder, tmp_path, PAIRS, beta=0.3)
    for model, version in ((theirs.model, "player@v1"), (theirs.ref_model, "reference@v1")):
        own, shape = backend.bank.parameters(version), backend.bank.shape(version)
        weights = dict(tiny_model().state_dict())
        for name in backend.bank.layers:
            update = own[f"{name}.lora_B.weight"] @ own[f"{name}.lora_A.weight"] * (shape.alpha / shape.rank)
            weights[f"{name}.weight"] = weights[f"{name}.weight"] + update.detach()
        model.load_state_dict(weights)
    batch = next(iter(theirs.get_train_dataloader()))
    pairs = pairs_of_trl(batch)
    trainer = Trainer(backend, ["player@v1"], OptimizerSettings(learning_rate=0.0, micro_batch=4))
    reference = pair_logps(backend, pairs, "reference@v1")
    done = preference_step(trainer, "player@v1", pairs, reference, beta=0.3)
    expected = float(theirs._compute_loss(theirs.model, batch, False).detach())
    assert abs(expected - math.log(2)) > 1e-2
    assert done.figures.loss == pytest.approx(expected, abs=1e-5)
    metrics = {name: values[0] for name, values in theirs._metrics["eval"].items()}
    assert done.ranking.accuracy == pytest.approx(metrics["rewards/accuracies"])
    assert done.ranking.margin == pytest.approx(metrics["rewards/margins"], abs=1e-4)
    assert done.ranking.chosen_reward == pytest.approx(metrics["rewards/chosen"], abs=1e-4)
    assert done.ranking.rejected_reward == pytest.approx(metrics["rewards/rejected"], abs=1e-4)


def pairs_of_trl(batch: dict[str, torch.Tensor]) -> list[TokenPair]:
    """The very ids of a batch of TRL, whose second half is the rejected side."""
    rows = []
    for ids, seen, said in zip(batch["input_ids"], batch["attention_mask"], batch["completion_mask"], strict=True):
        real, own = ids[seen.bool()].tolist(), int(said.sum())
        rows.append((real[:-own], real[-own:]))
    half = len(rows) // 2
    return [TokenPair.of_ids(rows[n][0], rows[n][1], rows[half + n][1]) for n in range(half)]


def test_micro_batches_change_nothing(tmp_path: Path) -> None:
    found = []
    for size in (2, 6, 16):
        backend = fresh_backend()
        settings = PreferenceSettings(epochs=1, batch=8, heldout_share=0.0, optimizer=replace(FAST, micro_batch=size))
        learn(tmp_path / str(size), backend, word_pairs(backend), settings)
        found.append(pair_logps(backend, word_pairs(backend, 4), "blue_01@v1"))
    np.testing.assert_allclose(found[0], found[1], atol=1e-3)
    np.testing.assert_allclose(found[0], found[2], atol=1e-3)


# The beginning of every iteration


def test_two_iterations_in_a_row_begin_at_log_two_and_as_the_player_before(backend, tmp_path: Path) -> None:
    pairs, settings = word_pairs(backend), PreferenceSettings(epochs=1, optimizer=FAST)
    first, one = learn(tmp_path, backend, pairs, settings)
    frozen = {name: own.down.clone() for name, own in backend.bank.factors("blue_01@v1").items()}
    second, two = learn(tmp_path, backend, pairs, settings, reference="blue_01@v1", version="blue_02@v1", iteration=1)
    assert first.start.base_gap is None  # its reference is the base
    assert second.start.base_gap > 1e-2
    for report, asked in ((first, one), (second, two)):
        assert report.start.reference_gap <= 1e-4
        assert report.start.loss == pytest.approx(math.log(2), abs=1e-4)
        assert steps_of(asked)[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
        assert steps_of(asked)[0]["accuracy"] <= 1.0
        assert steps_of(asked)[-1]["loss"] < math.log(2) - 0.01
    after = backend.bank.factors("blue_01@v1")
    assert all(torch.equal(frozen[name], after[name].down) for name in frozen)
    assert np.abs(np.diff([pair_logps(backend, pairs[:4], v) for v in ("blue_01@v1", "blue_02@v1")], axis=0)).min() > 0


class AdaptersOff(TorchBackend):
    """Applies no adapter while it scores: what `disable_adapter` would do."""

    def score(self, sequences):
        return super().score([replace(sequence, policy=BASE) for sequence in sequences])


def test_a_reference_that_is_the_base_by_mistake_is_refused(tmp_path: Path) -> None:
    backend = AdaptersOff(tiny_model(), tiny_tokenizer(), model_id="tiny", lora=LoraSettings(rank=4, alpha=8.0))
    backend.create("blue_00@v2", seed=0)
    shake(backend, "blue_00@v2", seed=1)
    with pytest.raises(PolicyError, match=r"expected blue_00@v2 to differ from the base model.*nothing was saved"):
        learn(tmp_path, backend, word_pairs(backend), PreferenceSettings(), reference="blue_00@v2")
    assert not (tmp_path / "work/blue_01/checkpoint").exists()


def test_a_player_that_begins_elsewhere_is_refused(backend, tmp_path: Path) -> None:
    backend.create("blue_00@v2", seed=0)
    shake(backend, "blue_00@v2", seed=1)
    backend.bank.copy("blue_00@v2", "blue_01@v1")
    shake(backend, "blue_01@v1", seed=2, size=1e-2)
    with pytest.raises(PolicyError, match="expected blue_01@v1 to begin as blue_00@v2"):
        learn(tmp_path, backend, word_pairs(backend), PreferenceSettings(), reference="blue_00@v2")


class Noisy(TorchBackend):
    """Trains with another forward pass than it scores with, as dropout would make it."""

    def evaluate(self, sequences, *, trained=(), **options):
        said = super().evaluate(sequences, trained=trained, **options)
        if not trained:
            return said
        noise = torch.randn(said.logps.shape, generator=torch.Generator().manual_seed(0))
        return replace(said, logps=said.logps + noise * said.mask)


def test_a_loss_that_is_not_log_two_is_refused_before_anything_is_kept(tmp_path: Path) -> None:
    backend = Noisy(tiny_model(), tiny_tokenizer(), model_id="tiny", lora=LoraSettings(rank=4, alpha=8.0))
    with pytest.raises(PolicyError, match=r"expected the loss of blue_01@v1 before its first step to be log 2"):
        learn(tmp_path, backend, word_pairs(backend), PreferenceSettings())
    assert not (tmp_path / "work/blue_01/checkpoint").exists()


class Rounding(TorchBackend):
    """Packs of another size give another log-probability, by a quarter of a nat a sentence, as bfloat16 does."""

    def score(self, sequences):
        noise = np.random.default_rng(len(sequences)).normal(0.0, 0.25, size=len(sequences))
        rows = super().score(sequences)
        return [(row[0] + error, *row[1:]) for row, error in zip(rows, noise, strict=True)]


@pytest.mark.parametrize("seed", range(4))
def test_a_base_that_rounds_begins_at_log_two_all_the_same(seed: int, tmp_path: Path) -> None:
    model = tiny_model().to(torch.bfloat16)
    backend = Rounding(model, tiny_tokenizer(), model_id="tiny", lora=LoraSettings(rank=4, alpha=8.0))
    backend.create("blue_00@v2", seed=0)
    shake(backend, "blue_00@v2", seed=seed)
    report, asked = learn(tmp_path, backend, word_pairs(backend), PreferenceSettings(epochs=1), reference="blue_00@v2")
    assert report.start.loss == pytest.approx(math.log(2), abs=1e-12)
    assert report.start.reference_gap == 0.0
    assert steps_of(asked)[0]["loss"] == pytest.approx(math.log(2), abs=0.05)


def test_rows_of_the_reference_in_another_order_are_refused(backend, tmp_path: Path, monkeypatch) -> None:
    from rtg_solvers import preference_updates

    right = pair_logps
    monkeypatch.setattr(preference_updates, "pair_logps", lambda *args: np.flip(right(*args), axis=1).copy())
    with pytest.raises(PolicyError, match="log 2"):
        learn(tmp_path, backend, word_pairs(backend), PreferenceSettings())


def test_a_reference_that_learned_nothing_is_no_error(backend, tmp_path: Path, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        empty, _ = learn(tmp_path, backend, [], PreferenceSettings())
    assert (empty.num_steps, empty.start, empty.heldout) == (0, None, {})
    assert "expected pairs to learn from, got none; it equals base" in caplog.text
    assert pair_logps(backend, word_pairs(backend, 3), "blue_01@v1").tolist() == pytest.approx(
        pair_logps(backend, word_pairs(backend, 3), BASE), abs=1e-6
    )
    settings = PreferenceSettings(epochs=1, optimizer=FAST)
    report, _ = learn(
        tmp_path, backend, word_pairs(backend), settings, reference="blue_01@v1", version="blue_02@v1", iteration=1
    )
    assert report.start.base_gap is None
    assert "has learned nothing yet" in caplog.text


# What is learned


def prob_of_a(backend: TorchBackend, version: str) -> float:
    """Share of sampled answers to new prompts that begin with a, among those that begin with a or z."""
    requests = [
        Request(
            policy=version,
            messages=(ChatMessage("user", f"q{500 + number}"),),
            sampling=Sampling(max_new_tokens=2),
            seed=number,
        )
        for number in range(400)
    ]
    counts = Counter(completion.text[:1] for completion in backend.generate(requests))
    assert counts["a"] + counts["z"] >= 20
    return counts["a"] / (counts["a"] + counts["z"])


def test_flipped_labels_flip_the_change_and_heldout_pairs_are_ranked_right(tmp_path: Path) -> None:
    """The reference says both words about equally often; what it comes to say depends on which one is preferred."""
    backend = fresh_backend()
    pairs = word_pairs(backend, 64)
    both = PreferenceSettings(loss="sft", epochs=12, heldout_share=0.0, optimizer=FAST)
    mixed = [p if n % 2 else TokenPair(chosen=p.rejected, rejected=p.chosen) for n, p in enumerate(pairs)]
    learn(tmp_path, backend, mixed, both, version="blue_00@v2")
    before = prob_of_a(backend, "blue_00@v2")
    assert 0.2 < before < 0.8
    settings = PreferenceSettings(epochs=2, heldout_share=0.4, optimizer=replace(FAST, learning_rate=2e-3))
    changes = []
    for version, flipped in (("blue_01@v1", False), ("blue_02@v1", True)):
        report, _ = learn(
            tmp_path,
            backend,
            word_pairs(backend, 64, flipped=flipped),
            settings,
            reference="blue_00@v2",
            version=version,
        )
        found = report.heldout["all"]
        assert (report.num_train, report.num_heldout) == (38, 26)
        assert found.reward_after.low > 0.5
        assert found.likelihood_before.low < 0.5 < found.likelihood_before.high
        assert found.likelihood_after.low > 0.5
        changes.append(prob_of_a(backend, version) - before)
    assert changes[0] > 0.1
    assert changes[1] < -0.1


def test_pairs_without_a_rule_are_not_reported_as_learned(backend, tmp_path: Path, caplog) -> None:
    rng = np.random.default_rng(0)
    pairs = [
        pair if rng.random() < 0.5 else TokenPair(chosen=pair.rejected, rejected=pair.chosen)
        for pair in word_pairs(backend, 48)
    ]
    report, _ = learn(tmp_path, backend, pairs, PreferenceSettings(epochs=1, heldout_share=0.5, optimizer=FAST))
    assert report.heldout["all"].reward_after.low <= 0.5
    assert "more than chance is not shown" in caplog.text


def test_sft_learns_the_chosen_side_alone(tmp_path: Path) -> None:
    backend = fresh_backend()
    pairs = word_pairs(backend, 8)
    settings = PreferenceSettings(loss="sft", epochs=1, batch=8, heldout_share=0.0, optimizer=FAST)
    report, asked = learn(tmp_path, backend, pairs, settings)
    rows = backend.score([pair.chosen for pair in pairs])
    tokens = torch.tensor([logp for row in rows for logp in row])
    assert steps_of(asked)[0]["loss"] == pytest.approx(float(sft_loss(tokens).mean()), abs=1e-4)
    assert report.start.loss == pytest.approx(math.log(2), abs=1e-4)  # checked all the same
    others = [replace(p, rejected=replace(p.rejected, ids=(*p.rejected.ids[:-1], 40))) for p in pairs]
    other = fresh_backend()
    learn(tmp_path / "other", other, others, settings)
    weights = [found.parameters("blue_01@v1") for found in (backend, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_epochs_see_every_training_pair_once_and_the_bound_holds(backend, tmp_path: Path, caplog) -> None:
    pairs = word_pairs(backend, 13)
    report, asked = learn(
        tmp_path, backend, pairs, PreferenceSettings(epochs=2, batch=4, heldout_share=0.0, optimizer=FAST)
    )
    assert (report.num_steps, report.epochs_seen, len(steps_of(asked))) == (8, 2.0, 8)  # 4 + 4 + 4 + 1, twice
    assert asked.context.meter.units == 400 * 4
    assert "max_steps" not in caplog.text
    short, asked = learn(
        tmp_path,
        backend,
        pairs,
        PreferenceSettings(epochs=2, batch=4, heldout_share=0.0, max_steps=5, optimizer=FAST),
        version="blue_02@v1",
    )
    assert (short.num_steps, short.epochs_seen) == (5, 17 / 13)
    assert "blue_02@v1: max_steps 5 ends its update before 2 epochs of 13 pairs, which take 8" in caplog.text
    assert asked.context.meter.units == 5 * 4
    assert json.loads(json.dumps(short.lineage(), allow_nan=False))["start"]["base_gap"] is None


# Held-out pairs


def test_whole_clusters_of_each_kind_are_held_out() -> None:
    clusters = [f"s{n // 3}" for n in range(30)] + [f"g{n}" for n in range(20)]
    kinds = ["own"] * 30 + ["general"] * 20
    found = heldout_places(clusters, kinds, 0.2, np.random.default_rng(0))
    assert [sum(kinds[p] == kind for p in found) for kind in ("own", "general")] == [6, 4]
    train = set(range(50)) - set(found.tolist())
    assert not {clusters[p] for p in found} & {clusters[p] for p in train}
    assert not len(heldout_places(clusters, kinds, 0.0, np.random.default_rng(0)))
    assert not len(heldout_places(["one"] * 5, ["own"] * 5, 0.5, np.random.default_rng(0)))  # one must be left


def test_accuracies_by_kind_with_hand_worked_values() -> None:
    # Rewards: +1, -1, 0 (a tie counts as wrong), +2; likelihoods before: right, right, wrong, wrong.
    before = np.array([[-1.0, -2.0], [-1.0, -2.0], [-3.0, -2.0], [-3.0, -2.0]])
    after = before + np.array([[0.5, -0.5], [-0.5, 0.5], [1.0, 1.0], [2.0, 0.0]])
    found = pair_accuracies(before, after, ["a", "b", "c", "d"], ["own", "own", "own", "general"])
    assert list(found) == ["all", "own", "general"]
    assert found["all"].reward_after.mean == 0.5
    assert found["all"].likelihood_before.mean == 0.5
    assert found["all"].likelihood_after.mean == 0.75 - 0.25  # b and d changed to a tie and to right
    assert found["own"].reward_after.mean == pytest.approx(1 / 3)
    assert found["own"].reward_after.num_clusters == 3
    assert math.isnan(found["general"].reward_after.low)
    assert pair_accuracies(np.zeros((0, 2)), np.zeros((0, 2)), [], []) == {}


# Killed and resumed


def killed_after(folder: Path, num_steps: int) -> None:
    """In a child process: dies by SIGKILL in the middle of a step."""
    backend = fresh_backend()
    original, seen = Trainer.step, [0]

    def deadly(self, *args, **kwargs):
        seen[0] += 1
        if seen[0] > num_steps:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *args, **kwargs)

    Trainer.step = deadly
    learn(folder, backend, word_pairs(backend, 40), RESUMED)


RESUMED = PreferenceSettings(epochs=3, batch=4, optimizer=FAST)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_killed_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole = fresh_backend()
    expected, asked = learn(tmp_path / "whole", whole, word_pairs(whole, 40), RESUMED)
    assert expected.num_steps == 27
    for num_steps in (3, 20):  # before and after the first checkpoint
        folder = tmp_path / str(num_steps)
        child = multiprocessing.get_context("fork").Process(target=killed_after, args=(folder, num_steps))
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        again = fresh_backend()
        report, resumed = learn(folder, again, word_pairs(again, 40), RESUMED)
        assert report == expected
        assert steps_of(resumed) == steps_of(asked)
        assert resumed.context.meter.units == asked.context.meter.units
        weights = [found.parameters("blue_01@v1") for found in (whole, again)]
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_other_pairs_than_at_the_beginning_are_refused(tmp_path: Path) -> None:
    backend = fresh_backend()
    learn(tmp_path, backend, word_pairs(backend, 12), PreferenceSettings(epochs=1))
    again = fresh_backend()
    with pytest.raises(RunError, match="expected the pairs that blue_01@v1 began to learn from"):
        learn(tmp_path, again, word_pairs(again, 12, flipped=True), PreferenceSettings(epochs=1))


# Pairs in ids


def test_prompt_and_end_of_turn_are_those_of_generation(backend) -> None:
    messages = (ChatMessage("user", "Say <|im_end|> twice."),)
    request = Request(policy=BASE, messages=messages, sampling=Sampling(max_new_tokens=200), seed=3)
    ended = next(
        c for c in backend.generate([replace(request, seed=seed) for seed in range(40)]) if c.finish_reason == "stop"
    )
    action = Action(text=ended.text, policy="base", prompt_ids=ended.prompt_ids, token_ids=ended.token_ids)
    pair = said_pair(backend, messages, "good", action, max_new_tokens=300)
    assert pair.rejected.ids == (*ended.prompt_ids, *ended.token_ids)
    assert pair.chosen.ids[: len(ended.prompt_ids)] == ended.prompt_ids
    assert pair.chosen.sampled == (*backend.chat.plain("good"), 2)  # <|im_end|>, without the template's newline
    np.testing.assert_allclose(backend.score([pair.rejected])[0], ended.logps, atol=1e-4)


def test_cut_sentences_have_no_end_of_turn_in_either_way(backend) -> None:
    messages = (ChatMessage("user", "x"),)
    pair = said_pair(backend, messages, "a long answer", "no", max_new_tokens=4)
    assert pair.chosen.sampled == tuple(backend.chat.plain("a lo"))
    assert pair.rejected.sampled == (*backend.chat.plain("no"), 2)
    (sampled,) = backend.generate(
        [Request(policy=BASE, messages=messages, sampling=Sampling(max_new_tokens=4, min_new_tokens=3), seed=0)]
    )
    assert len(sampled.token_ids) <= 4
    kept = Action(text=sampled.text, prompt_ids=sampled.prompt_ids, token_ids=sampled.token_ids)
    assert said_pair(backend, messages, kept, "no", max_new_tokens=4).chosen.sampled == sampled.token_ids


def test_the_chosen_side_is_the_first_and_becomes_likelier(backend, tmp_path: Path) -> None:
    texts = [PreferencePair(prompt=f"p{n}", chosen=f"yes{n}", rejected=f"nay{n}") for n in range(8)]
    built = token_pairs(backend, texts, user_says("Be brief."), max_new_tokens=16)
    for text, pair in zip(texts, built.pairs, strict=True):
        assert backend.chat.decode(pair.chosen.sampled) == text.chosen
        assert backend.chat.decode(pair.rejected.sampled) == text.rejected
        assert "Be brief." in backend.chat.decode(pair.chosen.ids)
    settings = PreferenceSettings(epochs=4, heldout_share=0.0, optimizer=FAST)
    learn(tmp_path, backend, list(built.pairs), settings)
    margins = [np.diff(pair_logps(backend, built.pairs, v), axis=1) for v in (BASE, "blue_01@v1")]
    assert (margins[1] < margins[0]).all()  # rejected less chosen


def test_texts_that_make_no_pair_are_left_out_and_counted(backend) -> None:
    texts = [
        PreferencePair(prompt="p", chosen="same beginning, good", rejected="same beginning, bad"),
        PreferencePair(prompt="p", chosen="good", rejected=""),
        PreferencePair(prompt="p" * 200, chosen="good", rejected="bad"),
    ]
    built = token_pairs(backend, texts, user_says(), max_new_tokens=8, max_tokens=100)
    assert built.places == (1,)
    assert built.pairs[0].rejected.sampled == (2,)
    assert built.tally == (3, 1, {"the same ids once cut": 1, "over 100 ids": 1})


def test_what_is_no_pair_is_refused() -> None:
    good = TokenPair.of_ids([1, 5], [6, 2], [7, 2])
    with pytest.raises(PolicyError, match="the same ids twice"):
        TokenPair.of_ids([1, 5], [6, 2], [6, 2])
    with pytest.raises(PolicyError, match="after one prompt"):
        TokenPair(chosen=good.chosen, rejected=TokenPair.of_ids([1, 4], [6, 2], [7, 2]).rejected)
    with pytest.raises(PolicyError, match="one temperature"):
        TokenPair(chosen=good.chosen, rejected=replace(good.rejected, temperature=0.7))
    with pytest.raises(PolicyError, match="one sampled sentence"):
        TokenPair(chosen=replace(good.chosen, spans=((2, 3),)), rejected=good.rejected)


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": "ipo"},
        {"beta": 0.0},
        {"beta": float("nan")},
        {"epochs": 0},
        {"batch": 0},
        {"max_steps": 0},
        {"heldout_share": 0.6},
        {"heldout_share": float("nan")},
    ],
)
def test_settings_out_of_range_are_refused(changes: dict) -> None:
    with pytest.raises(ConfigError, match=f"expected .*{next(iter(changes))}"):
        PreferenceSettings(**changes)


def test_labels_are_one_per_pair(backend, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one cluster and one kind per pair, got 1 and 3 for 3"):
        learn(tmp_path, backend, word_pairs(backend, 3), PreferenceSettings(), clusters=["a"])


# General pairs


def test_the_shipped_pairs_and_instructions_are_what_the_script_writes() -> None:
    from scripts import make_general_pairs as script

    rows = script.requests()
    assert (script.OUT / "general_pairs.jsonl").read_text() == script.lines(script.pairs(rows))
    assert (script.OUT / "instructions.jsonl").read_text() == script.lines(script.instructions(rows))


def test_shipped_pairs_prefer_the_answer_and_heldout_requests_stand_in_none() -> None:
    pairs, train, heldout = builtin_general_pairs(), builtin_instructions("train"), builtin_instructions("heldout")
    assert (len(pairs), len(train), len(heldout), len(builtin_instructions())) == (77, 77, 22, 99)
    answers = {row.prompt: row.completion for row in train}
    assert all(answers[pair.prompt] == pair.chosen for pair in pairs)
    assert not {row.prompt for row in heldout} & {pair.prompt for pair in pairs}
    assert not {row.completion for row in heldout} & {pair.rejected for pair in pairs}
    assert len({row.prompt for row in [*train, *heldout]}) == 99
    assert len({row.topic for row in heldout}) == 11
    assert sum(not pair.rejected for pair in pairs) == 7
    longer = np.mean([len(pair.rejected) > len(pair.chosen) for pair in pairs])
    assert 0.4 < longer < 0.6  # length alone tells little
