"""One run of a population method on a game whose truth is known, recorded after every iteration.

All methods have the same oracle, with the same handicaps and, in the same iteration of the same seed, the same luck: it
finds a nearly best response (`Tree.near_best`) and takes one step of rate 1/2 from the side's newest member towards it
(the protocol of Diverse PSRO, arXiv:2103.07927). Dialogues between two members really are drawn: chance, and both
members' actions.

Methods differ in whom they prepare for, what they report, how they share out dialogues among payoff cells, and whether
the oracle looks for responses that differ from the members: of several that are all nearly best it takes the one that
adds most, of ever fewer as the run goes on (annealed), so that its handicap stays the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from population_games import Tree

from rtg_env.types import Role
from rtg_solvers import loop
from rtg_solvers.diversity import annealed, expected_cardinality
from rtg_solvers.empirical import Mixture
from rtg_solvers.meta_solvers import meta_solver, nash
from rtg_solvers.oracles.members import MembersInMemory
from rtg_solvers.payoffs import Cell, PayoffTensor, Samples
from rtg_solvers.sampling import SamplingSettings
from rtg_solvers.seeding import rng_for

_NUM_DEALS: Final = 16
"""Groups of dialogues that are counted as one goal each, as a run's are; they are independent all the same."""

ROLES: Final[tuple[Role, ...]] = ("red", "blue")

Diversity = Callable[[np.ndarray, np.ndarray], float]
"""(the members' payoffs [M, K], a candidate's [K], against the other side's members) -> what it adds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run may spend, the same for all methods."""

    iterations: int = 10
    """Oracle calls per side, at least 1."""

    dialogues_per_cell: int = 64
    """Of a payoff cell; with adaptive sampling, on average. `GRTSConfig`'s default."""

    dialogues_per_response: int = 256
    """What an oracle call costs where training is counted: `RLSettings`' default, 8 steps of 32."""

    tolerance: float = 0.1
    """How nearly best a response is: it may lose this share of the NashConv of uniform play."""

    rate: float = 0.5
    """Step towards the response, in (0, 1]."""

    candidates: int = 16
    """Nearly best responses of which an oracle that looks for diversity takes the most different one, at first; their
    number falls to 1."""

    @property
    def iterations_without_cells(self) -> int:
        """Oracle calls per side of a method that plays no payoff cells, for all dialogues of one that does."""
        cells = (self.iterations + 1) ** 2 * self.dialogues_per_cell
        return self.iterations + cells // (2 * self.dialogues_per_response)


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """A strategy of one side."""

    version: str
    role: Role
    plan: np.ndarray
    """[S] realisation plan."""


class Players(MembersInMemory[Member]):
    """The members of both sides and their dialogues; they start as one member per side that plays at random."""

    def __init__(self, tree: Tree, seed: int) -> None:
        super().__init__()
        self.tree, self._seed = tree, seed
        self._most: dict[Cell, int] = {}
        self.extend([Member(self.next_version(role), role, tree.uniform(role)) for role in ROLES])

    @property
    def num_dialogues(self) -> int:
        """All that were played, each counted once."""
        return sum(self._most.values())

    def plans(self, names: Sequence[str]) -> np.ndarray:
        """[N, S] of these members, all of one side."""
        return np.array([self[name].plan for name in names])

    def play_cells(self, wanted: Mapping[Cell, int]) -> dict[Cell, Samples]:
        """The first dialogues of each pair; fewer are a prefix of more."""
        found = {}
        for cell, count in wanted.items():
            won = self.dialogues(cell, count)
            found[cell] = Samples(
                utilities=won,
                goal_ids=tuple(f"deal-{index % _NUM_DEALS}" for index in range(count)),
                harmful=np.ones(count, bool),
            )
        return found

    def dialogues(self, cell: Cell, count: int) -> np.ndarray:
        """[count] what red wins."""
        odds = self.tree.odds(self[cell.red].plan, self[cell.blue].plan)
        drawn = rng_for(self._seed, "cell", *cell).random(count)
        self._most[cell] = max(count, self._most.get(cell, 0))
        return np.asarray(self.tree.utilities[np.searchsorted(odds.cumsum()[:-1], drawn, side="right")])

    def mixed(self, mixture: Mixture) -> tuple[np.ndarray, np.ndarray]:
        """Plans of both sides, each drawing a member from its mixture."""
        return mixture.red @ self.plans(mixture.red_names), mixture.blue @ self.plans(mixture.blue_names)


class Point(NamedTuple):
    """Where a run stood after some iterations."""

    iteration: int
    dialogues: int
    """In payoff cells."""

    nash_conv: float
    """True NashConv of what would be reported."""


class Reported(NamedTuple):
    """What a method reports, and the members that it had by then."""

    red: np.ndarray
    """[S] the plan of red's mixture."""

    blue: np.ndarray
    """[T]."""

    red_members: np.ndarray
    """[N, S]."""

    blue_members: np.ndarray
    """[M, T]."""


class Run:
    """What a method did on one game with one seed; `prepared` is the same had it reported whom it prepared for."""

    def __init__(self, players: Players, plan: Plan) -> None:
        self.curve: list[Point] = []
        self.reported: list[Reported] = []
        self.prepared: Run | None = None
        self._players, self._plan = players, plan

    def record(self, iteration: int, plans: tuple[np.ndarray, np.ndarray], dialogues: int) -> None:
        """Remember where it stands."""
        self.curve.append(Point(iteration, dialogues, self._players.tree.nash_conv(*plans)))
        if iteration == self._plan.iterations:
            red, blue = (self._players.plans(self._players.names(role)) for role in ROLES)
            self.reported.append(Reported(*plans, red, blue))


