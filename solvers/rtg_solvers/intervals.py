"""Intervals that cover for the value of a game and for NashConv: maxima and minima of means, where rows tie.

A percentile bootstrap of a maximum fails where rows tie. Three facts are used instead; shapes are R rows, C columns.

NashConv of a mixture given in advance is the greatest of R * C differences: what red's row i wins against blue's mixture
less what red's mixture wins against blue's column j.

 - Upper end: the greatest of the differences' own one-sided upper ends. It misses only if the end of the one pair that
   is truly the greatest does: nothing is paid for the number of pairs (a union of hypotheses, Berger 1982).
 - Lower end: the greatest difference as estimated, less a quantile of by how much the noise can have raised it. Only
   rows and columns that may be the best for all we know can raise it; which those are is decided by a first step that
   spends a tenth of the error (Romano, Shaikh & Wolf 2014, Econometrica 82). No dialogues are set aside to choose with.
 - Value: v(estimated) - v <= max_i of the noise of row i against y, for any y that is optimal in the true game, and the
   same for columns: the interval needs no mixture in advance. The optimal y is replaced by the estimated one where the
   noise is weighed; that is the one approximation besides the central limit theorem.

Noise is taken as normal with the estimated covariance (dialogues on one goal are not independent: clusters), scaled by
Student's quantile. Where every dialogue paid the same, nothing is known of the noise, and the interval is a point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from scipy import stats

from rtg_env.errors import ConfigError, PayoffShapeError
from rtg_solvers.agreement import Interval
from rtg_solvers.empirical import checked_matrix, checked_means, solve_zero_sum
from rtg_solvers.payoffs import Cell, PayoffTensor

_SCREENING: Final = 0.1
"""Share of a lower end's error that is spent on which rows and columns may be the best."""

_NUM_POINTS: Final = 20_000
"""Normal points with which a quantile of a maximum is integrated; always the same ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deviations:
    """What red wins by each single row against blue's mixture, and by its own mixture against each single column."""

    red: np.ndarray
    """[R] means."""

    blue: np.ndarray
    """[C] means of u_red."""

    covariance: np.ndarray
    """[R + C, R + C] of the means, rows first."""

    df: float
    """Degrees of freedom of the variances."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CellMeans:
    """What red wins in each cell, with the noise of linear functions of it."""

    mean: np.ndarray
    """[R, C]."""

    variance: np.ndarray
    """[R, C] of the means."""

    count: np.ndarray
    """[R, C] scored dialogues."""

    influence: np.ndarray | None = None
    """[G, R, C] what each goal added to each mean's error; None where cells are independent."""

    def deviations(self, row: np.ndarray, column: np.ndarray) -> Deviations:
        """All rows against a column mixture [C], all columns against a row mixture [R]."""
        if self.influence is None:
            to_red, to_blue = self.variance @ column**2, row**2 @ self.variance
            cross = np.outer(row, column) * self.variance
            covariance = np.block([[np.diag(to_red), cross], [cross.T, np.diag(to_blue)]])
            df = min(_welch(self.variance, self.count, column), _welch(self.variance.T, self.count.T, row))
        else:
            errors = np.c_[self.influence @ column, np.einsum("r,grc->gc", row, self.influence)]
            df = len(errors) - 1.0
            covariance = (df + 1) / df * errors.T @ errors
        return Deviations(red=self.mean @ column, blue=row @ self.mean, covariance=covariance, df=df)


def independent_cells(mean: np.ndarray, sd: np.ndarray, count: np.ndarray) -> CellMeans:
    """Cells whose dialogues have nothing in common.

    Args:
        mean: [R, C] finite.
        sd: [R, C] standard deviation of a dialogue.
        count: [R, C] dialogues, at least 2 each.

    Raises:
        PayoffShapeError: If shapes disagree or a cell has too few dialogues.
    """
    matrix = checked_matrix(mean)
    if not matrix.shape == sd.shape == count.shape or count.min() < 2:
        raise PayoffShapeError(
            f"expected means, deviations and counts (>= 2) of one shape, got {matrix.shape}, {sd.shape}, "
            f"{count.shape} and a least count of {count.min(initial=0)}"
        )
    return CellMeans(mean=matrix, variance=sd**2 / count, count=count)


def cells_of(payoffs: PayoffTensor) -> CellMeans:
    """The cells of a payoff tensor, clustered by goal; cells share goals, so their errors are not independent.

    Raises:
        PayoffShapeError: If a cell has no scored dialogue (it is named), or all are on one goal.
    """
    mean = checked_means(payoffs)
    found = [
        (r, c, payoffs.samples[Cell(red, blue)])
        for r, red in enumerate(payoffs.red)
        for c, blue in enumerate(payoffs.blue)
    ]
    goals = {goal: g for g, goal in enumerate(sorted({goal for _, _, samples in found for goal in samples.goal_ids}))}
    if len(goals) < 2:
        raise PayoffShapeError(f"expected dialogues on at least two goals for an interval, got {len(goals)}")
    influence = np.zeros((len(goals), *mean.shape))
    count = payoffs.count
    for r, c, samples in found:
        scored = ~np.isnan(samples.utilities)
        index = np.array([goals[goal] for goal in samples.goal_ids])[scored]
        np.add.at(influence[:, r, c], index, (samples.utilities[scored] - mean[r, c]) / count[r, c])
    variance = len(goals) / (len(goals) - 1) * (influence**2).sum(axis=0)
    return CellMeans(mean=mean, variance=variance, count=count, influence=influence)


