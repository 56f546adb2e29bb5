"""A matrix of attackers against targets as the zero-sum game that it is: who should be played, and how far each pair is off.

Two methods of two sides that improve from each other report the newest pair. In the matrix of all attackers against all
targets that pair is one cell; whether it is an equilibrium is a question to the matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rtg_solvers.empirical import nash_conv, solve_zero_sum


@dataclass(frozen=True, slots=True, kw_only=True)
class SolvedMatrix:
    """What a matrix of [R] attackers against [C] targets says."""

    value: float
    """What the attacker wins at an equilibrium."""

    red: tuple[float, ...]
    """[R] mixture."""

    blue: tuple[float, ...]
    """[C] mixture."""

    saddle: tuple[int, int] | None
    """Row and column of a cell from which neither side gains by leaving alone, the first of several; None: there is none."""

    pairs: tuple[tuple[int, int], ...]
    """Row and column of each iteration's pair, (R0, T0) first, the last pair last."""

    diagonal: tuple[float, ...]
    """NashConv of each pair, inside the matrix."""


def solved_matrix(payoff: np.ndarray, pairs: Sequence[tuple[int, int]] | None = None) -> SolvedMatrix:
    """Solve a matrix.

    Args:
        payoff: [R, C] what the attacker wins, such as a share of attacks that succeed.
        pairs: Row and column of each iteration's pair; None: attacker i and target i, for all i that have both.

    Raises:
        PayoffShapeError: If it is not a finite matrix.
    """
    solution = solve_zero_sum(payoff)
    rows, columns = payoff.shape
    met = tuple(pairs) if pairs is not None else tuple((i, i) for i in range(min(rows, columns)))
    # A saddle point is the greatest of its column and the least of its row.
    pure = np.argwhere((payoff == payoff.max(axis=0)) & (payoff == payoff.min(axis=1, keepdims=True)))
    return SolvedMatrix(
        value=solution.value,
        red=tuple(float(weight) for weight in solution.row),
        blue=tuple(float(weight) for weight in solution.column),
        saddle=(int(pure[0][0]), int(pure[0][1])) if len(pure) else None,
        pairs=met,
        diagonal=tuple(nash_conv(payoff, np.eye(rows)[row], np.eye(columns)[column]).total for row, column in met),
    )


def newest_pairs(red: Sequence[int], blue: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Places of each iteration's players: the newest that each side had after it.

    Args:
        red: [R] iteration of each attacker, from 0, rising; a side that learned nothing in one has no number of it.
        blue: [C] the same of the targets.
    """

    def newest(iterations: Sequence[int], number: int) -> int:
        return max(place for place, iteration in enumerate(iterations) if iteration <= number)

    last = max(*red, *blue)
    return tuple((newest(red, number), newest(blue, number)) for number in range(last + 1))
