"""A matrix of attackers against targets as the zero-sum game that it is: who should be played, and how far each pair is off.

Two methods of two sides that improve from each other report the newest pair. In the matrix of all attackers against all
targets that pair is one cell; whether it is an equilibrium is a question to the matrix.
"""

from __future__ import annotations

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

    diagonal: tuple[float, ...]
    """NashConv of attacker i against target i, inside the matrix, for all i that have both."""


def solved_matrix(payoff: np.ndarray) -> SolvedMatrix:
    """Solve a matrix.

    Args:
        payoff: [R, C] what the attacker wins, such as a share of attacks that succeed.

    Raises:
        PayoffShapeError: If it is not a finite matrix.
    """
    solution = solve_zero_sum(payoff)
    rows, columns = payoff.shape
    # A saddle point is the greatest of its column and the least of its row.
    pure = np.argwhere((payoff == payoff.max(axis=0)) & (payoff == payoff.min(axis=1, keepdims=True)))
    return SolvedMatrix(
        value=solution.value,
        red=tuple(float(weight) for weight in solution.row),
        blue=tuple(float(weight) for weight in solution.column),
        saddle=(int(pure[0][0]), int(pure[0][1])) if len(pure) else None,
        diagonal=tuple(nash_conv(payoff, np.eye(rows)[i], np.eye(columns)[i]).total for i in range(min(rows, columns))),
    )