def deviations_of(red: np.ndarray, blue: np.ndarray, goal_ids: Sequence[str] | None = None) -> Deviations:
    """Fresh dialogues of every single row against blue's mixture, and of red's mixture against every single column.

    Args:
        red: [R, n] u_red, no NaN.
        blue: [C, n] u_red, no NaN.
        goal_ids: [n], if the n-th dialogues of all rows and columns are on one goal; None: all are independent.

    Raises:
        PayoffShapeError: If shapes disagree, a utility is not finite, or there are fewer than two dialogues or goals.
    """
    utilities = np.concatenate([checked_matrix(red), checked_matrix(blue)])
    size = utilities.shape[1]
    labels = np.arange(size) if goal_ids is None else np.unique(np.asarray(goal_ids, dtype=str), return_inverse=True)[1]
    groups = len(set(labels.tolist()))
    if labels.size != size or groups < 2:
        raise PayoffShapeError(
            f"expected a goal for each of {size} dialogues and at least two goals, got {labels.size} and {groups}"
        )
    mean = utilities.mean(axis=1)
    errors = np.zeros((groups, mean.size))
    np.add.at(errors, labels, (utilities.T - mean) / size)
    covariance = groups / (groups - 1) * errors.T @ errors
    if goal_ids is None:
        covariance = np.diag(np.diag(covariance))
    return Deviations(red=mean[: len(red)], blue=mean[len(red) :], covariance=covariance, df=groups - 1.0)


def gain_interval(
    red: np.ndarray,
    blue: np.ndarray,
    goal_ids: Sequence[str] | None = None,
    *,
    bounds: tuple[float, float],
    confidence: float = 0.95,
) -> Interval:
    """NashConv of a mixture from fresh dialogues, some of which may be unscored.

    The lower end holds if red's unscored deviations had won the least and blue's had lost the most, the upper end if it
    were the other way round.

    Args:
        red: [R, n] u_red of red's rows against blue's mixture, NaN where unscored.
        blue: [C, n] u_red of red's mixture against blue's columns, NaN where unscored.
        goal_ids: [n], or None: see `deviations_of`.
        bounds: Least and most that red can win.
        confidence: Of the interval, in (0, 1).
    """

    def assumed(for_red: float, for_blue: float) -> Interval:
        filled = np.where(np.isnan(red), for_red, red), np.where(np.isnan(blue), for_blue, blue)
        return nash_conv_interval(deviations_of(*filled, goal_ids), confidence=confidence)

    least, most = assumed(bounds[0], bounds[1]), assumed(bounds[1], bounds[0])
    return Interval((least.value + most.value) / 2, least.low, most.high)


def nash_conv_interval(deviations: Deviations, *, confidence: float = 0.95) -> Interval:
    """NashConv of a mixture, from dialogues that were not used to find it.

    Which rows and columns are candidates decides which NashConv: the members of the populations give the restricted
    one, all policies of the game the full one.

    Args:
        deviations: Of fresh dialogues.
        confidence: Of the interval, in (0, 1); each end may miss with half of the rest.

    Returns:
        The estimate is the greatest difference, at least 0: biased upwards by noise, as every maximum.
    """
    error = _checked_error(confidence)
    rows = deviations.red.size
    covariance = _shrunk(deviations.covariance, deviations.df)
    estimate = float(deviations.red.max() - deviations.blue.min())
    differences = deviations.red[:, None] - deviations.blue
    variance = np.diag(covariance)[:rows, None] + np.diag(covariance)[rows:] - 2 * covariance[:rows, rows:]
    width = float(stats.t.ppf(1 - error, deviations.df))
    high = float((differences + width * np.sqrt(np.maximum(variance, 0.0))).max())
    noise = _noise(covariance, deviations.df, error)
    raised = _raised(deviations.red, noise[:, :rows], error) + _raised(-deviations.blue, -noise[:, rows:], error)
    low = estimate - float(np.quantile(raised, 1 - error * (1 - _SCREENING)))
    return Interval(max(0.0, estimate), max(0.0, low), max(0.0, high))


