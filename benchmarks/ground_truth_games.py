"""Ground truth where the truth is exact: dialogue games and teams, diversity, a published matrix, and planted fakes.

Sections of `ground_truth.py`: `dialogues`, the loop with exact oracles against OpenSpiel's linear program, and our
environment against the table; `diversity`, what a bonus for being different costs; `seas`, the solvers on a published
cross-play; `fakes`, an oracle that learns nothing and a weakness that nobody uses.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import matrix_games
import numpy as np
from ground_truth_parts import Options, Section
from open_spiel.python.algorithms import cfr
from open_spiel.python.algorithms.expected_game_score import policy_value
from scipy import stats
from timing import Bar

from rtg_agents import PlannedPolicy, TemplatePolicy, always_comply, always_refuse, plain_attacker
from rtg_agents.policy import Policy
from rtg_agents.progress import SilentProgress, WorkMeter
from rtg_env import Action, GameConfig, Observation, goals
from rtg_env.judges import KeywordJudge
from rtg_env.tactics import TACTICS
from rtg_env.transcripts import Played, TranscriptStore
from rtg_env.types import Role
from rtg_solvers import Game, Pairing, Samples, draw_pairings, loop, play, solve_zero_sum, tabular, teams
from rtg_solvers.empirical import Mixture, nash_conv
from rtg_solvers.gaps import PlayUnit, independent_gap, measure_gap, restricted_deviations
from rtg_solvers.meta_solvers import META_SOLVERS, nash
from rtg_solvers.oracles.exact import double_oracle, exact_context, true_nash_conv, until_nothing_is_found
from rtg_solvers.oracles.matrix import MatrixOracle, matrix_context, matrix_method
from rtg_solvers.oracles.search import SearchOracle, SearchSettings
from rtg_solvers.payoffs import Cell, PayoffTensor
from rtg_solvers.rollout import utilities
from rtg_solvers.tabular import TableSettings
from rtg_solvers.tabular_dialogue import TabularDialogue

SEAS = np.array(
    [
        [54.89, 16.44, 6.33, 3.12],
        [88.21, 59.02, 14.55, 7.08],
        [91.28, 90.55, 51.47, 24.92],
        [95.17, 97.06, 92.93, 73.97],
    ]
)
"""arXiv:2408.02632: attack success in percent, rows R0..R3, columns T0..T3."""

_ANNEALING = 15
"""Iterations over which an annealed bonus falls to 0."""

_PLACES = (0, 1, 2, 4, 8, 12, 16, 24, 32, 48)
"""Iterations whose NashConv is recorded."""


# -- dialogues


def dialogues(rounds: int) -> Section:
    """Exact loop on dialogue games of 1 to 3 exchanges; the environment's matrix of all members; teams of two."""
    shapes = {
        1: {"num_goals": 3, "num_tactics": 3, "num_styles": 4},
        2: {"num_goals": 2, "num_tactics": 2, "num_styles": 3},
        3: {"num_goals": 2, "num_tactics": 2, "num_styles": 2},
    }
    rows, bars = [], []
    for exchanges, shape in shapes.items():
        found = [_dialogue(TableSettings(num_exchanges=exchanges, seed=seed, **shape)) for seed in range(rounds)]
        rows += found
        for name, title, bar in (
            ("nash_conv", "true NashConv of the exact loop", 1e-6),
            ("value_error", "|value of the loop - sequence-form program|", 1e-6),
            ("matrix_error", "|payoffs in the environment - OpenSpiel's|", 1e-12),
        ):
            worst = max(row[name] for row in found)
            bars.append(Bar(f"T = {exchanges}, {title}, worst of {rounds} games", worst, bar, at_least=False))
    second = _second_opinion()
    bars.append(Bar("T = 1, |CFR+ - sequence-form program|", second, 2e-3, at_least=False))
    team = _team()
    bars += [
        Bar("team, |value of the loop over joint plans - 3/8|", abs(team["loop"] - 3 / 8), 1e-6, at_least=False),
        Bar("team, true NashConv of the loop over joint plans", team["nash_conv"], 1e-6, at_least=False),
        Bar("team, what joint play wins beyond the best independent play, proven", team["excess"], 0.12),
    ]
    return Section({"games": rows, "cfr_plus_error": second, "team": team, "random_teams": _random_teams(rounds)}, bars)


