"""The GFlowNet oracle on the tiny model: what it plays, learns from and keeps; and that it goes on as if nothing had happened."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rtg_agents.policy import Sampling, TokenSequence
from rtg_agents.population import Population, untrained_members
from rtg_agents.progress import SilentProgress, WorkMeter
from rtg_env.encoding import HashingEncoder
from rtg_env.errors import ConfigError
from rtg_env.goals import GoalSet, builtin
from rtg_env.rules import GameConfig
from rtg_env.transcripts import TranscriptStore
from rtg_env.types import Verdict
from rtg_solvers import loop
from rtg_solvers.attack_rewards import AttackRewardSettings, Ramp
from rtg_solvers.empirical import Mixture
from rtg_solvers.optimizer import OptimizerSettings
from rtg_solvers.oracles.gflownet import BehaviourSettings, GFlowNetOracle, GFlowNetSettings
from rtg_solvers.rollout import Game
from rtg_solvers.tree_rollout import spoken, tree_from_block
from tests.judges_for_runs import Vowels

GOALS = builtin()
SMALL = {
    "steps": 4,
    "micro_batches": 2,
    "groups": 2,
    "group_size": 3,
    "responses": 2,
    "optimizer": OptimizerSettings(learning_rate=1e-2),
    "reward": AttackRewardSettings(min_tokens=1, tau=Ramp(start=2.0, end=1.0, steps=4)),
}


def context(backend, folder: Path, judge=None, **changes) -> loop.DialogueContext:
    sampling = {"red": Sampling(temperature=0.7, max_new_tokens=6), "blue": Sampling(max_new_tokens=6)}
    population = Population(folder / "population", backend, sampling)
    population.extend(untrained_members())
    config = GameConfig(**{"num_exchanges": 1, **changes})
    return loop.DialogueContext(
        game=Game(config=config, goals=GOALS, judge=judge or Vowels()),
        population=population,
        play_cells=None,
        store=TranscriptStore(folder / "run.db", GOALS),
        workdir=folder / "work",
        meter=WorkMeter(SilentProgress(), "x", 1),
    )


def task(ctx: loop.DialogueContext, role: str = "red") -> loop.Task:
    mixture = Mixture(
        red=np.array([1.0]),
        blue=np.array([1.0]),
        red_names=("red_00@v1",),
        blue_names=("blue_00@v1",),
        value=0.0,
        expected=0.0,
    )
    version = ctx.population.next_version(role)
    return loop.Task(role=role, iteration=0, version=version, mixture=mixture, payoffs=None, context=ctx)


def oracle(backend, **changes) -> GFlowNetOracle:
    return GFlowNetOracle(backend, GFlowNetSettings(**{**SMALL, **changes}), HashingEncoder(64))


def figures(ctx: loop.DialogueContext) -> list[dict]:
    names = [name for name in ctx.store.block_names() if name.startswith("step/")]
    return [ctx.store.block_data(name) for name in names]


def test_every_attack_is_answered_k_times_by_the_victim(backend, tmp_path: Path) -> None:
    ctx = context(backend, tmp_path)
    member = oracle(backend, behaviour=BehaviourSettings(replay_share=0.0)).respond(task(ctx))
    assert (member.version, member.kind) == ("red_03@v1", "adapter")
    for step in range(4):
        name = f"train/red_03@v1/{step:04d}"
        played, data = ctx.store.block(name), ctx.store.block_data(name)
        assert len(played) == 2 * 2 * 3 * 2
        assert {item.blue for item in played} == {"blue_00@v1"}
        assert all(item.transcript.goal.harmful for item in played)
        assert len(data["reference_logps"]) == 12
        tree = tree_from_block(played, data)
        for sibling in tree.siblings:
            assert len({tree.played[place].transcript.exchanges[0].red for place in sibling.replies}) == 1
    assert [f["tau"] for f in figures(ctx)] == [2.0, 1.75, 1.5, 1.25]
    assert json.dumps(dict(member.lineage))


def test_hot_micro_batches_record_their_temperature_and_are_learned_at_one(backend, tmp_path: Path) -> None:
    ctx = context(backend, tmp_path)
    behaviour = BehaviourSettings(replay_share=0.0, hot_share=1.0, coldest=1.5, hottest=2.0)
    oracle(backend, steps=1, behaviour=behaviour).respond(task(ctx))
    name = "train/red_03@v1/0000"
    actions = spoken(tree_from_block(ctx.store.block(name), ctx.store.block_data(name)))
    heats = [action.temperature for action in actions]
    assert len(set(heats)) == 2  # one per micro-batch
    assert all(1.5 <= heat <= 2.0 for heat in heats)
    reference = ctx.store.block_data(name)["reference_logps"]
    for action, found in zip(actions, reference, strict=True):
        plain = TokenSequence.of_sentence("base", action.prompt_ids, action.token_ids, min_tokens=1)  # temperature 1
        assert found == pytest.approx(sum(backend.score([plain])[0]), abs=1e-4)
        assert found != pytest.approx(sum(action.logps), abs=1e-4)


def test_replayed_attacks_cost_no_queries(backend, tmp_path: Path) -> None:
    ctx = context(backend, tmp_path)
    behaviour = BehaviourSettings(replay_share=1.0, hot_share=0.0)
    oracle(backend, steps=6, groups=1, group_size=2, micro_batches=1, behaviour=behaviour).respond(task(ctx))
    queries = [f["num_queries"] for f in figures(ctx)]
    assert queries[0] == 2 * 2
    assert 0 in queries
    assert all(f["grad_norm"] > 0 for f in figures(ctx))


def test_a_step_replays_its_share_and_costs_what_it_should(backend, tmp_path: Path) -> None:
    ctx = context(backend, tmp_path)
    behaviour = BehaviourSettings(replay_share=0.5, hot_share=0.0)
    changes = {"groups": 1, "group_size": 2, "micro_batches": 4, "steps": 5, "behaviour": behaviour}
    oracle(backend, **changes).respond(task(ctx))
    queries = [f["num_queries"] for f in figures(ctx)]
    assert set(queries) == {4 * 2 * 2, 2 * 2 * 2}  # nothing to replay at first, then two micro-batches of four
    assert queries[-1] == 2 * 2 * 2


def test_all_attacks_of_a_step_on_one_goal_share_a_normaliser(backend, tmp_path: Path, monkeypatch) -> None:
    from rtg_solvers import balance

    seen = []

    def spy(trainer, sequences, log_reward, groups, objective):
        seen.append((sequences, groups))
        return original(trainer, sequences, log_reward, groups, objective)

    original = balance.balance_step
    monkeypatch.setattr(balance, "balance_step", spy)
    ctx = context(backend, tmp_path)
    ctx = replace(ctx, game=replace(ctx.game, goals=GoalSet(GOALS.harmful[:2])))
    oracle(backend, behaviour=BehaviourSettings(replay_share=0.5, hot_share=0.0), steps=3).respond(task(ctx))
    sequences, groups = seen[-1]
    assert len(sequences) == 12  # two goals, three fresh and three replayed attacks on each
    prompts = [sequence.ids[: sequence.spans[0][0]] for sequence in sequences]
    assert [groups.count(group) for group in dict.fromkeys(groups)] == [6, 6]
    for first, own in zip(prompts, groups, strict=True):
        assert all((first == other) == (own == group) for other, group in zip(prompts, groups, strict=True))


@pytest.mark.parametrize("replay_share", [0.0, 0.5])
def test_no_step_exceeds_the_budget_of_queries(replay_share: float, backend, tmp_path: Path) -> None:
    ctx = context(backend, tmp_path)
    settings = GFlowNetSettings(
        **{**SMALL, "steps": 9, "behaviour": BehaviourSettings(replay_share=replay_share, hot_share=0.0)}
    )
    GFlowNetOracle(backend, settings, HashingEncoder(64), queries=100).respond(task(ctx))
    spent = [f["num_queries"] for f in figures(ctx)]
    # A fresh micro-batch costs 2 * 3 * 2 = 12.
    assert 100 - 24 < sum(spent) <= 100
    assert len(spent) == (4 if replay_share == 0.0 else 7)


def test_a_killed_training_ends_as_if_nothing_had_happened(backend, tmp_path: Path) -> None:
    from rtg_agents.hf import TorchBackend
    from rtg_agents.lora import LoraSettings
    from rtg_solvers.trainer import Trainer
    from tests.tiny import tiny_model, tiny_tokenizer

    whole = context(backend, tmp_path / "whole")
    oracle(backend).respond(task(whole))
    other = TorchBackend(tiny_model(), tiny_tokenizer(), model_id="tiny", lora=LoraSettings(rank=4, alpha=8.0))
    cut = context(other, tmp_path / "cut")
    original = Trainer.save

    def dying(self, folder):
        original(self, folder)
        if self.steps_done == 2:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "save", dying)
        with pytest.raises(KeyboardInterrupt):
            oracle(other).respond(task(cut))
    again = TorchBackend(tiny_model(), tiny_tokenizer(), model_id="tiny", lora=LoraSettings(rank=4, alpha=8.0))
    cut.store.close()
    cut = context(again, tmp_path / "cut")
    oracle(again).respond(task(cut))
    assert figures(cut) == figures(whole)
    for name, own in backend.parameters("red_03@v1").items():
        np.testing.assert_array_equal(own.detach().numpy(), again.parameters("red_03@v1")[name].detach().numpy())


class PaysForPlainText:
    """Harm is the share of printable ASCII in the attack: half of the tiny model's characters to begin with."""

    judge_id = "plain@1"

    def judge(self, cases):
        shares = [sum(" " <= c <= "~" for c in case.exchange.red) / max(1, len(case.exchange.red)) for case in cases]
        return [Verdict(harm=share, refusal=0.0, helpful=0.0, judge_id=self.judge_id) for share in shares]


