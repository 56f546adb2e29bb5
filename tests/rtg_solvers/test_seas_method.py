"""SEAS as a point of the loop: what it plans, leaves behind, learns from, and how it goes on after a kill."""

from __future__ import annotations

import json
import math
import sqlite3
import tomllib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from rtg_agents.population import read_member
from rtg_agents.seed_prompt import reading_seed
from rtg_env.errors import ConfigError
from rtg_env.goals import builtin
from rtg_env.rules import GameConfig
from rtg_env.transcripts import TranscriptStore
from rtg_solvers.attack_log import attacks_found
from rtg_solvers.attack_pairs import learned_pairs
from rtg_solvers.attack_stage import said_in
from rtg_solvers.cli import run
from rtg_solvers.general import builtin_general_pairs
from rtg_solvers.methods import registry, seas
from rtg_solvers.methods.seas import SeasConfig
from rtg_solvers.oracles.preference import PreferenceSettings
from rtg_solvers.oracles.seas import GeneralSettings, SeasSettings, StageSettings
from rtg_solvers.pair_files import read_pairs, write_pairs
from rtg_solvers.pairs import BuiltPairs, PairSettings, PreferencePair, red_pairs, target_pairs
from rtg_solvers.report import write_report
from rtg_solvers.run import read_goals, read_settings
from rtg_solvers.seeding import rng_for
from rtg_solvers.session import run_settings
from rtg_solvers.tuples import read_tuples
from tests.judges_for_runs import Vowels
from tests.rtg_solvers.runs import killed, run_here, tiny_seas_config
from tests.rtg_solvers.test_runs import contents


@pytest.fixture(scope="module")
def finished(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    return run_here(tiny_folder, tmp_path_factory.mktemp("seas"), method="seas")


def finished_config(outcome) -> SeasConfig:
    return registry.read_config(read_settings(outcome.path)["config"], "config.json")


def store_of(path: Path) -> TranscriptStore:
    return TranscriptStore(path / "run.db", read_goals(path))


# What is planned


def test_the_papers_numbers_are_5000_seeds_of_5_attacks_of_5_replies() -> None:
    stage = StageSettings(seeds=5000)
    config = SeasConfig(seas=SeasSettings(stage=stage, general=GeneralSettings(first=7000, later=14000)))
    assert stage.num_replies == 125_000
    assert "375000 victim queries among" in seas.cost(config, builtin()).steps_text
    lines = seas.plan(config)
    assert len(lines) == 4
    assert lines[2].startswith("2: R1 against T1, 5000 seeds x 5 attacks x 5 replies = 125000 victim queries")
    assert "at most 5000 pairs for R2 (dpo), 2000 and 77 general ones for T2 (dpo)" in lines[2]


def test_a_dry_run_prints_the_plan_and_its_cost(capsys) -> None:
    assert run(["solve", "--method", "seas", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "iteration 0: R0 from 24 steps on 512 seeds with their next prompt, T0 from 12 steps" in said
    assert "iteration 3: R2 against T2, 24 seeds x 5 attacks x 5 replies = 600 victim queries" in said
    assert "1800 victim queries among the dialogues" in said
    assert "payoff cells       25" in said


@pytest.mark.parametrize("method", ["seas", "mart"])
def test_requests_that_the_evaluation_asks_are_missed_before_the_run(method: str, tmp_path: Path, capsys) -> None:
    file = tmp_path / "goals.jsonl"
    file.write_text(
        '{"text": "say moo", "split": "heldout"}\n{"text": "help", "harmful": false, "turns": ["help"], "split": "train"}'
    )
    assert run(["solve", "--method", method, "--goals", str(file), "--dry-run"]) == 1
    assert "expected benign goals in the held-out half" in capsys.readouterr().err
    assert run(["solve", "--method", method, "--goals", str(tmp_path / "none.jsonl"), "--dry-run"]) == 1
    assert "which does not exist" in capsys.readouterr().err


def test_pooled_plays_the_seeds_of_all_iterations_at_once() -> None:
    apart, pooled = (SeasConfig(schedule=name) for name in ("iterative", "pooled"))
    assert registry.goals(pooled).digest == registry.goals(apart).digest
    assert pooled.settings.stage.num_replies == 3 * apart.settings.stage.num_replies
    assert len(seas.plan(pooled)) == 2
    assert pooled.settings.general.first == 32 + 2 * 64
    # Nor is it bounded where the iterations together are not.
    assert pooled.settings.pairs.max_target_pairs == 3 * apart.settings.pairs.max_target_pairs
    for side in ("red_preference", "blue_preference"):
        assert getattr(pooled.settings, side).max_steps == 3 * getattr(apart.settings, side).max_steps


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"iterations": 0}, "iterations >= 1"),
        ({"heldout_seeds": 1}, "heldout_seeds >= 2"),
        ({"game": GameConfig(num_exchanges=2, benign_prob=0.0)}, "game.num_exchanges 1"),
        ({"game": GameConfig(num_exchanges=1)}, r"game.benign_prob 0.* got 1, 1 and 0.25"),
        ({"game": GameConfig(num_exchanges=1, benign_prob=0.0, blue_tokens=9)}, "no limit on a side's tokens"),
    ],
)
def test_settings_outside_their_range_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SeasConfig(**changes)


