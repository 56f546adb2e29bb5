"""OpenSpiel's psro_v2 as it is, on the members and with the oracle of `population_runs`.

Its solver asks for whole cells one at a time and keeps their means; policies may be anything, here they are the names of
members. It draws from numpy's global generator, so that this is seeded, and put back afterwards.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
from population_games import Tree
from population_runs import ROLES, Learner, Member, Plan, Players, Run

from rtg_solvers.empirical import highs
from rtg_solvers.payoffs import Cell

SETTINGS: Final[Mapping[str, Mapping[str, Any]]] = {
    "nash": {},
    "prd": {"prd_iterations": 1_000, "prd_dt": 0.1, "prd_gamma": 1e-6},
}
"""Of its meta-strategies. Replicator dynamics run for as long as by default, 100 units of time, in longer steps: the
default's 100,000 take 15 s."""


class _TwoPlayers:
    """All that the solver asks of a game."""

    def num_players(self) -> int:
        return 2


def psro(tree: Tree, seed: int, plan: Plan, *, meta_strategy: str) -> Run:
    """A run; reported is its own meta-strategy."""
    players, learner = Players(tree, seed), Learner(tree, plan, seed)
    run = Run(players, plan)
    with _quiet(seed):
        solver = _solver(players, learner, plan, meta_strategy)
        for k in range(plan.iterations + 1):
            names, weights = solver.get_policies(), solver.get_meta_strategies()
            red, blue = (mix @ players.plans(side) for mix, side in zip(weights, names, strict=True))
            run.record(k, (red, blue), players.num_dialogues)
            if k < plan.iterations:
                solver.iteration()
    return run


def _solver(players: Players, learner: Learner, plan: Plan, meta_strategy: str) -> Any:
    from open_spiel.python.algorithms.psro_v2 import psro_v2

    class Solver(psro_v2.PSROSolver):  # type: ignore[misc]  # untyped base
        """Plays dialogues of members."""

        def sample_episodes(self, policies: Sequence[str], num_episodes: int) -> np.ndarray:
            mean = float(players.dialogues(Cell(*policies), num_episodes).mean())
            return np.array([mean, -mean])

    def respond(game: object, training_parameters: Sequence[Sequence[Any]], **options: object) -> list[list[str]]:
        """The shape of psro_v2's oracles: per player, a new policy per set of parameters."""
        del game, options
        (asked,), (_,) = training_parameters
        names = asked["total_policies"]
        red, blue = (players.plans(side) for side in names)
        x, y = asked["probabilities_of_playing_policies"]
        k = len(red) - 1
        found = {"red": learner.respond("red", k, red, blue, y), "blue": learner.respond("blue", k, blue, red, x)}
        new = [Member(players.next_version(role), role, found[role]) for role in ROLES]
        players.extend(new)
        return [[member.version] for member in new]

    return Solver(
        _TwoPlayers(),
        respond,
        sims_per_entry=plan.dialogues_per_cell,
        initial_policies=[players.names(role)[0] for role in ROLES],
        meta_strategy_method=meta_strategy,
        training_strategy_selector="probabilistic",
        sample_from_marginals=True,
        **SETTINGS[meta_strategy],
    )


@contextlib.contextmanager
def _quiet(seed: int) -> Iterator[None]:
    """Nothing printed, the global generator seeded and put back, and a linear program that is installed."""
    from open_spiel.python.algorithms import lp_solver

    state = np.random.get_state()  # noqa: NPY002 - theirs
    np.random.seed(seed)  # noqa: NPY002
    try:
        with contextlib.redirect_stdout(io.StringIO()), highs(lp_solver):
            yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
