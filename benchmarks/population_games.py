"""Games whose truth is known, all in one form: sequences of own actions, so that any game of OpenSpiel fits in vectors.

A strategy is a realisation plan (von Stengel 1996): for every sequence of a side's own actions the probability that the
side plays it, chance and the other side willing. A matrix game is the case of one decision per side. In this form a
mixture of members is the mean of their plans, a payoff is bilinear, a best response is one pass over the decisions, and
true NashConv is two of them: exact and quick, in Leduc as in a matrix.

Utilities are what red wins, scaled so that the least of a game is 0 and the most is 1.

Letters: S sequences of red or T of blue (the first is the empty one), I decisions of a side (information states), L ends
of the game, K different utilities, D draws.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import matrix_games
import numpy as np
from scipy.sparse import csr_matrix

from rtg_env.types import Role
from rtg_solvers import tabular
from rtg_solvers.tabular import TableSettings

_TOLERANCE: Final = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """The decisions of one side, earlier ones first."""

    size: int
    """S, the empty sequence included."""

    parents: tuple[int, ...]
    """[I] the own sequence that leads to each decision."""

    choices: tuple[np.ndarray, ...]
    """[I] the sequences that it can become, one per action."""

    reach: csr_matrix
    """[I, T] how likely chance and the other side's plan lead there."""

    depth: int
    """Most own decisions in a play."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tree:
    """A two-player game."""

    sides: Mapping[Role, Side]
    """Red and blue."""

    payoff: csr_matrix
    """[S, T] what red wins where both sequences are played, weighed with chance."""

    ends: np.ndarray
    """[L, 3] red's sequence, blue's sequence, which utility."""

    chance: np.ndarray
    """[L] probability that chance plays its part."""

    utilities: np.ndarray
    """[K] in [0, 1], rising."""

    def value(self, red: np.ndarray, blue: np.ndarray) -> float:
        """What red wins on average, plans [S] and [T]."""
        return float(red @ (self.payoff @ blue))

    def odds(self, red: np.ndarray, blue: np.ndarray) -> np.ndarray:
        """[K] how likely a dialogue of two plans pays each utility."""
        weights = self.chance * red[self.ends[:, 0]] * blue[self.ends[:, 1]]
        odds = np.bincount(self.ends[:, 2], weights, minlength=self.utilities.size)
        return np.asarray(odds / odds.sum())

    def gains(self, role: Role, other: np.ndarray) -> np.ndarray:
        """[S] or [T] what each sequence of a side adds to what that side wins against a plan of the other."""
        return np.asarray(self.payoff @ other if role == "red" else -(self.payoff.T @ other))

    def best_value(self, role: Role, other: np.ndarray) -> float:
        """The most that a side can win against a plan of the other; blue wins minus what red does."""
        worth, side = self.gains(role, other), self.sides[role]
        for parent, choices in zip(reversed(side.parents), reversed(side.choices), strict=True):
            worth[parent] += worth[choices].max()
        return float(worth[0])

    def nash_conv(self, red: np.ndarray, blue: np.ndarray) -> float:
        """True NashConv of two plans: the sum of what both sides could gain in the whole game."""
        return max(0.0, self.best_value("red", blue) + self.best_value("blue", red))

    def near_best(
        self, role: Role, other: np.ndarray, tolerance: float, num_draws: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Pure plans that are nearly best: at every decision any action that costs little there, all alike.

        What an action costs is counted given that the decision is reached; `tolerance` is shared out equally over the
        side's decisions in a play, so that a plan loses no more than `tolerance` in all. Where the other side never
        leads, any action will do. With one decision: any action within `tolerance` of the best.

        Returns:
            [D, S] plans of 0 and 1.
        """
        side = self.sides[role]
        worth = np.repeat(self.gains(role, other)[:, None], num_draws, axis=1)
        allowed = tolerance / side.depth * np.asarray(side.reach @ other) + _TOLERANCE
        columns, picked = np.arange(num_draws), []
        for index in range(len(side.parents) - 1, -1, -1):
            choices = side.choices[index]
            values = worth[choices]
            keys = np.where(values >= values.max(axis=0) - allowed[index], rng.random(values.shape), -1.0)
            action = keys.argmax(axis=0)
            picked.append(choices[action])
            worth[side.parents[index]] += values[action, columns]
        plans = np.zeros((num_draws, side.size))
        plans[:, 0] = 1.0
        for parent, chosen in zip(side.parents, reversed(picked), strict=True):
            plans[columns, chosen] = plans[:, parent]
        return plans

    def uniform(self, role: Role) -> np.ndarray:
        """The plan that takes every action alike."""
        side = self.sides[role]
        plan = np.zeros(side.size)
        plan[0] = 1.0
        for parent, choices in zip(side.parents, side.choices, strict=True):
            plan[choices] = plan[parent] / choices.size
        return plan


def from_matrix(payoff: np.ndarray, *, all_or_nothing: bool) -> Tree:
    """One decision per side.

    Args:
        payoff: [R, C] what red wins.
        all_or_nothing: A dialogue pays the most or the least of the matrix, with the payoff as its mean; otherwise it pays
            the payoff itself, and chance lies in the members' own draws alone.
    """
    rows, columns = (index.ravel() + 1 for index in np.indices(payoff.shape))
    cells = (payoff.ravel() - payoff.min()) / np.ptp(payoff)
    sides: dict[Role, Side] = {
        role: Side(
            size=size + 1,
            parents=(0,),
            choices=(np.arange(1, size + 1),),
            reach=csr_matrix(([1.0], ([0], [0])), shape=(1, other + 1)),
            depth=1,
        )
        for role, size, other in (("red", *payoff.shape), ("blue", *payoff.shape[::-1]))
    }
    if not all_or_nothing:
        return _tree(sides, np.stack([rows, columns], axis=1), np.ones(cells.size), cells)
    pairs = np.tile(np.stack([rows, columns], axis=1), (2, 1))
    return _tree(sides, pairs, np.r_[cells, 1.0 - cells], np.repeat([1.0, 0.0], cells.size))