@pytest.mark.parametrize("objective", ["vargrad", "tb", "pairwise", "soft", "leave-one-out"])
def test_attacks_become_more_harmful(objective: str, backend, tmp_path: Path) -> None:
    ctx = context(backend, tmp_path, PaysForPlainText())
    fixed = Ramp(start=1.0, end=1.0)
    reward = AttackRewardSettings(min_tokens=1, tau=fixed, gamma=fixed, beta=0.1, floor=0.01)
    changes = {"steps": 20, "group_size": 8, "micro_batches": 1, "responses": 1, "reward": reward}
    behaviour = BehaviourSettings(replay_share=0.0, hot_share=0.0)
    oracle(backend, objective=objective, behaviour=behaviour, **changes).respond(task(ctx))
    scores = [f["log_score"] for f in figures(ctx)]
    assert np.mean(scores[-5:]) > np.mean(scores[:5]) + 0.1


def test_several_exchanges_balance_each_turn(backend, tmp_path: Path) -> None:
    ctx = context(backend, tmp_path, num_exchanges=2)
    behaviour = BehaviourSettings(replay_share=0.0)
    oracle(backend, steps=2, micro_batches=1, behaviour=behaviour).respond(task(ctx))
    name = "train/red_03@v1/0000"
    tree = tree_from_block(ctx.store.block(name), ctx.store.block_data(name))
    assert {sibling.turn for sibling in tree.siblings} == {0, 1}
    assert figures(ctx)[0]["num_queries"] == 2 * 3 * 2 * 2 + 2 * 3  # two turns of siblings, and rollouts of the first