def nash_conv_bound(deviations: Deviations, *, confidence: float = 0.95) -> float:
    """Upper bound of NashConv of a mixture that was solved on the very dialogues that measure it.

    Simultaneous over rows and columns (Bonferroni), since the mixture leans to where the noise was kind to it. That the
    mixture is not fixed in advance makes this a rule to stop by rather than a proof; benchmarks count how often it holds.

    Args:
        deviations: Of the dialogues that were solved.
        confidence: In (0, 1).
    """
    error = 2 * _checked_error(confidence) / (deviations.red.size + deviations.blue.size)
    covariance = _shrunk(deviations.covariance, deviations.df)
    reach = float(stats.t.ppf(1 - error, deviations.df)) * np.sqrt(np.diag(covariance))
    rows = deviations.red.size
    return float(max(0.0, (deviations.red + reach[:rows]).max() - (deviations.blue - reach[rows:]).min()))


def value_interval(cells: CellMeans, *, confidence: float = 0.95) -> Interval:
    """Value of the game whose payoffs were estimated; the estimate is the value of the mean payoffs.

    Args:
        cells: `cells_of(payoffs)`, or `independent_cells`.
        confidence: Of the interval, in (0, 1); each end may miss with half of the rest.
    """
    error = _checked_error(confidence)
    solution = solve_zero_sum(cells.mean)
    found = cells.deviations(solution.row, solution.column)
    noise = _noise(_shrunk(found.covariance, found.df), found.df, error)
    rows = found.red.size
    level = 1 - error * (1 - _SCREENING)
    above = float(np.quantile(_raised(found.red, noise[:, :rows], error), level))
    below = float(np.quantile(_raised(-found.blue, -noise[:, rows:], error), level))
    return Interval(solution.value, solution.value - above, solution.value + below)


def payoff_value_interval(payoffs: PayoffTensor, *, confidence: float = 0.95) -> Interval:
    """Value of the game of a payoff tensor, clustered by goal.

    The ends hold whatever unscored dialogues would have paid: the value rises with every payoff. They are within what can
    be paid at all.

    Args:
        payoffs: With dialogues on at least two goals.
        confidence: Of the interval, in (0, 1).

    Raises:
        PayoffShapeError: If a cell has no scored dialogue (it is named), or all are on one goal.
    """
    found = value_interval(cells_of(payoffs), confidence=confidence)
    low, high = found.low, found.high
    if payoffs.num_unscored.any():
        least, most = (value_interval(cells_of(_filled(payoffs, pay)), confidence=confidence) for pay in payoffs.bounds)
        low, high = min(low, least.low), max(high, most.high)
    return Interval(found.value, max(low, payoffs.bounds[0]), min(high, payoffs.bounds[1]))


def _filled(payoffs: PayoffTensor, pay: float) -> PayoffTensor:
    """Unscored dialogues paid alike."""
    samples = {
        cell: replace(found, utilities=np.where(np.isnan(found.utilities), pay, found.utilities))
        for cell, found in payoffs.samples.items()
    }
    return replace(payoffs, samples=samples)


def _raised(means: np.ndarray, noise: np.ndarray, error: float) -> np.ndarray:
    """By how much noise [points, K] raises the greatest of means [K] above the truth: at most, for all we know.

    With a tenth of the error no noise is larger than `reach`: a mean that is further below the greatest than its own
    and the greatest's reach is below it in truth, by the rest at least.
    """
    spread = noise.std(axis=0)
    largest = (np.abs(noise) / np.where(spread > 0, spread, 1.0)).max(axis=1)
    reach = float(np.quantile(largest, 1 - error * _SCREENING)) * spread
    best = int(means.argmax())
    behind = np.maximum(0.0, means[best] - means - reach - reach[best])
    return np.asarray((noise - behind).max(axis=1))


def _noise(covariance: np.ndarray, df: float, error: float) -> np.ndarray:
    """[points, K] errors of means, normal with that covariance and as wide as Student's at this error."""
    values, vectors = np.linalg.eigh(covariance)
    points = np.random.default_rng(0).standard_normal((_NUM_POINTS, values.size))
    widened = float(stats.t.ppf(1 - error, df) / stats.norm.ppf(1 - error))
    return np.asarray(widened * (points * np.sqrt(np.maximum(values, 0.0))) @ vectors.T)


def _shrunk(covariance: np.ndarray, df: float) -> np.ndarray:
    """As if one more dialogue had varied as all do on average: a row that always paid the same is not known exactly."""
    return np.asarray(covariance + np.eye(len(covariance)) * float(np.diag(covariance).mean()) / (df + 1))


def _welch(variance: np.ndarray, count: np.ndarray, weights: np.ndarray) -> float:
    """Least degrees of freedom of the rows' weighted means (Welch 1947)."""
    parts = variance * weights**2
    total, fourth = parts.sum(axis=1), (parts**2 / (count - 1)).sum(axis=1)
    known = fourth > 0
    return float((total[known] ** 2 / fourth[known]).min()) if known.any() else float(count.min() - 1)


def _checked_error(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ConfigError(f"expected confidence in (0, 1), got {confidence!r}")
    return (1 - confidence) / 2