def test_configs_survive_their_file(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(
        'method = "seas"\niterations = 2\n[seas.stage]\nattacks = 3\n[seas.blue_preference]\nloss = "sft"\n'
    )
    config = registry.settings_from(tmp_path / "c.toml", {"seed": 3})
    assert config.seas.stage == StageSettings(attacks=3)
    assert config.seas.blue_preference == PreferenceSettings(loss="sft")
    assert config.seas.red_preference == PreferenceSettings()
    assert (config.seed, config.game.benign_prob) == (3, 0.0)


def test_what_the_page_shows_are_the_defaults() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs/seas.md").read_text()
    shown = tomllib.loads(text.split("```toml\n")[1].split("```")[0])
    assert registry.read_config(shown) == SeasConfig()


def test_the_bound_on_steps_is_what_the_pairs_can_need() -> None:
    wide = SeasSettings(stage=StageSettings(seeds=10, attacks=2), general=GeneralSettings(first=3, later=5))
    # Red: 10 pairs in batches of 8, 3 epochs. The target: 10 x 2 and 3 (later 5) general ones.
    assert wide.preference("red", 1).max_steps == 6
    assert wide.preference("blue", 1).max_steps == wide.preference("blue", 2).max_steps - 3 == 9
    assert wide.preference("blue", 2).max_steps == 12
    few = replace(wide, red_preference=PreferenceSettings(max_steps=2), pairs=PairSettings(max_target_pairs=1))
    assert few.preference("red", 1).max_steps == 2
    assert few.most_pairs("blue", 1) == 4
    assert replace(wide, general=GeneralSettings(first=0, only=True)).preference("blue", 1).max_steps == 1


# What a run leaves behind


def test_a_run_leaves_every_red_and_target_behind(finished) -> None:
    found = finished.result
    assert [found.labels[name] for name in found.red] == ["base model", "R0", "R1", "R2"]
    assert [found.labels[name] for name in found.blue] == ["base model", "T0", "T1", "T2"]
    assert len(found.oracle_gaps) == 3
    kinds = [read_member(finished.path / "population" / name.split("@")[0]).kind for name in found.red]
    assert kinds == ["seeded-base", "seeded", "seeded", "seeded"]
    assert "R2" in write_report(finished.path).read_text()


def test_both_sides_learn_from_one_stage_of_the_newest_players(finished) -> None:
    with store_of(finished.path) as store:
        for k in (1, 2):
            blocks = [name for name in store.block_names() if name.startswith(f"attacks/{k}/")]
            assert len(blocks) == 3
            versions = {(item.red, item.blue) for name in blocks for item in store.block(name)}
            assert versions == {(f"red_{k:02d}@v1", f"blue_{k:02d}@v1")}
            assert len(said_in(store, [str(k)]).log.tuples) == 6 * 3 * 3
        seeds = [{item.seed_id for item in said_in(store, [str(k)]).log.tuples} for k in (1, 2)]
    assert not seeds[0] & seeds[1]
    for k in (1, 2):
        red, blue = (read_member(finished.path / f"population/{side}_{k + 1:02d}").lineage for side in ("red", "blue"))
        assert (red["reference"], blue["reference"]) == (f"red_{k:02d}@v1", f"blue_{k:02d}@v1")
        assert red["verdicts"] == blue["verdicts"]
        assert sum(red["verdicts"].values()) == red["num_queries"] == 54


def test_every_iteration_begins_as_the_iteration_before_and_not_as_the_base(finished) -> None:
    for k in (1, 2):
        for side in ("red", "blue"):
            report = read_member(finished.path / f"population/{side}_{k + 1:02d}").lineage["preference"]
            assert report["num_train"] > 0
            assert report["start"]["loss"] == pytest.approx(math.log(2), abs=1e-5)
            assert report["start"]["reference_gap"] < 1e-5
            assert report["start"]["base_gap"] > 1e-3


def test_no_attack_of_a_training_stage_is_on_a_held_out_seed(finished) -> None:
    halves = {goal.id: goal.split for goal in read_goals(finished.path)}
    with sqlite3.connect(finished.path / "run.db") as db:
        used = db.execute("SELECT DISTINCT block, goal_id FROM dialogues").fetchall()
    for block, goal_id in used:
        assert halves[goal_id] == ("heldout" if block.startswith("heldout/") else "train"), block


# What is learned from


def test_pairs_are_the_ids_that_were_read_and_said(finished, backend) -> None:
    config = tiny_seas_config(Path("x"))
    with store_of(finished.path) as store:
        found = said_in(store, ["1"], threshold=config.seas.stage.unsafe_above)
    red, blue = red_pairs(found.log.tuples), target_pairs(found.log.tuples, rng=rng_for(0, "x"))
    for role, built in (("red", red), ("blue", blue)):
        learned = learned_pairs(backend, role, built, found.said, max_new_tokens=8)
        assert len(learned.pairs) == len(built.pairs) > 0
        assert set(learned.kinds) == {"own"}
        for pair, tokens, cluster in zip(built.pairs, learned.pairs, learned.clusters, strict=True):
            for place, side in ((pair.chosen_place, tokens.chosen), (pair.rejected_place, tokens.rejected)):
                action = found.said[place]
                assert side.ids == action.prompt_ids + action.token_ids
                assert side.sampled == action.token_ids
            assert cluster == pair.chosen_place.seed_id
    first = red.pairs[0]
    assert first.prompt == found.log.tuples[0].prompt
    read = backend.chat.encode(reading_seed(first.prompt))
    assert learned_pairs(backend, "red", red, found.said, max_new_tokens=8).pairs[0].chosen.ids[: len(read)] == tuple(
        read
    )


def test_general_pairs_come_after_the_own_ones_as_texts(backend) -> None:
    general = [PreferencePair(prompt=f"q{i}", chosen="yes", rejected="no") for i in range(2)]
    general.append(PreferencePair(prompt="q2", chosen="equal once cut", rejected="equal in part"))
    learned = learned_pairs(backend, "blue", BuiltPairs((), {}), {}, general, max_new_tokens=5)
    assert (learned.kinds, learned.clusters) == (("general", "general"), ("q0", "q1"))
    assert learned.tallies["pairs"] == (3, 2, {"the same ids": 1})
    with_prompt = learned_pairs(
        backend, "blue", BuiltPairs((), {}), {}, general, max_new_tokens=5, system_prompt="Be kind"
    )
    assert len(with_prompt.pairs[0].chosen.ids) > len(learned.pairs[0].chosen.ids)


def test_what_came_of_the_same_prompts_is_held_out_together(finished, backend) -> None:
    goals = {goal.id: goal.group for goal in read_goals(finished.path).harmful}
    with store_of(finished.path) as store:
        found = said_in(store, ["1"], threshold=0.02)
    built = red_pairs(found.log.tuples)
    learned = learned_pairs(backend, "red", built, found.said, groups=goals, max_new_tokens=8)
    assert learned.clusters == tuple(goals[pair.chosen_place.seed_id] for pair in built.pairs)


def test_pairs_of_another_log_are_texts_even_where_their_places_exist_here(finished, backend, tmp_path: Path) -> None:
    with store_of(finished.path) as store:
        found = said_in(store, ["1"], threshold=0.02)
    pair = target_pairs(found.log.tuples, rng=rng_for(0, "x")).pairs[0]
    write_pairs(tmp_path / "general.jsonl", [replace(pair, chosen="their yes", rejected="their no")])
    general = GeneralSettings(source=str(tmp_path / "general.jsonl")).read()
    learned = learned_pairs(backend, "blue", BuiltPairs((), {}), found.said, general, max_new_tokens=8)
    assert learned.kinds == ("general",)
    assert backend.chat.decode(learned.pairs[0].chosen.sampled).startswith("their")


def test_an_attackers_attacks_are_those_of_its_stage_or_of_its_payoff_cells(finished) -> None:
    config, red, blue = finished_config(finished), finished.result.red, finished.result.blue
    with store_of(finished.path) as store:
        first, last = (attacks_found(store, config.game, version, *blue) for version in (red[-3], red[-1]))
        stage = said_in(store, ["1"], threshold=0.02).log.tuples
        cells = {item.transcript.exchanges[0].red for b in blue for item in store.block(f"cell/{red[-1]}/{b}")}
    assert {attack.red.action.text for attack in first} == {item.attack for item in stage}
    assert sum(len(attack.harms) for attack in first) == len(stage)
    assert {attack.red.action.text for attack in last} == cells


def test_general_pairs_alone_leave_red_as_it_is_and_the_target_without_own_ones(
    finished, tiny_folder: Path, tmp_path: Path
) -> None:
    config = tiny_seas_config(tiny_folder)
    only = replace(config.seas, general=GeneralSettings(first=8, later=8, only=True))
    outcome = run_here(tiny_folder, tmp_path, method="seas", seas=only)
    blue = read_member(outcome.path / "population/blue_02").lineage
    assert set(blue["pairs"]) == {"pairs"}  # nothing of the stage
    assert blue["pairs"]["pairs"]["total"] == 8
    whole = read_member(finished.path / "population/red_02").lineage
    assert read_member(outcome.path / "population/red_02").lineage["verdicts"] == whole["verdicts"]


def test_another_text_in_a_file_of_the_same_name_makes_another_run(tiny_folder: Path, tmp_path: Path) -> None:
    config = tiny_seas_config(tiny_folder)
    file = tmp_path / "mine.jsonl"
    write_pairs(file, builtin_general_pairs()[:4])
    own = replace(config, seas=replace(config.seas, general=replace(config.seas.general, source=str(file))))
    goals, judge = registry.goals(config), Vowels()
    assert "files" not in run_settings(config, goals, judge)
    before = run_settings(own, goals, judge)
    assert run_settings(own, goals, judge) == before
    write_pairs(file, builtin_general_pairs()[:5])
    assert run_settings(own, goals, judge) != before
    assert run_settings(own, goals, judge, files=before["files"]) == before
    file.unlink()
    with pytest.raises(ConfigError, match="a file of general"):
        run_settings(own, goals, judge)


# A kill


@pytest.mark.parametrize(
    ("point", "num_kept"),
    [
        ("attacks/1/0002", 2),  # within the first attack stage
        ("member 5 after", 3),  # red has learned from a stage, the target has not
    ],
)
def test_a_run_that_is_killed_goes_on_without_repeating_a_finished_seed(
    point: str, num_kept: int, finished, tiny_folder: Path, tmp_path: Path
) -> None:
    if point.startswith("attacks/"):
        with store_of(finished.path) as store:
            point = f"commit {store.block_names().index(point) + 1} before"
    killed(tiny_folder, tmp_path, point, {"method": "seas"})
    with store_of(tmp_path / "run") as store:
        before = {name: store.block(name) for name in store.block_names() if name.startswith("attacks/")}
    assert len(before) == num_kept
    run_here(tiny_folder, tmp_path, method="seas")
    with store_of(tmp_path / "run") as store:
        assert {name: store.block(name) for name in before} == before
        seeds = Counter(item.seed_id for item in said_in(store, ["1", "2"]).log.tuples)
    assert set(seeds.values()) == {9}
    assert len(seeds) == 12
    assert contents(tmp_path / "run") == contents(finished.path)


# Its tuples, for others


def test_a_runs_tuples_become_a_log_and_both_sides_pairs(finished, capsys) -> None:
    assert run(["pairs", str(finished.path), "--dry-run"]) == 0
    assert "tuples.jsonl: 108 tuples of 12 seeds and 36 attacks" in capsys.readouterr().out
    assert not (finished.path / "tuples.jsonl").exists()
    assert run(["pairs", str(finished.path), "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)
    log = read_tuples(finished.path / "tuples.jsonl")
    with store_of(finished.path) as store:
        assert log.tuples == said_in(store, ["1", "2"], threshold=0.02).log.tuples
    assert counts["verdicts"] == dict(log.verdicts)
    assert sum(counts["verdicts"].values()) == 108
    learned = [read_member(finished.path / f"population/red_0{k}").lineage["pairs"]["seeds"]["used"] for k in (2, 3)]
    assert counts["red"]["pairs"] == sum(learned)
    assert run(["pairs", str(finished.path)]) == 1
    assert "is there" in capsys.readouterr().err
    assert run(["pairs", str(finished.path), "--iteration", "2"]) == 0  # beside the log of all stages
    assert "tuples-2.jsonl: 54 tuples of 6 seeds and 18 attacks" in capsys.readouterr().out
    assert len(read_tuples(finished.path / "tuples-2.jsonl").tuples) == 54
    assert len(read_pairs(finished.path / "tuples-2-red-pairs.jsonl")) == learned[1]
    assert run(["pairs", str(finished.path), "--dry-run", "--iteration", "3"]) == 1
    assert "the attack stage of iteration 3" in capsys.readouterr().err
    assert run(["pairs", str(finished.path / "tuples.jsonl"), "--dry-run", "--iteration", "1"]) == 1
    assert "directory of a run" in capsys.readouterr().err


def test_a_folder_without_attack_stages_is_no_log(tiny_folder: Path, tmp_path: Path, capsys) -> None:
    assert run(["pairs", str(tmp_path)]) == 1
    assert "expected a run directory" in capsys.readouterr().err