def from_openspiel(game: Any) -> Tree:
    """A two-player zero-sum game that OpenSpiel can enumerate, with perfect recall; player 0 is red."""
    builders = (_Builder(), _Builder())
    ends: list[tuple[int, int]] = []
    chance: list[float] = []
    utilities: list[float] = []

    def visit(state: Any, sequences: tuple[int, int], prob: float, depths: tuple[int, int]) -> None:
        if state.is_terminal():
            ends.append(sequences)
            chance.append(prob)
            utilities.append(state.returns()[0])
        elif state.is_chance_node():
            for action, share in state.chance_outcomes():
                visit(state.child(action), sequences, prob * share, depths)
        else:
            player = state.current_player()
            builder, other = builders[player], sequences[1 - player]
            deeper = (depths[0] + (player == 0), depths[1] + (player == 1))
            choices = builder.decision(state, player, sequences[player], deeper[player])
            builder.reach.append((builder.index[state.information_state_string(player)], other, prob))
            for action, sequence in zip(state.legal_actions(), choices, strict=True):
                moved = (sequence, other) if player == 0 else (other, sequence)
                visit(state.child(action), moved, prob, deeper)

    visit(game.new_initial_state(), (0, 0), 1.0, (0, 0))
    red, blue = builders
    sides: dict[Role, Side] = {"red": red.side(blue.size), "blue": blue.side(red.size)}
    return _tree(sides, np.array(ends), np.array(chance), np.array(utilities))


class _Builder:
    """Collects the decisions of one side."""

    def __init__(self) -> None:
        self.size, self.depth = 1, 0
        self.index: dict[str, int] = {}
        self.parents: list[int] = []
        self.choices: list[np.ndarray] = []
        self.reach: list[tuple[int, int, float]] = []

    def decision(self, state: Any, player: int, parent: int, depth: int) -> np.ndarray:
        """The sequences that an information state leads to; new ones if it is new."""
        key = state.information_state_string(player)
        if key not in self.index:
            self.index[key] = len(self.parents)
            count = len(state.legal_actions())
            self.parents.append(parent)
            self.choices.append(np.arange(self.size, self.size + count))
            self.size, self.depth = self.size + count, max(self.depth, depth)
        return self.choices[self.index[key]]

    def side(self, other_size: int) -> Side:
        """What was collected."""
        rows, columns, probs = zip(*self.reach, strict=True)
        reach = csr_matrix((probs, (rows, columns)), shape=(len(self.parents), other_size))
        return Side(
            size=self.size,
            parents=tuple(self.parents),
            choices=tuple(self.choices),
            reach=reach,
            depth=self.depth,
        )


def _tree(sides: Mapping[Role, Side], pairs: np.ndarray, chance: np.ndarray, utilities: np.ndarray) -> Tree:
    scaled = (utilities - utilities.min()) / np.ptp(utilities)
    values, which = np.unique(scaled, return_inverse=True)
    shape = (sides["red"].size, sides["blue"].size)
    payoff = csr_matrix((chance * scaled, (pairs[:, 0], pairs[:, 1])), shape=shape)
    return Tree(sides=sides, payoff=payoff, ends=np.c_[pairs, which], chance=chance, utilities=values)


def skill(seed: int) -> Tree:
    """A random game of skill, 50 x 50; dialogues pay all or nothing."""
    return from_matrix(matrix_games.skill(50, np.random.default_rng([seed, 50])), all_or_nothing=True)


def blotto(seed: int) -> Tree:
    """Six soldiers on three fields, 28 x 28: won, lost or drawn."""
    del seed
    return from_matrix(matrix_games.blotto(6, 3), all_or_nothing=False)


def kuhn(seed: int) -> Tree:
    """Three cards."""
    del seed
    return _loaded("kuhn_poker")


def leduc(seed: int) -> Tree:
    """Six cards, two rounds: 936 decisions."""
    del seed
    return _loaded("leduc_poker")


def one_exchange(seed: int) -> Tree:
    """A red-teaming dialogue of one exchange: 3 goals, 3 tactics, 4 styles of reply; new chances of harm per seed."""
    return from_openspiel(
        tabular.load(TableSettings(num_exchanges=1, num_goals=3, num_tactics=3, num_styles=4, seed=seed))
    )


def two_exchanges(seed: int) -> Tree:
    """Two exchanges: 2 goals, 2 tactics, 3 styles."""
    return from_openspiel(
        tabular.load(TableSettings(num_exchanges=2, num_goals=2, num_tactics=2, num_styles=3, seed=seed))
    )


def _loaded(name: str) -> Tree:
    import pyspiel

    return from_openspiel(pyspiel.load_game(name))


GAMES: Final[Mapping[str, Callable[[int], Tree]]] = {
    "skill": skill,
    "blotto": blotto,
    "kuhn": kuhn,
    "leduc": leduc,
    "dialogue, 1 exchange": one_exchange,
    "dialogue, 2 exchanges": two_exchanges,
}
"""By seed; those without chance of their own are the same for every seed."""
