"""What an iteration of the loop costs: it plays its new row and column, and nothing again.

After k iterations in which both sides found a member there are (R + k)(C + k) cells, R and C of them at the start. With N
dialogues per cell, iteration k therefore plays N ((R + k)(C + k) - (R + k - 1)(C + k - 1)) = N (2 k + R + C - 1): linear.
Counted are the dialogues that the loop asks for, whether it had them already or not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from ground_truth_parts import Options, Section
from timing import Bar

from rtg_env.types import Role
from rtg_solvers import loop
from rtg_solvers.meta_solvers import uniform
from rtg_solvers.oracles.matrix import MatrixMembers, MatrixStrategy
from rtg_solvers.payoffs import Cell, PayoffTensor, Samples
from rtg_solvers.seeding import rng_for

_ACTIONS = 5
_STARTS = ((1, 1), (3, 1))
"""Members of (red, blue) before the first iteration: one each, and as in `rtg solve`."""


class Wanderer:
    """Finds some new strategy, always: what it is worth makes no difference to what it costs."""

    def respond(self, task: loop.Task[Any]) -> MatrixStrategy:
        rng = rng_for(task.context.seed, "wander", task.role, task.iteration)
        return MatrixStrategy(task.version, task.role, rng.dirichlet(np.ones(_ACTIONS)))


def iteration_cost(options: Options) -> Section:
    """Dialogues by iteration, and how far from a line they are."""
    most = options.times(30, 6)
    figures: dict[str, Any] = {"iterations": most}
    bars = []
    for start in _STARTS:
        for per_cell in (1, 8):
            played = dialogues_by_iteration(start, per_cell, most, options.seed)
            line = [per_cell * (2 * k + sum(start) - 1) for k in range(1, most + 1)]
            name = f"{start[0]} x {start[1]} members at first, {per_cell} dialogues per cell"
            figures[name] = {"first": played[0], "last": played[-1], "slope": slope(played)}
            off = max(abs(found - expected) for found, expected in zip(played, line, strict=True))
            bars.append(Bar(f"{name}: most dialogues off N (2k + {sum(start) - 1})", off, 0, at_least=False))
    return Section(figures, bars)


def slope(played: Sequence[int]) -> float:
    """Dialogues that each further iteration plays more, by least squares."""
    return round(float(np.polyfit(np.arange(1, len(played) + 1), played, 1)[0]), 6)


def dialogues_by_iteration(
    start: tuple[int, int],
    per_cell: int,
    most: int,
    seed: int,
) -> list[int]:
    """How many dialogues each iteration asks for.

    Args:
        start: Members of (red, blue) before the first iteration.
        per_cell: Dialogues per cell.
        most: Iterations.
        seed: Of the game.
    """
    rng = np.random.default_rng(seed)
    members = MatrixMembers(rng.random((_ACTIONS, _ACTIONS)), dialogues_per_cell=per_cell, seed=seed)
    roles: tuple[Role, ...] = ("red", "blue")
    for role, count in zip(roles, start, strict=True):
        for _ in range(count - 1):
            members.extend([MatrixStrategy(members.next_version(role), role, rng.dirichlet(np.ones(_ACTIONS)))])
    asked = [0]
    totals: list[int] = []

    def counted(wanted: Mapping[Cell, int]) -> dict[Cell, Samples]:
        asked[0] += sum(wanted.values())
        return members.play_cells(wanted)

    def schedule(k: int, payoffs: PayoffTensor) -> Sequence[tuple[Role, ...]]:
        del payoffs
        totals.append(asked[0])
        return [("red", "blue")] if k < most else []

    wanderer = Wanderer()
    method = loop.Method(meta_solver=uniform, oracles={"red": wanderer, "blue": wanderer}, schedule=schedule)
    context = loop.Context(
        population=members, play_cells=counted, dialogues_per_cell=per_cell, bounds=members.bounds, seed=seed
    )
    loop.solve(method, context)
    return [after - before for before, after in pairwise(totals)]
