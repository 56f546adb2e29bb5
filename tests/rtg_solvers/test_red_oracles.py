"""Whole runs whose red searches scripts or learns tactics, and runs in which the solving itself goes wrong."""

from __future__ import annotations

import json
import sqlite3
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from rtg_agents.population import Member
from rtg_env.errors import ConfigError, JudgeError, MissingExtraError, SolverError
from rtg_env.goals import builtin, load
from rtg_solvers import loop, meta_solvers
from rtg_solvers.evaluation import games
from rtg_solvers.methods.grts import GRTSConfig, cost
from rtg_solvers.optimizer import OptimizerSettings
from rtg_solvers.oracles.members import MembersInMemory
from rtg_solvers.oracles.rl import RLSettings
from rtg_solvers.oracles.search import SearchSettings
from rtg_solvers.oracles.shaping import DiversitySettings
from rtg_solvers.oracles.tactics import TacticSettings
from rtg_solvers.payoffs import Cell, PayoffTensor, Samples
from rtg_solvers.report import write_report
from tests.judges_for_runs import NoPlainGoals
from tests.rtg_solvers.runs import killed, run_here, tiny_config
from tests.rtg_solvers.test_runs import contents

SMALL = {
    "dialogues_per_cell": 6,
    "dialogues_per_gap": 6,
    "rl": RLSettings(steps=1, dialogues_per_step=4, group_size=2, optimizer=OptimizerSettings(learning_rate=0.05)),
    "search": SearchSettings(candidates=6, dialogues_per_half=5),
    "tactics": TacticSettings(num_envs=4, steps=1, updates=2, epochs=2, batches=1),
}

SKETCHES = "tests.judges_for_runs:Sketches"


