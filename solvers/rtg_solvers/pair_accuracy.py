"""Whether what was learned from preference pairs holds for pairs that were held out, by whole groups of them.

Letters: N pairs; columns [2] are the chosen and the rejected sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rtg_solvers.measures import Estimate, share_estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class PairAccuracy:
    """How well held-out pairs are ranked, with intervals clustered by group."""

    likelihood_before: Estimate
    """Share of pairs whose chosen sentence is the likelier one under the reference; short sentences have it easy."""

    likelihood_after: Estimate
    """The same under the trained player."""

    reward_after: Estimate
    """Share of pairs whose chosen sentence gained more on the rejected one than it lost: accuracy of the implicit reward,
    beta times the log-ratio to the reference. Before training every pair is a tie; ties count as wrong."""


def heldout_places(clusters: Sequence[str], kinds: Sequence[str], share: float, rng: np.random.Generator) -> np.ndarray:
    """Which pairs are held out: of each kind whole clusters, until the share is reached; one cluster at least is left.

    Args:
        clusters: [N] labels.
        kinds: [N] labels; a cluster is of the kind of its first pair.
        share: In [0, 0.5].
        rng: Consumed.

    Returns:
        Indices in order.
    """
    members: dict[str, dict[str, list[int]]] = {}
    kind_of: dict[str, str] = {}
    for place, (label, kind) in enumerate(zip(clusters, kinds, strict=True)):
        members.setdefault(kind_of.setdefault(label, kind), {}).setdefault(label, []).append(place)
    taken: list[int] = []
    for groups in members.values():
        labels, size = list(groups), sum(map(len, groups.values()))
        own: list[int] = []
        for number in rng.permutation(len(labels))[: len(labels) - 1]:
            if len(own) >= share * size:
                break
            own += groups[labels[int(number)]]
        taken += own
    return np.array(sorted(taken), dtype=int)


def pair_accuracies(
    before_N2: np.ndarray, after_N2: np.ndarray, clusters: Sequence[str], kinds: Sequence[str]
) -> dict[str, PairAccuracy]:
    """Accuracies by kind, and of `all` pairs; only of `all` where there is one kind.

    Args:
        before_N2: [N, 2] log-probabilities under the reference.
        after_N2: [N, 2] under the player.
        clusters: [N] labels.
        kinds: [N] labels.
    """
    labels, of_kind = np.array(clusters, dtype=object), np.array(kinds, dtype=object)
    subsets = {"all": np.ones(len(labels), dtype=bool)} if len(labels) else {}
    if len(set(kinds)) > 1:
        subsets |= {kind: of_kind == kind for kind in dict.fromkeys(kinds)}
    ranked = {
        "likelihood_before": before_N2[:, 0] > before_N2[:, 1],
        "likelihood_after": after_N2[:, 0] > after_N2[:, 1],
        "reward_after": (after_N2 - before_N2)[:, 0] > (after_N2 - before_N2)[:, 1],
    }
    return {
        kind: PairAccuracy(
            **{name: share_estimate(right[own].astype(float), list(labels[own])) for name, right in ranked.items()}
        )
        for kind, own in subsets.items()
    }
