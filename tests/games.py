"""Payoffs of hand-made games, and an independent linear program."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linprog

from rtg_solvers.payoffs import Cell, PayoffTensor, Samples


def scipy_value(matrix: np.ndarray) -> float:
    """Value of a zero-sum game, by one program for the row player."""
    n, m = matrix.shape
    solved = linprog(
        np.r_[np.zeros(n), -1.0],
        A_ub=np.c_[-matrix.T, np.ones(m)],
        b_ub=np.zeros(m),
        A_eq=np.r_[np.ones(n), 0.0][None],
        b_eq=[1.0],
        bounds=[(0, None)] * n + [(None, None)],
        method="highs",
    )
    return float(solved.x[-1])


def tensor(matrix: Sequence[Sequence[float]] | np.ndarray) -> PayoffTensor:
    """Two dialogues per cell, both with that payoff."""
    table = np.asarray(matrix, dtype=float)
    red = tuple(f"r{row}" for row in range(table.shape[0]))
    blue = tuple(f"b{column}" for column in range(table.shape[1]))
    samples = {
        Cell(r, b): Samples(
            utilities=np.full(2, table[row, column]), goal_ids=("g1", "g2"), harmful=np.array([True, False])
        )
        for row, r in enumerate(red)
        for column, b in enumerate(blue)
    }
    low, high = np.nanmin(table), np.nanmax(table)
    return PayoffTensor(red=red, blue=blue, samples=samples, bounds=(float(low), float(high)))
