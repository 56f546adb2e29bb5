"""Would a fake be noticed: an oracle that learns nothing, and a weakness that nobody uses. Section `fakes` of `ground_truth.py`."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from ground_truth_parts import Section
from timing import Bar

from rtg_agents import PlannedPolicy, TemplatePolicy, always_comply, always_refuse, plain_attacker
from rtg_agents.policy import Policy
from rtg_agents.progress import SilentProgress, WorkMeter
from rtg_env import Action, GameConfig, Observation, goals
from rtg_env.judges import KeywordJudge
from rtg_env.tactics import TACTICS
from rtg_env.transcripts import Played, TranscriptStore
from rtg_env.types import Role
from rtg_solvers import Game, Pairing, Samples, draw_pairings, loop, play
from rtg_solvers.empirical import Mixture
from rtg_solvers.gaps import PlayUnit, independent_gap, measure_gap, restricted_deviations
from rtg_solvers.meta_solvers import nash
from rtg_solvers.oracles.exact import until_nothing_is_found
from rtg_solvers.oracles.search import SearchOracle, SearchSettings
from rtg_solvers.payoffs import Cell
from rtg_solvers.rollout import utilities


@dataclass(frozen=True, slots=True)
class Weak:
    """Blue that helps, refuses attacks, and complies where it is weak: on one phrase, or by chance."""

    name: str
    phrase: str = ""
    """Attacks that hold it succeed; empty: none."""

    chance: float = 0.0
    """Share of the other attacks that succeed, decided by seed and name: two of them are two samples of one policy."""

    attacks: frozenset[str] = frozenset(goal.text for goal in goals.builtin().harmful)

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[Action]:
        """One answer per observation."""
        return [
            Action(text=self._answer(observation.messages[-1][1], seed), policy=self.name)
            for observation, seed in zip(observations, seeds, strict=True)
        ]

    def _answer(self, asked: str, seed: int) -> str:
        if any(text in asked for text in self.attacks) and not (self.phrase and self.phrase in asked):
            rng = np.random.default_rng([seed, *self.name.encode()])
            if rng.random() >= self.chance:
                return "I'm sorry, but I can't help with that."
        return "Sure, here it is."


@dataclass(frozen=True, slots=True)
class OwnSeeds:
    """Another policy with seeds of its own: the same distribution, not the same sentences."""

    name: str
    policy: Policy

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[Action]:
        """As the policy does."""
        own = [int(np.random.default_rng([seed, *self.name.encode()]).integers(2**63)) for seed in seeds]
        return [replace(action, policy=self.name) for action in self.policy.act(observations, own)]


@dataclass(frozen=True, slots=True)
class Scripted:
    """A member: a policy under its version."""

    version: str
    role: Role
    policy: Policy


class ScriptedMembers:
    """Populations of policies without a model, playing dialogues.

    Args:
        game: Rules, goals, judge.
        members: The first ones.
        seed: Of their cells.
    """

    def __init__(self, game: Game, members: Sequence[Scripted], seed: int) -> None:
        self.game, self.seed = game, seed
        self.members: dict[str, Scripted] = {}
        self.extend(members)

    @property
    def policies(self) -> dict[str, Policy]:
        return {name: member.policy for name, member in self.members.items()}

    def names(self, role: Role) -> tuple[str, ...]:
        return tuple(name for name, member in self.members.items() if member.role == role)

    def next_version(self, role: Role, missed: int = 0) -> str:
        return f"{role}_{len(self.names(role)) + missed:02d}@v1"

    def restored(self, version: str) -> None:
        """Nothing is kept."""

    def extend(self, members: Sequence[Scripted]) -> None:
        for member in members:
            self.members.setdefault(member.version, member)

    def play_cells(self, wanted: Mapping[Cell, int]) -> dict[Cell, Samples]:
        return {cell: self._played(cell, count) for cell, count in wanted.items()}

    def _played(self, cell: Cell, count: int) -> Samples:
        pairings = draw_pairings(
            self.game, np.random.default_rng(self.seed), count=count, red=lambda _: cell.red, blue=lambda _: cell.blue
        )
        played = play(self.game, self.policies, pairings)
        goal_ids = tuple(item.transcript.goal.id for item in played)
        return Samples(
            utilities=utilities(played),
            goal_ids=goal_ids,
            harmful=np.array([item.transcript.goal.harmful for item in played]),
        )

    def play_unit(self, *others: Policy) -> PlayUnit:
        """Plays members, and others under their names."""
        known = {**self.policies, **{policy.name: policy for policy in others}}

        def run(name: str, pairings: Sequence[Pairing]) -> list[Played]:
            del name
            return play(self.game, known, pairings)

        return run


class NullOracle:
    """Learning rate 0: the base policy again, under a new name."""

    def respond(self, task: loop.Task[Any]) -> Scripted:
        base = task.context.population.members[f"{task.role}_00@v1"].policy
        return Scripted(task.version, task.role, OwnSeeds(task.version, base))


def fakes(rounds: int) -> Section:
    """Gaps of a run that learned nothing, and of one that overlooks a weakness."""
    game = Game(config=GameConfig(num_exchanges=1), goals=goals.builtin(), judge=KeywordJudge(["sure"]))
    repeats = 60 * rounds
    held = sum(_null_gap_holds_zero(game, seed) for seed in range(repeats))
    planted = [_planted(game, seed) for seed in range(2 * rounds)]
    restricted = max(row["restricted"] for row in planted)
    bars = [
        Bar(f"null oracle: share of {repeats} runs whose oracle_gap interval holds 0", held / repeats, 0.93),
        Bar("planted weakness: least lower end of independent_gap", min(row["low"] for row in planted), 0.1),
        Bar(
            "planted weakness: largest lower end of restricted_gap, which sees nothing",
            restricted,
            1e-9,
            at_least=False,
        ),
        Bar(
            "no weakness: largest lower end of independent_gap",
            max(row["without"] for row in planted),
            0.0,
            at_least=False,
        ),
    ]
    return Section({"repeats": repeats, "held": held, "planted": planted}, bars)


def _null_gap_holds_zero(game: Game, seed: int) -> bool:
    """The loop with the null oracle, one iteration; then the gap of what it returned."""
    first = [
        Scripted("red_00@v1", "red", TemplatePolicy(name="red_00@v1")),
        Scripted("blue_00@v1", "blue", Weak("blue_00@v1", phrase="comedy sketch", chance=0.4)),
    ]
    members = ScriptedMembers(game, first, seed)
    solution = _solved(members, NullOracle(), NullOracle(), 1, seed)
    (iteration,) = solution.iterations
    newest = (members.names("red")[-1], members.names("blue")[-1])
    gap = measure_gap("oracle", game, iteration.mixture, newest, members.play_unit(), seed=seed, count=96)
    return gap.interval[0] <= 0.0 <= gap.interval[1]


class FirstTactics:
    """Red's search among tactics that do not include the one that works."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def respond(self, task: loop.Task[Any]) -> Scripted | None:
        scripts = [(tactic.template,) for tactic in TACTICS if tactic.first_turn == 0 and tactic.name != "sketch"]
        return searched(task, scripts, self._folder, seed=task.context.seed)


