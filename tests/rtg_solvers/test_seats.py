"""Members of runs that take a seat of `rtg play`, and what else may be done with those that cannot be exported."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from rtg_agents.in_context import InContextPolicy
from rtg_agents.policy import Sampling
from rtg_agents.population import Member, Population
from rtg_agents.progress import SilentProgress
from rtg_env.errors import ConfigError, RunError
from rtg_env.goals import builtin
from rtg_env.types import Observation
from rtg_solvers.finished import check_exportable
from rtg_solvers.seats import Seats

GOAL = builtin().harmful[0]


def folder_of(tmp_path: Path, **kind) -> str:
    """A member of red as a run writes it."""
    Population(tmp_path, None, {"red": Sampling()}).add(
        Member(**{"version": "red_03@v1", "role": "red", "label": "x", **kind})
    )
    return str(tmp_path / "red_03")


ARCHIVE = {"kind": "archive", "elites": ((GOAL.category, "{goal}", GOAL.text, "the best one", 0.9),)}


@pytest.mark.parametrize(
    ("kind", "said"),
    [(ARCHIVE, "the best one"), ({"kind": "script", "script": ("first {goal}",)}, f"first {GOAL.text}")],
)
def test_members_that_are_text_play_without_a_model(kind: dict, said: str, tmp_path: Path) -> None:
    seats = Seats(red=folder_of(tmp_path, **kind), blue="me", model="/nowhere")
    policy = seats.policies(SilentProgress())["red"]
    assert policy.act([Observation("red_0", (), 0, 1, GOAL)], [0])[0].text == said


def test_an_in_context_member_plays_on_the_model(tiny_folder: Path, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, kind="in-context", examples=(("another goal", "an attack on it"),))
    policy = Seats(red=folder, blue="me", model=str(tiny_folder), offline=True).policies(SilentProgress())["red"]
    assert isinstance(policy, InContextPolicy)
    (request,) = policy.requests([Observation("red_0", (), 0, 1, GOAL)], [0])
    assert any(message.content == "an attack on it" for message in request.messages)


def test_a_seat_that_a_member_cannot_take_is_explained(tmp_path: Path) -> None:
    archive = folder_of(tmp_path, **ARCHIVE)
    with pytest.raises(ConfigError, match="one of red's; swap the seats"):
        Seats(red="me", blue=archive, model="/nowhere").policies(SilentProgress())
    lineage = tmp_path / "red_03/lineage.json"
    data = json.loads(lineage.read_text())
    lineage.write_text(json.dumps({**data, "kind": "tactics", "elites": []}))
    with pytest.raises(ConfigError, match="a network over tactics"):
        Seats(red=archive, blue="me", model="/nowhere").policies(SilentProgress())


@pytest.mark.parametrize(
    ("kind", "message"),
    [("in-context", r"examples in its prompt.*rtg transfer"), ("archive", r"list of sentences.*rtg play")],
)
def test_what_has_no_weights_is_not_exported_but_the_remedy_is_named(kind: str, message: str) -> None:
    run = SimpleNamespace(
        mixture_of=lambda role: {"red_03@v1": 1.0},
        members={"red_03@v1": SimpleNamespace(kind=kind)},
        home=lambda version: Path("run/population/red_03"),
    )
    with pytest.raises(RunError, match=message):
        check_exportable(run, "red")
