"""Gains of a result as rows, for the terminal and the report: what they are depends on who learned.

Where both sides learn, `oracle_gap` is a figure of the whole iteration. Where one side learns alone, in stages, every stage has
a row of its own, since each compares another member with another one against another opponent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from rtg_agents.policy import BASE
from rtg_solvers.measures import Estimate
from rtg_solvers.methods.attackers import Stage
from rtg_solvers.result import Result

UNTRAINED: Final = "not trained"
"""Instead of the gain of a side that has not learned in the whole run."""

_STAYED: Final = "did not learn"
_ALONE: Final = "no other member"

STAGE_NOTE: Final = (
    "oracle_gap of a stage: its new member over the one that training began at (the base model where it began at none), "
    "against the one opponent that it met. restricted_gap: the best other member over the reported solution; where red gains, "
    "another attacker of the run is better than what is reported. Both on training goals. held-out gain: newest member over the "
    "base model, against the base model, on goals that nobody trained on."
)
"""How the rows of a run in stages are to be read."""


class GainRow(NamedTuple):
    """What both sides gain by one kind of deviation."""

    what: str
    red: Estimate | None
    blue: Estimate | None
    missing: str = UNTRAINED
    """Instead of a gain that there is not."""

    @property
    def texts(self) -> tuple[str, str]:
        """Red's and blue's gain in words."""
        red, blue = (self.missing if gain is None else str(gain) for gain in (self.red, self.blue))
        return red, blue


def stage_rows(found: Result, stages: Sequence[Stage]) -> list[GainRow]:
    """The `oracle_gap` of each stage; the side that did not learn has none.

    Args:
        found: Of a run in stages.
        stages: Of its method, one for each gap.
    """
    rows = []
    for stage, gap in zip(stages, found.oracle_gaps, strict=True):
        base = found.red[0] if stage.role == "red" else found.blue[0]
        begun = base if stage.reference == BASE else stage.reference
        what = f"{_short(stage.version)} over {_short(begun)} vs {_short(stage.against)}"
        red, blue = (gap.red_gain, None) if stage.role == "red" else (None, gap.blue_gain)
        rows.append(GainRow(what, red, blue, _STAYED))
    return rows


def restricted_row(found: Result) -> GainRow:
    """The `restricted_gap`; a side with a single member has nobody to deviate to."""
    gap = found.restricted_gap
    red, blue = (gap.red_gain if len(found.red) > 1 else None, gap.blue_gain if len(found.blue) > 1 else None)
    return GainRow("restricted_gap", red, blue, _ALONE)


def heldout_rows(found: Result, *, again: str) -> list[GainRow]:
    """The held-out gains, and the same by the second judge if there is one.

    Args:
        found: Of a run.
        again: Name of the second row.
    """
    rows = [GainRow("held-out gain", found.heldout_red_gain, found.heldout_blue_gain)]
    red, blue = found.second_gains
    return [*rows, GainRow(again, red, blue)] if found.second_judge and red else rows


def _short(version: str) -> str:
    return version.split("@", maxsplit=1)[0]
