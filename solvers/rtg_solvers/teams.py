"""Red teams whose members hold private signals: the truth is a matrix game over joint plans.

Chance deals every member a signal that it alone sees: the tactics at its disposal. Members then choose at the same time,
blue at the same time as they. A plan of a member is one tactic per signal; a joint plan is one plan per member. The team
shares an interest but no memory, so that its equilibrium with one common draw (TMECor, Celli & Gatti 2018) is the linear
program over joint plans. Members that draw on their own may win less (team-maxmin, von Stengel & Koller 1997); how much
is computed here with a certificate, for two members.

    game = rendezvous(full_prob=0.75)
    solve_zero_sum(joint_payoff(game)).value       # 3/8: what the team wins when it draws together
    best_independent(game)                         # 1/4: the most that it wins when each draws alone

Letters: n members, S signals, A tactics, B blue's actions, P plans of one member, J joint plans.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Final, NamedTuple

import numpy as np
from scipy.optimize import linprog

from rtg_env.errors import ConfigError, PayoffShapeError, SolverError

Plan = tuple[int, ...]
"""A tactic per signal."""

_MOST_PLANS: Final = 100_000
_MOST_CELLS: Final = 20_000


@dataclass(frozen=True, slots=True, eq=False)
class TeamGame:
    """A team against blue.

    Raises:
        PayoffShapeError: If probabilities, subsets and payoffs do not fit together.
    """

    signal_prob: np.ndarray
    """[S_1, .., S_n] chance of a deal of signals; sums to 1."""

    subsets: tuple[tuple[tuple[int, ...], ...], ...]
    """Per member and signal: the tactics that it may use then, at least one."""

    payoff: np.ndarray
    """[A_1, .., A_n, B] what red wins, by the tactics that were used and blue's action."""

    def __post_init__(self) -> None:
        """Refuse what does not fit together."""
        n = len(self.subsets)
        if self.signal_prob.ndim != n or self.payoff.ndim != n + 1 or self.payoff.size == 0:
            raise PayoffShapeError(
                f"expected signal_prob with {n} axes and payoff with {n + 1} for {n} members, got shapes "
                f"{self.signal_prob.shape} and {self.payoff.shape}"
            )
        if abs(self.signal_prob.sum() - 1.0) > 1e-9 or self.signal_prob.min() < 0 or not np.isfinite(self.payoff).all():
            raise PayoffShapeError("expected probabilities of signals that sum to 1, and finite payoffs")
        for member, (own, num_signals) in enumerate(zip(self.subsets, self.signal_prob.shape, strict=True)):
            legal = range(self.payoff.shape[member])
            if len(own) != num_signals or not all(own) or not all(t in legal for subset in own for t in subset):
                raise PayoffShapeError(
                    f"expected member {member} to have {num_signals} subsets of {len(legal)} tactics, got {own}"
                )


def plans(game: TeamGame, member: int) -> tuple[Plan, ...]:
    """[P] every plan of one member: a tactic from its subset for each of its signals."""
    return tuple(product(*game.subsets[member]))


def joint_plans(game: TeamGame) -> tuple[tuple[Plan, ...], ...]:
    """[J] every joint plan, a plan per member; the last member's changes fastest.

    Raises:
        ConfigError: If there are more than 100 000.
    """
    return tuple(product(*_checked_plans(game)))


def plan_payoff(game: TeamGame) -> np.ndarray:
    """[P_1, .., P_n, B] what red wins on average over signals, by each member's plan and blue's action.

    Raises:
        ConfigError: If there are more than 100 000 joint plans.
    """
    own = _checked_plans(game)
    total = np.zeros((*(len(found) for found in own), game.payoff.shape[-1]))
    for deal in product(*(range(size) for size in game.signal_prob.shape)):
        tactics = [[plan[signal] for plan in found] for found, signal in zip(own, deal, strict=True)]
        total += game.signal_prob[deal] * game.payoff[np.ix_(*tactics, range(game.payoff.shape[-1]))]
    return total


def joint_payoff(game: TeamGame) -> np.ndarray:
    """[J, B] the matrix game whose rows are joint plans, in the order of `joint_plans`: the team as one meta-player.

    Raises:
        ConfigError: If there are more than 100 000 joint plans.
    """
    table = plan_payoff(game)
    return table.reshape(-1, table.shape[-1])


class IndependentPlay(NamedTuple):
    """The most that two members win when each draws its plan alone, between bounds that were proven."""

    low: float
    """What `first` and `second` win against whatever blue does."""

    high: float
    """No product mixture wins more."""

    first: np.ndarray
    """[P_1] mixture over the first member's plans."""

    second: np.ndarray
    """[P_2] mixture over the second member's plans."""


