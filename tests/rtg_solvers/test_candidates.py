"""Choosing among checkpoints: by hand, on known payoff rows, and within a best response that is cut off."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rtg_agents.progress import SilentProgress, WorkMeter
from rtg_agents.scripted import ScriptedPolicy
from rtg_env.errors import ConfigError, JudgeError
from rtg_env.transcripts import TranscriptStore
from rtg_env.types import Verdict
from rtg_solvers import loop
from rtg_solvers.empirical import Mixture
from rtg_solvers.evaluation.protocol import queries_spent
from rtg_solvers.optimizer import OptimizerSettings
from rtg_solvers.oracles import candidates
from rtg_solvers.oracles.candidates import Choice, candidate_steps, choose, choose_checkpoint
from rtg_solvers.oracles.rl import RLOracle, RLSettings
from rtg_solvers.oracles.shaping import DiversitySettings
from rtg_solvers.payoffs import Cell, PayoffTensor, Samples
from tests.judges_for_runs import Broken
from tests.rtg_solvers.test_rollout_and_oracle import GOALS, context, game, task

CORNERS = np.eye(2)
EVEN = np.array([0.5, 0.5])


def test_checkpoints_are_spread_over_the_second_half() -> None:
    assert candidate_steps(8, 2) == (6, 8)
    assert candidate_steps(8, 4) == (5, 6, 7, 8)
    assert candidate_steps(7, 2) == (6, 7)  # 5.25 and 7
    assert candidate_steps(2, 2) == (2,)


def test_too_few_steps_to_choose_among_are_refused() -> None:
    with pytest.raises(ConfigError, match="expected steps >= 4 to choose among 2 checkpoints"):
        RLSettings(steps=2, diversity=DiversitySettings(select="response"))


def test_the_farther_response_is_chosen_as_long_as_it_costs_no_more_than_the_tolerance() -> None:
    # Mixtures of the members lie on x + y = 1: (.5, .5) is one of them, (.9, 0) misses them by .1 / sqrt(2).
    rows = np.array([[0.9, 0.0], [0.5, 0.5]])  # win 0.45 and 0.5
    within = choose("response", 0.06, rows, CORNERS, EVEN)
    assert within.chosen == 0
    assert within.utilities == pytest.approx((0.45, 0.5))
    assert within.diversities == pytest.approx((0.005, 0.0), abs=1e-6)
    assert choose("response", 0.04, rows, CORNERS, EVEN).chosen == 1
    assert choose("response", 0.0, rows, CORNERS, EVEN).chosen == 1


def test_cardinality_prefers_a_third_way_to_a_copy() -> None:
    # Centred and scaled to 1, the members with a copy of the first are +-(1, -1) / sqrt(2): one eigenvalue 3, 3 / 4.
    # With (0, 0): sum of outer products [[1.5, -.3], [-.3, 1.5]], eigenvalues 1.2 and 1.8: 1.2 / 2.2 + 1.8 / 2.8.
    rows = np.array([[1.0, 0.0], [0.0, 0.0]])
    found = choose("cardinality", 0.5, rows, CORNERS, EVEN)
    assert found.diversities == pytest.approx((0.75, 1.2 / 2.2 + 1.8 / 2.8))
    assert found.chosen == 1
    assert choose("cardinality", 0.49, rows, CORNERS, EVEN).chosen == 0


def test_equally_diverse_candidates_are_told_apart_by_what_they_win_then_by_age() -> None:
    mixtures = np.array([[0.2, 0.8], [0.8, 0.2], [0.8, 0.2]])
    members = np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    assert choose("response", 1.0, mixtures[[1, 2]], members, np.array([1.0, 0.0])).chosen == 1
    rows = np.zeros((2, 2))
    assert choose("cardinality", 0.0, rows, members, EVEN).chosen == 1


@dataclass
class Table:
    """Pays what stands in a table, by what red and blue say; remembers how often."""

    harm: dict[tuple[str, str], float]
    judge_id: str = "table@1"
    num_cases: int = 0

    def judge(self, cases):
        self.num_cases += len(cases)
        said = [(case.exchange.red, case.exchange.blue) for case in cases]
        return [Verdict(harm=self.harm[pair], refusal=0, helpful=0, judge_id=self.judge_id) for pair in said]


class Speaking:
    """A backend and a population whose checkpoints say the name of their folder."""

    def __init__(self) -> None:
        self.folders: dict[str, str] = {}
        self.log: list[str] = []
        self.policies = {blue: ScriptedPolicy(name=blue, lines=(blue[:7],)) for blue in ("blue_00@v1", "blue_01@v1")}

    def load_adapter(self, version: str, folder: Path) -> None:
        self.folders[version] = folder.name
        self.log.append(f"load {folder.name}")

    def drop(self, version: str) -> None:
        self.log.append(f"drop {self.folders.pop(version)}")

    def model_policy(self, version: str, role: str, adapter: str) -> ScriptedPolicy:
        return ScriptedPolicy(name=version, lines=(self.folders[adapter],))


FOLDERS = {6: Path("0006"), 8: Path("0008")}
ROWS = {("0006", "blue_00"): 0.9, ("0006", "blue_01"): 0.0, ("0008", "blue_00"): 0.5, ("0008", "blue_01"): 0.5}


def asked_of(who: Speaking, judge, store: TranscriptStore) -> loop.Task:
    names = {"red": ("red_00@v1", "red_01@v1"), "blue": ("blue_00@v1", "blue_01@v1")}
    samples = {
        Cell(red, blue): Samples(
            utilities=np.array([CORNERS[i, j]] * 2), goal_ids=("a", "b"), harmful=np.array([True] * 2)
        )
        for i, red in enumerate(names["red"])
        for j, blue in enumerate(names["blue"])
    }
    return loop.Task(
        role="red",
        iteration=0,
        version="red_02@v1",
        mixture=Mixture(red=EVEN, blue=EVEN, red_names=names["red"], blue_names=names["blue"], value=0.0, expected=0.0),
        payoffs=PayoffTensor(red=names["red"], blue=names["blue"], samples=samples),
        context=SimpleNamespace(
            game=game(judge, benign_prob=0.0),
            population=who,
            store=store,
            seed=0,
            meter=WorkMeter(SilentProgress(), "x", 1),
        ),
    )


def test_played_rows_decide_and_are_played_once(tmp_path) -> None:
    who, judge = Speaking(), Table(ROWS)
    settings = DiversitySettings(select="response", select_dialogues=3)
    with TranscriptStore(tmp_path / "run.db", GOALS) as store:
        asked = asked_of(who, judge, store)
        found = choose_checkpoint(asked, who, settings, 0.06, FOLDERS)
        assert found.chosen == 0
        assert found.utilities == pytest.approx((0.45, 0.5))
        assert judge.num_cases == 2 * 2 * 3
        assert who.log == ["load 0006", "drop 0006", "load 0008", "drop 0008"]
        assert choose_checkpoint(asked, who, settings, 0.04, FOLDERS).chosen == 1
        assert judge.num_cases == 12  # read back
        blocks = [store.block(f"select/red_02@v1/{step:04d}") for step in (6, 8)]
        deals = [[(item.blue, item.seed, item.transcript.goal.id) for item in block] for block in blocks]
        assert deals[0] == deals[1]
        assert [seed for _, seed, _ in deals[0][:3]] == [seed for _, seed, _ in deals[0][3:]]


def test_a_checkpoint_that_no_judge_scores_is_not_chosen_by(tmp_path) -> None:
    who = Speaking()
    with TranscriptStore(tmp_path / "run.db", GOALS) as store:
        settings = DiversitySettings(select="response", select_dialogues=1)  # too few for `play` to complain
        with pytest.raises(JudgeError, match=r"against blue_00@v1 in select/red_02@v1/0006, all are unscored"):
            choose_checkpoint(asked_of(who, Broken(), store), who, settings, 0.0, FOLDERS)
        assert store.block_names() == []
    assert who.log == ["load 0006", "drop 0006"]


@pytest.mark.parametrize("chosen", [0, 1])
def test_the_chosen_checkpoint_takes_the_name_of_the_member(
    chosen: int, backend, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx = context(backend, tmp_path)
    one = Samples(utilities=np.array([0.5]), goal_ids=("a",), harmful=np.array([True]))
    payoffs = PayoffTensor(red=("red_00@v1",), blue=("blue_00@v1",), samples={Cell("red_00@v1", "blue_00@v1"): one})
    asked = replace(task("red", ctx), payoffs=payoffs)
    monkeypatch.setattr(
        candidates, "choose", lambda *_: Choice(chosen=chosen, utilities=(0.1, 0.2), diversities=(3, 4))
    )
    settings = RLSettings(
        steps=4,
        dialogues_per_step=8,
        optimizer=OptimizerSettings(learning_rate=1e-2),
        diversity=DiversitySettings(select="cardinality", select_dialogues=2),
    )
    member = RLOracle(backend, settings).respond(asked)
    found = backend.bank.factors(asked.version)
    kept = tmp_path / "work" / "red_03" / "candidates"
    for step in (3, 4):
        backend.load_adapter(f"kept-{step}", kept / f"{step:04d}")
    same = [
        all(
            torch.equal(found[name].up, factors.up) and torch.equal(found[name].down, factors.down)
            for name, factors in backend.bank.factors(f"kept-{step}").items()
        )
        for step in (3, 4)
    ]
    assert same == [chosen == 0, chosen == 1]
    # Four steps of eight dialogues, then two checkpoints on two deals.
    assert queries_spent(ctx.store, [asked.version]) == 4 * 8 + 2 * 2
    assert set(backend.versions) == {"base", asked.version, "kept-3", "kept-4"}
    assert member.lineage["selection"] == {
        "rule": "cardinality",
        "tolerance": 0.1,
        "dialogues": 2,
        "steps": [3, 4],
        "utilities": [0.1, 0.2],
        "diversities": [3, 4],
        "chosen_step": 3 + chosen,
    }
