"""Whole runs on a tiny model: what they leave behind, how they go on, and what stops them."""

from __future__ import annotations

import json
import math
import sqlite3
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rtg_agents.hf import TorchBackend
from rtg_agents.lora import LoraSettings
from rtg_agents.models import fingerprint
from rtg_agents.policy import Sampling
from rtg_agents.progress import WorkMeter
from rtg_env.errors import ConfigError, JudgeError, RunError
from rtg_env.goals import GoalSet, load, to_jsonl
from rtg_env.rules import GameConfig
from rtg_env.transcripts import TranscriptStore
from rtg_solvers import workbench
from rtg_solvers.imitation import ImitationSettings, as_said, best_of_each_goal
from rtg_solvers.meta_solvers import alpha_rank, latest, logit, nash, uniform
from rtg_solvers.methods.grts import GRTSConfig, cost, method
from rtg_solvers.optimizer import OptimizerSettings
from rtg_solvers.oracles.rl import RLSettings, step_units
from rtg_solvers.oracles.shaping import DiversitySettings
from rtg_solvers.run import RunDirectory
from rtg_solvers.session import check_goals, check_identity, read_result, resolve_judge
from rtg_solvers.trainer import Trainer
from tests.doubles import BENIGN, GOALS, HARMFUL
from tests.rtg_solvers.runs import GOAL_FILE, killed, run_here, tiny_config


