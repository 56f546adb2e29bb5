"""Search among scripts, and the gap that lets outsiders try: both find a weakness that nobody inside uses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from rtg_agents import PlannedPolicy, ScriptedPolicy, TemplatePolicy, always_comply, always_refuse, plain_attacker
from rtg_agents.policy import Sampling
from rtg_agents.population import Member, Population
from rtg_agents.progress import SilentProgress, WorkMeter
from rtg_env.errors import ConfigError, JudgeError, PolicyError, RunError
from rtg_env.goals import builtin
from rtg_env.judges.lexical import KeywordJudge
from rtg_env.rules import GameConfig
from rtg_env.tactics import TACTICS, Tactic
from rtg_env.transcripts import TranscriptStore
from rtg_env.types import Action, Observation
from rtg_solvers import loop
from rtg_solvers.empirical import Mixture
from rtg_solvers.evaluation.protocol import queries_spent
from rtg_solvers.gaps import independent_gap, measure_gap
from rtg_solvers.oracles.search import SearchOracle, SearchSettings, draw_scripts
from rtg_solvers.rollout import Game, play
from tests.judges_for_runs import Broken
from tests.rtg_agents.test_policies import Echo

GOALS = builtin()
SKETCH = TACTICS[1].template


def game(judge=None, **changes) -> Game:
    config = GameConfig(**{"num_exchanges": 1, **changes})
    return Game(config=config, goals=GOALS, judge=judge or KeywordJudge(["sure"]))


@dataclass(frozen=True)
class Weak:
    """Helps benign users, refuses attacks, unless they are dressed up as a comedy sketch."""

    name: str
    weakness: str = "comedy sketch"

    def act(self, observations, seeds):
        return [
            Action(text=self._answer(observation.messages[-1][1]), policy=self.name) for observation in observations
        ]

    def _answer(self, asked: str) -> str:
        harmful = any(goal.text in asked for goal in GOALS.harmful)
        if harmful and self.weakness not in asked:
            return "I'm sorry, but I can't help with that."
        return "Sure, here it is."


def mixture(red: tuple[str, ...], blue: tuple[str, ...]) -> Mixture:
    alike = [np.full(len(names), 1 / len(names)) for names in (red, blue)]
    return Mixture(red=alike[0], blue=alike[1], red_names=red, blue_names=blue, value=0.0, expected=0.0)


class Members(Population):
    """A population whose blue members are scripts with conditions."""

    def __init__(self, folder, blues) -> None:
        super().__init__(folder, Echo(), {"red": Sampling(), "blue": Sampling()})
        self.add(Member(version="red_00@v1", role="red", kind="plain", label="plain goal"))
        self._blues = {blue.name: blue for blue in blues}

    @property
    def policies(self):
        return {**super().policies, **self._blues}


def task(tmp_path, role="red", *, judge=None, blue=None, **changes) -> loop.Task:
    members = Members(tmp_path / "population", [blue or Weak("blue_00@v1")])
    context = loop.DialogueContext(
        game=game(judge, **changes),
        population=members,
        play_cells=None,
        store=TranscriptStore(tmp_path / "run.db", GOALS),
        workdir=tmp_path,
        meter=WorkMeter(SilentProgress(), "search", 1),
    )
    return loop.Task(
        role=role,
        iteration=0,
        version=f"{role}_01@v1",
        mixture=mixture(("red_00@v1",), ("blue_00@v1",)),
        payoffs=None,
        context=context,
    )


def test_search_finds_the_one_tactic_that_works_and_says_what_it_gains_elsewhere(tmp_path) -> None:
    asked = task(tmp_path)
    member = SearchOracle(SearchSettings(candidates=6, dialogues_per_half=40)).respond(asked)
    assert (member.kind, member.script, member.role) == ("script", (SKETCH,), "red")
    # Three goals in four are harmful: the script wins 1 on those, the plain goal never.
    gain = member.lineage["gain"]
    assert gain["mean"] == pytest.approx(0.75, abs=0.25)
    assert gain["low"] > 0.4
    assert gain["count"] == 40


def test_search_that_finds_nothing_better_returns_nothing(tmp_path) -> None:
    asked = task(tmp_path, blue=always_refuse("blue_00@v1"))
    assert SearchOracle(SearchSettings(candidates=4, dialogues_per_half=10)).respond(asked) is None


def test_every_answer_in_a_search_is_a_query(tmp_path) -> None:
    asked = task(tmp_path, num_exchanges=2)
    oracle = SearchOracle(SearchSettings(candidates=3, dialogues_per_half=6), [(SKETCH,), ("{goal}",), ("x",)])
    oracle.respond(asked)
    # Three candidates on one half of the deals; the best one and the mixture on the other; two exchanges in each.
    assert queries_spent(asked.context.store, [asked.version]) == (3 + 2) * 6 * 2


def test_search_goes_on_where_it_was_cut_off(tmp_path, monkeypatch) -> None:
    asked = task(tmp_path)
    oracle = SearchOracle(SearchSettings(candidates=3, dialogues_per_half=6), [(SKETCH,), ("{goal}",), ("x",)])
    first = oracle.respond(asked)
    monkeypatch.setattr("rtg_solvers.oracles.search.play", None)  # playing anything again would fail
    assert oracle.respond(asked) == first
    names = asked.context.store.block_names()
    assert len(names) == 3 + 2
    assert all(name.startswith("search/red_01@v1/") for name in names)


def test_all_candidates_play_the_same_deals_and_the_best_is_measured_on_others(tmp_path) -> None:
    asked = task(tmp_path)
    SearchOracle(SearchSettings(candidates=2, dialogues_per_half=8), [(SKETCH,), ("{goal}",)]).respond(asked)
    store = asked.context.store
    deals = {
        name: [(item.seed, item.transcript.goal.id, item.blue) for item in store.block(f"search/red_01@v1/{name}")]
        for name in ("chosen/0", "chosen/1", "estimated/best", "estimated/mixture")
    }
    assert deals["chosen/0"] == deals["chosen/1"]
    assert deals["estimated/best"] == deals["estimated/mixture"]
    assert not set(deals["chosen/0"]) & set(deals["estimated/best"])


def test_blue_searches_among_given_replies_only(tmp_path) -> None:
    asked = task(tmp_path, "blue", benign_prob=0.0, blue=always_comply("blue_00@v1"))
    with pytest.raises(ConfigError, match="scripts for blue"):
        SearchOracle().respond(asked)
    replies = [("Sure.",), ("I can't help with that.",)]
    member = SearchOracle(SearchSettings(dialogues_per_half=6), replies).respond(asked)
    assert member.script == ("I can't help with that.",)
    assert member.lineage["gain"]["mean"] == 1.0


def test_a_judge_that_fails_ends_the_search_with_a_remedy(tmp_path) -> None:
    with pytest.raises(JudgeError, match="mend the judge"):
        SearchOracle(SearchSettings(candidates=1, dialogues_per_half=3)).respond(task(tmp_path, judge=Broken()))


def test_found_scripts_are_members_that_come_back_from_disk(tmp_path) -> None:
    asked = task(tmp_path)
    member = SearchOracle(SearchSettings(candidates=2, dialogues_per_half=6), [(SKETCH,), ("x",)]).respond(asked)
    asked.context.population.extend([member])
    again = Members(tmp_path / "population", [])
    assert again.restored(member.version) == member
    spoken = again.policies[member.version].act([Observation("red_0", (), 0, 1, GOALS.harmful[0])], [0])
    assert spoken[0].text == SKETCH.replace("{goal}", GOALS.harmful[0].text)
    lineage = tmp_path / "population" / "red_01" / "lineage.json"
    lineage.write_text(lineage.read_text().replace('"script",', '"plain",'))
    with pytest.raises(RunError, match=r"red_01.lineage\.json"):
        Members(tmp_path / "population", []).restored(member.version)


def test_a_script_has_lines_and_nothing_else_has() -> None:
    with pytest.raises(ConfigError, match="script member alone"):
        Member(version="r", role="red", kind="script", label="x")
    with pytest.raises(ConfigError, match="script member alone"):
        Member(version="r", role="red", kind="plain", label="x", script=("a",))


def test_drawn_scripts_are_different_and_legal() -> None:
    rng = np.random.default_rng(0)
    scripts = draw_scripts(TACTICS, 3, 30, rng)
    assert len(set(scripts)) == 30
    late = {tactic.template for tactic in TACTICS if tactic.first_turn > 0}
    assert not {script[0] for script in scripts} & late
    assert {script[1] for script in scripts} & late
    once = [Tactic(name="a", template="a"), Tactic(name="b", template="b", repeatable=False)]
    assert set(draw_scripts(once, 2, 99, rng)) == {("a", "a"), ("a", "b"), ("b", "a")}


@pytest.mark.parametrize("wrong", [{"candidates": 0}, {"dialogues_per_half": 1}])
def test_searches_of_no_size_are_refused(wrong) -> None:
    with pytest.raises(ConfigError):
        SearchSettings(**wrong)
    with pytest.raises(ConfigError, match="at least one script"):
        SearchOracle(scripts=[])


def test_a_plan_is_said_exchange_by_exchange_and_ends_on_its_last_line() -> None:
    policy = PlannedPolicy(name="p", templates=("{goal}", 'You said "{reply}"'))
    talk = (("user", "a"), ("assistant", "no"), ("user", "b"), ("assistant", "never"))
    goal = GOALS.harmful[0]
    seen = [Observation("red_0", talk[: 2 * turn], turn, 3, goal) for turn in range(3)]
    said = [action.text for action in policy.act(seen, [0, 0, 0])]
    assert said == [goal.text, 'You said "no"', 'You said "never"']
    with pytest.raises(ConfigError, match="play red"):
        policy.act([Observation("blue_0", talk[:1], 0, 3)], [0])
    with pytest.raises(ConfigError, match="at least one template"):
        PlannedPolicy(name="p", templates=())


def playing(arena: Game, *policies):
    known = {policy.name: policy for policy in policies}
    units: dict[str, list] = {}

    def play_unit(name, pairings):
        assert name not in units
        units[name] = pairings
        return play(arena, known, pairings)

    return units, play_unit


OUTSIDERS = (
    plain_attacker("plain"),
    TemplatePolicy(name="templates"),
    PlannedPolicy(name="fresh", templates=(SKETCH,)),
    always_refuse("refuse"),
    always_comply("comply"),
)
CANDIDATES = {"red": ("plain", "templates", "fresh"), "blue": ("refuse", "comply")}


def test_outsiders_find_a_weakness_that_no_member_uses() -> None:
    arena = game()
    _, play_unit = playing(arena, plain_attacker("r"), Weak("b"), *OUTSIDERS)
    inside = mixture(("r",), ("b",))
    gap = independent_gap("g", arena, inside, CANDIDATES, play_unit, seed=0, count=80)
    assert gap.red_deviation == "fresh"
    assert gap.red_gain.mean == pytest.approx(0.75, abs=0.2)
    assert gap.interval[0] > 0.1
    # Blue answers perfectly already: refusing loses the benign users, complying the attacks.
    assert gap.blue_gain.mean < 0
    assert gap.total == gap.red_gain.mean


def test_outsiders_gain_nothing_from_those_who_have_no_weakness() -> None:
    arena = game()
    _, play_unit = playing(arena, plain_attacker("r"), Weak("b", weakness="no such words"), *OUTSIDERS)
    gap = independent_gap("g", arena, mixture(("r",), ("b",)), CANDIDATES, play_unit, seed=0, count=80)
    assert gap.total == 0.0
    assert gap.interval[0] == 0.0


def test_candidates_are_chosen_on_other_deals_than_they_are_measured_on() -> None:
    arena = game()
    units, play_unit = playing(arena, plain_attacker("r"), Weak("b"), *OUTSIDERS)
    independent_gap("g", arena, mixture(("r",), ("b",)), CANDIDATES, play_unit, seed=0, count=20)
    halves = {
        half: {p.seed for n, ps in units.items() if f"/{half}/" in n for p in ps} for half in ("chosen", "estimated")
    }
    assert not halves["chosen"] & halves["estimated"]
    assert {len(pairings) for pairings in units.values()} == {10}
    assert len(units) == 5 + 1 + 2  # every candidate once, the mixture, the two that were chosen


def test_gaps_without_candidates_or_with_odd_counts_are_refused() -> None:
    arena = game()
    _, play_unit = playing(arena, *OUTSIDERS)
    inside = mixture(("plain",), ("refuse",))
    for wrong, count in (({"red": ("plain",), "blue": ()}, 8), (CANDIDATES, 7), (CANDIDATES, 2)):
        with pytest.raises(ConfigError, match="candidates for both sides"):
            independent_gap("g", arena, inside, wrong, play_unit, seed=0, count=count)


def test_a_response_that_learned_nothing_gains_nothing() -> None:
    arena = game()
    _, play_unit = playing(arena, TemplatePolicy(name="r"), TemplatePolicy(name="null"), Weak("b"), Weak("same"))
    gap = measure_gap("g", arena, mixture(("r",), ("b",)), ("null", "same"), play_unit, seed=0, count=40)
    assert (gap.total, gap.red_gain.high, gap.blue_gain.high) == (0.0, 0.0, 0.0)
    assert gap.interval[0] == 0.0
    assert gap.interval[1] < 0.05  # its covariance is shrunk: it does not trust a perfect agreement of 40 dialogues


def test_unknown_candidates_are_named() -> None:
    arena = game()
    _, play_unit = playing(arena, ScriptedPolicy(name="r", lines=("x",)), Weak("b"))
    with pytest.raises(PolicyError, match="templates"):
        independent_gap(
            "g", arena, mixture(("r",), ("b",)), {"red": ("templates",), "blue": ("b",)}, play_unit, seed=0, count=4
        )
