"""The payoff tensor: what each red member wins against each blue member, with counts and standard errors.

Every cell is played on a prefix of one common order of goals and seeds, so that rows and columns are compared on the
same draws. Only game utility enters; no shaping.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from rtg_env.errors import PayoffShapeError
from rtg_solvers.measures import Estimate, mean_estimate


class Cell(NamedTuple):
    """A pair of members."""

    red: str
    blue: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """The dialogues of one cell."""

    utilities: np.ndarray
    """[N] u_red, NaN where unscored."""

    goal_ids: tuple[str, ...]
    """[N]."""

    harmful: np.ndarray
    """[N] bool: whether red spoke (a harmful goal) or nature did."""

    def first(self, count: int) -> Samples:
        """The first `count` dialogues of the common order."""
        return Samples(utilities=self.utilities[:count], goal_ids=self.goal_ids[:count], harmful=self.harmful[:count])

    def followed_by(self, more: Samples) -> Samples:
        """These dialogues, then those."""
        return Samples(
            utilities=np.r_[self.utilities, more.utilities],
            goal_ids=self.goal_ids + more.goal_ids,
            harmful=np.r_[self.harmful, more.harmful],
        )


PlayCells = Callable[[Mapping[Cell, int]], Mapping[Cell, Samples]]
"""Plays (or reads back) cells: how many dialogues each is to have, and those dialogues, old and new.

Every cell is a prefix of one common order of goals and seeds. More than asked for may come back; the rest is cut off,
so that a run that goes on after a kill decides by the same numbers as before.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PayoffTensor:
    """u_red of every red member against every blue member, as far as it was played."""

    red: tuple[str, ...] = ()
    """[R] versions, rows."""

    blue: tuple[str, ...] = ()
    """[C] versions, columns."""

    bounds: tuple[float, float] = (0.0, 1.0)
    """Least and most a utility can be."""

    samples: Mapping[Cell, Samples] = field(default_factory=dict)
    """Every cell of red x blue."""

    def __post_init__(self) -> None:
        """Every cell must be there."""
        missing = [cell for cell in self._cells() if cell not in self.samples]
        if missing:
            raise PayoffShapeError(
                f"expected samples for all {len(self.red) * len(self.blue)} cells, {missing[0]} is missing"
            )

    @property
    def mean(self) -> np.ndarray:
        """[R, C] means over scored dialogues; NaN where no dialogue of a cell was scored."""
        return np.array([[_mean(self.samples[Cell(r, b)]) for b in self.blue] for r in self.red], dtype=float)

    @property
    def se(self) -> np.ndarray:
        """[R, C] standard errors, clustered by goal."""
        return self._table(lambda estimate: estimate.se)

    @property
    def count(self) -> np.ndarray:
        """[R, C] scored dialogues."""
        return np.asarray(self.num_played - self.num_unscored)

    @property
    def num_unscored(self) -> np.ndarray:
        """[R, C] dialogues without a verdict."""
        # Counted, not read off estimates: adaptive sampling asks after every round, and intervals cost a millisecond each.
        missing = [[np.isnan(self.samples[Cell(r, b)].utilities).sum() for b in self.blue] for r in self.red]
        return np.array(missing, dtype=int)

    def mean_on(self, *, harmful: bool) -> np.ndarray:
        """[R, C] means over the dialogues of one kind of goal; NaN where there is none."""
        return np.array([[_mean(self.samples[Cell(r, b)], harmful) for b in self.blue] for r in self.red], dtype=float)

    def estimate(self, red: str, blue: str) -> Estimate:
        """One cell with its interval."""
        samples = self.samples[Cell(red, blue)]
        return mean_estimate(samples.utilities, samples.goal_ids, bounds=self.bounds)

    @property
    def num_played(self) -> np.ndarray:
        """[R, C] dialogues, scored or not."""
        return np.array([[self.samples[Cell(r, b)].utilities.size for b in self.blue] for r in self.red], dtype=int)

    @property
    def num_goals(self) -> int:
        """Different goals among the dialogues."""
        return len({goal for samples in self.samples.values() for goal in samples.goal_ids})

    def extended(self, red: Sequence[str], blue: Sequence[str], play: PlayCells, count: int = 1) -> PayoffTensor:
        """The tensor over these members; plays only the cells that are missing.

        Args:
            red: Versions of all rows.
            blue: Versions of all columns.
            play: Called once, if a cell is missing.
            count: Dialogues of each missing cell.

        Raises:
            PayoffShapeError: If fewer dialogues come back than were asked for; the cell is named.
        """
        missing = {cell: count for cell in (Cell(r, b) for r in red for b in blue) if cell not in self.samples}
        samples = {**self.samples, **_played(missing, play)}
        return PayoffTensor(red=tuple(red), blue=tuple(blue), bounds=self.bounds, samples=samples)

    def deepened(self, wanted: np.ndarray, play: PlayCells) -> PayoffTensor:
        """The tensor with at least so many dialogues in each cell; plays only what is missing.

        Args:
            wanted: [R, C] dialogues that each cell is to have in all.
            play: Called once, if a cell has fewer.

        Raises:
            PayoffShapeError: If fewer dialogues come back than were asked for; the cell is named.
        """
        table = zip(self._cells(), self.num_played.ravel(), np.asarray(wanted).ravel(), strict=True)
        short = {cell: int(count) for cell, held, count in table if count > held}
        return replace(self, samples={**self.samples, **_played(short, play)})

    def unscored_warnings(self, share: float = 0.02) -> list[str]:
        """One sentence per cell with more than this share of unscored dialogues."""
        lines = []
        for cell in self._cells():
            e = self.estimate(*cell)
            total = e.count + e.num_unscored
            if e.num_unscored > share * total:
                lines.append(
                    f"{cell.red} against {cell.blue}: {e.num_unscored} of {total} dialogues are unscored; "
                    f"the mean {e.mean:.3f} could lie anywhere in [{e.low:.3f}, {e.high:.3f}]"
                )
        return lines

    def _cells(self) -> list[Cell]:
        return [Cell(r, b) for r in self.red for b in self.blue]

    def _table(self, value: Callable[[Estimate], float]) -> np.ndarray:
        return np.array([[value(self.estimate(r, b)) for b in self.blue] for r in self.red], dtype=float)


def _played(wanted: Mapping[Cell, int], play: PlayCells) -> dict[Cell, Samples]:
    """Exactly the dialogues that were asked for.

    Raises:
        PayoffShapeError: If there are fewer.
    """
    if not wanted:
        return {}
    found = play(wanted)
    samples = {}
    for cell, count in wanted.items():
        held = found[cell].utilities.size if cell in found else 0
        if held < count:
            raise PayoffShapeError(f"expected {count} dialogues of {cell.red} against {cell.blue}, got {held}")
        samples[cell] = found[cell].first(count)
    return samples


def _mean(samples: Samples, harmful: bool | None = None) -> float:
    """Over scored dialogues, of one kind of goal or of all."""
    scored = ~np.isnan(samples.utilities)
    kept = samples.utilities[scored if harmful is None else scored & (samples.harmful == harmful)]
    return float(kept.mean()) if kept.size else float("nan")
