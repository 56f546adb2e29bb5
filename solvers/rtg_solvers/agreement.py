"""How well a judge's numbers agree with labels: pure functions with intervals clustered by goal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rtg_solvers.measures import clustered_error

_WILSON_Z = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its 95 % interval; all NaN if it is not defined (one class only, or no rows)."""

    value: float
    low: float
    high: float


def auc(truth: NDArray[np.bool_], numbers: NDArray[np.float64]) -> float:
    """Area under the ROC curve by midranks (Mann-Whitney); NaN if one class is empty."""
    num_pos, num_neg = int(truth.sum()), int((~truth).sum())
    if not num_pos or not num_neg:
        return float("nan")
    _, place, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    midranks = np.cumsum(counts) - (counts - 1) / 2.0
    return float((midranks[place][truth].sum() - num_pos * (num_pos + 1) / 2.0) / (num_pos * num_neg))


def auc_interval(
    truth: NDArray[np.bool_],
    numbers: NDArray[np.float64],
    clusters: NDArray[np.integer],
    rng: np.random.Generator,
    num_bootstrap: int,
) -> Interval:
    """AUC with a percentile bootstrap over clusters (goals with all their replies)."""
    value = auc(truth, numbers)
    if not np.isfinite(value) or num_bootstrap < 1:
        return Interval(value, float("nan"), float("nan"))
    members = [np.flatnonzero(clusters == label) for label in np.unique(clusters)]
    draws = []
    for _ in range(num_bootstrap):
        pick = np.concatenate([members[index] for index in rng.integers(len(members), size=len(members))])
        draws.append(auc(truth[pick], numbers[pick]))
    low, high = np.nanquantile(draws, [0.025, 0.975])  # a draw without one of the classes has no AUC
    return Interval(value, float(low), float(high))


def cohen_kappa(truth: NDArray[np.bool_], said: NDArray[np.bool_]) -> float:
    """Agreement beyond chance (Cohen 1960); NaN if chance agreement is certain."""
    if not len(truth):
        return float("nan")
    observed = float((truth == said).mean())
    expected = float(truth.mean() * said.mean() + (~truth).mean() * (~said).mean())
    return (observed - expected) / (1.0 - expected) if expected < 1.0 else float("nan")


def share_interval(hits: NDArray[np.bool_], clusters: NDArray[np.integer]) -> Interval:
    """A share with a 95 % Wilson interval at its effective sample size.

    The effective size is share (1 - share) over the cluster-robust variance of the share (Kish's design effect), at most
    the number of rows; where the variance is 0 it is the number of clusters.
    """
    if not hits.size:
        return wilson(0, 0)
    share, error = float(hits.mean()), clustered_error(hits.astype(float), clusters)
    effective = float(len(np.unique(clusters)))
    if error > 1e-9:  # also false where one cluster leaves the error unknown
        effective = min(float(hits.size), share * (1 - share) / error**2)
    return wilson(share * effective, effective)


def wilson(hits: float, total: float) -> Interval:
    """A share with its 95 % Wilson interval."""
    if not total:
        return Interval(float("nan"), float("nan"), float("nan"))
    share, z2 = hits / total, _WILSON_Z**2
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = _WILSON_Z * float(np.sqrt(share * (1 - share) / total + z2 / (4 * total**2))) / (1 + z2 / total)
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))
