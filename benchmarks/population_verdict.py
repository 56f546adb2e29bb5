"""Whether our default is non-inferior to another method: seeds by a power calculation, then paired bounds.

Letters: N seeds, M methods.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from scipy import stats

SHARE: Final = 0.25
"""Our default may be worse by this share of the other's mean true NashConv .."""

LEAST: Final = 0.01
""".. or by this, in shares of the game's range of payoffs."""

ERROR: Final = 0.05
"""Of calling an inferior method non-inferior, per comparison."""

POWER: Final = 0.9
"""Of calling one that is just as good non-inferior."""


_MOST: Final = 4096


class Comparison(NamedTuple):
    """Our default against another method on one game."""

    difference: float
    """Mean over seeds of ours minus the other's true NashConv."""

    upper: float
    """Its one-sided 95 % upper confidence bound, paired by seed."""

    margin: float
    """What is allowed."""

    holds: bool
    """Whether the bound is within what is allowed."""

    better: bool
    """Whether ours is lower, at the same error: the bound is below 0."""


def margin(other: np.ndarray) -> float:
    """What our default may be worse by, given the other's true NashConvs [N]."""
    return max(SHARE * float(other.mean()), LEAST)


def compared(ours: np.ndarray, other: np.ndarray) -> Comparison:
    """Judge by seeds that both methods have, [N] true NashConvs each, N >= 2."""
    difference = ours - other
    mean, error = float(difference.mean()), float(difference.std(ddof=1)) / math.sqrt(difference.size)
    upper = mean + float(stats.t.ppf(1.0 - ERROR, difference.size - 1)) * error
    allowed = margin(other)
    return Comparison(mean, upper, allowed, upper <= allowed, upper < 0.0)


def seeds_needed(ours: np.ndarray, other: np.ndarray) -> int:
    """Seeds with which two methods that are truly alike pass with `POWER`, by a pilot's deviation and margin.

    The smallest n with P(t-bound of a normal sample of mean 0 <= margin) >= POWER: margin sqrt(n) / sd is the
    noncentrality of a t-test with n - 1 degrees of freedom.
    """
    sd = max(float((ours - other).std(ddof=1)), 1e-12)
    low, high = 1, 2
    while high < _MOST and _power(high, margin(other) / sd) < POWER:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _power(middle, margin(other) / sd) >= POWER else (middle, high)
    return high


def _power(count: int, effect: float) -> float:
    """Chance to pass with so many seeds; far enough from the margin it is 1, where the formula overflows."""
    shift = effect * math.sqrt(count)
    return 1.0 if shift > 30.0 else float(stats.nct.sf(stats.t.ppf(1.0 - ERROR, count - 1), count - 1, shift))


def rank_correlation(truth: Sequence[float], found: Sequence[float]) -> float | None:
    """Spearman's; None where all are alike."""
    if np.ptp(truth) < 1e-12 or np.ptp(found) < 1e-12:
        return None
    return float(stats.spearmanr(truth, found).statistic)


def mean_rank_correlation(truth: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> dict[str, float | None]:
    """Of methods' true NashConvs with another figure of them, [N] each: per seed, averaged, and of the means."""
    names = list(truth)
    table, other = (np.array([figures[name] for name in names]) for figures in (truth, found))
    each = [rank_correlation(list(a), list(b)) for a, b in zip(table.T, other.T, strict=True)]
    known = [value for value in each if value is not None]
    of_means = rank_correlation(list(table.mean(axis=1)), list(other.mean(axis=1)))
    return {"per_seed": float(np.mean(known)) if known else None, "of_means": of_means}
