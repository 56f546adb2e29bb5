"""The shape of a game: how much of it is skill and how much is rock, paper, scissors.

A pair k = (r, b) of a red and a blue member plays both sides. Against another pair it wins

    M[(r, b), (r', b')] = (u_red(r, b') - u_red(r', b)) / 2,

which is antisymmetric. Such a game splits into a transitive part f(k) - f(k') and a cyclic part whose rows sum to 0
(Balduzzi et al. 2019, arXiv:1901.08106). With U's two-way decomposition u(r, b) = mean + row_r + column_b + I(r, b),

    f(r, b) = (row_r - column_b) / 2,    cyclic part = (I(r, b') - I(r', b)) / 2:

the cyclic part is the interaction, nothing else. Noise of the cells is almost all interaction, so it is subtracted.

Layers are Nash clusters (Czarnecki et al. 2020, arXiv:2004.09468): the support of the largest Nash equilibrium, then
that of what is left, and so on. A spinning top has many cycles in its middle layers and few at its ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.optimize import linprog

from rtg_env.errors import PayoffShapeError, SolverError
from rtg_solvers.empirical import checked_matrix
from rtg_solvers.intervals import CellMeans, cells_of
from rtg_solvers.payoffs import PayoffTensor

_MOST_PAIRS: Final = 150
"""Layers take a linear program each, of twice as many unknowns as there are pairs; beyond this they are left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """Mean squares of the entries of M, noise subtracted (so that an estimate may fall below 0)."""

    transitive: float
    """Of f(k) - f(k')."""

    cyclic: float
    """Of the rest."""

    noise: float
    """What was subtracted from both together."""

    @property
    def cyclic_share(self) -> float:
        """Of the energy, in [0, 1]; NaN where there is none."""
        transitive, cyclic = max(0.0, self.transitive), max(0.0, self.cyclic)
        return cyclic / (transitive + cyclic) if transitive + cyclic > 0 else float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class Controls:
    """Cyclic shares of games that are known to be something else."""

    additive: np.ndarray
    """[num] Of the fit without interaction, with noise as large as the cells': what noise alone looks like."""

    shuffled: np.ndarray
    """[num] Of the same payoffs in other places: what a game without any order looks like."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A Nash cluster."""

    members: tuple[int, ...]
    """Rows of M."""

    num_cycles: int
    """Triples in it of which each beats the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The geometry of a payoff tensor, as it is reported."""

    cyclic_share: float | None
    """Share of cycles in the energy, noise subtracted; None where nothing is left of it."""

    additive: tuple[float, float, float] | None
    """The same in 200 games without cycles and with the cells' noise: 2.5 %, median, 97.5 %; None if all are None."""

    shuffled: tuple[float, float, float] | None
    """The same in 200 games with the payoffs in random places."""

    transitive_energy: float
    """Mean square, noise subtracted."""

    cyclic_energy: float
    """Mean square, noise subtracted."""

    layers: tuple[tuple[tuple[str, str], ...], ...]
    """Nash clusters of (red, blue) pairs, best first; empty if there are more than 150 pairs."""

    cycles: tuple[int, ...]
    """Triples, in each layer, of which each beats the next."""


def shape_of(payoffs: PayoffTensor, *, rng: np.random.Generator) -> Shape | None:
    """The geometry of a payoff tensor; None if all dialogues are on one goal, so that its noise is not known.

    Args:
        payoffs: Solved before, so that every cell has a scored dialogue.
        rng: Draws the controls.
    """
    if payoffs.num_goals < 2:
        return None
    cells = cells_of(payoffs)
    found, compared = energy(cells), controls(cells, rng=rng)
    pairs = [(red, blue) for red in payoffs.red for blue in payoffs.blue]
    layers = nash_layers(pair_game(cells.mean)) if len(pairs) <= _MOST_PAIRS else []
    return Shape(
        cyclic_share=None if np.isnan(found.cyclic_share) else found.cyclic_share,
        additive=_spread(compared.additive),
        shuffled=_spread(compared.shuffled),
        transitive_energy=found.transitive,
        cyclic_energy=found.cyclic,
        layers=tuple(tuple(pairs[member] for member in layer.members) for layer in layers),
        cycles=tuple(layer.num_cycles for layer in layers),
    )


def _spread(shares: np.ndarray) -> tuple[float, float, float] | None:
    known = shares[~np.isnan(shares)]
    if not known.size:
        return None
    low, middle, high = np.quantile(known, (0.025, 0.5, 0.975))
    return float(low), float(middle), float(high)


def energy(cells: CellMeans) -> Energy:
    """Transitive and cyclic energy of the pair game, unbiased where the cells' variances are.

    With e = mean squares over cells: transitive = (e(row) + e(column)) / 2, cyclic = e(I) / 2.

    Args:
        cells: Of U; where cells share goals, their common noise is known not to be interaction.
    """
    parts = _mean_squares(cells.mean)
    if cells.influence is None:
        rows, columns = cells.mean.shape
        dims = np.array([rows - 1, columns - 1, (rows - 1) * (columns - 1)])
        noise = cells.variance.mean() * dims / cells.mean.size
    else:
        groups = len(cells.influence)
        noise = groups / (groups - 1) * sum(_mean_squares(errors) for errors in cells.influence)
    transitive, cyclic = (parts - noise)[:2].sum() / 2, (parts - noise)[2] / 2
    return Energy(transitive=float(transitive), cyclic=float(cyclic), noise=float(np.sum(noise)) / 2)


