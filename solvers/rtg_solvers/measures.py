"""Means with intervals: pure functions of recorded utilities.

Dialogues on one goal are not independent, so every interval is clustered by goal. Unscored dialogues are excluded from
the mean; the interval is widened to what it would be if every one of them had been paid the least or the most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from rtg_env.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean of dialogues with its uncertainty. NaN where there were too few dialogues to say."""

    mean: float
    """Over scored dialogues."""

    se: float
    """Standard error, clustered by goal."""

    low: float
    """Lower end of the 95 % interval, unscored dialogues counted as the least pay."""

    high: float
    """Upper end, unscored dialogues counted as the most pay."""

    count: int
    """Scored dialogues."""

    num_unscored: int
    """Dialogues without a verdict."""

    num_clusters: int
    """Different goals among the scored ones."""

    def __str__(self) -> str:
        """Mean and interval, for tables."""
        return f"{self.mean:+.3f} [{self.low:+.2f},{self.high:+.2f}]"


def mean_estimate(
    values: Sequence[float] | np.ndarray,
    clusters: Sequence[str],
    *,
    bounds: tuple[float, float],
    confidence: float = 0.95,
) -> Estimate:
    """Mean of utilities with a Student interval, clustered.

    The cluster-robust standard error of a mean of n values in G clusters is
    sqrt(G / (G - 1) * sum_g (sum_{i in g} (x_i - mean))^2) / n (Cameron & Miller 2015, equation 11, for a mean),
    with t quantiles at G - 1 degrees of freedom.

    Args:
        values: [n], NaN where a dialogue is unscored.
        clusters: [n] goal ids.
        bounds: Least and most a value can be; unscored dialogues are imputed with both.
        confidence: Of the interval, in (0, 1).

    Raises:
        ConfigError: If the lengths differ or a value is out of bounds.
    """
    x = np.asarray(values, dtype=float)
    if x.size != len(clusters):
        raise ConfigError(f"expected one cluster per value, got {len(clusters)} for {x.size}")
    scored = ~np.isnan(x)
    tolerance = 1e-9 * max(1.0, bounds[1] - bounds[0])
    if scored.any() and (x[scored].min() < bounds[0] - tolerance or x[scored].max() > bounds[1] + tolerance):
        raise ConfigError(f"expected values in {bounds}, got {x[scored].min()} to {x[scored].max()}")
    labels = np.asarray(clusters, dtype=object)
    mean, se, half = _student(x[scored], labels[scored], confidence)
    low, high = mean - half, mean + half
    if not scored.all() and scored.any():
        least = _student(np.where(scored, x, bounds[0]), labels, confidence)
        most = _student(np.where(scored, x, bounds[1]), labels, confidence)
        low, high = min(low, least[0] - least[2]), max(high, most[0] + most[2])
    return Estimate(
        mean=mean,
        se=se,
        low=float(max(low, bounds[0])) if not np.isnan(low) else low,
        high=float(min(high, bounds[1])) if not np.isnan(high) else high,
        count=int(scored.sum()),
        num_unscored=int((~scored).sum()),
        num_clusters=len(set(labels[scored])),
    )


def share_estimate(
    values: Sequence[float] | np.ndarray, clusters: Sequence[str], *, confidence: float = 0.95
) -> Estimate:
    """Share of successes with an interval that is never a point: Clopper and Pearson's for the effective sample size.

    With the cluster-robust variance v of the share p, n values in G clusters count as p (1 - p) / v, at most n, times
    (t(n - 1) / t(G - 1))^2 (Korn & Graubard 1998). Where all values agree, v says nothing, and clusters are counted.

    Args:
        values: [n] 0 or 1, NaN where unscored; unscored ones are imputed as 0 for the lower and 1 for the upper end.
        clusters: [n] goal ids.
        confidence: Of the interval, in (0, 1).

    Raises:
        ConfigError: If the lengths differ or a value is neither 0 nor 1.
    """
    x, labels = np.asarray(values, dtype=float), np.asarray(clusters, dtype=object)
    scored = ~np.isnan(x)
    if x.size != labels.size or not np.isin(x[scored], (0.0, 1.0)).all():
        raise ConfigError(f"expected {labels.size} values that are 0, 1 or NaN, one per cluster, got {x.size} others")
    plain = mean_estimate(x, clusters, bounds=(0.0, 1.0), confidence=confidence)
    if not scored.any():
        return plain
    low, high = (_clopper(np.where(scored, x, fill), labels, confidence) for fill in (0.0, 1.0))
    return replace(plain, low=low[0], high=high[1])


def _clopper(x: np.ndarray, labels: np.ndarray, confidence: float) -> tuple[float, float]:
    """Both ends of Korn and Graubard's interval; NaN from fewer than two clusters on."""
    size, groups, share = x.size, len(set(labels)), float(x.mean())
    if groups < 2:
        return float("nan"), float("nan")
    variance, error = clustered_error(x, labels) ** 2, (1.0 - confidence) / 2
    effective = min(float(size), share * (1.0 - share) / variance) if variance > 0 else float(groups)
    effective *= (stats.t.ppf(error, size - 1) / stats.t.ppf(error, groups - 1)) ** 2
    won = share * effective
    low = stats.beta.ppf(error, won, effective - won + 1) if won > 0 else 0.0
    high = stats.beta.ppf(1 - error, won + 1, effective - won) if won < effective else 1.0
    return float(low), float(high)


def paired_estimate(
    first: Sequence[float] | np.ndarray,
    second: Sequence[float] | np.ndarray,
    clusters: Sequence[str],
    *,
    max_utility: float,
) -> Estimate:
    """Mean of first - second over dialogues that share goal, opponent and seed; unscored on either side is unscored.

    Args:
        first: [n] utilities.
        second: [n] utilities of the same deals.
        clusters: [n] goal ids.
        max_utility: Utilities lie in [0, max_utility].
    """
    difference = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    return mean_estimate(difference, clusters, bounds=(-max_utility, max_utility))


def _student(x: np.ndarray, labels: np.ndarray, confidence: float) -> tuple[float, float, float]:
    """Mean, cluster-robust standard error and half width; NaN from fewer than two clusters on."""
    if x.size == 0:
        return float("nan"), float("nan"), float("nan")
    se, groups = clustered_error(x, labels), len(set(labels))
    if groups < 2:
        return float(x.mean()), se, float("nan")
    return float(x.mean()), se, float(stats.t.ppf(0.5 + confidence / 2, groups - 1)) * se


def clustered_error(x: np.ndarray, labels: np.ndarray) -> float:
    """Cluster-robust standard error of the mean of x [n] with labels [n]; NaN from fewer than two clusters."""
    _, index = np.unique(labels.astype(str), return_inverse=True)
    sums = np.bincount(index, weights=x - x.mean())
    groups = sums.size
    if groups < 2:
        return float("nan")
    return float(np.sqrt(groups / (groups - 1) * float((sums**2).sum())) / x.size)
