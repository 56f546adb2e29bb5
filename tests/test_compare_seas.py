"""The comparison of SEAS and MART runs, on records written by hand."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from rtg_solvers.evaluation.ability import Ability
from rtg_solvers.evaluation.matrix import solved_matrix
from rtg_solvers.evaluation.results import Variety
from rtg_solvers.evaluation.seas import CrossPlayMatrix, SaidPlainly, SeasEvaluation, WrittenAttacks
from rtg_solvers.measures import Estimate
from rtg_solvers.records import to_record


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import compare_seas

    return compare_seas


def estimate(mean: float) -> Estimate:
    return Estimate(mean=mean, se=0.0, low=mean, high=mean, count=8, num_unscored=0, num_clusters=4)


def matrix(judge_id: str, shares: list[list[float]]) -> CrossPlayMatrix:
    return CrossPlayMatrix(
        judge_id=judge_id,
        cells=tuple(tuple(estimate(share) for share in row) for row in shares),
        solved=solved_matrix(np.array(shares)),
        value_interval=(0.1, 0.9),
    )


def record(method: str, lineage: dict[str, object]) -> dict[str, object]:
    variety = Variety(num=8, sizes=(4, 4), vendi=2.0, mean_distance=0.5, self_bleu=0.5)
    figures = SeasEvaluation(
        embeddings="sentences",
        red=("R0", "R1"),
        blue=("T0", "T1"),
        num_seeds=4,
        # Row 1 is the best against both, column 1 the best reply: a saddle at (R1, T1) of 0.4; (R0, T0) is 0.3 + 0.4 off.
        matrices=(matrix("a@1", [[0.5, 0.1], [0.8, 0.4]]), matrix("b@1", [[0.4, 0.2], [0.3, 0.6]])),
        static=(SaidPlainly(target="T0", unsafe=estimate(0.5), unsafe_by_second=estimate(0.4)),),
        abilities=(
            Ability(
                target="T0",
                nats_per_token=estimate(2.0),
                perplexity=7.4,
                right=estimate(0.5),
                refusal=estimate(0.1),
                helpful=estimate(0.6),
                words=estimate(12.5),
            ),
        ),
        written=(WrittenAttacks(attacker="R0", nats_per_token=estimate(3.0), variety=variety),),
        wall_s=1.0,
    )
    return {
        "settings": {"config": {"method": method}},
        "evaluation": {"figures": to_record(figures)},
        "lineage": lineage,
    }


def test_seas_comparison_shows_every_matrix_its_game_and_what_was_learned(compare, tmp_path: Path) -> None:
    accuracy = {name: asdict(estimate(0.7)) for name in ("likelihood_before", "likelihood_after", "reward_after")}
    preference = {"num_train": 20, "num_steps": 9, "heldout": {"all": accuracy}}
    lineage = {
        "red_01@v1": {"label": "R0", "num_lessons": 5},
        "red_02@v1": {"label": "R1", "num_queries": 60, "verdicts": {"unsafe": 12}, "preference": preference},
    }
    path, out = tmp_path / "seas_0.json", tmp_path / "seas"
    path.write_text(json.dumps(record("seas", lineage)))
    known = {**asdict(estimate(0.25)), "low": None, "high": None}
    transfer = tmp_path / "t.json"
    row = {"attacker": "R1", "target": "other", "num_attacks": 9, "success": known, "harm": asdict(estimate(0.3))}
    transfer.write_text(json.dumps({"judge_id": "b@1", "transferred": [row]}))
    compare.main([str(path), "--transfer", str(transfer), "--out", str(out)])
    page = out.with_suffix(".md").read_text()
    assert (
        "judge a@1: pairs of the iterations 50.0, 40.0 %; last pair (R1, T1) 40.0 %, value of the game 40.0 %, "
        "NashConv of the last pair 0.0 %"
    ) in page
    # b: no saddle; x = 3/5 on R1 (0.4 - 0.1 x = 0.2 + 0.4 x at x = 2/5), value 0.36; (R1, T1): the target gains 0.3.
    assert "value of the game 36.0 %, NashConv of the last pair 30.0 %" in page
    assert (
        "| red_02@v1 R1 | 60 | 12 unsafe | 20 in 9 steps | 8 all | 0.70 [0.70,0.70] | 0.70 [0.70,0.70] | 0.70 [0.70,0.70] |"
        in page
    )
    # 5.6 of 8: four seeds count as four pairs. Of 2.8 of 4 the ends are those of Beta(2.8, 2.2) and Beta(3.8, 1.2).
    assert "| red | own | 8 | 4 | 0.70 [0.16,0.99] | 0.70 [0.16,0.99] | 0.70 [0.16,0.99] |" in page
    assert "red_01@v1" not in page
    assert "| R1 | other | 9 | 0.25 [-,-] | 0.30 [0.30,0.30] |" in page
    drawing = out.with_suffix(".svg").read_text()
    assert "published" in drawing
    compare.main([str(path), "--out", str(tmp_path / "again")])
    assert (tmp_path / "again.svg").read_text() == drawing


def test_mart_comparison_shows_its_rounds_and_no_published_matrix(compare, tmp_path: Path) -> None:
    figures = {
        "prompts": {"total": 40},
        "num_successes": 9,
        "num_copies": 2,
        "num_lessons": 4,
        "violation_share": 0.225,
    }
    later = {**figures, "num_successes": 0, "prompts": {"total": 8}, "violation_share": None}
    lineage = {
        "red_01@v1": {"label": "A0", "iteration": 1, "num_rows": 512},
        "red_02@v1": {"label": "A1", "iteration": 2, "num_rows": 23, "round": figures},
        "blue_01@v1": {"label": "T1", "iteration": 2, "num_rows": 4, "round": figures},
        "blue_02@v1": {"label": "T2", "iteration": 3, "num_rows": 3, "round": later},  # red learned nothing in round 2
    }
    path, out = tmp_path / "mart_0.json", tmp_path / "mart"
    path.write_text(json.dumps({**record("mart", lineage), "rounds": [figures, later, later]}))
    compare.main([str(path), "--out", str(out)])
    page = out.with_suffix(".md").read_text()
    assert (
        page.count(
            "| 1 | 40 | 22.5 % | 9 | 2 | 23 | 4 |\n| 2 | 8 | - | 0 | 2 | - | 3 |\n| 3 | 8 | - | 0 | 2 | - | - |\n"
        )
        == 1
    )
    assert "published" not in out.with_suffix(".svg").read_text()


@pytest.mark.parametrize("broken", [{"evaluation": None}, {"settings": {"config": {"method": "grts"}}}])
def test_seas_comparison_refuses_other_records(compare, tmp_path: Path, broken: dict[str, object]) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps({**record("seas", {}), **broken}))
    with pytest.raises(SystemExit, match="expected an evaluated run of seas or mart"):
        compare.main([str(path), "--out", str(tmp_path / "out")])