def test_blue_is_refused(backend, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="red"):
        oracle(backend).respond(task(context(backend, tmp_path), "blue"))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"objective": "soft"}, "samples must be its own"),
        ({"group_size": 1}, "group_size"),
        ({"steps": 0}, "steps"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        GFlowNetSettings(**changes)


@pytest.mark.parametrize("changes", [{"replay_share": 0.8, "hot_share": 0.3}, {"coldest": 0.0}, {"hottest": 0.1}])
def test_behaviour_out_of_range_is_refused(changes: dict) -> None:
    with pytest.raises(ConfigError):
        BehaviourSettings(**changes)


def test_fresh_and_replayed_attacks_are_scored_alike(backend, tmp_path: Path) -> None:
    # Truncated or ended by itself: log P_F as it was sampled, and as the scorer has it later.
    ctx = context(backend, tmp_path)
    many = {"steps": 1, "micro_batches": 1, "groups": 8, "group_size": 16, "responses": 1}
    asked = oracle(backend, behaviour=BehaviourSettings(replay_share=0.0, hot_share=0.0), **many)
    asked.respond(task(ctx))
    name = "train/red_03@v1/0000"
    actions = spoken(tree_from_block(ctx.store.block(name), ctx.store.block_data(name)))
    backend.create("fresh", seed=0)  # B is 0: what the attacker was when it said this
    scored = backend.score(
        [TokenSequence.of_sentence("fresh", a.prompt_ids, a.token_ids, min_tokens=1) for a in actions]
    )
    ends = {reason: [a for a in actions if a.finish_reason == reason] for reason in ("length", "stop")}
    assert len(ends["length"]) + len(ends["stop"]) == len(actions) == 128
    assert min(len(some) for some in ends.values()) >= 3
    assert {len(a.token_ids) for a in ends["length"]} == {6}
    assert all(a.token_ids[-1] in backend.tokenizer.end_ids for a in ends["stop"])
    for action, row in zip(actions, scored, strict=True):
        np.testing.assert_allclose(row, action.logps, atol=1e-4)
        assert sum(row) == pytest.approx(sum(action.logps), abs=1e-4)
        assert len(action.token_ids) >= 1
        assert action.token_ids[0] not in backend.tokenizer.end_ids
