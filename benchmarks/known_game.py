"""A game of cached replies with its exact solution, for the ground-truth benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from open_spiel.python.algorithms import lp_solver, sequence_form_lp
from open_spiel.python.algorithms.best_response import BestResponsePolicy

from rtg_env.types import Role
from rtg_solvers.cached_play import Behaviour, CachedPlay, behaviour_of, information_states
from rtg_solvers.cached_table import Choices
from rtg_solvers.empirical import highs
from rtg_solvers.oracles.exact import PLAYER


class BehaviourPolicy:
    """A policy of OpenSpiel as a table; of one side, or of both."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour

    def action_probabilities(self, state: Any, player_id: int | None = None) -> dict[int, float]:
        """Choices with their probabilities."""
        player = state.current_player() if player_id is None else player_id
        probs = self.behaviour[state.information_state_string(player)]
        return {action: prob for action, prob in enumerate(probs) if prob}


class Known:
    """A game with its exact solution.

    Args:
        path: Of the table.
        hears: Whether blue hears the sentence before it sets the prompt.
    """

    def __init__(self, path: Path, *, hears: bool = False) -> None:
        self.bridge = CachedPlay(path, hears=hears)
        self.openspiel = self.bridge.openspiel
        self.states: Mapping[Role, Mapping[str, Any]] = information_states(self.openspiel)
        with highs(lp_solver):
            value, _, red, blue = sequence_form_lp.solve_zero_sum_game(self.openspiel, solver="HIGHS")
        self.value = float(value)
        self.solution = {**behaviour_of(red, self.states["red"]), **behaviour_of(blue, self.states["blue"])}

    def constant(self, role: Role, choice: int) -> BehaviourPolicy:
        """The policy that chooses alike everywhere."""
        return BehaviourPolicy(
            {
                name: tuple(float(action == choice) for action in range(len(state.legal_actions())))
                for name, state in self.states[role].items()
            }
        )

    def worth(self, role: Role, policy: Any) -> float:
        """What red wins if the other side answers this side's policy in the best way."""
        other: Role = "blue" if role == "red" else "red"
        best = BestResponsePolicy(self.openspiel, PLAYER[other], policy)
        value = float(best.value(self.openspiel.new_initial_state()))
        return value if other == "red" else -value

    def nash_conv(self, policy: Any) -> float:
        """Of a policy of both sides."""
        return self.worth("blue", policy) - self.worth("red", policy)

    @cached_property
    def leaves(self) -> dict[Choices, float]:
        """u_red of every whole path, as the environment pays it."""
        return self.bridge.played_paths()
