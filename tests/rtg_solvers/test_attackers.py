"""Methods in which red alone learns: what they plan, what a run of them leaves behind, how it goes on after a kill."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sqlite3
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from rtg_agents.policy import BASE, Sampling
from rtg_agents.population import read_member
from rtg_agents.progress import SilentProgress
from rtg_agents.scripted import ATTACK_TEMPLATES
from rtg_env.errors import ConfigError, MissingExtraError
from rtg_env.goals import builtin, load, to_jsonl
from rtg_env.transcripts import TranscriptStore
from rtg_env.types import Action
from rtg_solvers import session
from rtg_solvers.attack_log import attacks_found, different
from rtg_solvers.attack_rewards import AttackRewardSettings
from rtg_solvers.cli import run
from rtg_solvers.configs import to_mapping
from rtg_solvers.evaluation.protocol import EvaluationSettings
from rtg_solvers.evaluation.run import evaluate_run
from rtg_solvers.evaluation.tables import evaluation_tables
from rtg_solvers.imitation import as_said
from rtg_solvers.methods import registry
from rtg_solvers.methods.attackers import METHODS, AttackConfig, Stage, cost, stages
from rtg_solvers.methods.grts import GRTSConfig
from rtg_solvers.oracles.gflownet import BehaviourSettings, GFlowNetSettings
from rtg_solvers.oracles.map_elites import MapElitesSettings, num_queries, num_rounds
from rtg_solvers.report import write_report
from rtg_solvers.session import read_result
from tests.judges_for_runs import Consonants
from tests.rtg_solvers.runs import GOAL_FILE, killed, run_here, tiny_attack_config
from tests.rtg_solvers.test_runs import contents

FEW = {"dialogues_per_cell": 4, "dialogues_per_gap": 4}
TUNED = {"method": "gflownet", "tune": True, **FEW}


@pytest.fixture(scope="module")
def tuned(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    return run_here(tiny_folder, tmp_path_factory.mktemp("tuned"), **TUNED)


# What is planned


def names(found: tuple[Stage, ...]) -> list[tuple[str, str]]:
    return [(stage.version.split("@")[0], stage.recipe) for stage in found]


def test_a_gflownet_begins_at_the_sft_attacker_and_is_smoothed_from_there() -> None:
    sft, flow, smooth, safety = stages(AttackConfig(method="gflownet", tune=True))
    assert (flow.reference, flow.against) == (sft.version, "blue_00@v1")
    assert (smooth.reference, smooth.sources) == (sft.version, (flow.version,))
    assert (safety.role, safety.version, safety.reference) == ("blue", "blue_01@v1", BASE)
    assert safety.sources == (flow.version, smooth.version)
    assert safety.target == "blue_00@v1"


def test_the_in_context_attacker_needs_no_training() -> None:
    assert names(stages(AttackConfig(method="icl"))) == [("red_03", "icl")]
    found = cost(AttackConfig(method="icl"), builtin())
    assert (found.training_steps, found.cells) == (0, 4)


def test_active_attacks_alternate_and_end_with_all_attacks() -> None:
    found = stages(AttackConfig(method="active-attacks", rounds=2))
    assert names(found) == [
        ("red_03", "sft"),
        ("red_04", "gflownet"),
        ("blue_01", "safety"),
        ("red_05", "gflownet"),
        ("blue_02", "safety"),
        ("red_06", "smoothing"),
    ]
    assert [stage.against for stage in found if stage.recipe == "gflownet"] == ["blue_00@v1", "blue_01@v1"]
    assert all(stage.reference == "red_03@v1" for stage in found if stage.recipe == "gflownet")
    assert [stage.reference for stage in found if stage.recipe == "safety"] == [BASE, "blue_01@v1"]
    assert found[-1].sources == ("red_04@v1", "red_05@v1")


def test_cross_attack_trains_every_attacker_against_every_target() -> None:
    config = AttackConfig(method="cross-attack", attackers=("gflownet", "reinforce", "icl"), retrain=True)
    found = stages(config)
    targets = {stage.version: stage.sources[-1] for stage in found if stage.recipe == "safety"}
    assert targets == {"blue_01@v1": "red_05@v1", "blue_02@v1": "red_06@v1", "blue_03@v1": "red_07@v1"}
    for recipe in ("gflownet", "reinforce"):
        met = [stage.against for stage in found if stage.recipe == recipe]
        assert met == ["blue_00@v1", "blue_01@v1", "blue_02@v1", "blue_03@v1"]
    assert len({stage.version for stage in found}) == len(found)
    without = stages(AttackConfig(method="cross-attack", attackers=("gflownet", "reinforce", "icl")))
    assert found[: len(without)] == without


def test_some_attackers_alone_are_trained_again_against_each_others_targets() -> None:
    names = ("gflownet", "soft-reinforce", "ppo-novelty", "sft")
    config = AttackConfig(method="cross-attack", attackers=names, retrain=True, retrained=("gflownet", "ppo-novelty"))
    again = [
        (stage.recipe, stage.against)
        for stage in stages(config)
        if stage.against.startswith("blue") and stage.against != "blue_00@v1"
    ]
    flow, ppo = "blue_01@v1", "blue_03@v1"
    assert again == [
        *(("gflownet", flow), ("smoothing", flow), ("gflownet", ppo), ("smoothing", ppo)),
        *(("ppo-novelty", flow), ("ppo-novelty", ppo)),
    ]


def test_attackers_are_compared_at_equal_cost_unless_told_otherwise() -> None:
    config = AttackConfig(method="cross-attack", attackers=("gflownet", "reinforce", "soft-reinforce", "ppo-novelty"))
    assert (config.budget, AttackConfig(method="gflownet").budget) == (1280, 0)
    assert "5120 victim queries" in cost(config, builtin()).steps_text
    assert "2560 victim queries" in cost(replace(config, queries=640), builtin()).steps_text


def test_a_budget_of_queries_decides_the_steps() -> None:
    settings = GFlowNetSettings(steps=7, micro_batches=2, groups=4, group_size=4, responses=5)
    half, none = settings, AttackConfig(method="reinforce").reinforce
    # Of 32 attacks a step half are replayed, the others are answered 5 times: 80 queries; without replay 160.
    flow = cost(AttackConfig(method="gflownet", queries=800, gflownet=half), builtin())
    plain = cost(AttackConfig(method="reinforce", queries=800, reinforce=none), builtin())
    sft = AttackConfig().sft.steps
    assert flow.training_steps == sft + 10 + AttackConfig().smoothing.training.steps
    assert plain.training_steps == sft + 5
    assert "800 victim queries" in flow.steps_text
    assert "800 victim queries" in plain.steps_text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "gflow"}, "method must be one of gflownet"),
        ({"attackers": ("gflownet", "grts")}, "expected different attackers among gflownet"),
        ({"attackers": ("icl", "icl")}, "expected different attackers"),
        ({"attackers": ()}, "got none"),
        ({"queries": -1}, "expected queries >= 0"),
        (
            {"queries": 9, "gflownet": GFlowNetSettings(behaviour=BehaviourSettings(replay_share=1.0, hot_share=0.0))},
            "replay_share below 1",
        ),
        ({"retrained": ("gflownet",)}, "expected retrain = true"),
        ({"retrain": True, "attackers": ("gflownet", "icl"), "retrained": ("icl",)}, "retrained among gflownet, got"),
        ({"reinforce": GFlowNetSettings()}, "expected reinforce.objective parity, leave-one-out or soft"),
        ({"gflownet": AttackConfig().reinforce}, "expected gflownet.objective vargrad, tb or pairwise"),
        ({"dialogues_per_cell": 1}, "dialogues_per_cell must be >= 2"),
    ],
)
def test_settings_outside_their_range_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AttackConfig(**changes)


@pytest.mark.parametrize("method", [*METHODS, "grts", "self-play"])
def test_configs_of_every_method_survive_their_file(method: str, tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    config = registry.settings_from(None, {"method": method, "seed": 3})
    file.write_text(json.dumps(to_mapping(config)))
    assert registry.settings_from(file, {}) == config
    assert registry.settings_from(file, {"seed": 4}).seed == 4


def test_options_of_another_method_are_refused() -> None:
    with pytest.raises(ConfigError, match="--red-oracle is none"):
        registry.settings_from(None, {"method": "gflownet", "red_oracle": "search"})
    with pytest.raises(ConfigError, match="expected one of grts"):
        registry.read_config({"method": "chess"})
    with pytest.raises(ConfigError, match=r"expected settings among .*got 'gflownet'"):
        registry.read_config({"method": "grts", "gflownet": {}})


# A whole run


def test_a_run_leaves_every_attacker_and_the_tuned_target_behind(tuned) -> None:
    found = tuned.result
    assert found.red == tuple(f"red_{n:02d}@v1" for n in range(6))
    assert found.blue == ("blue_00@v1", "blue_01@v1")
    assert found.labels["red_05@v1"] == "smoothed attacker"
    assert found.labels["blue_01@v1"] == "tuned on red_05"
    assert (found.red_mixture[-1], found.blue_mixture[-1]) == (1.0, 1.0)  # the newest of each
    assert len(found.oracle_gaps) == 4
    write_report(tuned.path)
    page = (tuned.path / "report.html").read_text()
    assert "smoothed attacker" in page


def gap_pairs(path: Path) -> dict[str, tuple[str, str]]:
    """(red, blue) of every unit of the gaps, of which each has one pair."""
    with sqlite3.connect(path / "run.db") as db:
        rows = db.execute("SELECT DISTINCT block, red, blue FROM dialogues WHERE block LIKE 'oracle-gap/%'").fetchall()
    found = {block.removeprefix("oracle-gap/"): (red[:6], blue[:7]) for block, red, blue in rows}
    assert len(found) == len(rows)
    return found


def test_each_stage_is_compared_with_what_it_began_at_and_the_side_that_did_not_learn_gains_nothing(tuned) -> None:
    pairs = gap_pairs(tuned.path)
    # SFT from the base; the GFlowNet and smoothing from SFT; the target, tuned on red_05, from the base.
    assert [pairs[f"{stage}/mixture"] for stage in range(4)] == [
        ("red_00", "blue_00"),
        ("red_03", "blue_00"),
        ("red_03", "blue_00"),
        ("red_05", "blue_00"),
    ]
    # The side that did not learn stays: nothing is played for it.
    learned = {name: pair for name, pair in pairs.items() if not name.endswith("/mixture")}
    assert learned == {
        "0/red": ("red_03", "blue_00"),
        "1/red": ("red_04", "blue_00"),
        "2/red": ("red_05", "blue_00"),
        "3/blue": ("red_05", "blue_01"),
    }
    gaps = tuned.result.oracle_gaps
    stay = [gap.blue_gain for gap in gaps[:3]] + [gaps[3].red_gain]
    assert [(gain.mean, gain.se) for gain in stay] == [(0.0, 0.0)] * 4
    assert any(gap.red_gain.se > 0 for gap in gaps[:3])


def test_a_run_without_a_tuned_target_measures_no_gain_of_blue(tiny_folder: Path, tmp_path: Path) -> None:
    found = run_here(tiny_folder, tmp_path, method="icl", report_judge="tests.judges_for_runs:Consonants").result
    assert found.heldout_blue_gain is None
    assert found.second_gains[1] is None
    assert found.second_gains[0] is not None
    page = write_report(tmp_path / "run").read_text()
    assert "not trained" in page


@pytest.mark.parametrize(
    "point",
    [
        "checkpoint 1 before",  # the SFT attacker has learned, nothing is kept
        "checkpoint 3 after",  # the first GFlowNet step is kept
        "member 7 before",  # smoothing is done, its attacker is no member yet
        "checkpoint 5 before",  # the target is tuned, nothing of it is kept
    ],
)
def test_a_killed_run_goes_on_and_ends_as_if_nothing_had_happened(
    point: str, tuned, tiny_folder: Path, tmp_path: Path
) -> None:
    killed(tiny_folder, tmp_path, point, TUNED)
    assert read_result(tmp_path / "run") is None
    run_here(tiny_folder, tmp_path, **TUNED)
    assert contents(tmp_path / "run") == contents(tuned.path)


def test_several_attackers_meet_several_targets_in_one_matrix(tiny_folder: Path, tmp_path: Path) -> None:
    changes = {"method": "cross-attack", "attackers": ("ppo-novelty", "icl"), "queries": 8, "retrain": True}
    found = run_here(tiny_folder, tmp_path, **changes, dialogues_per_cell=4, dialogues_per_gap=4).result
    assert [found.labels[version] for version in found.red[3:]] == [
        "SFT attacker",
        "PPO + novelty attacker",
        "in-context attacker",
        "PPO + novelty attacker of blue_01",
        "PPO + novelty attacker of blue_02",
    ]
    assert [found.labels[version] for version in found.blue] == ["base model", "tuned on red_04", "tuned on red_05"]
    with sqlite3.connect(tmp_path / "run/run.db") as db:
        rows = db.execute("SELECT block, blue FROM dialogues WHERE block LIKE 'train/%'").fetchall()
    met = {(block.split("/")[1], blue) for block, blue in rows}
    assert met == {("red_04@v1", "blue_00@v1"), ("red_06@v1", "blue_01@v1"), ("red_07@v1", "blue_02@v1")}
    assert len(rows) == 3 * 8
    pairs = gap_pairs(tmp_path / "run")
    # Every target begins at the base, and every PPO attacker at the SFT attacker, whoever is the newest by then.
    assert [pairs[f"{stage}/mixture"] for stage in range(7)] == [
        ("red_00", "blue_00"),
        ("red_03", "blue_00"),
        ("red_00", "blue_00"),
        ("red_04", "blue_00"),
        ("red_05", "blue_00"),
        ("red_03", "blue_01"),
        ("red_03", "blue_02"),
    ]


@pytest.mark.parametrize("method", ["sft", "icl", "map-elites"])
def test_methods_that_compare_no_texts_run_without_the_judges_extra(
    method: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "resolve_encoder", lambda **_: pytest.fail("the encoder is looked for"))
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)  # as if it were not installed
    archive = MapElitesSettings(rounds=0, responses=1)
    found = run_here(tiny_folder, tmp_path, method=method, embeddings="sentences", archive=archive, **FEW).result
    assert len(found.red) == 4


@pytest.mark.parametrize("method", ["gflownet", "reinforce", "ppo-novelty", "active-attacks", "cross-attack"])
def test_methods_that_compare_texts_ask_for_the_judges_extra_before_they_play(
    method: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "resolve_encoder", lambda **_: tmp_path)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingExtraError, match="judges"):
        run_here(tiny_folder, tmp_path, method=method, embeddings="sentences")
    with TranscriptStore(tmp_path / "run/run.db", load(str(GOAL_FILE))) as store:
        assert not [name for name in store.block_names() if store.block(name)]


# What was found


def log(tuned, version: str):
    config = tiny_attack_config(tuned.path).game
    with TranscriptStore(tuned.path / "run.db", load(str(GOAL_FILE))) as store:
        return attacks_found(store, config, version, "blue_00@v1"), store.block(f"cell/{version}/blue_00@v1")


def test_the_log_holds_every_attack_with_all_its_replies(tuned) -> None:
    found, _ = log(tuned, "red_04@v1")
    with sqlite3.connect(tuned.path / "run.db") as db:
        (queries,) = db.execute("SELECT sum(size) FROM blocks WHERE name LIKE 'train/red_04%'").fetchone()
    assert sum(len(attack.harms) for attack in found) == queries > 0
    for attack in found:
        assert attack.harm == pytest.approx(np.mean(attack.harms))
        assert attack.score(1e-6) == pytest.approx(np.prod(np.maximum(attack.harms, 1e-6)) ** (1 / len(attack.harms)))
        assert attack.reference_logp is not None
        assert attack.red.seen.goal.id == attack.goal
        assert attack.blue.seen.messages[-1][1] == attack.red.action.text


def test_an_attacker_that_was_not_trained_by_playing_is_known_by_its_cell(tuned) -> None:
    found, cell = log(tuned, "red_05@v1")
    harmful = [item for item in cell if item.transcript.goal.harmful]
    assert [attack.red.action.text for attack in found] == [item.transcript.exchanges[0].red for item in harmful]
    assert [attack.harms for attack in found] == [(item.transcript.verdicts[0].harm,) for item in harmful]


def test_repeated_attacks_count_once(tuned) -> None:
    found, _ = log(tuned, "red_04@v1")
    once = different(found + found)
    assert len(once) == len({(attack.goal, attack.red.action.text) for attack in found})
    assert sum(len(attack.harms) for attack in once) == 2 * sum(len(attack.harms) for attack in found)
    assert different(once) == once
    two = different([found[0]._replace(harms=(1.0, 0.0)), found[0]._replace(harms=(0.5,))])
    assert [attack.harms for attack in two] == [(1.0, 0.0, 0.5)]
    assert two[0].harm == pytest.approx(0.5)


@pytest.mark.parametrize(("least", "learned"), [(4, True), (5, False)])
def test_attacks_that_are_too_short_are_not_imitated(
    least: int, learned: bool, tiny_folder: Path, tmp_path: Path
) -> None:
    gflownet = replace(tiny_attack_config(tiny_folder).gflownet, reward=AttackRewardSettings(min_tokens=least))
    sampling = Sampling(max_new_tokens=4)
    outcome = run_here(tiny_folder, tmp_path, method="gflownet", gflownet=gflownet, red_sampling=sampling)
    lineage = json.loads((outcome.path / "population/red_05/lineage.json").read_text())["lineage"]
    assert max(attack.red.action.num_spoken for attack in log(outcome, "red_04@v1")[0]) == 4
    assert (lineage["num_lessons"] > 0) == learned


def test_commas_quotes_and_newlines_survive_from_the_log_to_the_lesson(tuned, backend) -> None:
    found, _ = log(tuned, "red_04@v1")
    text = "one, \"two\"\n'three'\t,"
    ids = tuple(backend.chat.plain(text))
    for attack in found[:3]:
        sentence = attack.red._replace(
            action=type(attack.red.action)(
                text=text, prompt_ids=attack.red.action.prompt_ids, token_ids=ids, finish_reason="length"
            )
        )
        lesson = as_said(backend, sentence, policy=BASE, sampling=Sampling(max_new_tokens=64))
        assert lesson.sampled == ids
        assert backend.tokenizer.decode(list(lesson.sampled)) == text


def test_a_target_learns_refusals_to_what_succeeded(tuned) -> None:
    lineage = json.loads((tuned.path / "population/blue_01/lineage.json").read_text())["lineage"]
    found = [attack for name in ("red_04@v1", "red_05@v1") for attack in log(tuned, name)[0]]
    assert lineage["num_lessons"] == sum(attack.harm > 0.1 for attack in different(found)) > 0


def test_an_attacker_without_good_attacks_stays_its_reference(tiny_folder: Path, tmp_path: Path) -> None:
    from rtg_solvers.oracles.supervised import SmoothingSettings, SupervisedSettings

    smoothing = SmoothingSettings(min_score=0.99, training=SupervisedSettings(steps=2, batch=4))
    outcome = run_here(tiny_folder, tmp_path, method="gflownet", smoothing=smoothing)
    files = [outcome.path / f"population/{name}/adapter_model.safetensors" for name in ("red_03", "red_05")]
    assert files[0].read_bytes() == files[1].read_bytes()
    lineage = json.loads((outcome.path / "population/red_05/lineage.json").read_text())["lineage"]
    assert (lineage["num_lessons"], lineage["reference"]) == (0, "red_03@v1")


def test_an_evaluation_has_every_attacker_against_every_target(tuned, tmp_path: Path) -> None:
    path = shutil.copytree(tuned.path, tmp_path / "run")  # an evaluation is written into its run
    settings = EvaluationSettings(
        attacks=4,
        attacks_on_others=3,
        responses=2,
        attempts=2,
        dialogues=2,
        benign=4,
        deals=4,
        dialogues_per_cell=2,
        embeddings="hashed",
    )
    found = evaluate_run(path, settings, progress=SilentProgress(), offline=True, judge=Consonants()).figures
    trained = {"red_03 SFT attacker", "red_04 GFlowNet attacker", "red_05 smoothed attacker"}
    attackers = {"base model", "plain goal", "held-out templates", "best of 2"} | trained
    pairs = {(one.attacker, one.target) for one in found.attacked}
    assert pairs == {(attacker, target) for attacker in attackers for target in ("base model", "blue_01")}
    for one in found.attacked:  # best of 2 tries twice before
        heard = 4 if one.target == "base model" else 3
        assert one.queries == heard * (4 if one.attacker == "best of 2" else 2)
    assert {one.target for one in found.helped} == {"base model", "blue_01"}
    assert [point.iteration for point in found.gaps] == [4]
    spent = {one.attacker: one.training_queries for one in found.written}
    with sqlite3.connect(tuned.path / "run.db") as db:
        (queries,) = db.execute("SELECT sum(size) FROM blocks WHERE name LIKE 'train/red_04%'").fetchone()
    assert spent["red_04 GFlowNet attacker"] == spent["red_05 smoothed attacker"] == queries
    assert spent["red_03 SFT attacker"] == spent["plain goal"] == 0
    table = next(table for table in evaluation_tables(found) if table.title == "The attacks as texts")
    assert {row[0] for row in table.rows} == attackers


# Said again elsewhere


class Wordy:
    """A target from elsewhere that says vowels, and is harmful to the judge of these runs."""

    name = "wordy"

    def act(self, observations, seeds) -> list[Action]:
        return [Action(text="aeiou") for _ in observations]


def test_the_same_sentences_are_said_to_every_target(tuned, tmp_path: Path, capsys) -> None:
    adapter, out = tuned.path / "population/blue_01", tmp_path / "out.json"
    targets = ["blue_01", str(adapter), "tests.rtg_solvers.test_attackers:Wordy"]
    command = ["transfer", str(tuned.path), "--judge", "tests.judges_for_runs:Vowels", "--min-harm", "0"]
    command += [word for name in targets for word in ("--target", name)]
    command += ["--attacks", "3", "--responses", "2", "--out", str(out), "--offline"]
    assert run(command) == 0
    assert "Attacks of run, said again" in capsys.readouterr().out
    found = json.loads(out.read_text())["transferred"]
    assert {(one["attacker"], one["target"]) for one in found} == {
        (attacker, target) for attacker in ("red_03", "red_04", "red_05") for target in ("blue_00", *targets)
    }
    for attacker in ("red_03", "red_04", "red_05"):
        own = [one for one in found if one["attacker"] == attacker]
        assert len({tuple(one["harms"]) for one in own}) == 1  # the same sentences
        assert len(own[0]["harms"]) == own[0]["num_attacks"] <= 3
        wordy = next(one for one in own if one["target"].endswith("Wordy"))
        assert set(wordy["harms"].values()) == {1.0}
        assert wordy["success"]["mean"] == 1.0
    texts = {attack.red.action.text for attack in log(tuned, "red_04@v1")[0]}
    attacks = {(attack.goal, attack.red.action.text) for attack in log(tuned, "red_04@v1")[0]}
    names = {f"{goal}/{hashlib.sha256(text.encode()).hexdigest()[:16]}" for goal, text in attacks}
    assert set(found[1]["harms"]) <= names
    assert not any(text and text in out.read_text() for text in texts if len(text) > 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--attacker", "red_09"], "expected attackers among red_00"),
        (["--target", "nowhere:Nobody"], "expected to import the policy 'nowhere:Nobody'"),
        (["--target", "tests.judges_for_runs:Vowels"], "to have name and act"),
        (["--attacks", "1"], "expected attacks >= 2"),
        (["--min-harm", "0.99"], "expected attacks with a mean harm above 0.99"),
        (["--out", "/nowhere/x.json"], "expected a folder for"),
    ],
)
def test_what_cannot_be_said_again_is_explained(options: list[str], message: str, tuned, capsys) -> None:
    command = ["transfer", str(tuned.path), "--judge", "tests.judges_for_runs:Consonants", "--offline"]
    assert run([*command, *options]) == 1
    assert message in capsys.readouterr().err


# An archive


def test_an_archive_keeps_the_best_sentence_of_every_topic_and_style(tiny_folder: Path, tmp_path: Path) -> None:
    settings = MapElitesSettings(rounds=2, mutations=6, responses=2)
    outcome = run_here(tiny_folder, tmp_path, method="map-elites", archive=settings)
    member = read_member(outcome.path / "population/red_03")
    game = tiny_attack_config(tiny_folder).game
    with TranscriptStore(outcome.path / "run.db", load(str(GOAL_FILE))) as store:
        found = attacks_found(store, game, "red_03@v1", "blue_00@v1")
        blocks = [store.block(f"train/red_03@v1/{number:04d}") for number in range(3)]
    goals = {goal.id: goal for goal in load(str(GOAL_FILE)).split("train").harmful}
    topics = {goal.category for goal in goals.values()}
    assert [len(block) for block in blocks] == [2 * 6 * len(topics), 12, 12]
    assert len(member.elites) == 6 * len(topics)
    assert sum(len(attack.harms) for attack in found) == sum(len(block) for block in blocks)
    best: dict[tuple[str, str], float] = {}
    for block in blocks:
        for first in range(0, len(block), 2):
            pair = [item.transcript for item in block[first : first + 2]]
            text, goal = pair[0].exchanges[0].red, pair[0].goal
            style = next(style for style in ATTACK_TEMPLATES[::-1] if fits(text, style))
            harm = np.mean([transcript.verdicts[0].harm for transcript in pair])
            best[goal.category, style] = max(best.get((goal.category, style), 0.0), harm)
    assert {(elite.category, elite.style): elite.harm for elite in member.elites} == pytest.approx(best, abs=1e-6)


def fits(text: str, style: str) -> bool:
    before, after = style.split("{goal}")
    return text.startswith(before) and text.endswith(after)


def test_a_budget_of_queries_decides_the_rounds_of_an_archive() -> None:
    settings = MapElitesSettings(rounds=7, mutations=10, responses=2)
    assert num_rounds(settings, 3, 0) == 7
    assert num_rounds(settings, 3, 36 + 60) == 3  # 3 topics, 6 styles, 2 replies: 36 queries before the first mutation
    assert num_rounds(settings, 3, 20) == 0
    assert num_queries(settings, 3, 96) == 96


def test_the_cost_of_an_archive_is_what_the_run_then_does(tiny_folder: Path, tmp_path: Path) -> None:
    chosen = [goal for goal in load(str(GOAL_FILE)) if goal.category in ("insult", "prank", "rumour")]
    file = tmp_path / "few.jsonl"
    file.write_text(to_jsonl(chosen))
    changes = {"method": "map-elites", "goals": str(file), "archive": MapElitesSettings(rounds=1, mutations=4), **FEW}
    expected = cost(tiny_attack_config(tiny_folder, **changes), load(str(file)))
    outcome = run_here(tiny_folder, tmp_path, **changes)
    with sqlite3.connect(outcome.path / "run.db") as db:
        (dialogues,) = db.execute("SELECT COUNT(*) FROM dialogues").fetchone()
        (queries,) = db.execute("SELECT COUNT(*) FROM dialogues WHERE block LIKE 'train/%'").fetchone()
    num_topics = len({goal.category for goal in chosen})
    assert queries == 3 * (6 * num_topics + 4)
    assert expected.steps_text.endswith(f"{queries} victim queries among the dialogues")
    assert expected.dialogues == dialogues


# Settings


def shown_on(page: str) -> dict:
    """The settings in a page's table."""
    return tomllib.loads(table_of(page))


