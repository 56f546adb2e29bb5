"""What red is paid for being different: by hand, against plain forward passes, and nothing at all when it is off."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from rtg_agents.policy import BASE
from rtg_agents.population import Member, untrained_members
from rtg_env.errors import ConfigError
from rtg_env.transcripts import Played, TranscriptStore
from rtg_env.types import Exchange
from rtg_solvers.advantages import kl_in_reward, leave_one_out, returns_to_go
from rtg_solvers.lessons import collect_lessons
from rtg_solvers.optimizer import OptimizerSettings
from rtg_solvers.oracles.rl import RLOracle, RLSettings
from rtg_solvers.oracles.shaping import DiversityBonus, DiversitySettings, with_probabilities
from rtg_solvers.seeding import draw_seed, rng_for
from rtg_solvers.trainer import Trainer
from rtg_solvers.updates import reinforce
from tests.adapters import added_up, shake
from tests.rtg_solvers.test_rollout_and_oracle import GOALS, context, task, transcript

STILL = OptimizerSettings(learning_rate=0.0)


def said(*texts: str) -> list[Played]:
    one = transcript((0.2,))
    return [
        Played(red="r", blue="b", seed=0, transcript=replace(one, exchanges=(Exchange(red=text, blue="y"),)))
        for text in texts
    ]


def test_only_models_have_token_probabilities() -> None:
    adapter = Member(version="red_03@v1", role="red", kind="adapter", label="")
    script = Member(version="red_04@v1", role="red", kind="script", label="", script=("x",))
    members = [*(m for m in untrained_members() if m.role == "red"), adapter, script]
    assert with_probabilities(members) == {"red_00@v1": BASE, "red_03@v1": "red_03@v1"}


def test_a_sample_is_paid_for_words_and_ngrams_that_nobody_has_said(tmp_path) -> None:
    with TranscriptStore(tmp_path / "run.db", GOALS) as store:
        store.put_block("cell/red_00@v1/blue_00@v1", said("apple pear plum"))
        bonus = DiversityBonus("sample", ["red_00@v1"], store)
        batch = said("apple pear plum", "stone river cloud")
        # Cosines 1 and 0, BLEU 1 and 0: each is (-1, 1) once standardised.
        assert bonus.of(batch) == pytest.approx([-2.0, 2.0])
        bonus.remember(batch[1:])
        assert bonus.of(batch).tolist() == [0.0, 0.0]  # both are known by now: no spread
        # Known words in a new order: cosine 1 as the other's, BLEU 0 against 1.
        assert bonus.of(said("apple pear plum", "plum pear apple")) == pytest.approx([-1.0, 1.0])


def test_sentences_are_scored_under_every_model_of_reds_population_in_one_call(
    backend, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The learner and two members with weights of their own: log ratios against independent forward passes."""
    ctx = context(backend, tmp_path)
    backend.create("red_03@v1", seed=1)
    shake(backend, "red_03@v1", 1, 0.3)
    ctx.population.add(Member(version="red_03@v1", role="red", kind="adapter", label=""))
    asked = task("red", ctx)
    backend.create(asked.version, seed=2)
    shake(backend, asked.version, 2, 0.05)
    calls, paid, score, update = [], [], backend.score, RLOracle._update
    monkeypatch.setattr(backend, "score", lambda s: calls.append([one.policy for one in s]) or score(s))
    monkeypatch.setattr(RLOracle, "_update", lambda *given: paid.append(given[-1]) or update(*given))
    settings = RLSettings(
        steps=1, dialogues_per_step=8, optimizer=STILL, diversity=DiversitySettings(bonus="policy", weight=0.5)
    )
    lineage = RLOracle(backend, settings).respond(asked).lineage

    actions = [
        item.transcript.actions[0][1] for item in ctx.store.block(f"train/{asked.version}/0000")
    ]  # one exchange: red's sentence is the first
    logps = {}
    for version in (asked.version, BASE, "red_03@v1"):
        logits_of = added_up(backend.bank, version)
        with torch.no_grad():
            logps[version] = np.array(
                [
                    logits_of(torch.tensor([[*a.prompt_ids, *a.token_ids]]))[0, len(a.prompt_ids) - 1 : -1]
                    .log_softmax(-1)[range(len(a.token_ids)), list(a.token_ids)]
                    .sum()
                    .item()
                    for a in actions
                ]
            )
    to_base, to_other = (logps[asked.version] - logps[version] for version in (BASE, "red_03@v1"))
    assert to_base.mean() < to_other.mean()
    expected = np.clip(to_base, -5.0, 5.0)
    (bonus,) = paid
    assert bonus == pytest.approx(0.5 * (expected - expected.mean()), abs=1e-3)
    assert np.std(bonus) > 0.05
    assert calls == [[BASE] * 8 + ["red_03@v1"] * 8]  # no member twice, no script, no second call
    assert lineage["diversity_against"] == ["red_00@v1", "red_03@v1"]
    figures = ctx.store.block_data(f"step/{asked.version}/0000")
    assert figures["bonus_spread"] == pytest.approx(float(np.std(bonus)))


