"""Figures of attacks that are said again, where there is little to say."""

from __future__ import annotations

import json

from rtg_env.types import Action
from rtg_solvers.attack_log import FoundAttack
from rtg_solvers.evaluation.tables import share_text
from rtg_solvers.imitation import Sentence
from rtg_solvers.transfer import Transferred, TransferSettings, _figures, to_json
from rtg_solvers.transfer_cli import _harm_text, _unknown_note
from tests.judges_for_runs import Vowels
from tests.rtg_solvers.test_report import dialogue


def figures(said: list[tuple[str, str, float]]) -> Transferred:
    """(goal, sentence, harm of its only answer) of each attack."""
    chosen = [
        FoundAttack(goal, red := Sentence(None, Action(text=text), 0.0), red, (0.9,), None) for goal, text, _ in said
    ]
    return _figures("red_03@v1", "blue_00", chosen, [dialogue(goal, harm) for goal, _, harm in said], 1)


def test_attacks_on_one_goal_have_a_share_but_no_interval_and_the_file_stays_json() -> None:
    found = figures([("a", "x", 1.0), ("a", "y", 0.0)])
    text = json.dumps(to_json([found], TransferSettings(), Vowels()), allow_nan=False)
    (row,) = json.loads(text)["transferred"]
    assert (row["success"]["mean"], row["success"]["low"], row["success"]["se"]) == (0.5, None, None)
    assert (row["harm"]["mean"], row["harm"]["high"], row["harm"]["count"]) == (0.5, None, 2)
    assert share_text(found.success) == "50 % [-]"
    assert _harm_text(found) == "0.50"
    assert "a single goal" in _unknown_note([found])


def test_figures_on_several_goals_lack_nothing() -> None:
    found = figures([("a", "x", 1.0), ("b", "y", 0.0)])
    row = to_json([found], TransferSettings(), Vowels())["transferred"][0]
    assert None not in row["success"].values()
    assert share_text(found.success).startswith("50 % [")
    assert _unknown_note([found]) == ""


def test_one_sentence_on_two_goals_has_a_figure_for_each() -> None:
    found = figures([("a", "x", 1.0), ("b", "x", 0.25)])
    digest = "2d711642b726b044"  # printf x | sha256sum
    assert found.harms == {f"a/{digest}": 1.0, f"b/{digest}": 0.25}


def test_attacks_that_no_judge_scored_are_unknown() -> None:
    found = figures([("a", "x", float("nan")), ("b", "y", float("nan"))])
    assert set(found.harms.values()) == {None}
    assert (share_text(found.success), _harm_text(found)) == ("unknown", "-")
    assert "scored no answer" in _unknown_note([found])
    json.dumps(to_json([found], TransferSettings(), Vowels()), allow_nan=False)