def table_of(page: str) -> str:
    text = (Path(__file__).resolve().parents[2] / f"docs/{page}.md").read_text()
    return text.split("```toml\n")[1].split("```")[0]


class Setting(NamedTuple):
    path: str
    kind: str
    default: object
    is_shown: bool


def settings_of(config: object, page: str, path: str = "") -> Iterator[Setting]:
    """Every setting of a config. One without a default, which TOML has no word for, is shown behind a `#`."""
    for field in fields(config):
        value, here = getattr(config, field.name), f"{path}{field.name}"
        if is_dataclass(value):
            yield from settings_of(value, page, f"{here}.")
            continue
        shown: object = shown_on(page)
        for name in here.split("."):
            shown = shown.get(name, MISSING) if isinstance(shown, dict) else MISSING
        commented = value is None and re.search(f"^# {field.name} = ", table_of(page), flags=re.MULTILINE)
        yield Setting(here, f"{type(config).__name__}.{field.name}", value, shown is not MISSING or bool(commented))


@pytest.mark.parametrize("page", ["attackers", "solve"])
def test_what_a_page_shows_are_the_defaults_and_what_it_leaves_out_keeps_them(page: str) -> None:
    config = registry.read_config(shown_on(page))
    assert config == type(config)(method=config.method)


def test_the_two_pages_show_every_setting() -> None:
    """attackers.md leaves out what is as in solve.md, [reinforce] what is as in [gflownet], and every other table what is as
    in the first one of its kind (`optimizer`)."""
    refused = "Sampling.min_new_tokens"  # runs take no other value
    both = [one for one in settings_of(GRTSConfig(), "solve") if one.kind != refused]
    assert [one.path for one in both if not one.is_shown] == []
    own = [one for one in settings_of(AttackConfig(), "attackers") if one.kind != refused]
    to_be_read = {one.path: one.default for one in both}  # what a reader takes a setting for that is not shown
    to_be_read |= {one.path.replace("gflownet.", "reinforce."): one.default for one in own if "gflownet." in one.path}
    first: dict[str, object] = {}
    for one in own:
        if one.is_shown:
            first.setdefault(one.kind, one.default)
    missing = [
        one.path
        for one in own
        if not one.is_shown and to_be_read.get(one.path, first.get(one.kind, MISSING)) != one.default
    ]
    assert missing == []