@pytest.mark.parametrize("diversity", [{}, {"weight": 9.0, "candidates": 4, "select_dialogues": 3}])
def test_without_diversity_a_best_response_learns_from_the_game_alone(backend, tmp_path, diversity: dict) -> None:
    """Bit for bit what the estimator's own formula gives: reward, price of divergence, leave-one-out baseline."""
    ctx = context(backend, tmp_path)
    asked = task("red", ctx)
    settings = RLSettings(
        steps=3,
        dialogues_per_step=8,
        group_size=4,
        optimizer=OptimizerSettings(learning_rate=1e-2),
        diversity=DiversitySettings(**diversity),
    )
    member = RLOracle(backend, settings, iterations=3).respond(asked)
    found = [parameter.detach().clone() for parameter in backend.parameters(asked.version).values()]
    backend.drop(asked.version)
    backend.create(asked.version, seed=draw_seed(rng_for(0, "adapter", "red", 0)))
    trainer = Trainer(backend, [asked.version], settings.optimizer)
    for step in range(3):
        lessons = collect_lessons(ctx.store.block(f"train/{asked.version}/{step:04d}"), "red", asked.version, 4)
        base = lessons.per_sentence(backend.score([replace(s, policy=BASE) for s in lessons.sequences]))
        logp = lessons.column("logp")
        price = kl_in_reward(np.zeros_like(logp), logp, base, settings.kl_weight)
        shaped = lessons.column("reward") + returns_to_go(price, [s.dialogue for s in lessons.sentences])
        reinforce(trainer, lessons, leave_one_out(shaped, [s.group for s in lessons.sentences]))
    expected = list(backend.parameters(asked.version).values())
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert {name.split("/")[0] for name in ctx.store.block_names()} == {"train", "step"}
    assert sorted(path.name for path in (tmp_path / "work").glob("*/*")) == ["checkpoint"]
    assert (member.lineage["diversity_against"], member.lineage["selection"]) == ([], {"rule": "none"})


def test_what_diversity_may_cost_falls_with_the_weight() -> None:
    settings = DiversitySettings(select="response", weight=0.2)
    assert [settings.tolerance_in(k, 3) for k in range(3)] == pytest.approx([0.2, 0.1, 0.0])
    assert [settings.weight_in(k, 3) for k in range(3)] == [0.0, 0.0, 0.0]  # no bonus is paid
    assert DiversitySettings(bonus="policy", weight=0.2).tolerance_in(0, 3) == 0.0  # nothing is chosen


@pytest.mark.parametrize("wrong", [{"weight": -0.1}, {"candidates": 1}, {"select_dialogues": 0}])
def test_diversity_settings_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError):
        DiversitySettings(**wrong)