def _dialogue(settings: TableSettings) -> dict[str, Any]:
    begin = time.perf_counter()
    bridge = TabularDialogue(settings)
    context = exact_context(bridge.table)
    solution = loop.solve(double_oracle(), context)
    spent = time.perf_counter() - begin
    members = context.strategies
    policies = {name: members[name].policy for role in ("red", "blue") for name in members.names(role)}
    played = np.array(
        [
            [bridge.expected_utility(policies[r], policies[b]) for b in solution.payoffs.blue]
            for r in solution.payoffs.red
        ]
    )
    value = tabular.exact_value(bridge.table)
    return {
        "exchanges": settings.num_exchanges,
        "seed": settings.seed,
        "iterations": len(solution.iterations),
        "members": [len(solution.payoffs.red), len(solution.payoffs.blue)],
        "value": value,
        "value_error": abs(solution.mixture.value - value),
        "nash_conv": true_nash_conv(context, solution.mixture),
        "matrix_error": float(np.abs(played - solution.payoffs.mean).max()),
        "seconds": round(spent, 2),
    }


def _second_opinion() -> float:
    game = tabular.load(TableSettings(num_exchanges=1))
    solver = cfr.CFRPlusSolver(game)
    for _ in range(100):
        solver.evaluate_and_update_policy()
    average = solver.average_policy()
    return abs(float(policy_value(game.new_initial_state(), [average, average])[0]) - tabular.exact_value(game))


def _team() -> dict[str, float]:
    game = teams.rendezvous(0.75)
    context = matrix_context(teams.joint_payoff(game))
    solution = loop.solve(matrix_method(nash), context)
    truth, alone = solve_zero_sum(teams.joint_payoff(game)).value, teams.best_independent(game)
    return {
        "joint": truth,
        "loop": solution.mixture.value,
        "nash_conv": context.members.nash_conv(solution.mixture).total,
        "independent_low": alone.low,
        "independent_high": alone.high,
        "excess": truth - alone.high,
    }


def _random_teams(count: int) -> dict[str, Any]:
    """Two members, two signals each, three tactics of which a signal allows two; blue guards one of four ways."""
    subsets = (((0, 1), (1, 2)), ((0, 2), (0, 1)))
    excess = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        prob = rng.random((2, 2))
        game = teams.TeamGame(prob / prob.sum(), subsets, rng.random((3, 3, 4)))
        alone = teams.best_independent(game, tolerance=0.01)
        excess.append(solve_zero_sum(teams.joint_payoff(game)).value - alone.high)
    return {"games": count, "proven_excess_mean": float(np.mean(excess)), "proven_excess_most": float(max(excess))}


# -- diversity


def diversity(seeds: int) -> Section:
    """Final true NashConv under a bonus for red, constant or lowered to 0, vanishing on members or not."""
    bars, figures = [], {}
    weights = (0.03, 0.1, 0.3)
    none = _runs(seeds, None, 0.0, annealed=False)
    figures["none"] = _curve(none)
    for kind, bonus in (("vanishing", nearest_member), ("staying", all_members), ("taste", taste)):
        for weight in weights:
            for annealed in (False, True):
                runs = _runs(seeds, bonus, weight, annealed=annealed)
                title = f"{kind}, lambda {weight}, {'annealed' if annealed else 'constant'}"
                figures[title] = _curve(runs)
                if kind == "vanishing" or annealed:
                    worst = max(run.curve[-1] for run in runs)
                    bars.append(Bar(f"{title}: largest final true NashConv", worst, 1e-6, at_least=False))
                else:
                    worst = max(run.curve[-1] / run.bound for run in runs)
                    bars.append(Bar(f"{title}: largest NashConv / (lambda range)", worst, 1.0, at_least=False))
    return Section(figures, bars)