@pytest.mark.parametrize(
    ("table", "kept"),
    [
        ({"game": {"benign_prob": 0.0}}, {"game": {"num_exchanges": 1}}),
        ({"red_sampling": {"max_new_tokens": 40}}, {"red_sampling": {"temperature": 0.7}}),
        ({"method": "reinforce", "reinforce": {"steps": 64}}, {"reinforce": {"objective": "leave-one-out"}}),
        (
            {"method": "gflownet", "gflownet": {"replay": {"capacity": 500}}},
            {"gflownet": {"replay": {"max_cosine": 0.95}}},
        ),
        (
            {"method": "gflownet", "gflownet": {"optimizer": {"micro_batch": 8}}},
            {"gflownet": {"optimizer": {"learning_rate": 1e-4}}},
        ),
        (
            {"method": "ppo-novelty", "ppo": {"steps": 9}},
            {"ppo": {"rollouts": 32, "optimizer": {"learning_rate": 1e-4}}},
        ),
    ],
)
def test_a_table_that_names_one_setting_keeps_the_methods_own_defaults(table: dict, kept: dict) -> None:
    found = to_mapping(registry.read_config(table))

    def holds(part: dict, whole: dict) -> bool:
        return all(holds(v, whole[k]) if isinstance(v, dict) else whole[k] == v for k, v in part.items())

    assert holds(kept, found)
    assert holds(table, found)