def controls(cells: CellMeans, *, rng: np.random.Generator, num: int = 200) -> Controls:
    """What the cyclic share would be if there were no interaction, and if there were no order.

    Args:
        cells: Of U.
        rng: Draws noise and places.
        num: Draws of each.
    """
    row, column, _ = _two_way(cells.mean)
    additive = cells.mean.mean() + row[:, None] + column
    noisy = [energy(_with_mean(cells, additive + _noise(cells, rng))) for _ in range(num)]
    moved = [energy(_shuffled(cells, rng)) for _ in range(num)]
    return Controls(
        additive=np.array([found.cyclic_share for found in noisy]),
        shuffled=np.array([found.cyclic_share for found in moved]),
    )


def pair_game(payoff: np.ndarray) -> np.ndarray:
    """M [R * C, R * C] of U [R, C]; pairs in the order of U's cells, row by row."""
    matrix = checked_matrix(payoff)
    rows, columns = np.indices(matrix.shape).reshape(2, -1)
    wins = matrix[rows[:, None], columns]
    return np.asarray((wins - wins.T) / 2)


def nash_layers(game: np.ndarray) -> list[Layer]:
    """Nash clusters of an antisymmetric game, best first, with the 3-cycles inside each.

    Args:
        game: [n, n] what the row wins. One linear program with 2 n unknowns per layer: seconds for 100 rows.

    Raises:
        PayoffShapeError: If it is not antisymmetric.
        SolverError: If a linear program fails.
    """
    matrix = checked_matrix(game)
    if matrix.shape[0] != matrix.shape[1] or not np.allclose(
        matrix, -matrix.T, atol=1e-9 * (np.abs(matrix).max() or 1.0)
    ):
        raise PayoffShapeError(f"expected an antisymmetric game, got a matrix of shape {matrix.shape} that is none")
    left, layers = np.arange(len(matrix)), []
    while left.size:
        support = _largest_support(matrix[np.ix_(left, left)])
        members = left[support]
        layers.append(Layer(members=tuple(members.tolist()), num_cycles=num_cycles(matrix[np.ix_(members, members)])))
        left = left[~support]
    return layers


def num_cycles(game: np.ndarray) -> int:
    """Triples of an antisymmetric game of which each beats the next; ties beat nobody."""
    matrix = np.asarray(game, dtype=float)
    beats = (matrix > 1e-9 * (np.abs(matrix).max(initial=0.0) or 1.0)).astype(float)
    return round(float(np.trace(beats @ beats @ beats)) / 3)


def _largest_support(game: np.ndarray) -> np.ndarray:
    """[n] bool: whether some Nash equilibrium plays a row.

    For antisymmetric M there are p >= 0 and w = p M >= 0 with p + w > 0 (Tucker 1956): p, normalised, is an equilibrium
    of the largest support, and w what it wins against the rest. They are scaled so that p + w >= 1.
    """
    unit = game / (np.abs(game).max() or 1.0)
    size = len(unit)
    solved = linprog(
        np.ones(size), A_ub=np.r_[-unit.T, -unit.T - np.eye(size)], b_ub=np.r_[np.zeros(size), -np.ones(size)]
    )
    if solved.x is None:
        raise SolverError(f"expected HiGHS to find the Nash support of {size} strategies, it says: {solved.message}")
    return np.asarray(solved.x >= solved.x @ unit)


def _two_way(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row effects [R], column effects [C] and interaction [R, C], all around 0."""
    mean = matrix.mean()
    row, column = matrix.mean(axis=1) - mean, matrix.mean(axis=0) - mean
    return row, column, matrix - mean - row[:, None] - column


def _mean_squares(matrix: np.ndarray) -> np.ndarray:
    """[3] of row effects, column effects and interaction."""
    return np.array([float((part**2).mean()) for part in _two_way(matrix)])


def _noise(cells: CellMeans, rng: np.random.Generator) -> np.ndarray:
    """[R, C] errors as the cells have them; goals' errors are shared."""
    if cells.influence is None:
        return np.asarray(rng.standard_normal(cells.mean.shape) * np.sqrt(cells.variance))
    groups = len(cells.influence)
    weights = rng.standard_normal(groups) * np.sqrt(groups / (groups - 1))
    return np.asarray(np.einsum("g,grc->rc", weights, cells.influence))


def _with_mean(cells: CellMeans, mean: np.ndarray) -> CellMeans:
    return CellMeans(mean=mean, variance=cells.variance, count=cells.count, influence=cells.influence)


def _shuffled(cells: CellMeans, rng: np.random.Generator) -> CellMeans:
    order = rng.permutation(cells.mean.size)

    def moved(table: np.ndarray) -> np.ndarray:
        return np.asarray(table.reshape(*table.shape[:-2], -1)[..., order].reshape(table.shape))

    influence = None if cells.influence is None else moved(cells.influence)
    return CellMeans(
        mean=moved(cells.mean), variance=moved(cells.variance), count=moved(cells.count), influence=influence
    )