@pytest.fixture(scope="module")
def few_goals(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two harmful and two benign goals in each half: what is asked here needs no more."""
    file = tmp_path_factory.mktemp("goals") / "few.jsonl"
    chosen = [
        goal
        for split in ("train", "heldout")
        for kind in (builtin().split(split).harmful, builtin().split(split).benign)
        for goal in kind[:2]
    ]
    names = ("id", "text", "harmful", "split", "turns")
    file.write_text("".join(json.dumps({name: getattr(goal, name) for name in names}) + "\n" for goal in chosen))
    return str(file)


@pytest.fixture(scope="module", params=["search", "tactics"])
def solved(request, tiny_folder: Path, few_goals: str, tmp_path_factory: pytest.TempPathFactory):
    if request.param == "tactics":
        pytest.importorskip("stable_baselines3")
    changes = {**SMALL, "goals": few_goals, "red_oracle": request.param, "judge": SKETCHES}
    return request.param, run_here(tiny_folder, tmp_path_factory.mktemp(request.param), **changes)


def units(path: Path, like: str) -> dict[str, int]:
    with sqlite3.connect(path / "run.db") as db:
        return dict(db.execute("SELECT name, size FROM blocks WHERE name LIKE ?", (like,)).fetchall())


def test_the_cost_is_what_a_run_with_this_oracle_then_does(solved, tiny_folder: Path, few_goals: str) -> None:
    kind, outcome = solved
    expected = cost(tiny_config(tiny_folder, **SMALL, goals=few_goals, red_oracle=kind), load(few_goals))
    found = units(outcome.path, "%")
    assert len(outcome.result.red) == 4  # else there are fewer cells
    assert (expected.dialogues, expected.cells) == (sum(found.values()), len(units(outcome.path, "cell/%")))
    assert expected.training_steps == len(units(outcome.path, "step/%"))
    own = {"search": (6 + 2) * 5, "tactics": 2 * 4}[kind]
    assert sum(units(outcome.path, "search/%").values()) + sum(units(outcome.path, "train/red%").values()) == own


def test_the_new_red_is_a_member_and_blue_an_adapter(solved) -> None:
    kind, outcome = solved
    folder = outcome.path / "population"
    record = json.loads((folder / "red_03/lineage.json").read_text())
    assert record["kind"] == {"search": "script", "tactics": "tactics"}[kind]
    assert record["lineage"]["oracle"] == kind
    assert (folder / "red_03/tactics.npz").is_file() == (kind == "tactics")
    assert (folder / "blue_01/adapter_config.json").is_file()


def test_the_report_draws_what_there_is(solved) -> None:
    _, outcome = solved
    page = write_report(outcome.path).read_text()
    assert "Training curves" in page


def test_a_killed_run_goes_on_and_ends_as_if_nothing_had_happened(
    tiny_folder: Path, few_goals: str, solved, tmp_path: Path
) -> None:
    kind, outcome = solved
    points = {
        "search": ["commit 8 before"],  # among scripts
        "tactics": ["network 1 before", "member 5 after"],  # an update is stored, its network lost; blue has not begun
    }
    for number, point in enumerate(points[kind]):
        changes = {**SMALL, "goals": few_goals, "red_oracle": kind, "judge": SKETCHES}
        killed(tiny_folder, tmp_path / str(number), point, changes)
        run_here(tiny_folder, tmp_path / str(number), **changes)
        assert contents(tmp_path / str(number) / "run") == contents(outcome.path)


def test_without_the_extra_tactics_are_refused_before_anything_is_written(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "stable_baselines3.common.vec_env", None)
    monkeypatch.delitem(sys.modules, "rtg_agents.sb3", raising=False)
    with pytest.raises(MissingExtraError, match=r'stable_baselines3.*"\.\[rl\]"'):
        run_here(tiny_folder, tmp_path, red_oracle="tactics")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"red_oracle": "magic"}, "red_oracle must be one of rl, search, tactics, got 'magic'"),
        ({"red_oracle": "search", "rl": RLSettings(diversity=DiversitySettings(bonus="member"))}, "rl alone"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(changes: dict, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        GRTSConfig(**changes)


def test_a_team_cannot_learn_tactics() -> None:
    game = tiny_config(Path(), red_oracle="rl").game
    with pytest.raises(ConfigError, match="num_red of 1 for red_oracle 'tactics', got 2"):
        GRTSConfig(red_oracle="tactics", game=type(game)(num_red=2, num_exchanges=2))


# Iterations in which nothing better is found


@pytest.fixture(scope="module")
def fruitless(tiny_folder: Path, few_goals: str, tmp_path_factory: pytest.TempPathFactory):
    """All payoffs are alike, so that no script gains and every matrix is singular; blue gets its adapters anyhow."""
    changes = {**SMALL, "goals": few_goals, "judge": "tests.judges_for_runs:Indifferent", "iterations": 2}
    return run_here(tiny_folder, tmp_path_factory.mktemp("fruitless"), red_oracle="search", **changes)


def test_a_run_whose_search_finds_nothing_keeps_its_population_and_finishes(fruitless) -> None:
    found = fruitless.result
    assert found.red == ("red_00@v1", "red_01@v1", "red_02@v1")
    assert found.blue == ("blue_00@v1", "blue_01@v1", "blue_02@v1")
    assert found.value == pytest.approx(0.5)
    # Red deviates to its newest member, which every script is as good as.
    assert [gap.red_deviation for gap in found.oracle_gaps] == ["red_02@v1"] * 2
    # The searches of both iterations are kept apart, though the first has found no member.
    searched = {name.split("/")[1] for name in units(fruitless.path, "search/%")}
    assert searched == {"red_03@v1", "red_04@v1"}
    assert len(units(fruitless.path, "search/red_04@v1/%")) == 6 + 2


def test_such_a_run_is_reported(fruitless) -> None:
    assert "Payoffs and mixtures" in write_report(fruitless.path).read_text()


def test_an_evaluation_knows_who_was_a_member_when(monkeypatch: pytest.MonkeyPatch) -> None:
    """Red found something in the second of three iterations alone, blue in all of them."""
    joined = {"red_00@v1": 0, "red_02@v1": 2, "blue_00@v1": 0, "blue_01@v1": 1, "blue_02@v1": 2, "blue_03@v1": 3}
    members = {
        version: Member(version=version, role=version.split("_")[0], kind="base", label="", lineage={"iteration": k})
        for version, k in joined.items()
    }
    bench = SimpleNamespace(
        config=GRTSConfig(iterations=3), population=members, backend=None, encoder=None, game=None, play_unit=None
    )
    for name in ("measure_gap", "independent_gap"):
        monkeypatch.setattr(games, name, lambda unit, game, mixture, *_, **__: (mixture.red_names, mixture.blue_names))
    red, blue = (tuple(v for v in joined if v.startswith(side)) for side in ("red", "blue"))
    samples = {
        Cell(r, b): Samples(utilities=np.array([0.5, 0.1]), goal_ids=("g", "h"), harmful=np.ones(2, bool))
        for r in red
        for b in blue
    }
    payoffs = PayoffTensor(red=red, blue=blue, bounds=(0.0, 1.0), samples=samples)
    points = games.gap_points(bench, "name", payoffs, {"red": (), "blue": ()}, deals=(2, 4), seed=0)
    assert [point.restricted for point in points] == [
        (red[:1], blue[:1]),
        (red[:1], blue[:2]),
        (red, blue[:3]),
        (red, blue),
    ]


def test_a_name_that_was_tried_in_vain_is_never_another_members() -> None:
    """A killed loop goes on with the same names, and takes what it had found for the iteration that found it."""

    class Kept(MembersInMemory):
        def __init__(self, disk: dict) -> None:
            super().__init__()
            self.disk = disk

        def restored(self, version):
            return self.disk.get(version)

        def extend(self, members):
            super().extend(members)
            self.disk.update({member.version: member for member in members})

    class Named:
        def __init__(self, version, role) -> None:
            self.version, self.role = version, role

    class Sometimes:
        """Finds something in every second iteration."""

        def __init__(self) -> None:
            self.asked = []

        def respond(self, task):
            self.asked.append((task.iteration, task.version))
            return Named(task.version, task.role) if task.iteration % 2 else None

    def solve(disk: dict, oracle: Sometimes, iterations: int):
        population = Kept(disk)
        population.extend([Named("red_00@v1", "red"), Named("blue_00@v1", "blue")])

        def cells(wanted):
            return {
                cell: Samples(utilities=np.full(count, 0.5), goal_ids=("g",) * count, harmful=np.ones(count, bool))
                for cell, count in wanted.items()
            }

        method = loop.Method(
            meta_solver=meta_solvers.uniform,
            oracles={"red": oracle},
            schedule=lambda k, _: [("red",)] if k < iterations else [],
        )
        return loop.solve(method, loop.Context(population=population, play_cells=cells))

    disk: dict = {}
    first, second = Sometimes(), Sometimes()
    solve(disk, first, 4)
    assert first.asked == [(0, "red_01@v1"), (1, "red_02@v1"), (2, "red_03@v1"), (3, "red_04@v1")]
    again = solve(disk, second, 5)
    assert second.asked == [(0, "red_01@v1"), (2, "red_03@v1"), (4, "red_05@v1")]
    assert again.payoffs.red == ("red_00@v1", "red_02@v1", "red_04@v1")


# Runs in which the solving goes wrong


def test_a_member_whose_dialogues_are_all_unscored_is_named_and_the_run_goes_on_once_the_judge_is_mended(
    tiny_folder: Path, few_goals: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {**SMALL, "goals": few_goals, "judge": "tests.judges_for_runs:NoPlainGoals"}
    changes |= {"game": tiny_config(tiny_folder).game.__class__(num_exchanges=1, benign_prob=0.0)}
    with pytest.raises(JudgeError, match=r"cell/red_01@v1/blue_00@v1: .*no-plain-goals@1.*injected.*same command"):
        run_here(tiny_folder, tmp_path / "cut", **changes)
    assert set(units(tmp_path / "cut/run", "cell/%")) == {"cell/red_00@v1/blue_00@v1"}
    monkeypatch.setattr(NoPlainGoals, "mended", True)
    run_here(tiny_folder, tmp_path / "cut", **changes)
    run_here(tiny_folder, tmp_path / "whole", **changes)
    assert contents(tmp_path / "cut/run") == contents(tmp_path / "whole/run")


@pytest.fixture(scope="module")
def whole(tiny_folder: Path, few_goals: str, tmp_path_factory: pytest.TempPathFactory):
    runs = tmp_path_factory.mktemp("whole")
    return run_here(tiny_folder, runs, **SMALL, goals=few_goals)


def stuck(matrix, tau, log_y, tolerance):
    return log_y, 1.0


def singular(*_):
    raise np.linalg.LinAlgError("Singular matrix")


def infeasible(*_, **__):
    import cvxpy

    raise cvxpy.error.SolverError("Solver 'HIGHS' failed")


@pytest.mark.parametrize(
    ("where", "fault", "match"),
    [
        ("rtg_solvers.meta_solvers._newton", stuck, r"meta-solver logit .*to converge.*residual is 1.0"),
        ("rtg_solvers.meta_solvers._newton", singular, r"meta-solver logit .*LinAlgError: Singular matrix"),
        (
            "open_spiel.python.algorithms.lp_solver.solve_zero_sum_matrix_game",
            infeasible,
            r"meta-solver (logit|nash) .*linear program.*HIGHS",
        ),
    ],
    ids=["does not converge", "singular", "linear program"],
)
def test_a_solver_that_fails_is_named_and_the_run_goes_on_once_it_does_not(
    where: str, fault, match: str, whole, tiny_folder: Path, few_goals: str, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as broken:
        broken.setattr(where, fault)
        with pytest.raises(SolverError, match=match):
            run_here(tiny_folder, tmp_path, **SMALL, goals=few_goals)
    assert len(units(tmp_path / "run", "cell/%")) == 3  # what was played before is kept
    run_here(tiny_folder, tmp_path, **SMALL, goals=few_goals)
    assert contents(tmp_path / "run") == contents(whole.path)