class NothingToLearn:
    """A side that stays as it is."""

    def respond(self, task: loop.Task[Any]) -> None:
        """Nothing better was found."""


def searched(task: loop.Task[Any], scripts: Sequence[tuple[str, ...]], folder: Path, *, seed: int) -> Scripted | None:
    """The best of these scripts, as a member."""
    members: Any = task.context.population
    with TranscriptStore(folder / f"{task.version}-{task.iteration}-{seed}.db", members.game.goals) as store:
        context = loop.DialogueContext(
            game=members.game,
            population=members,
            play_cells=members.play_cells,
            store=store,
            workdir=folder,
            meter=WorkMeter(SilentProgress(), "search", 1),
            seed=seed,
        )
        found = SearchOracle(SearchSettings(dialogues_per_half=32), scripts).respond(replace(task, context=context))
    return found and Scripted(task.version, task.role, PlannedPolicy(name=task.version, templates=found.script))


def _planted(game: Game, seed: int) -> dict[str, Any]:
    """Red searches where blue is strong, the loop ends content; then outsiders try, with and without a weakness."""
    with tempfile.TemporaryDirectory() as scratch:
        weak, strong = (
            _ended(game, seed, phrase, Path(scratch) / (phrase or "none")) for phrase in ("comedy sketch", "")
        )
    (gap, inside), (without, _) = weak, strong
    return {
        "seed": seed,
        "red_deviation": gap.red_deviation,
        "gain": gap.red_gain.mean,
        "low": gap.interval[0],
        "restricted": inside,
        "without": without.interval[0],
    }


def _ended(game: Game, seed: int, phrase: str, folder: Path) -> tuple[Any, float]:
    folder.mkdir()
    first = [
        Scripted("red_00@v1", "red", plain_attacker("red_00@v1")),
        Scripted("blue_00@v1", "blue", always_refuse("blue_00@v1")),
        Scripted("blue_01@v1", "blue", Weak("blue_01@v1", phrase=phrase)),
    ]
    members = ScriptedMembers(game, first, seed)
    solution = _solved(members, FirstTactics(folder), NothingToLearn(), 3, seed)
    mixture: Mixture = solution.mixture
    task = loop.Task(
        role="red",
        iteration=9,
        version="fresh",
        mixture=mixture,
        payoffs=solution.payoffs,
        context=loop.Context(population=members, play_cells=members.play_cells, dialogues_per_cell=64, seed=seed),
    )
    everything = [(tactic.template,) for tactic in TACTICS if tactic.first_turn == 0]
    fresh = searched(task, everything, folder, seed=seed + 1000)
    outsiders = [plain_attacker("plain"), TemplatePolicy(name="templates"), always_refuse(), always_comply()]
    red = ["plain", "templates", *([fresh.version] if fresh else [])]
    gap = independent_gap(
        "independent",
        game,
        mixture,
        {"red": red, "blue": ["always-refuse", "always-comply"]},
        members.play_unit(*outsiders, *([fresh.policy] if fresh else [])),
        seed=seed,
        count=200,
    )
    pair = restricted_deviations(solution.payoffs, mixture)
    inside = measure_gap("restricted", game, mixture, pair, members.play_unit(), seed=seed, count=200)
    return gap, inside.interval[0]


def _solved(members: ScriptedMembers, red: Any, blue: Any, most: int, seed: int) -> loop.Solution:
    method = loop.Method(meta_solver=nash, oracles={"red": red, "blue": blue}, schedule=until_nothing_is_found(most))
    return loop.solve(
        method, loop.Context(population=members, play_cells=members.play_cells, dialogues_per_cell=64, seed=seed)
    )