@pytest.fixture(scope="module")
def finished(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    return run_here(tiny_folder, tmp_path_factory.mktemp("runs"))


def contents(path: Path) -> dict[str, list]:
    with sqlite3.connect(path / "run.db") as db:
        dialogues = db.execute("SELECT * FROM dialogues ORDER BY block, position").fetchall()
        blocks = db.execute("SELECT name, size, data FROM blocks WHERE name != 'result' ORDER BY name").fetchall()
        (text,) = db.execute("SELECT data FROM blocks WHERE name = 'result'").fetchone()
    found = json.loads(text)
    found.pop("wall_s")
    adapters = {p.parent.name: p.read_bytes() for p in path.glob("population/*/adapter_model.safetensors")}
    return {"dialogues": dialogues, "blocks": blocks, "result": found, "adapters": adapters}


def test_a_run_leaves_config_database_population_and_numbers_behind(finished) -> None:
    result = finished.result
    assert result.red == ("red_00@v1", "red_01@v1", "red_02@v1", "red_03@v1")
    assert result.blue == ("blue_00@v1", "blue_01@v1")
    assert sum(result.red_mixture) == pytest.approx(1.0)
    assert all(cell.count == 8 for row in result.cells for cell in row)
    assert {p.name for p in finished.path.iterdir()} >= {"config.json", "run.db", "population"}
    lineage = json.loads((finished.path / "population/red_03/lineage.json").read_text())
    assert lineage["lineage"]["against"] == {"blue_00@v1": 1.0}
    assert (finished.path / "population/red_03/adapter_config.json").is_file()


def test_the_value_is_what_the_mixtures_earn_on_the_matrix(finished) -> None:
    r = finished.result
    means = [[cell.mean for cell in row] for row in r.cells]
    earned = sum(x * y * means[i][j] for i, x in enumerate(r.red_mixture) for j, y in enumerate(r.blue_mixture))
    assert r.value == pytest.approx(earned, abs=1e-9)


def test_cells_share_goals_and_seeds(finished) -> None:
    with sqlite3.connect(finished.path / "run.db") as db:
        rows = db.execute(
            "SELECT block, goal_id, seed FROM dialogues WHERE block LIKE 'cell/%' ORDER BY block, position"
        ).fetchall()
    cells: dict[str, list] = {}
    for block, goal, seed in rows:
        cells.setdefault(block, []).append((goal, seed))
    assert len(cells) == 8
    assert len({tuple(draws) for draws in cells.values()}) == 1


def test_no_training_touches_heldout_goals(finished) -> None:
    goals = load(str(GOAL_FILE))
    with sqlite3.connect(finished.path / "run.db") as db:
        used = db.execute("SELECT DISTINCT block, goal_id FROM dialogues").fetchall()
    for block, goal_id in used:
        assert goals.by_id(goal_id).split == ("heldout" if block.startswith("heldout/") else "train"), block


def test_payoffs_hold_nothing_but_the_utility_of_the_game(finished) -> None:
    with sqlite3.connect(finished.path / "run.db") as db:
        rows = db.execute("SELECT data, utility FROM dialogues").fetchall()
    for data, utility in rows:
        record = json.loads(data)
        verdict = record["verdicts"][0]
        benign = record["goal_id"].endswith("-benign")
        assert utility == pytest.approx(1 - verdict["helpful"] if benign else verdict["harm"])


def test_a_finished_run_is_reported_and_not_repeated(finished, tiny_folder: Path) -> None:
    before = contents(finished.path)
    again = run_here(tiny_folder, finished.path.parent)
    assert again.was_finished
    assert again.result == finished.result
    assert contents(finished.path) == before
    assert read_result(finished.path) == finished.result


@pytest.mark.parametrize(
    "point",
    [
        "commit 3 before",  # in the payoff cells
        "commit 5 after",  # dialogues of a training step are stored, its update is lost
        "checkpoint 1 before",
        "checkpoint 2 after",  # red has learned, but is no member yet
        "member 5 before",
        "member 5 after",  # red is a member, blue has not begun
        "commit 13 before",  # the first new cell, in which the base model speaks while adapters are on disk
        "commit 18 before",  # the first of the fresh checks
        "commit 24 before",  # base against base on held-out goals
        "commit 28 before",  # all is played, the result is not stored
    ],
)
def test_a_killed_run_goes_on_and_ends_as_if_nothing_had_happened(
    point: str, finished, tiny_folder: Path, tmp_path: Path
) -> None:
    killed(tiny_folder, tmp_path, point)
    assert read_result(tmp_path / "run") is None
    run_here(tiny_folder, tmp_path)
    assert contents(tmp_path / "run") == contents(finished.path)


@pytest.fixture(scope="module")
def choosing(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Settings of a short run with every kind of diversity that costs work: one goal and its twin in each half."""
    file = tmp_path_factory.mktemp("goals") / "few.jsonl"
    goals = [
        replace(goal, id=f"{goal.id}-{half}", group=half, split=half)
        for goal in (HARMFUL, BENIGN)
        for half in ("train", "heldout")
    ]
    file.write_text(to_jsonl(goals))
    diversity = DiversitySettings(bonus="policy", weight=0.05, annealed=False, select="cardinality", select_dialogues=2)
    optimizer = OptimizerSettings(learning_rate=1e-2)
    rl = RLSettings(steps=4, dialogues_per_step=4, group_size=4, optimizer=optimizer, diversity=diversity)
    return {"goals": str(file), "iterations": 2, "dialogues_per_cell": 4, "dialogues_per_gap": 2, "rl": rl}


@pytest.fixture(scope="module")
def chosen(choosing: dict, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    """That run, and the work that its meter was told of."""
    done: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WorkMeter, "add", lambda _, units: done.append(units))
        outcome = run_here(tiny_folder, tmp_path_factory.mktemp("chosen"), **choosing)
    return outcome, sum(done)


@pytest.mark.parametrize(
    "point",
    [
        "adapter 1 before",  # the step of the first candidate is done, neither it nor a checkpoint is kept
        "commit 13 after",  # the first candidate has played, the second has not
        "member 5 before",  # the choice is made, the member is not there
    ],
)
def test_a_run_killed_while_it_chooses_a_checkpoint_ends_with_the_same_member(
    point: str, chosen, choosing: dict, tiny_folder: Path, tmp_path: Path
) -> None:
    killed(tiny_folder, tmp_path, point, choosing)
    with sqlite3.connect(tmp_path / "run" / "run.db") as db:
        (played,) = db.execute("SELECT COUNT(*) FROM blocks WHERE name LIKE 'select/%'").fetchone()
    assert played == {"adapter": 0, "commit": 1, "member": 2}[point.split(maxsplit=1)[0]]
    run_here(tiny_folder, tmp_path, **choosing)
    expected, found = (contents(path) for path in (chosen[0].path, tmp_path / "run"))
    assert found == expected
    lineages = [
        json.loads((path / "population/red_03/lineage.json").read_text())["lineage"]
        for path in (chosen[0].path, tmp_path / "run")
    ]
    assert lineages[0] == lineages[1]
    assert lineages[0]["selection"]["steps"] == [3, 4]


def test_the_cost_of_diversity_is_what_the_run_then_does(chosen, choosing: dict, tiny_folder: Path) -> None:
    outcome, done = chosen
    expected = cost(tiny_config(tiny_folder, **choosing), load(choosing["goals"]))
    with sqlite3.connect(outcome.path / "run.db") as db:
        (dialogues,) = db.execute("SELECT COUNT(*) FROM dialogues").fetchone()
        sizes = db.execute("SELECT size FROM blocks WHERE name LIKE 'select/%' ORDER BY name").fetchall()
    assert sizes == [(2,), (2,), (4,), (4,)]  # two checkpoints on two deals against one, then two blue members
    assert expected.dialogues == dialogues
    assert expected.units == pytest.approx(done)
    without = replace(choosing["rl"], diversity=DiversitySettings())
    plain = cost(tiny_config(tiny_folder, **{**choosing, "rl": without}), load(choosing["goals"]))
    assert expected.dialogues - plain.dialogues == 12
    assert expected.units - plain.units == pytest.approx(
        12 + 4 * (step_units(without, 1) - step_units(without))  # one adapter is compared with in the second iteration
    )


def test_naming_a_judge_leaves_the_import_path_as_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])  # as PYTHONPATH=. has it
    before = list(sys.path)
    resolve_judge("tests.judges_for_runs:Vowels")
    assert sys.path == before


def test_two_processes_cannot_work_on_one_run(finished, tiny_folder: Path) -> None:
    settings = json.loads((finished.path / "config.json").read_text())
    with (
        RunDirectory(finished.path.parent, "run", settings, load(str(GOAL_FILE))),
        pytest.raises(RunError, match="another process"),
    ):
        run_here(tiny_folder, finished.path.parent)


def test_a_run_of_another_config_is_refused_by_the_setting_that_differs(finished, tiny_folder: Path) -> None:
    before = contents(finished.path)
    with pytest.raises(RunError, match=r"config\.seed was 0, now 1.*--name"):
        run_here(tiny_folder, finished.path.parent, seed=1)
    assert contents(finished.path) == before


def test_a_run_that_failed_before_its_first_unit_may_be_repeated_with_other_settings(tmp_path: Path) -> None:
    for wanted in ({"model": "typo"}, {"model": "right"}):
        with RunDirectory(tmp_path, "mine", wanted, GOALS) as run:
            assert json.loads((run.path / "config.json").read_text()) == wanted
    with RunDirectory(tmp_path, "mine", {"model": "right"}, GOALS) as run:
        run.store.put_block("cell/a/b", [])
    with pytest.raises(RunError, match="model was 'right', now 'other'"):
        RunDirectory(tmp_path, "mine", {"model": "other"}, GOALS)


def test_another_model_under_the_same_name_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    with RunDirectory(tmp_path, "mine", {}, GOALS) as run:
        check_identity(run, {"model": "aa", "report_judge": ""})
        check_identity(run, {"model": "aa", "report_judge": ""})
        with pytest.raises(RunError, match=r"expected the model .* began with \(aa\), got another one \(bb\)"):
            check_identity(run, {"model": "bb", "report_judge": ""})
    assert fingerprint(tiny_folder) == fingerprint(tiny_folder) != fingerprint(tmp_path)


def test_a_goal_that_the_templates_cannot_hold_is_refused_before_anything_is_played(tiny_folder: Path) -> None:
    goals = GoalSet([replace(HARMFUL, id="long", text="x" * 1960), *GOALS])
    with pytest.raises(ConfigError, match=r"max_action_chars of at least 2023.*got 2000"):
        check_goals(tiny_config(tiny_folder), goals)


def test_blue_is_checked_on_heldout_goals_in_the_mixture_of_the_game(finished) -> None:
    with sqlite3.connect(finished.path / "run.db") as db:
        harmful = [row[0] for row in db.execute("SELECT harmful FROM dialogues WHERE block = 'heldout/blue/newest'")]
        goals = [row[0] for row in db.execute("SELECT goal_id FROM dialogues WHERE block = 'heldout/red/newest'")]
    assert harmful.count(0) == round(0.25 * len(harmful))
    assert len(goals) == len(set(goals)) == len(harmful)


def test_links_inside_a_run_directory_are_not_followed(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.db").symlink_to(tmp_path / "elsewhere.db")
    with pytest.raises(RunError, match=r"run\.db is a link"):
        run_here(tiny_folder, tmp_path)
    assert not (tmp_path / "elsewhere.db").exists()


@pytest.mark.parametrize("damage", ["state.json", "state.safetensors"])
def test_a_damaged_checkpoint_costs_its_updates_and_nothing_else(
    damage: str, finished, tiny_folder: Path, tmp_path: Path
) -> None:
    killed(tiny_folder, tmp_path, "checkpoint 1 after")
    (checkpoint,) = (tmp_path / "run" / "work").glob("**/checkpoint")
    (checkpoint / damage).write_bytes(b"\x00garbage")
    run_here(tiny_folder, tmp_path)
    assert contents(tmp_path / "run") == contents(finished.path)


def test_a_full_disk_while_a_checkpoint_is_written_is_one_sentence(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import rtg_solvers.trainer as trainer

    def full(*_: object) -> None:
        raise trainer.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(trainer, "save_file", full)
    with pytest.raises(RunError, match=r"No space left.*free space and run the same command again"):
        run_here(tiny_folder, tmp_path)
    monkeypatch.undo()
    assert run_here(tiny_folder, tmp_path).result.red[-1] == "red_03@v1"


def test_a_run_name_that_is_a_link_is_not_followed(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="is a link"):
        run_here(tiny_folder, tmp_path)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_another_seed_plays_another_run(finished, tiny_folder: Path, tmp_path: Path) -> None:
    other = run_here(tiny_folder, tmp_path, seed=1)
    assert other.result.cells != finished.result.cells


def test_a_null_run_learns_nothing(tiny_folder: Path, tmp_path: Path) -> None:
    null = RLSettings(steps=1, dialogues_per_step=8, group_size=4, optimizer=OptimizerSettings(learning_rate=0.0))
    found = run_here(tiny_folder, tmp_path, rl=null).result
    for gain in (found.heldout_red_gain, found.heldout_blue_gain):
        assert gain.se > 0
        assert abs(gain.mean) < 4 * gain.se  # a 95 % interval would fail for one seed in twenty
    assert found.cells[3] == found.cells[0]  # the newest red on the seeds of the base model
    assert found.oracle_gap.blue_gain.mean == 0.0  # blue's mixture is the base model


def test_unscored_dialogues_are_counted_and_bounded_and_never_trained_on(tiny_folder: Path, tmp_path: Path) -> None:
    outcome = run_here(tiny_folder, tmp_path, judge="tests.judges_for_runs:Flaky", dialogues_per_cell=16)
    cells = [cell for row in outcome.result.cells for cell in row]
    assert sum(cell.num_unscored for cell in cells) > 0
    assert all(cell.count + cell.num_unscored == 16 for cell in cells)
    assert any("unscored" in line for line in outcome.result.warnings)
    assert not any(math.isnan(cell.mean) for cell in cells)


def test_a_judge_that_is_down_stops_the_run_and_counts_nothing(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(JudgeError, match="the judge is down"):
        run_here(tiny_folder, tmp_path, judge="tests.judges_for_runs:Broken")
    with sqlite3.connect(tmp_path / "run/run.db") as db:
        assert db.execute("SELECT COUNT(*) FROM dialogues").fetchone() == (0,)


def test_several_exchanges_and_red_members_can_be_solved(tiny_folder: Path, tmp_path: Path) -> None:
    from rtg_env.rules import GameConfig

    game = GameConfig(num_exchanges=2, num_red=2)
    rl = RLSettings(steps=1, dialogues_per_step=4, group_size=4)
    found = run_here(tiny_folder, tmp_path, game=game, rl=rl, dialogues_per_cell=4, dialogues_per_gap=4).result
    assert 0.0 <= found.value <= 1.0


def test_the_cost_is_what_the_run_then_does(finished, tiny_folder: Path) -> None:
    expected = cost(tiny_config(tiny_folder), load(str(GOAL_FILE)))
    with sqlite3.connect(finished.path / "run.db") as db:
        (dialogues,) = db.execute("SELECT COUNT(*) FROM dialogues").fetchone()
        (steps,) = db.execute("SELECT COUNT(*) FROM blocks WHERE name LIKE 'step/%'").fetchone()
    assert (expected.dialogues, expected.training_steps) == (dialogues, steps)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"iterations": 0}, "iterations"),
        ({"dialogues_per_cell": 1}, "dialogues_per_cell"),
        ({"seed": -1}, "seed"),
        ({"report_judge": "tests.judges_for_runs:Vowels"}, "must differ"),
    ],
)
def test_settings_out_of_range_are_refused(tiny_folder: Path, changes: dict, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        replace(tiny_config(tiny_folder), **changes)


def test_self_play_prepares_for_the_newest_and_reports_it(tiny_folder: Path, tmp_path: Path) -> None:
    outcome = run_here(tiny_folder, tmp_path, method="self-play")
    assert outcome.result.red_mixture == (0.0, 0.0, 0.0, 1.0)
    assert outcome.result.blue_mixture == (0.0, 1.0)
    assert outcome.result.expected == outcome.result.cells[3][1].mean
    lineage = json.loads((outcome.path / "population/blue_01/lineage.json").read_text())["lineage"]
    assert lineage["against"] == {"red_00@v1": 0.0, "red_01@v1": 0.0, "red_02@v1": 1.0}


def test_alternating_best_response_lets_blue_meet_the_red_that_has_just_learned(
    tiny_folder: Path, tmp_path: Path
) -> None:
    done: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WorkMeter, "add", lambda _, units: done.append(units))
        outcome = run_here(tiny_folder, tmp_path, method="alternating")
    lineage = json.loads((outcome.path / "population/blue_01/lineage.json").read_text())["lineage"]
    assert lineage["against"] == {"red_00@v1": 0.0, "red_01@v1": 0.0, "red_02@v1": 0.0, "red_03@v1": 1.0}
    newest = [(gap.red_deviation, gap.blue_deviation) for gap in outcome.result.oracle_gaps]
    assert newest == [("red_03@v1", "blue_00@v1"), ("red_03@v1", "blue_01@v1")]
    expected = cost(tiny_config(tiny_folder, method="alternating"), load(str(GOAL_FILE)))
    assert sum(done) == pytest.approx(expected.units)


def test_methods_differ_in_whom_they_prepare_for_and_in_what_they_report() -> None:
    found = {name: method(GRTSConfig(method=name), None) for name in ("grts", "self-play", "fictitious-play")}
    assert {name: (one.meta_solver, one.final_solver) for name, one in found.items()} == {
        "grts": (logit, nash),
        "self-play": (latest, latest),
        "fictitious-play": (uniform, uniform),
    }
    assert method(GRTSConfig(meta_solver="alpha-rank"), None).meta_solver is alpha_rank


def test_an_unknown_meta_solver_or_method_is_refused_before_anything_is_played() -> None:
    with pytest.raises(ConfigError, match="expected a meta-solver among"):
        GRTSConfig(meta_solver="nsh")
    with pytest.raises(ConfigError, match="method must be one of grts, self-play, alternating, fictitious-play"):
        GRTSConfig(method="psro")


def test_every_iteration_has_its_oracle_gap_and_the_value_an_interval(tiny_folder: Path, tmp_path: Path) -> None:
    found = run_here(tiny_folder, tmp_path, iterations=2).result
    assert [gap.red_deviation for gap in found.oracle_gaps] == ["red_03@v1", "red_04@v1"]
    assert found.oracle_gap == found.oracle_gaps[1]
    assert found.value_interval is not None
    assert found.value_interval[0] < found.value < found.value_interval[1]
    assert found.shape is not None


def test_adaptive_sampling_plays_no_more_but_unequally(tiny_folder: Path, tmp_path: Path) -> None:
    equal = run_here(tiny_folder, tmp_path / "equal", dialogues_per_cell=16)
    adaptive = run_here(tiny_folder, tmp_path / "adaptive", dialogues_per_cell=16, adaptive=True)
    counts = [[cell.count for row in outcome.result.cells for cell in row] for outcome in (equal, adaptive)]
    assert set(counts[0]) == {16}
    assert len(set(counts[1])) > 1
    assert sum(counts[1]) == sum(counts[0])
    again = run_here(tiny_folder, tmp_path / "adaptive", dialogues_per_cell=16, adaptive=True)
    assert again.result == adaptive.result


def imitating(**changes) -> RLSettings:
    settings = {"steps": 1, "dialogues_per_step": 8, "group_size": 4, "start": "imitation"}
    optimizer = OptimizerSettings(learning_rate=1e-2)
    return RLSettings(
        **{**settings, "imitation": ImitationSettings(steps=6, batch=8), "optimizer": optimizer, **changes}
    )


def test_a_start_by_imitation_learns_the_best_sentences_of_the_cells(tiny_folder: Path, tmp_path: Path) -> None:
    still = imitating(optimizer=OptimizerSettings(learning_rate=0.0))
    moved = run_here(tiny_folder, tmp_path / "moved", rl=imitating(), dialogues_per_cell=32)
    null = run_here(tiny_folder, tmp_path / "null", rl=still, dialogues_per_cell=32)
    backend = TorchBackend.load(tiny_folder, model_id="tiny", lora=LoraSettings(rank=2, alpha=4.0))
    with TranscriptStore(moved.path / "run.db", load(moved.path / "goals.jsonl")) as store:
        played = [
            item
            for version in moved.result.red[:3]
            for item in store.block(f"cell/{version}/blue_00@v1")
            if item.transcript.goal.harmful
        ]
    config = GameConfig(num_exchanges=1)
    best = best_of_each_goal(config, played, "red", per_goal=2, rng=np.random.default_rng(0))
    assert len(best) > 4
    likelihoods = []
    for outcome in (moved, null):
        folder = outcome.path / "population" / "red_03"
        version = f"red_{outcome.path.parent.name}@v1"
        backend.load_adapter(version, folder)
        lessons = [as_said(backend, one.sentence, policy=version, sampling=Sampling(max_new_tokens=6)) for one in best]
        likelihoods.append(sum(sum(row) for row in backend.score(lessons)))
    assert likelihoods[0] > likelihoods[1] + 5


def test_a_start_by_imitation_survives_a_kill(tiny_folder: Path, tmp_path: Path) -> None:
    whole = run_here(tiny_folder, tmp_path / "whole", rl=imitating(steps=2))
    with pytest.MonkeyPatch.context() as patch:
        original = Trainer.save

        def dying(self, folder: Path) -> None:
            original(self, folder)
            raise KeyboardInterrupt

        patch.setattr(Trainer, "save", dying)
        with pytest.raises(KeyboardInterrupt):
            run_here(tiny_folder, tmp_path / "cut", rl=imitating(steps=2))
    cut = run_here(tiny_folder, tmp_path / "cut", rl=imitating(steps=2))
    assert replace(cut.result, wall_s=0.0) == replace(whole.result, wall_s=0.0)


def test_small_cells_are_played_in_one_batch_and_kept_apart(tiny_folder: Path, tmp_path: Path, monkeypatch) -> None:
    sizes: list[int] = []
    original = workbench.play

    def counted(game, policies, pairings):
        sizes.append(len(pairings))
        return original(game, policies, pairings)

    monkeypatch.setattr(workbench, "play", counted)
    outcome = run_here(tiny_folder, tmp_path)
    # Three cells of 8 before the iteration, five after it; then the gaps.
    assert sizes[:2] == [24, 40]
    with TranscriptStore(outcome.path / "run.db", load(outcome.path / "goals.jsonl")) as store:
        cells = [name for name in store.block_names() if name.startswith("cell/")]
        assert len(cells) == 8
        for name in cells:
            _, red, blue = name.split("/")
            assert {(item.red, item.blue) for item in store.block(name)} == {(red, blue)}
            assert len(store.block(name)) == 8
