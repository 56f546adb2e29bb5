"""What the sections of the ground-truth benchmark share."""

from __future__ import annotations

from typing import Any, NamedTuple

from timing import Bar


class Options(NamedTuple):
    """How a section is to run."""

    seed: int
    quick: bool
    """A few repeats, to see that it runs."""

    def times(self, full: int, quick: int) -> int:
        """How often something is repeated."""
        return quick if self.quick else full


class Section(NamedTuple):
    """What one part of the benchmark found."""

    figures: dict[str, Any]
    bars: list[Bar]