class DiversityRun(NamedTuple):
    """One game under one bonus."""

    game: str
    curve: list[float]
    """True NashConv before each iteration, and at the end."""

    bound: float
    """lambda times the range of the bonus at the end."""

    members: int
    """Of both sides."""


def nearest_member(payoff: np.ndarray, own: np.ndarray) -> np.ndarray:
    """[A] squared distance of a row of payoffs to that of the nearest member, the largest distance of two rows being 1."""
    return _distances(payoff, own).min(axis=1)


def all_members(payoff: np.ndarray, own: np.ndarray) -> np.ndarray:
    """[A] the same, averaged over all members: it does not vanish on any of them."""
    return _distances(payoff, own).mean(axis=1)


def taste(payoff: np.ndarray, own: np.ndarray) -> np.ndarray:
    """[A] a liking for some actions that has nothing to do with payoffs or members; the worst that a bonus can be."""
    del own
    return np.random.default_rng(payoff.shape[0]).random(payoff.shape[0])


def _distances(payoff: np.ndarray, own: np.ndarray) -> np.ndarray:
    rows = own @ payoff
    apart = ((payoff[:, None] - payoff[None]) ** 2).sum(axis=2).max()
    return ((payoff[:, None] - rows[None]) ** 2).sum(axis=2) / apart


def games_of(seed: int) -> dict[str, np.ndarray]:
    """Four games of one seed; where the game has no seed, the order of its actions has."""
    rng = np.random.default_rng(seed)
    blotto, kuhn = matrix_games.blotto(6, 3), matrix_games.normal_form("kuhn_poker")
    table = {"num_exchanges": 1, "num_goals": 2, "num_tactics": 3, "num_styles": 3, "seed": seed}
    found = {
        "skill": matrix_games.skill(30, rng),
        "blotto": blotto,
        "kuhn": kuhn,
        "dialogue": matrix_games.normal_form("tiny_redteam", table),
    }
    return {
        name: payoff[rng.permutation(payoff.shape[0])][:, rng.permutation(payoff.shape[1])]
        for name, payoff in found.items()
    }


def _runs(
    seeds: int, bonus: Callable[[np.ndarray, np.ndarray], np.ndarray] | None, weight: float, *, annealed: bool
) -> list[DiversityRun]:
    runs = []
    for seed in range(seeds):
        for name, payoff in games_of(seed).items():
            oracle = MatrixOracle()
            if bonus is not None:
                oracle = MatrixOracle(
                    bonus=lambda _, own, payoff=payoff: bonus(payoff, own),
                    bonus_weight=lambda k: weight * (max(0.0, 1 - k / _ANNEALING) if annealed else 1.0),
                )
            context = matrix_context(payoff, seed=seed)
            method = matrix_method(nash, oracle, least=_ANNEALING + 1 if annealed else 0)
            solution = loop.solve(method, context)
            mixtures = [*(iteration.mixture for iteration in solution.iterations), solution.mixture]
            own = context.members.weights(solution.payoffs.red)
            spread = float(np.ptp(bonus(payoff, own))) if bonus is not None else 0.0
            curve = [context.members.nash_conv(mixture).total for mixture in mixtures]
            sizes = len(solution.payoffs.red) + len(solution.payoffs.blue)
            runs.append(DiversityRun(name, curve, weight * spread, sizes))
    return runs


