"""Matrix games on which population methods are compared: easy to make again from a seed, payoffs within [-1, 1]."""

from __future__ import annotations

from itertools import product

import numpy as np


def skill(size: int, rng: np.random.Generator) -> np.ndarray:
    """A random game of skill (Czarnecki et al. 2020): some are better than others, and some beat some.

    U_ij = (W_ij - W_ji) / 2 + S_i - S_j with standard normal W and S, divided by the largest |U_ij|.
    """
    noise, strength = rng.normal(size=(size, size)), rng.normal(size=size)
    payoff = (noise - noise.T) / 2 + strength[:, None] - strength[None]
    return np.asarray(payoff / np.abs(payoff).max())


def rock_paper_scissors() -> np.ndarray:
    """The third follows the second as the second the first."""
    return np.array([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]])


def blotto(soldiers: int, fields: int) -> np.ndarray:
    """Colonel Blotto: divide soldiers over fields; who has more on a field wins it; red wins 1 if it wins more fields."""
    plans = np.array([plan for plan in product(range(soldiers + 1), repeat=fields) if sum(plan) == soldiers])
    fields_won = np.sign(plans[:, None] - plans[None]).sum(axis=2)
    return np.sign(fields_won).astype(float)


def transitive(size: int, rng: np.random.Generator) -> np.ndarray:
    """Elo: the stronger wins more, and nothing else matters."""
    strength = rng.normal(size=size)
    return np.asarray(np.tanh(strength[:, None] - strength[None]))


def disc(size: int, rng: np.random.Generator) -> np.ndarray:
    """The disc game (Balduzzi et al. 2019): points of a disc; who is ahead of the other, turning left, wins."""
    radius, angle = np.sqrt(rng.random(size)), 2 * np.pi * rng.random(size)
    x, y = radius * np.cos(angle), radius * np.sin(angle)
    return np.asarray(np.outer(x, y) - np.outer(y, x))


def normal_form(name: str, parameters: dict[str, object] | None = None) -> np.ndarray:
    """A small zero-sum game of OpenSpiel as a matrix: what its first player wins, by pure plans, divided by the most."""
    import pyspiel

    game = pyspiel.extensive_to_matrix_game(pyspiel.load_game(name, parameters or {}))
    payoff = np.array([[game.player_utility(0, r, c) for c in range(game.num_cols())] for r in range(game.num_rows())])
    return np.asarray(payoff / max(1.0, float(np.abs(payoff).max())))