def best_independent(game: TeamGame, *, tolerance: float = 1e-3) -> IndependentPlay:
    """Max over product mixtures (x, y) of the least that red wins, by branch and bound over x.

    For one x the best y is a linear program. Over a simplex of x's, red wins no more than if the second member knew
    which corner the first one drew: a linear program again, and the tighter, the smaller the simplex. The simplex with
    the highest bound is cut in half at its longest edge until no bound exceeds the best pair by the tolerance.

    Args:
        game: Of two members.
        tolerance: Largest `high - low`, in utility; above 0.

    Raises:
        ConfigError: If the team is not of two, or the tolerance is not above 0.
        SolverError: If 20 000 simplices are not enough.
    """
    if len(game.subsets) != 2 or not tolerance > 0:
        raise ConfigError(
            f"expected two members and a tolerance above 0, got {len(game.subsets)} members and {tolerance!r}"
        )
    table = plan_payoff(game)
    best = max((_answer(table, x) for x in np.eye(table.shape[0])), key=lambda pair: pair.low)
    cells = [_bounded(table, np.eye(table.shape[0]), 0)]
    for number in range(1, _MOST_CELLS):
        cell = heapq.heappop(cells)
        if -cell.key <= best.low + tolerance:
            return best._replace(high=max(best.low, -cell.key))
        middle, halves = _halves(cell.corners)
        best = max(best, _answer(table, middle), key=lambda pair: pair.low)
        for side, half in enumerate(halves):
            heapq.heappush(cells, _bounded(table, half, 2 * number + side))
    raise SolverError(
        f"expected {_MOST_CELLS} simplices to bound independent play within {tolerance}, the bounds are "
        f"{best.low:.4f} and {-cells[0].key:.4f}; allow a larger tolerance"
    )


def rendezvous(full_prob: float = 0.75) -> TeamGame:
    """Two members must say the same of two things, and blue guards against one of them.

    Each has both tactics with probability r = full_prob, on its own, else the first alone. Red wins 1 if both use the
    same tactic and blue guards the other one. By hand, for r >= 1/2: together they always mean the same tactic, the
    second with probability 1 / (2 r), and win r / 2 whatever blue guards; alone, they use the second with probabilities
    u and v and win min(u v, (1 - u)(1 - v)) <= 1/4.

    Args:
        full_prob: r, in [0, 1].
    """
    payoff = np.zeros((2, 2, 2))
    payoff[0, 0, 1] = payoff[1, 1, 0] = 1.0
    one = np.array([full_prob, 1.0 - full_prob])
    own = ((0, 1), (0,))
    return TeamGame(signal_prob=np.outer(one, one), subsets=(own, own), payoff=payoff)


class _Cell(NamedTuple):
    """A simplex of the first member's mixtures."""

    key: float
    """Minus the bound: the heap gives the highest bound first."""

    number: int
    """Of the simplex, so that equal bounds are told apart."""

    corners: np.ndarray
    """[K, P_1]."""


def _checked_plans(game: TeamGame) -> list[tuple[Plan, ...]]:
    count = 1.0
    for own in game.subsets:
        for subset in own:
            count *= len(subset)
    if count > _MOST_PLANS:
        raise ConfigError(f"expected at most {_MOST_PLANS} joint plans, got {count:.0f}; take fewer signals or tactics")
    return [plans(game, member) for member in range(len(game.subsets))]


def _bounded(table: np.ndarray, corners: np.ndarray, number: int) -> _Cell:
    rows = np.einsum("kp,pqb->kqb", corners, table).reshape(-1, table.shape[-1])
    return _Cell(-_guaranteed(rows)[1], number, corners)


def _answer(table: np.ndarray, x: np.ndarray) -> IndependentPlay:
    y, value = _guaranteed(np.einsum("p,pqb->qb", x, table))
    return IndependentPlay(value, value, x, y)


def _guaranteed(rows: np.ndarray) -> tuple[np.ndarray, float]:
    """The mixture over rows whose least column is largest, and that; one small program, as thousands are solved."""
    n, m = rows.shape
    found = linprog(
        np.r_[np.zeros(n), -1.0],
        A_ub=np.c_[-rows.T, np.ones(m)],
        b_ub=np.zeros(m),
        A_eq=np.r_[np.ones(n), 0.0][None],
        b_eq=[1.0],
        bounds=[(0, None)] * n + [(None, None)],
        method="highs",
    )
    weights = np.clip(found.x[:n], 0.0, None)
    weights /= weights.sum()
    return weights, float((weights @ rows).min())


def _halves(corners: np.ndarray) -> tuple[np.ndarray, Iterator[np.ndarray]]:
    """The middle of the longest edge, and the two simplices that it makes."""
    lengths = np.abs(corners[:, None] - corners[None]).sum(axis=2)
    i, j = np.unravel_index(int(lengths.argmax()), lengths.shape)
    middle = (corners[i] + corners[j]) / 2
    return middle, (np.vstack([np.delete(corners, out, axis=0), middle]) for out in (i, j))