def _curve(runs: Sequence[DiversityRun]) -> dict[str, Any]:
    """Per game: mean NashConv with the half-width of its 95 % interval over seeds, by iteration; a run that has ended stays."""
    found: dict[str, Any] = {}
    for game in dict.fromkeys(run.game for run in runs):
        own = [run for run in runs if run.game == game]
        table = np.array([[run.curve[min(place, len(run.curve) - 1)] for place in _PLACES] for run in own])
        reached = [next((k for k, conv in enumerate(run.curve) if conv <= 0.01), float("nan")) for run in own]
        found[game] = {
            "nash_conv": {str(p): _interval(column) for p, column in zip(_PLACES, table.T, strict=True)},
            "final": _interval([run.curve[-1] for run in own]),
            "iterations": _interval([len(run.curve) - 1 for run in own]),
            "iterations_to_0.01": _interval([k for k in reached if not np.isnan(k)]),
            "never_at_0.01": int(np.isnan(reached).sum()),
            "members": _interval([run.members for run in own]),
        }
    return found


def _interval(values: Sequence[float] | np.ndarray) -> list[float | None]:
    """Mean and half-width; None where there are too few to say."""
    x = np.asarray(values, dtype=float)
    if x.size < 2:
        return [round(float(x.mean()), 5) if x.size else None, None]
    half = stats.t.ppf(0.975, x.size - 1) * x.std(ddof=1) / np.sqrt(x.size)
    return [round(float(x.mean()), 5), round(float(half), 5)]


# -- the published matrix


def seas(rounds: int) -> Section:
    """Every meta-solver on the published cross-play; its saddle is the last pair."""
    del rounds
    samples = {
        Cell(f"R{r}", f"T{c}"): Samples(utilities=np.array([SEAS[r, c]]), goal_ids=("x",), harmful=np.array([True]))
        for r in range(4)
        for c in range(4)
    }
    names = [tuple(f"{side}{index}" for index in range(4)) for side in "RT"]
    payoffs = PayoffTensor(red=names[0], blue=names[1], bounds=(0.0, 100.0), samples=samples)
    found = {name: solver(payoffs, None, np.random.default_rng(0)) for name, solver in META_SOLVERS.items()}
    weights = {name: float(mixture.red[3] * mixture.blue[3]) for name, mixture in found.items()}
    bars = [
        Bar(f"SEAS cross-play, {name}: weight of (R3, T3)", weights[name], 0.98)
        for name in META_SOLVERS
        if name not in ("uniform", "latest")  # the one does not look at payoffs, the other has it by definition
    ]
    worst = max(abs(mixture.value - 73.97) for mixture in found.values())
    bars.append(Bar("SEAS cross-play, |value - 73.97|, worst solver", worst, 1e-6, at_least=False))
    context = matrix_context(SEAS)
    solution = loop.solve(matrix_method(nash), context)
    bars.append(
        Bar(
            "SEAS cross-play, the loop from (R0, T0): |value - 73.97|",
            abs(solution.mixture.value - 73.97),
            1e-6,
            at_least=False,
        )
    )
    pairs = [round(nash_conv(SEAS, np.eye(4)[i], np.eye(4)[i]).total, 2) for i in range(4)]
    wrong = max(abs(a - b) for a, b in zip(pairs, (92.05, 89.98, 68.01, 0.0), strict=True))
    bars.append(
        Bar("SEAS cross-play, NashConv of (Ri, Ti) against 92.05, 89.98, 68.01, 0", wrong, 0.005, at_least=False)
    )
    return Section({"weight": weights, "nash_conv_of_pairs": pairs, "iterations": len(solution.iterations)}, bars)


# -- fakes


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


def section(run: Callable[[int], Section], rounds: int) -> Callable[[Options], Section]:
    """A section with the rounds that its bars are stated for; one for a quick look."""
    return lambda options: run(options.times(rounds, 1))


SECTIONS: dict[str, Callable[[Options], Section]] = {
    "dialogues": section(dialogues, 5),  # games per size
    "diversity": section(diversity, 10),  # seeds
    "seas": section(seas, 1),
    "fakes": section(fakes, 5),  # sixties of null runs
}
