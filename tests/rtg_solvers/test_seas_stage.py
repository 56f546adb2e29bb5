"""Attack stages: what a seed is in the game, who judges what, what a stage plays, keeps and counts."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rtg_agents.policy import ChatMessage, Sampling
from rtg_agents.population import Member, Population, untrained_seeded_members
from rtg_agents.progress import SilentProgress, WorkMeter
from rtg_agents.seed_prompt import is_seed, render_seed, seed_view
from rtg_env.errors import ConfigError, JudgeError
from rtg_env.goals import MAX_GOAL_CHARS, load, to_jsonl
from rtg_env.judges.given_attack import GivenAttack
from rtg_env.rules import GameConfig
from rtg_env.transcripts import TranscriptStore
from rtg_env.types import Case, Exchange, Observation, Verdict
from rtg_solvers import attack_stage, loop
from rtg_solvers.attack_stage import AttackStage, play_stage, said_in, stages_in
from rtg_solvers.rollout import Game
from rtg_solvers.seed_goals import SeedSettings, seed_goals
from rtg_solvers.seeds import SeedPrompt, SeedStore, builtin_seeds
from tests.doubles import BENIGN, HARMFUL, ScriptedJudge, verdict
from tests.judges_for_runs import Flaky, Vowels

GOALS = seed_goals(builtin_seeds(), SeedSettings(), num_train=6, num_heldout=4, seed=0)


def context(backend, folder: Path, judge=None, **changes) -> loop.DialogueContext:
    sampling = {"red": Sampling(temperature=0.8, max_new_tokens=6), "blue": Sampling(temperature=0.8, max_new_tokens=8)}
    population = Population(folder / "population", backend, sampling)
    population.extend(untrained_seeded_members())
    config = GameConfig(**{"num_exchanges": 1, "benign_prob": 0.0, **changes})
    return loop.DialogueContext(
        game=Game(config=config, goals=GOALS, judge=GivenAttack(judge or Vowels())),
        population=population,
        play_cells=None,
        store=TranscriptStore(folder / "run.db", GOALS),
        workdir=folder / "work",
        meter=WorkMeter(SilentProgress(), "x", 1),
    )


def stage(**changes) -> AttackStage:
    settings = {
        "name": "1",
        "red": "red_00@v1",
        "blue": "blue_00@v1",
        "seeds": GOALS.split("train").harmful,
        "attacks": 3,
        "replies": 2,
        "block": 4,
    }
    return AttackStage(**{**settings, **changes})


def red_sees(goal, *messages) -> Observation:
    return Observation(agent_id="red_0", messages=messages, turn=0, num_exchanges=1, goal=goal)


# Seeds as goals


def test_a_seed_is_a_goal_of_its_own_half_and_survives_its_file(tmp_path: Path) -> None:
    store = builtin_seeds()
    texts = {half: {prompt.text for prompt in store.split(half)} for half in ("train", "heldout")}
    assert [len(GOALS.split(half).harmful) for half in ("train", "heldout")] == [6, 4]
    for goal in GOALS:
        shown = [line.split(". ", 1)[1] for line in goal.text.split("\n")[1:4]]
        assert len(set(shown)) == 3
        assert set(shown) <= texts[goal.split]
        assert not set(shown) & texts["heldout" if goal.split == "train" else "train"]
        assert goal.text == render_seed(goal.category, shown)
    (tmp_path / "goals.jsonl").write_text(to_jsonl(GOALS))
    assert load(tmp_path / "goals.jsonl").digest == GOALS.digest


def test_the_draw_of_one_half_does_not_depend_on_the_size_of_the_other() -> None:
    wider = seed_goals(builtin_seeds(), SeedSettings(), num_train=9, num_heldout=4, seed=0)
    assert wider.split("heldout").digest == GOALS.split("heldout").digest
    other = seed_goals(builtin_seeds(), SeedSettings(), num_train=6, num_heldout=4, seed=1)
    assert [goal.text for goal in other] != [goal.text for goal in GOALS]


def test_long_prompts_are_left_out_and_no_seed_is_longer_than_a_goal() -> None:
    prompts = [SeedPrompt(id=f"p{i}", text=f"{i} " + "x" * (1190 if i else 1500), type="t") for i in range(4)]
    prompts += [replace(one, id=f"h{one.id}", split="heldout") for one in prompts]
    settings = SeedSettings(max_prompt_chars=1200)
    found = seed_goals(SeedStore(prompts), settings, num_train=3, num_heldout=2, seed=0)
    assert not any("0 x" in goal.text for goal in found)
    assert max(len(goal.text) for goal in found) <= MAX_GOAL_CHARS
    with pytest.raises(ConfigError, match="of at most 4000, got 4003"):
        SeedSettings(max_prompt_chars=1201)
    few = SeedStore([replace(one, text=one.text[:40]) for one in prompts if not one.id.endswith("p0")])
    with pytest.raises(ConfigError, match="expected at least 4 different prompts"):
        seed_goals(few, SeedSettings(num_prompts=4, max_prompt_chars=900), num_train=1, num_heldout=1, seed=0)


def test_only_the_types_that_are_wanted_are_drawn() -> None:
    found = seed_goals(builtin_seeds(), SeedSettings(types=("Prank",)), num_train=5, num_heldout=2, seed=0)
    assert {goal.category for goal in found} == {"prank"}
    with pytest.raises(ConfigError, match="expected types among"):
        seed_goals(builtin_seeds(), SeedSettings(types=("chess",)), num_train=1, num_heldout=1, seed=0)


# What red reads


def test_red_reads_a_seed_as_it_stands_and_makes_one_of_an_ordinary_goal() -> None:
    seed = GOALS[0]
    assert seed_view(red_sees(seed))[-1] == ChatMessage("user", seed.text)
    assert is_seed(seed.text)
    assert not is_seed(HARMFUL.text)
    one = render_seed("rumour", [HARMFUL.text])
    said = seed_view(red_sees(HARMFUL, ("user", "an attack"), ("assistant", "an answer")))
    assert said[1:] == (
        ChatMessage("user", one),
        ChatMessage("assistant", "an attack"),
        ChatMessage("user", "an answer"),
    )


def test_members_that_read_seeds_come_back_from_disk(backend, tmp_path: Path) -> None:
    ctx = context(backend, tmp_path)
    backend.create("red_01@v1", seed=3)
    member = Member(version="red_01@v1", role="red", kind="seeded", label="R0")
    ctx.population.add(member)
    assert (tmp_path / "population/red_01/adapter_model.safetensors").is_file()
    again = Population(tmp_path / "population", backend, ctx.population.sampling)
    assert again.restored("red_01@v1") == member
    assert again.restored("red_00@v1").kind == "seeded-base"
    assert [again.policies[name].adapter for name in again.names("red")] == ["red_01@v1", "base"]
    assert all(again.policies[name].prompting is seed_view for name in again.names("red"))
    with pytest.raises(ConfigError, match="on red's side alone"):
        Member(version="blue_01@v1", role="blue", kind="seeded", label="")


# Who judges what


def test_the_judge_is_shown_the_attack_as_the_goal_and_says_so() -> None:
    inner = ScriptedJudge(verdict(0.9), verdict(0.1), verdict(0.2), verdict(0.3))
    judge = GivenAttack(inner)
    long = "y" * (MAX_GOAL_CHARS + 5)
    cases = [Case(HARMFUL, (Exchange(red, "no"),)) for red in ("first ask", " ", long)]
    found = judge.judge([*cases, Case(BENIGN, (Exchange("hello", "hi"),))])
    assert [case.goal.text for case in inner.seen] == ["first ask", "(nothing was said)", long[:-5], BENIGN.text]
    assert {case.goal.id for case in inner.seen} == {"h", "b"}
    assert [one.harm for one in found] == [0.9, 0.1, 0.2, 0.3]
    assert {one.judge_id for one in found} == {"scripted@1+given-attack@1"}
    assert [case.exchanges for case in inner.seen[:3]] == [case.exchanges for case in cases]


def test_a_failed_verdict_stays_failed() -> None:
    found = GivenAttack(ScriptedJudge(Verdict.failed("scripted@1", "why"))).judge(
        [Case(HARMFUL, (Exchange("a", "b"),))]
    )
    assert not found[0].valid
    assert found[0].raw == {"error": "why"}


# The stage


def test_every_seed_gets_n_attacks_and_every_attack_m_replies(backend, tmp_path: Path) -> None:
    ctx = context(backend, tmp_path)
    assert play_stage(ctx, stage(), ctx.population.policies) == 2
    found = said_in(ctx.store, ["1"])
    places = [item.place for item in found.log.tuples]
    assert places == [(seed.id, a, r) for seed in stage().seeds for a in range(3) for r in range(2)]
    assert stage().num_replies == len(places) == 36
    assert {item.judge_id for item in found.log.tuples} == {"vowels@1+given-attack@1"}
    for item in found.log.tuples:
        goal = GOALS.by_id(item.seed_id)
        assert (item.prompt, item.seed_type) == (goal.text, goal.category)
        attack, reply = found.said[item.place._replace(reply=None)], found.said[item.place]
        assert (attack.text, reply.text) == (item.attack, item.reply)
        assert reply.token_ids
        assert len({found.said[item.place._replace(reply=r)].prompt_ids for r in range(2)}) == 1
    # The replies were drawn apart: not all of an attack are equal.
    texts = Counter((item.seed_id, item.attack_index, item.reply) for item in found.log.tuples)
    assert len(texts) > 18


def test_classes_follow_the_threshold_and_failed_verdicts_are_a_class_of_their_own(backend, tmp_path: Path) -> None:
    ctx = context(backend, tmp_path, judge=Flaky())
    play_stage(ctx, stage(), ctx.population.policies)
    strict, mild = (said_in(ctx.store, ["1"], threshold=t).log for t in (0.05, 0.9))
    assert strict.verdicts["invalid"] == mild.verdicts["invalid"] > 0
    assert strict.verdicts["unsafe"] > mild.verdicts["unsafe"]
    assert sum(strict.verdicts.values()) == sum(mild.verdicts.values()) == 36
    share = {item.place: sum(c in "aeiou" for c in item.reply) / max(1, len(item.reply)) for item in strict.tuples}
    for item in strict.tuples:
        assert item.verdict == "invalid" or item.verdict == ("unsafe" if share[item.place] > 0.05 else "safe")


def test_a_stage_that_was_cut_off_goes_on_with_the_next_block(backend, tmp_path: Path, monkeypatch) -> None:
    whole = context(backend, tmp_path / "whole")
    play_stage(whole, stage(block=2), whole.population.policies)
    ctx = context(backend, tmp_path / "cut")
    original, played = attack_stage.play_tree, []

    def counting(game, policies, pairings, **options):
        if len(played) == 2:
            raise KeyboardInterrupt
        played.append([pairing.deal.goal.id for pairing in pairings])
        return original(game, policies, pairings, **options)

    monkeypatch.setattr(attack_stage, "play_tree", counting)
    with pytest.raises(KeyboardInterrupt):
        play_stage(ctx, stage(block=2), ctx.population.policies)
    assert said_in(ctx.store, ["1"]).log.num_seeds == 4
    played[:] = [[]]
    assert play_stage(ctx, stage(block=2), ctx.population.policies) == 1
    assert played[1] == [seed.id for seed in stage().seeds[4:]]  # no finished seed again
    assert said_in(ctx.store, ["1"]) == said_in(whole.store, ["1"])
    assert play_stage(ctx, stage(block=2), ctx.population.policies) == 0


def test_stages_of_a_run_are_told_apart(backend, tmp_path: Path) -> None:
    ctx = context(backend, tmp_path)
    first, second = stage().seeds[:2], stage().seeds[2:5]
    for name, seeds in (("1", first), ("2", second)):
        play_stage(ctx, stage(name=name, seeds=seeds, attacks=1), ctx.population.policies)
    assert stages_in(ctx.store) == ["1", "2"]
    assert [said_in(ctx.store, names).log.num_seeds for names in (["1"], ["2"], ["1", "2"])] == [2, 3, 5]


def test_only_first_sentences_of_longer_dialogues_are_tuples(backend, tmp_path: Path) -> None:
    ctx = context(backend, tmp_path, num_exchanges=2)
    play_stage(ctx, stage(seeds=stage().seeds[:2]), ctx.population.policies)
    log = said_in(ctx.store, ["1"]).log
    assert [item.place for item in log.tuples] == [
        (seed.id, a, r) for seed in stage().seeds[:2] for a in range(3) for r in range(2)
    ]


def test_a_judge_that_fails_stops_the_stage(backend, tmp_path: Path) -> None:
    class Down:
        judge_id = "down@1"

        def judge(self, cases):
            raise TimeoutError("down")

    ctx = context(backend, tmp_path, judge=Down())
    with pytest.raises(JudgeError, match="attacks/1/0000"):
        play_stage(ctx, stage(), ctx.population.policies)
    assert stages_in(ctx.store) == []


def test_stages_that_cannot_be_played_are_refused() -> None:
    with pytest.raises(ConfigError, match="attacks, replies and block >= 1"):
        stage(attacks=0)
    with pytest.raises(ConfigError, match="got one twice"):
        stage(seeds=(GOALS[0], GOALS[0]))
    with pytest.raises(ConfigError, match="benign"):
        stage(seeds=(BENIGN,))


def test_the_papers_sizes() -> None:
    seeds = tuple(replace(HARMFUL, id=f"s{i}") for i in range(5000))
    assert stage(seeds=seeds, attacks=5, replies=5).num_replies == 125_000
    assert np.sum([len(part) for _, part in stage(seeds=seeds).blocks]) == 5000
