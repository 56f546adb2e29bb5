"""The loop on a plain payoff matrix: members are strategies over its rows or columns, and everything is known.

For comparing population methods (papers on diversity in PSRO do it on such games). With exact cells and exact best responses
the loop is double oracle and ends after a few iterations; what separates methods is noise and handicaps, so both can be
had: cells estimated from dialogues that pay all or nothing, responses that are only nearly best, and learners that
take one step of a given rate towards the best response (the protocol of Diverse PSRO, arXiv:2103.07927).

    context = matrix_context(payoff, dialogues_per_cell=32, seed=1)
    solution = loop.solve(matrix_method(nash, MatrixOracle(epsilon=0.05), most=30), context)
    context.members.nash_conv(solution.mixture)                  # in the whole game, exactly

Letters: R rows (red's actions), C columns (blue's), A actions of the side in question, N members of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from rtg_env.errors import ConfigError, PayoffShapeError
from rtg_env.types import Role
from rtg_solvers import empirical
from rtg_solvers.empirical import MetaSolver, Mixture, NashConv, checked_matrix
from rtg_solvers.loop import Context, Method, Task
from rtg_solvers.oracles.exact import until_nothing_is_found
from rtg_solvers.oracles.members import MembersInMemory
from rtg_solvers.payoffs import Cell, Samples
from rtg_solvers.seeding import rng_for

_TOLERANCE: Final = 1e-9
"""A best response that gains less is none, as a share of the range of payoffs."""

Bonus = Callable[[Role, np.ndarray], np.ndarray]
"""(side, its members' strategies [N, A]) -> [A] what each action is paid on top for being different, in utility."""


@dataclass(frozen=True, slots=True, eq=False)
class MatrixStrategy:
    """A member: a strategy over the actions of one side."""

    version: str
    role: Role
    weights: np.ndarray
    """[A] probabilities."""


class Played(NamedTuple):
    """What a mixture amounts to."""

    red: np.ndarray
    """[R] probabilities of rows."""

    blue: np.ndarray
    """[C] probabilities of columns."""


class MatrixMembers(MembersInMemory[MatrixStrategy]):
    """The members of both sides of a matrix game, and what they win against each other.

    Args:
        payoff: [R, C] what red wins, finite.
        start: First action of each side; default: 0. A vector is a mixed strategy.
        dialogues_per_cell: All-or-nothing dialogues that estimate a cell; 0: cells are exact.
        seed: Of the dialogues.

    Raises:
        PayoffShapeError: If the payoffs are no finite matrix, or a first strategy does not fit it.
        ConfigError: If dialogues_per_cell is below 0.
    """

    def __init__(
        self,
        payoff: np.ndarray,
        start: Mapping[Role, int | np.ndarray] | None = None,
        *,
        dialogues_per_cell: int = 0,
        seed: int = 0,
    ) -> None:
        if dialogues_per_cell < 0:
            raise ConfigError(f"expected dialogues_per_cell >= 0, got {dialogues_per_cell}")
        self.payoff = checked_matrix(payoff)
        self.bounds = (float(self.payoff.min()), float(self.payoff.max()))
        self.sampled, self._seed = dialogues_per_cell > 0, seed
        self._most: dict[Cell, int] = {}
        super().__init__()
        roles: tuple[Role, ...] = ("red", "blue")
        for role, size in zip(roles, self.payoff.shape, strict=True):
            weights = _strategy((start or {}).get(role, 0), size, role)
            self.extend([MatrixStrategy(self.next_version(role), role, weights)])

    @property
    def num_dialogues(self) -> int:
        """All that were played, each counted once."""
        return sum(self._most.values())

    def weights(self, names: Sequence[str]) -> np.ndarray:
        """[N, A] strategies of these members, all of one side."""
        return np.array([self._members[name].weights for name in names])

    def play_cells(self, wanted: Mapping[Cell, int]) -> dict[Cell, Samples]:
        """The expected utility of each pair as one dialogue, or as many dialogues as are wanted."""
        return {
            cell: self.dialogues(cell, count) if self.sampled else self._exact(cell) for cell, count in wanted.items()
        }

    def _exact(self, cell: Cell) -> Samples:
        value = self._members[cell.red].weights @ self.payoff @ self._members[cell.blue].weights
        return Samples(utilities=np.array([value]), goal_ids=("exact",), harmful=np.array([True]))

    def dialogues(self, cell: Cell, count: int) -> Samples:
        """The first `count` all-or-nothing dialogues of a pair: red wins the most or the least payoff of the matrix.

        Fewer dialogues of the same pair are a prefix of more.
        """
        low, high = self.bounds
        value = float(self._members[cell.red].weights @ self.payoff @ self._members[cell.blue].weights)
        won = rng_for(self._seed, "cell", *cell).random(count) < (value - low) / ((high - low) or 1.0)
        self._most[cell] = max(count, self._most.get(cell, 0))
        names = tuple(f"dialogue-{index}" for index in range(count))
        return Samples(utilities=np.where(won, high, low), goal_ids=names, harmful=np.ones(count, bool))

    def played(self, mixture: Mixture) -> Played:
        """What the two sides play when each draws a member from its mixture."""
        return Played(mixture.red @ self.weights(mixture.red_names), mixture.blue @ self.weights(mixture.blue_names))

    def nash_conv(self, mixture: Mixture) -> NashConv:
        """NashConv of a mixture in the whole matrix, exactly; in utility."""
        return empirical.nash_conv(self.payoff, *self.played(mixture))


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixContext(Context):
    """A run on a payoff matrix."""

    members: MatrixMembers
    """The populations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixOracle:
    """The best response to a mixture in the whole matrix, with handicaps.

    Raises:
        ConfigError: If a setting is outside its range.
    """

    epsilon: float = 0.0
    """Any action within this of the best may be the response, all alike; in utility, at least 0."""

    rate: float = 1.0
    """Step from the side's newest member towards the response, in (0, 1]; 1 is the response itself."""

    bonus: Bonus | None = None
    """What is maximised beside utility; such a response may gain nothing, and is none only if it is a member."""

    bonus_weight: Callable[[int], float] = lambda _: 0.0
    """lambda of an iteration, from 0 on; at least 0."""

    bonus_roles: tuple[Role, ...] = ("red",)
    """Who is paid the bonus."""

    repeats: bool = False
    """Whether a response that is a member already is added once more (fictitious play counts how often)."""

    def __post_init__(self) -> None:
        """Refuse settings outside their range."""
        if not self.epsilon >= 0.0 or not 0.0 < self.rate <= 1.0:
            raise ConfigError(f"expected epsilon >= 0 and rate in (0, 1], got {self.epsilon!r} and {self.rate!r}")

    def respond(self, task: Task[MatrixContext]) -> MatrixStrategy | None:
        """A strategy; None if nothing can be gained, or it is a member that may not be repeated."""
        members, names = task.context.members, task.context.members.names(task.role)
        values = _values(members, task)
        own = members.weights(names)
        scale = members.bounds[1] - members.bounds[0]
        paid = values.copy()
        weight = self.bonus_weight(task.iteration) if task.role in self.bonus_roles else 0.0
        if self.bonus is not None and weight > 0.0:
            paid = paid + weight * self.bonus(task.role, own)
        elif values.max() <= _TOLERANCE * scale:
            return None
        rng = rng_for(task.context.seed, "respond", task.role, task.iteration)
        # Among ties the first: the answer does not depend on rounding.
        near = np.flatnonzero(paid >= paid.max() - max(self.epsilon, _TOLERANCE * scale))
        action = int(rng.choice(near)) if self.epsilon else int(near[0])
        response = (1.0 - self.rate) * own[-1] + self.rate * np.eye(values.size)[action]
        if not self.repeats and (np.abs(own - response).max(axis=1) < _TOLERANCE).any():
            return None
        return MatrixStrategy(task.version, task.role, response)


def matrix_context(
    payoff: np.ndarray,
    start: Mapping[Role, int | np.ndarray] | None = None,
    *,
    dialogues_per_cell: int = 0,
    seed: int = 0,
) -> MatrixContext:
    """A run on a matrix game, nothing played yet; arguments and errors as `MatrixMembers`."""
    members = MatrixMembers(payoff, start, dialogues_per_cell=dialogues_per_cell, seed=seed)
    return MatrixContext(
        population=members,
        play_cells=members.play_cells,
        bounds=members.bounds,
        members=members,
        seed=seed,
        dialogues_per_cell=max(1, dialogues_per_cell),
    )


def matrix_method(
    meta_solver: MetaSolver, oracle: MatrixOracle | None = None, *, most: int = 200, least: int = 0
) -> Method[MatrixContext]:
    """The loop on a matrix: both sides learn until neither finds anything, `most` times at the most.

    Args:
        meta_solver: Who to prepare for.
        oracle: Of both sides; default: exact.
        most: Iterations at the most.
        least: Iterations at the least; as long as a bonus is lowered.
    """
    answer = oracle or MatrixOracle()
    return Method(
        meta_solver=meta_solver,
        oracles={"red": answer, "blue": answer},
        schedule=until_nothing_is_found(most, least=least),
    )


def _values(members: MatrixMembers, task: Task[MatrixContext]) -> np.ndarray:
    """[A] what each action of the side gains over the mixture, in the true game."""
    x, y = members.played(task.mixture)
    value = float(x @ members.payoff @ y)
    return np.asarray(members.payoff @ y - value if task.role == "red" else value - x @ members.payoff)


def _strategy(start: int | np.ndarray, size: int, role: Role) -> np.ndarray:
    chosen = isinstance(start, int) and 0 <= start < size
    weights = np.eye(size)[int(start)] if chosen else np.array(start, dtype=float)
    if weights.shape != (size,) or weights.min() < 0 or abs(weights.sum() - 1.0) > 1e-9:
        raise PayoffShapeError(f"expected {role}'s first strategy over {size} actions, got {start!r}")
    return np.asarray(weights)
