"""Rollouts, credit and the oracle: who speaks with which seed, what is paid for, and that it learns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from rtg_agents.policy import BASE, Policy, Sampling, TokenSequence
from rtg_agents.population import Member, Population, untrained_members
from rtg_agents.progress import SilentProgress, WorkMeter
from rtg_agents.scripted import RandomPolicy, ScriptedPolicy
from rtg_env.dialogue import Transcript
from rtg_env.errors import InvalidActionError, JudgeError, PolicyError
from rtg_env.goals import builtin
from rtg_env.rules import Deal, GameConfig
from rtg_env.transcripts import Played, TranscriptStore
from rtg_env.types import Action, Exchange, Verdict
from rtg_solvers import loop
from rtg_solvers.advantages import returns_to_go
from rtg_solvers.empirical import Mixture
from rtg_solvers.evaluation.protocol import queries_spent
from rtg_solvers.lessons import Lessons, Sentence, collect_lessons, flat_share
from rtg_solvers.optimizer import OptimizerSettings
from rtg_solvers.oracles.rl import RLOracle, RLSettings, own_adapters
from rtg_solvers.oracles.shaping import DiversityBonus, DiversitySettings
from rtg_solvers.rollout import Game, Pairing, draw_pairings, play
from rtg_solvers.seeding import rng_for
from rtg_solvers.trainer import Trainer
from rtg_solvers.updates import reinforce
from tests.adapters import shake
from tests.judges_for_runs import Broken, Flaky, Vowels

GOALS = builtin()


def game(judge=None, **changes) -> Game:
    return Game(config=GameConfig(**{"num_exchanges": 1, **changes}), goals=GOALS, judge=judge or Vowels())


def pairings(count: int, **changes) -> list[Pairing]:
    return draw_pairings(
        game(**changes), np.random.default_rng(0), count=count, red=lambda _: "red", blue=lambda _: "blue"
    )


POLICIES: dict[str, Policy] = {"red": RandomPolicy(name="red"), "blue": RandomPolicy(name="blue")}


def test_a_dialogue_does_not_depend_on_its_batch() -> None:
    wanted = pairings(12, num_exchanges=3, num_red=2)
    arena = game(num_exchanges=3, num_red=2)
    together = play(arena, POLICIES, wanted)
    alone = [play(arena, POLICIES, [p])[0] for p in wanted]
    assert together == alone
    assert play(arena, POLICIES, wanted[::-1])[::-1] == together


def test_named_generators_are_independent_of_the_order_of_work() -> None:
    assert rng_for(1, "train", "red", 0).random() == rng_for(1, "train", "red", 0).random()
    assert len({rng_for(s, *k).random() for s in (0, 1) for k in [("a",), ("b",), ("a", 0), ("a", 1)]}) == 8


def test_groups_share_the_whole_draw_but_the_seed() -> None:
    drawn = draw_pairings(
        game(num_red=3),
        np.random.default_rng(3),
        count=12,
        red=lambda r: f"r{r.integers(9)}",
        blue=lambda r: "b",
        group_size=4,
    )
    for begin in range(0, 12, 4):
        group = drawn[begin : begin + 4]
        assert len({(p.red, p.blue, p.deal.goal.id, p.deal.red_order) for p in group}) == 1
        assert len({p.seed for p in group}) == 4
    assert len({p.deal.goal.id for p in drawn}) > 1


def test_harmful_only_leaves_out_what_red_cannot_play() -> None:
    drawn = draw_pairings(
        game(benign_prob=0.9),
        np.random.default_rng(0),
        count=40,
        red=lambda _: "r",
        blue=lambda _: "b",
        harmful_only=True,
    )
    assert all(p.deal.goal.harmful for p in drawn)


def test_unknown_versions_are_named() -> None:
    with pytest.raises(PolicyError, match="blue"):
        play(game(), {"red": RandomPolicy()}, pairings(1))


def test_a_judge_that_always_fails_stops_the_work() -> None:
    with pytest.raises(JudgeError, match="failed in all 6 dialogues"):
        play(game(Broken()), POLICIES, pairings(6))


def test_a_script_that_talks_too_long_is_refused_not_cut() -> None:
    loud = {**POLICIES, "blue": ScriptedPolicy(name="blue", lines=("x" * 3000,))}
    with pytest.raises(InvalidActionError, match="at most 2000"):
        play(game(), loud, pairings(1))


def transcript(payments: tuple[float, ...], *, unscored: bool = False) -> Transcript:
    verdict = Verdict(harm=0.5, refusal=0, helpful=0.5)
    actions = []
    for turn in range(len(payments)):
        for agent in ("red_0", "blue_0"):
            actions.append(
                (
                    agent,
                    Action(
                        text="x",
                        policy=agent[0],
                        prompt_ids=(1,),
                        token_ids=(turn + 5,),
                        logps=(-0.5,),
                        temperature=0.7,
                    ),
                )
            )
    return Transcript(
        goal=GOALS.harmful[0],
        red_order=(0,),
        exchanges=(Exchange(red="x", blue="x"),) * len(payments),
        verdicts=(verdict,) * len(payments),
        actions=tuple(actions),
        utilities=() if unscored else payments,
        payments=() if unscored else payments,
        utility=float("nan") if unscored else sum(payments),
        unscored=unscored,
    )


def played(*transcripts: Transcript) -> list[Played]:
    return [Played(red="r", blue="b", seed=0, transcript=t) for t in transcripts]


def test_a_sentence_is_credited_with_what_is_paid_from_its_exchange_on() -> None:
    rows = played(transcript((0.2, 0.0, 0.3)), transcript((0.1, 0.1, 0.0)))
    red = collect_lessons(rows, "red", "r", group_size=2)
    assert [s.reward for s in red.sentences] == pytest.approx([0.5, 0.3, 0.3, 0.2, 0.1, 0.0])
    assert [s.group for s in red.sentences] == [(0, 0), (0, 1), (0, 2)] * 2
    blue = collect_lessons(rows, "blue", "b", group_size=2)
    assert [s.reward for s in blue.sentences] == pytest.approx([-0.5, -0.3, -0.3, -0.2, -0.1, 0.0])
    assert {s.temperature for s in red.sequences} == {0.7}


def test_no_sentence_of_an_unscored_dialogue_is_learned_from() -> None:
    rows = played(transcript((0.2,)), transcript((0.9,), unscored=True))
    assert len(collect_lessons(rows, "red", "r", group_size=2).sentences) == 1


def test_flat_groups_are_counted() -> None:
    assert flat_share(np.array([0.0, 0.0, 1.0, -1.0]), [(0, 0), (0, 0), (1, 0), (1, 0)]) == 0.5


def context(backend, tmp_path, judge=None, **changes) -> loop.DialogueContext:
    population = Population(
        tmp_path / "population",
        backend,
        {"red": Sampling(max_new_tokens=6), "blue": Sampling(max_new_tokens=6)},
    )
    population.extend(untrained_members())
    return loop.DialogueContext(
        game=game(judge, **changes),
        population=population,
        play_cells=None,
        store=TranscriptStore(tmp_path / "run.db", GOALS),
        seed=0,
        workdir=tmp_path / "work",
        meter=WorkMeter(SilentProgress(), "x", 1),
    )


def task(role: str, ctx: loop.DialogueContext) -> loop.Task:
    mixture = Mixture(
        red=np.array([1.0]),
        blue=np.array([1.0]),
        red_names=("red_00@v1",),
        blue_names=("blue_00@v1",),
        value=0.0,
        expected=0.0,
    )
    return loop.Task(
        role=role, iteration=0, version=ctx.population.next_version(role), mixture=mixture, payoffs=None, context=ctx
    )


def utilities_of_steps(ctx: loop.DialogueContext) -> list[float]:
    return [ctx.store.block_data(n)["utility"] for n in ctx.store.block_names() if n.startswith("step/")]


@pytest.mark.parametrize(
    "estimator",
    [
        {},
        {"estimator": "grpo", "epochs": 2},
        {"estimator": "ppo", "epochs": 2, "value_weight": 0.1},
    ],
    ids=["leave-one-out", "grpo", "ppo"],
)
def test_blue_learns_to_say_what_it_is_paid_for(backend, tmp_path, estimator) -> None:
    """On harmful goals blue is paid to avoid vowels; a tiny random model must find that within 25 steps."""
    ctx = context(backend, tmp_path, benign_prob=0.0)
    settings = RLSettings(
        steps=25, dialogues_per_step=32, kl_weight=0.0, optimizer=OptimizerSettings(learning_rate=2e-2), **estimator
    )
    RLOracle(backend, settings).respond(task("blue", ctx))
    utilities = utilities_of_steps(ctx)
    assert np.mean(utilities[-5:]) < 0.6 * np.mean(utilities[:5])


def test_the_first_step_has_ratio_one_and_no_divergence(backend, tmp_path) -> None:
    ctx = context(backend, tmp_path)
    RLOracle(backend, RLSettings(steps=1, dialogues_per_step=8)).respond(task("red", ctx))
    name = next(n for n in ctx.store.block_names() if n.startswith("step/"))
    assert ctx.store.block_data(name)["kl"] == pytest.approx(0.0, abs=1e-4)


def test_a_large_kl_weight_keeps_the_policy_at_the_base(backend, tmp_path) -> None:
    divergences = []
    for index, weight in enumerate((0.0, 50.0)):
        ctx = context(backend, tmp_path / str(index), benign_prob=0.0)
        (tmp_path / str(index)).mkdir(exist_ok=True)
        settings = RLSettings(
            steps=10, dialogues_per_step=16, kl_weight=weight, optimizer=OptimizerSettings(learning_rate=1e-2)
        )
        work = replace(task("blue", ctx), version=f"blue_0{index + 1}@v1")
        RLOracle(backend, settings).respond(work)
        steps = [n for n in ctx.store.block_names() if n.startswith("step/")]
        divergences.append(np.mean([ctx.store.block_data(n)["kl"] for n in steps[-3:]]))
    assert divergences[1] < 0.5 * divergences[0]


def test_dialogues_a_judge_failed_on_are_played_again_before_training(backend, tmp_path) -> None:
    ctx = context(backend, tmp_path, judge=Flaky())
    RLOracle(backend, RLSettings(steps=3, dialogues_per_step=16)).respond(task("blue", ctx))
    blocks = [n for n in ctx.store.block_names() if n.startswith("train/")]
    shares = [sum(p.transcript.unscored for p in ctx.store.block(n)) / 16 for n in blocks]
    # One in five fails; three tries leave about one in 125.
    assert np.mean(shares) < 0.1


class Counting(Flaky):
    """Knows how many answers it has seen."""

    def __init__(self) -> None:
        self.num_cases = 0

    def judge(self, cases):
        self.num_cases += len(cases)
        return super().judge(cases)


@pytest.mark.parametrize("role", ["red", "blue"])
def test_every_answer_of_blue_in_training_is_a_query_those_played_again_too(role, backend, tmp_path) -> None:
    judge = Counting()
    ctx = context(backend, tmp_path, judge=judge, num_exchanges=2)
    asked = task(role, ctx)
    RLOracle(backend, RLSettings(steps=2, dialogues_per_step=8)).respond(asked)
    assert judge.num_cases > 2 * 8 * 2  # some were played again
    assert queries_spent(ctx.store, [asked.version]) == judge.num_cases


def scored(backend, seeds, version=BASE):
    from tests.rtg_agents.test_hf import request

    done = backend.generate([request("hello " * (s % 5), s, version) for s in seeds])
    sequences = tuple(TokenSequence.of_sentence(version, c.prompt_ids, c.token_ids) for c in done)
    sentences = tuple(Sentence(n, s.num_sampled, 0.0, 0.0, (0, 0), n) for n, s in enumerate(sequences))
    return Lessons(sequences, sentences, 0.0)


def test_micro_batches_change_nothing(backend) -> None:
    advantages = np.linspace(-1, 1, 7)
    states = []
    for micro in (2, 7):
        version = f"red_{micro:02d}@v1"
        backend.create(version, seed=1)
        rows = scored(backend, range(7), version)
        trainer = Trainer(backend, [version], OptimizerSettings(learning_rate=1e-2, micro_batch=micro))
        for _ in range(2):
            reinforce(trainer, rows, advantages)
        states.append(torch.cat([p.detach().flatten() for p in backend.parameters(version).values()]))
    assert torch.allclose(states[0], states[1], atol=2e-4)
    assert states[0].abs().sum() > 0


def test_a_resumed_trainer_ends_bit_for_bit_where_an_uninterrupted_one_does(backend, tmp_path) -> None:
    advantages = np.array([1.0, -1.0, 0.5, 0.0, -0.5, 2.0])
    ends = []
    for name, cut in (("a", None), ("b", 2)):
        version = f"red_{name}@v1"
        backend.create(version, seed=1)
        rows = scored(backend, range(6), version)
        trainer = Trainer(backend, [version], OptimizerSettings(learning_rate=1e-2))
        for step in range(4):
            if step == cut:
                trainer.save(tmp_path / name)
                reinforce(trainer, rows, -advantages)  # work that is lost
                trainer = Trainer(backend, [version], OptimizerSettings(learning_rate=1e-2))
                assert trainer.resume(tmp_path / name)
                assert trainer.steps_done == 2
            reinforce(trainer, rows, advantages)
        ends.append([p.detach().clone() for p in backend.parameters(version).values()])
    assert all(torch.equal(x, y) for x, y in zip(*ends, strict=True))


def test_a_kill_between_the_renames_of_a_checkpoint_loses_nothing(backend, tmp_path) -> None:
    backend.create("red_03@v1", seed=1)
    trainer = Trainer(backend, ["red_03@v1"], OptimizerSettings())
    reinforce(trainer, scored(backend, range(4), "red_03@v1"), np.array([1.0, -1.0, 1.0, -1.0]))
    trainer.save(tmp_path / "checkpoint")
    (tmp_path / "checkpoint").rename(tmp_path / ".checkpoint-old")
    assert trainer.resume(tmp_path / "checkpoint")
    assert trainer.steps_done == 1
    assert not Trainer(backend, ["red_03@v1"], OptimizerSettings()).resume(tmp_path / "other")


def test_a_step_without_any_advantage_changes_nothing(backend) -> None:
    backend.create("red_03@v1", seed=1)
    before = [p.detach().clone() for p in backend.parameters("red_03@v1").values()]
    trainer = Trainer(backend, ["red_03@v1"], OptimizerSettings(learning_rate=1.0))
    assert reinforce(trainer, scored(backend, range(3), "red_03@v1"), np.zeros(3)) is None
    assert all(torch.equal(x, y) for x, y in zip(before, backend.parameters("red_03@v1").values(), strict=True))


def test_sequences_of_nobody_in_training_are_refused(backend) -> None:
    backend.create("red_03@v1", seed=1)
    trainer = Trainer(backend, ["red_03@v1"], OptimizerSettings())
    with pytest.raises(PolicyError, match="sequences of red_03@v1"):
        reinforce(trainer, scored(backend, range(2)), np.ones(2))


def test_rl_settings_out_of_range_are_refused() -> None:
    from rtg_env.errors import ConfigError

    for wrong in ({"steps": 0}, {"group_size": 1}, {"dialogues_per_step": 6}, {"kl_weight": -1.0}):
        with pytest.raises(ConfigError):
            RLSettings(**wrong)


def test_deal_defaults_to_one_red_member() -> None:
    assert Deal(goal=GOALS.harmful[0]).red_order == (0,)


def test_the_price_of_divergence_charges_what_a_first_sentence_leads_to() -> None:
    """J = -(KL_1 + E[KL_2 | a_1]), one binary choice each, KL_2 = 1 after a = 1, else 0: dJ/dtheta by hand.

    With p = sigmoid(theta), reference 1/2 and theta = 0: KL_1 and its derivative are 0, so dJ/dtheta = -p (1 - p) = -1/4.
    """
    first = np.array([0, 1])  # both first choices, each with probability 1/2
    log_ratios = np.array([[0.0, float(choice == 1)] for choice in first]).ravel()
    price = returns_to_go(-log_ratios, [0, 0, 1, 1]).reshape(2, 2)[:, 0]
    score = first - 0.5  # d log p(choice) / d theta
    assert float(np.mean(score * price)) == pytest.approx(-0.25)


class Letters:
    """Features of texts without words, which a tiny random model says."""

    def __init__(self, size: int) -> None:
        self._size = size

    def encode(self, texts) -> np.ndarray:
        return np.array(
            [np.bincount([ord(c) % 16 for c in text], minlength=self._size)[: self._size] for text in texts]
        )


@pytest.mark.parametrize("bonus", ["history", "policy", "sample"])
def test_a_best_response_with_diversity_goes_on_after_a_kill_as_if_there_had_been_none(
    bonus: str, backend, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rtg_solvers.oracles.shaping.HashingEncoder", Letters)
    settings = RLSettings(
        steps=3,
        dialogues_per_step=8,
        group_size=4,
        diversity=DiversitySettings(bonus=bonus, weight=1.0),
        optimizer=OptimizerSettings(learning_rate=1e-2),
    )
    whole = task("red", context(backend, tmp_path / "whole"))
    RLOracle(backend, settings).respond(whole)
    expected = [p.detach().clone() for p in backend.parameters(whole.version).values()]
    backend.drop(whole.version)

    ctx = context(backend, tmp_path / "killed")
    step = Trainer.step

    def killed(self, *given, **named):
        if self.steps_done == 1:
            raise KeyboardInterrupt  # the dialogues of this step are in the store, its update is lost
        return step(self, *given, **named)

    monkeypatch.setattr(Trainer, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        RLOracle(backend, settings).respond(task("red", ctx))
    monkeypatch.setattr(Trainer, "step", step)
    backend.drop(whole.version)
    RLOracle(backend, settings).respond(task("red", ctx))
    found = list(backend.parameters(whole.version).values())
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert all(ctx.store.block_data(f"step/{whole.version}/{n:04d}")["bonus_spread"] > 0 for n in (1, 2))


def test_diversity_falls_to_nothing_in_the_last_iteration_and_is_reds_alone(backend, tmp_path) -> None:
    settings = DiversitySettings(bonus="member", weight=0.3)
    assert [settings.weight_in(k, 3) for k in range(3)] == pytest.approx([0.3, 0.15, 0.0])
    assert DiversitySettings(bonus="member", weight=0.3, annealed=False).weight_in(2, 3) == 0.3
    assert DiversitySettings(bonus="none", weight=0.3).weight_in(0, 3) == 0.0
    rl = RLSettings(steps=1, dialogues_per_step=8, group_size=4, diversity=settings)
    for role, weight in (("red", 0.3), ("blue", 0.0)):
        asked = task(role, context(backend, tmp_path / role))
        assert RLOracle(backend, rl, iterations=3).respond(asked).lineage["diversity_weight"] == weight


def test_members_are_what_they_said_in_payoff_cells(tmp_path) -> None:
    said = {"red_00@v1": "apple pear", "red_01@v1": "stone river"}
    with TranscriptStore(tmp_path / "run.db", GOALS) as store:
        for version, text in said.items():
            one = replace(transcript((0.2,)), exchanges=(Exchange(red=text, blue="y"),))
            store.put_block(f"cell/{version}/blue_00@v1", [Played(red=version, blue="b", seed=0, transcript=one)] * 2)
        fresh = [
            Played(
                red="r",
                blue="b",
                seed=0,
                transcript=replace(transcript((0.2,)), exchanges=(Exchange(red=t, blue="y"),)),
            )
            for t in ("apple pear", "apple pear", "apple tree")
        ]
        bonus = DiversityBonus("member", list(said), store).of(fresh)
        assert bonus == pytest.approx([-1 / 6, -1 / 6, 1 / 3])  # cosines 1, 1 and 1/2 to the first member
        past = DiversityBonus("history", list(said), store)
        past.remember(fresh[2:])
        nearest = -np.array([1 + 1 + 0 + 0 + 0.5, 1 + 1 + 0.5, 0.5 + 0.5 + 1]) / 5
        assert past.of(fresh) == pytest.approx(nearest - nearest.mean())


def test_a_warm_start_is_the_average_of_ones_own_adapters(backend, tmp_path) -> None:
    ctx = context(backend, tmp_path)
    for seed, version in enumerate(("red_03@v1", "red_04@v1")):
        backend.create(version, seed=seed)
        shake(backend, version, seed, 0.05)
        ctx.population.add(Member(version=version, role="red", kind="adapter", label=""))
    names = ctx.population.names("red")
    asked = replace(
        task("red", ctx),
        mixture=Mixture(
            red=np.array([0.5, 0.0, 0.25, 0.25, 0.0]),
            blue=np.array([1.0]),
            red_names=names,
            blue_names=("blue_00@v1",),
            value=0.0,
            expected=0.0,
        ),
    )
    assert own_adapters(asked) == {"red_03@v1": 0.25, BASE: 0.75}
    still = OptimizerSettings(learning_rate=0.0)
    RLOracle(backend, RLSettings(steps=1, group_size=4, start="mixture", optimizer=still)).respond(asked)
    new, old = backend.bank.factors("red_05@v1"), backend.bank.factors("red_03@v1")
    for name in backend.bank.layers:
        torch.testing.assert_close(
            new[name].up @ new[name].down, 0.25 * old[name].up @ old[name].down, atol=1e-5, rtol=1e-3
        )
    assert own_adapters(task("blue", ctx)) == {}
