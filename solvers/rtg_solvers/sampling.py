"""Which payoff cells to give more dialogues: those that decide who is in the mixture and what it is worth.

After an equal start, cell (i, j) gets dialogues in proportion to

    (w_i y_j + x_i v_j) sd_ij,    w_i = max(x_i, exp(-gap_i^2 / (2 se_i^2))),    v_j alike,

x and y the equilibrium of the means, gap_i the regret of row i against y and se_i its standard error: rows that noise
may have left out of the support are played too, against what the other side plays. (The rule is ours. On random 20 x 20
games it takes about a tenth of the dialogues of equal cells to the same true NashConv: `benchmarks/ground_truth.py`.)

A round's plan depends on the dialogues of earlier rounds alone: a run that goes on after a kill plans the same again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rtg_env.errors import ConfigError, PayoffShapeError
from rtg_solvers.empirical import Equilibrium, checked_shape, solve_zero_sum
from rtg_solvers.intervals import CellMeans, cells_of, nash_conv_bound
from rtg_solvers.payoffs import PayoffTensor, PlayCells

Grow = Callable[[np.ndarray], CellMeans]
"""Given how many dialogues each cell [R, C] is to have in all, plays what is missing and says what the cells are now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSettings:
    """How dialogues are shared out among cells."""

    start_share: float = 0.3
    """Of the dialogues, shared out equally at first; in (0, 1]."""

    num_rounds: int = 8
    """In which the rest is shared out, at least 1."""

    tolerance: float = 0.0
    """Stop before the budget is spent once NashConv is this low for all we know; 0: never."""

    confidence: float = 0.95
    """Of the bound that is compared with it, in (0, 1)."""

    def __post_init__(self) -> None:
        """Refuse what makes no plan."""
        if not 0.0 < self.start_share <= 1.0 or self.num_rounds < 1:
            raise ConfigError(
                f"expected start_share in (0, 1] and num_rounds >= 1, got {self.start_share!r} and {self.num_rounds!r}"
            )
        if not self.tolerance >= 0.0 or not 0.0 < self.confidence < 1.0:
            raise ConfigError(
                f"expected tolerance >= 0 and confidence in (0, 1), got {self.tolerance!r} and {self.confidence!r}"
            )

    def start(self, dialogues_per_cell: int) -> int:
        """Dialogues of a new cell: its share, but at least four, without which there is no variance to plan by."""
        return min(dialogues_per_cell, max(4, round(self.start_share * dialogues_per_cell)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """Where the rounds ended."""

    cells: CellMeans
    """What is known."""

    equilibrium: Equilibrium
    """Of the means."""

    bound: float
    """Upper bound of the equilibrium's true NashConv inside the matrix."""

    num_rounds: int
    """Rounds that were played."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """A payoff tensor with more dialogues where they decide."""

    payoffs: PayoffTensor
    """All dialogues."""

    bound: float
    """Upper bound of NashConv, inside the populations, of the equilibrium of its means."""

    num_rounds: int
    """Rounds that were played."""


def sample_adaptively(
    payoffs: PayoffTensor, play: PlayCells, budget: int, settings: SamplingSettings | None = None
) -> Sampled:
    """Give a payoff tensor more dialogues, round by round, where they decide.

    Args:
        payoffs: Every cell with its equal start.
        play: Called once per round, with all cells that are to grow.
        budget: Dialogues in all, those of the start included.
        settings: Of the rule.

    Raises:
        PayoffShapeError: If a cell has no scored dialogue, or `play` gave fewer than were asked for; it is named.
    """
    tensor = payoffs

    def grow(wanted: np.ndarray) -> CellMeans:
        nonlocal tensor
        tensor = tensor.deepened(wanted, play)
        return cells_of(tensor)

    shared = share_out(cells_of(payoffs), payoffs.num_played, grow, budget, settings)
    return Sampled(payoffs=tensor, bound=shared.bound, num_rounds=shared.num_rounds)


def share_out(
    cells: CellMeans, played: np.ndarray, grow: Grow, budget: int, settings: SamplingSettings | None = None
) -> Shared:
    """Rounds of plan and play, until the bound on NashConv is low enough or the budget is spent.

    Args:
        cells: What is known after the equal start.
        played: [R, C] dialogues that this took, scored or not.
        grow: Plays more.
        budget: Dialogues in all.
        settings: Of the rule.
    """
    rule = settings or SamplingSettings()
    number = 0
    while True:
        solution = solve_zero_sum(cells.mean)
        bound = nash_conv_bound(cells.deviations(solution.row, solution.column), confidence=rule.confidence)
        left = budget - int(played.sum())
        if bound <= rule.tolerance or left <= 0 or number == rule.num_rounds:
            return Shared(cells=cells, equilibrium=solution, bound=bound, num_rounds=number)
        size = -(-left // (rule.num_rounds - number))
        sd = np.sqrt(cells.variance * cells.count)
        played = played + plan_round(cells.mean, sd, cells.count, (solution.row, solution.column), size)
        cells = grow(played)
        number += 1


def plan_round(
    mean: np.ndarray, sd: np.ndarray, count: np.ndarray, mixture: tuple[np.ndarray, np.ndarray], budget: int
) -> np.ndarray:
    """How many further dialogues each cell gets.

    Cells without a scored dialogue come first, with an equal share each (at least one, as far as the budget goes).

    Args:
        mean: [R, C] of scored dialogues, NaN where there is none.
        sd: [R, C] standard deviation of a dialogue; NaN or 0 says nothing, the cells' average then speaks for it.
        count: [R, C] scored dialogues.
        mixture: Red's [R] and blue's [C] probabilities.
        budget: Dialogues of this round, at least 0.

    Returns:
        [R, C] whole numbers that sum to the budget; the same for the same input.

    Raises:
        ConfigError: If the budget is negative.
        PayoffShapeError: If shapes disagree.
    """
    table, held = checked_shape(mean), np.asarray(count)
    sizes = (mixture[0].size, mixture[1].size)
    if budget < 0:
        raise ConfigError(f"expected a budget of at least 0 dialogues, got {budget}")
    if not table.shape == np.shape(sd) == held.shape == sizes:
        raise PayoffShapeError(
            f"expected means, deviations, counts and mixtures of one shape, got {table.shape}, {np.shape(sd)}, "
            f"{held.shape} and {sizes}"
        )
    unscored = (held < 1) | np.isnan(table)
    if unscored.all():
        return apportioned(np.ones(table.shape), budget)
    share = max(1, budget // table.size)
    first = apportioned(unscored.astype(float), min(budget, share * int(unscored.sum())))
    known = np.where(unscored, table[~unscored].mean(), table)
    weights = cell_weights(known, sd, np.where(unscored, 0, held), mixture)
    return np.asarray(first + apportioned(np.where(unscored, 0.0, weights), budget - int(first.sum())))


def cell_weights(
    mean: np.ndarray, sd: np.ndarray, count: np.ndarray, mixture: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """[R, C] what cells' dialogues are worth: the formula on top of this module.

    Args:
        mean: [R, C] finite.
        sd: [R, C]; shrunk towards the cells' average as one more dialogue would, so that no cell is held to be known
            because its few dialogues agree.
        count: [R, C].
        mixture: Red's [R] and blue's [C] probabilities.
    """
    x, y = mixture
    varies = np.where(np.isnan(sd) | (count < 2), 0.0, sd) ** 2
    average = float(varies[count >= 2].mean()) if (count >= 2).any() else 0.0
    variance = (count * varies + (average or 1.0)) / (count + 1)
    error = variance / np.maximum(count, 1)
    rows = _kept(x, (mean @ y).max() - mean @ y, error @ y**2)
    columns = _kept(y, x @ mean - (x @ mean).min(), x**2 @ error)
    return np.asarray((np.outer(rows, y) + np.outer(x, columns)) * np.sqrt(variance))


def apportioned(weights: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers in proportion to weights that sum to a total: largest remainders, the first of equals.

    Args:
        weights: Any shape, at least 0; all 0 counts as all alike.
        total: At least 0.
    """
    flat = weights.ravel().astype(float)
    flat = flat if flat.sum() > 0 else np.ones(flat.size)
    exact = flat / flat.sum() * total
    whole = np.floor(exact).astype(int)
    order = np.argsort(whole - exact, kind="stable")
    whole[order[: total - int(whole.sum())]] += 1
    return np.asarray(whole.reshape(weights.shape))


def _kept(weights: np.ndarray, gap: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """A member's weight, or how plausible it is that it belongs to the support."""
    return np.asarray(np.maximum(weights, np.exp(-(gap**2) / (2 * variance))))
