"""The empirical game: payoffs, equilibria and mixtures; `meta_solvers` makes mixtures of payoffs.

OpenSpiel's LP Nash is used as it is, with HiGHS instead of its default solver, which the wheel lacks (and which is
GPL). Payoffs are scaled to [0, 1] first: equilibria do not change, and the solver's tolerances then fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from rtg_env.errors import MissingExtraError, PayoffShapeError, SolverError
from rtg_env.types import Role
from rtg_solvers.payoffs import PayoffTensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """A probability vector over the members of each side."""

    red: np.ndarray
    """[R], sums to 1."""

    blue: np.ndarray
    """[C], sums to 1."""

    red_names: tuple[str, ...]
    """[R] versions."""

    blue_names: tuple[str, ...]
    """[C] versions."""

    value: float
    """Of the game: what red wins at an equilibrium of the payoffs that were solved, whatever the mixture."""

    expected: float
    """What red wins on average when both sides draw from their mixture, by the same payoffs."""

    diagnostics: dict[str, float] = field(default_factory=dict)
    """Figures of the solver."""

    def draw(self, role: Role, rng: np.random.Generator) -> str:
        """One member of a side."""
        names, weights = (self.red_names, self.red) if role == "red" else (self.blue_names, self.blue)
        return names[int(rng.choice(len(names), p=weights))]

    def named(self, role: Role) -> dict[str, float]:
        """Weights of a side by version, rounded for records."""
        names, weights = (self.red_names, self.red) if role == "red" else (self.blue_names, self.blue)
        return {name: round(float(weight), 6) for name, weight in zip(names, weights, strict=True)}


class MetaSolver(Protocol):
    """Says whom to prepare for."""

    def __call__(self, payoffs: PayoffTensor, previous: Mixture | None, rng: np.random.Generator) -> Mixture:
        """Mixtures over the members of the payoff tensor."""
        ...


@dataclass(frozen=True, slots=True)
class Equilibrium:
    """A Nash equilibrium of a zero-sum matrix game."""

    row: np.ndarray
    """[R] the maximiser's mixture."""

    column: np.ndarray
    """[C] the minimiser's mixture."""

    value: float
    """What the row player wins."""


@dataclass(frozen=True, slots=True)
class NashConv:
    """What both sides could win by their best deviation inside a matrix."""

    total: float
    """Sum of the gains; 0 exactly at an equilibrium of this matrix."""

    row_gain: float
    """Of the row player."""

    column_gain: float
    """Of the column player."""


def checked_means(payoffs: PayoffTensor) -> np.ndarray:
    """[R, C] the means of a tensor in which every cell has a scored dialogue.

    Raises:
        PayoffShapeError: If a cell has none; it is named.
    """
    mean = checked_shape(payoffs.mean)
    if np.isnan(mean).any():
        r, c = np.argwhere(np.isnan(mean))[0]
        raise PayoffShapeError(
            f"expected at least one scored dialogue in every cell, {payoffs.red[r]} against {payoffs.blue[c]} has "
            "none; mend the judge and run again"
        )
    return mean


def solve_zero_sum(payoff: np.ndarray) -> Equilibrium:
    """Nash equilibrium of a zero-sum matrix game, by OpenSpiel's linear program.

    Args:
        payoff: [R, C] what the row player wins and the column player loses; finite.

    Raises:
        PayoffShapeError: If it is not a finite matrix with at least one entry.
        MissingExtraError: If OpenSpiel is not installed.
        SolverError: If the program is not solved.
    """
    matrix = checked_matrix(payoff)
    try:
        import pyspiel
        from open_spiel.python.algorithms import lp_solver
    except ImportError as error:
        raise MissingExtraError(error.name or "pyspiel", "solve") from error
    low, scale = float(matrix.min()), float(np.ptp(matrix)) or 1.0
    unit = (matrix - low) / scale
    try:
        with highs(lp_solver):
            row, column, value, _ = lp_solver.solve_zero_sum_matrix_game(pyspiel.create_matrix_game(unit, -unit))
        solved = Equilibrium(distribution(row), distribution(column), low + scale * float(np.squeeze(value)))
    except Exception as error:  # cvxpy has errors of its own, and its solvers more
        raise SolverError(
            f"expected OpenSpiel's linear program to solve a payoff matrix {list(matrix.shape)}, it failed: "
            f"{type(error).__name__}: {error}"
        ) from error
    return solved


def nash_conv(payoff: np.ndarray, row: Sequence[float] | np.ndarray, column: Sequence[float] | np.ndarray) -> NashConv:
    """NashConv of a pair of mixtures inside a matrix (Lanctot et al. 2017, arXiv:1711.00832).

    Deviations outside the matrix are not seen: inside the populations it was solved on, an equilibrium has 0 by
    construction.

    Args:
        payoff: [R, C] what the row player wins.
        row: [R] probabilities.
        column: [C] probabilities.

    Raises:
        PayoffShapeError: If sizes disagree or a mixture is no distribution.
    """
    matrix = checked_matrix(payoff)
    x, y = np.asarray(row, dtype=float), np.asarray(column, dtype=float)
    if (x.size, y.size) != matrix.shape:
        raise PayoffShapeError(f"expected mixtures of sizes {matrix.shape}, got {(x.size, y.size)}")
    for name, mixture in (("row", x), ("column", y)):
        if not np.isfinite(mixture).all() or mixture.min() < -1e-9 or abs(mixture.sum() - 1) > 1e-6:
            raise PayoffShapeError(
                f"expected the {name} mixture to be probabilities that sum to 1, got {mixture.tolist()}"
            )
    value = float(x @ matrix @ y)
    row_gain = max(0.0, float((matrix @ y).max()) - value)
    column_gain = max(0.0, value - float((x @ matrix).min()))
    return NashConv(row_gain + column_gain, row_gain, column_gain)


def checked_matrix(payoff: np.ndarray) -> np.ndarray:
    """A float matrix with at least one entry, all finite.

    Raises:
        PayoffShapeError: If it is something else.
    """
    matrix = checked_shape(payoff)
    if not np.isfinite(matrix).all():
        r, c = np.argwhere(~np.isfinite(matrix))[0]
        raise PayoffShapeError(f"expected finite payoffs, got {matrix[r, c]} in row {r + 1}, column {c + 1}")
    return matrix


def checked_shape(payoff: np.ndarray) -> np.ndarray:
    """A float matrix with at least one entry.

    Raises:
        PayoffShapeError: If it is something else.
    """
    matrix = np.asarray(payoff, dtype=float)
    if matrix.ndim != 2 or matrix.size == 0:
        raise PayoffShapeError(f"expected a payoff matrix with at least one row and column, got shape {matrix.shape}")
    return matrix


@contextmanager
def highs(lp_solver: object) -> Iterator[None]:
    """Let OpenSpiel's LP use HiGHS for the time of one call; the default of the wheel is not installed."""
    solve = lp_solver.LinearProgram.solve  # type: ignore[attr-defined]  # untyped module
    before = solve.__defaults__
    solve.__defaults__ = ("HIGHS", {})
    try:
        yield
    finally:
        solve.__defaults__ = before


def distribution(weights: object) -> np.ndarray:
    """A solver's answer as probabilities: its tiny negatives are clipped.

    Raises:
        SolverError: If it is not finite, or nothing is left.
    """
    clipped = np.clip(np.asarray(weights, dtype=float).ravel(), 0.0, None)
    if not 0.0 < (total := float(clipped.sum())) < float("inf"):
        raise SolverError(f"expected probabilities of the members, got {clipped.tolist()!s:.200}")
    return np.asarray(clipped / total)