class Learner:
    """The oracle of all methods.

    Args:
        tree: The game.
        plan: Handicaps.
        seed: Of the run.
        diversity: By what it chooses among responses that are all nearly best; None: by chance.
    """

    def __init__(self, tree: Tree, plan: Plan, seed: int, diversity: Diversity | None = None) -> None:
        self._tree, self._plan, self._seed, self._diversity = tree, plan, seed, diversity
        self._tolerance = plan.tolerance * tree.nash_conv(tree.uniform("red"), tree.uniform("blue"))

    def respond(self, role: Role, iteration: int, own: np.ndarray, others: np.ndarray, mix: np.ndarray) -> np.ndarray:
        """A step from the newest member towards a nearly best response.

        Args:
            role: Who learns.
            iteration: From 0.
            own: [N, S] members of its side, oldest first.
            others: [M, T] members of the other.
            mix: [M] whom to prepare for.
        """
        rng = rng_for(self._seed, "respond", role, iteration)
        share = 0.0 if self._diversity is None else annealed(1.0, iteration, self._plan.iterations)
        count = 1 + round(share * (self._plan.candidates - 1))
        drawn = self._tree.near_best(role, mix @ others, self._tolerance, count, rng)
        if self._diversity is None or count == 1:
            return self._stepped(own, drawn[0])
        return self._stepped(own, drawn[int(self._added(self._diversity, role, own, others, drawn).argmax())])

    def _added(
        self, diversity: Diversity, role: Role, own: np.ndarray, others: np.ndarray, drawn: np.ndarray
    ) -> np.ndarray:
        """[D] what candidates add; read off exact payoffs, without dialogues: a gift to diversity."""
        table = np.array([self._tree.gains(role, plan) for plan in others])
        return np.array([diversity(own @ table.T, row) for row in self._stepped(own, drawn) @ table.T])

    def _stepped(self, own: np.ndarray, found: np.ndarray) -> np.ndarray:
        return np.asarray((1.0 - self._plan.rate) * own[-1] + self._plan.rate * found)


def cardinality(members: np.ndarray, candidate: np.ndarray) -> float:
    """What it adds to expected cardinality (arXiv:2103.07927)."""
    return max(0.0, expected_cardinality(np.vstack([members, candidate])) - expected_cardinality(members))


def distance(members: np.ndarray, candidate: np.ndarray) -> float:
    """Distance to the nearest member."""
    return float(np.sqrt(((members - candidate) ** 2).sum(axis=1).min()))


# Our loop


@dataclass(frozen=True, slots=True, kw_only=True)
class GameContext(loop.Context):
    """A run of the loop."""

    players: Players
    """The populations."""


@dataclass(frozen=True, slots=True)
class LoopOracle:
    """The learner as the loop asks for it."""

    learner: Learner

    def respond(self, task: loop.Task[GameContext]) -> Member:
        """A new member."""
        players, mixture = task.context.players, task.mixture
        red = task.role == "red"
        own = players.plans(mixture.red_names if red else mixture.blue_names)
        others = players.plans(mixture.blue_names if red else mixture.red_names)
        mix = mixture.blue if red else mixture.red
        return Member(task.version, task.role, self.learner.respond(task.role, task.iteration, own, others, mix))


def ours(
    tree: Tree,
    seed: int,
    plan: Plan,
    *,
    prepare: str = "logit",
    adaptive: bool = True,
    diversity: Diversity | None = None,
) -> Run:
    """The population loop; it reports the Nash equilibrium of its payoffs.

    Args:
        tree: The game.
        seed: Of the run.
        plan: What it may spend.
        prepare: The meta-solver that says whom to prepare for.
        adaptive: Whether cells that decide get more dialogues, of the same number in all.
        diversity: What the oracle looks for among nearly best responses.
    """
    players = Players(tree, seed)
    run, oracle = Run(players, plan), LoopOracle(Learner(tree, plan, seed, diversity))

    def schedule(k: int, payoffs: PayoffTensor) -> list[tuple[Role, ...]]:
        run.record(k, players.mixed(nash(payoffs, None, rng_for(seed, "report"))), players.num_dialogues)
        return [ROLES] if k < plan.iterations else []

    context = GameContext(
        population=players,
        players=players,
        play_cells=players.play_cells,
        dialogues_per_cell=plan.dialogues_per_cell,
        sampling=SamplingSettings() if adaptive else None,
        seed=seed,
    )
    method = loop.Method(meta_solver=meta_solver(prepare), oracles=dict.fromkeys(ROLES, oracle), schedule=schedule)
    solution = loop.solve(method, context)
    run.prepared = Run(players, plan)
    for point, mixture in zip(
        run.curve, (*(each.mixture for each in solution.iterations), solution.mixture), strict=True
    ):
        run.prepared.record(point.iteration, players.mixed(mixture), point.dialogues)
    return run


def without_cells(tree: Tree, seed: int, plan: Plan, *, newest: bool) -> Run:
    """Self-play (prepares for and reports the newest member) or fictitious play (all members alike).

    Neither looks at payoffs. The dialogues that the loop would play for their cells are counted, so that methods share an
    axis; the run goes on for as many oracle calls as those dialogues would pay for.
    """
    players, learner = Players(tree, seed), Learner(tree, plan, seed)
    run = Run(players, plan)
    for k in range(plan.iterations_without_cells + 1):
        red, blue = (players.plans(players.names(role)) for role in ROLES)
        mix = np.eye(len(red))[-1] if newest else np.full(len(red), 1.0 / len(red))
        run.record(k, (mix @ red, mix @ blue), plan.dialogues_per_cell * (k + 1) ** 2)
        found = {"red": learner.respond("red", k, red, blue, mix), "blue": learner.respond("blue", k, blue, red, mix)}
        players.extend([Member(players.next_version(role), role, found[role]) for role in ROLES])
    return run
