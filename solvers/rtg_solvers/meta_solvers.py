"""Whom to prepare for: mixtures from a payoff tensor, each solver behind one protocol.

OpenSpiel's solvers where it has them and they are sound: its linear program (through HiGHS), alpha-rank at infinite
alpha, regret matching, projected replicator dynamics. Payoffs are scaled to [0, 1] before they are solved, so that
tolerances and step sizes mean the same in every game.

A mixture is what to train against; `Mixture.value` is always the linear program's value of the same payoffs, and
`Mixture.expected` what red wins under the mixture itself.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any, Final, ParamSpec

import numpy as np

from rtg_env.errors import ConfigError, MissingExtraError, RTGError, SolverError
from rtg_solvers.empirical import Mixture, checked_means, distribution, nash_conv, solve_zero_sum

if TYPE_CHECKING:
    from rtg_solvers.empirical import MetaSolver
    from rtg_solvers.payoffs import PayoffTensor

Marginals = tuple[np.ndarray, np.ndarray]
"""Red's [R] and blue's [C] probabilities."""

P = ParamSpec("P")

_LEARNING_STEPS: Final = 10_000
"""Of regret matching: a NashConv of about 0.01 on payoffs in [0, 1], in 1 s."""

_REPLICATOR_STEPS: Final = 10_000
_REPLICATOR_DT: Final = 1e-2
_PLAY_STEPS: Final = 20_000
_ALPHA_NOISE: Final = 1e-3
_TAU: Final = 0.02


def _answering_for_itself(solver: Callable[P, Mixture]) -> Callable[P, Mixture]:
    """Whatever goes wrong in a solver, the error says in which; a bad cell is named as it is."""

    @wraps(solver)
    def named(*args: P.args, **kwargs: P.kwargs) -> Mixture:
        try:
            return solver(*args, **kwargs)
        except SolverError as error:
            raise _failed(solver.__name__, error) from error
        except RTGError:
            raise
        except Exception as error:  # OpenSpiel, LAPACK and linear programs fail in ways of their own
            raise _failed(solver.__name__, error) from error

    return named


def _failed(solver: str, error: Exception) -> SolverError:
    return SolverError(
        f"expected the meta-solver {solver.replace('_', '-')} to find mixtures, it failed: {type(error).__name__}: "
        f"{error}; what was played is kept and the same command tries again, another meta_solver needs another --name"
    )


@_answering_for_itself
def nash(payoffs: PayoffTensor, previous: Mixture | None, rng: np.random.Generator) -> Mixture:
    """Nash equilibrium of the mean payoffs, by OpenSpiel's linear program: a vertex where there are several."""
    del previous, rng
    solution = solve_zero_sum(checked_means(payoffs))
    return _mixture(payoffs, (solution.row, solution.column), solution.value)


@_answering_for_itself
def logit(payoffs: PayoffTensor, previous: Mixture | None, rng: np.random.Generator, *, tau: float = _TAU) -> Mixture:
    """Equilibrium with entropy: each side plays exp(payoff / tau) against the other (McKelvey & Palfrey 1995).

    Unlike a vertex of the Nash set it moves little when payoffs do, and equal members share alike: on noisy payoffs its
    true NashConv is lower at few dialogues per cell.

    Args:
        payoffs: Of the populations.
        previous: Not used.
        rng: Not used.
        tau: Price of a nat, as a share of the payoffs' range; above 0.
    """
    del previous, rng
    return _mixture(payoffs, logit_equilibrium(_unit(checked_means(payoffs)), tau))


@_answering_for_itself
def regret_matching(payoffs: PayoffTensor, previous: Mixture | None, rng: np.random.Generator) -> Mixture:
    """Average play of regret matching (Hart & Mas-Colell 2000), OpenSpiel's."""
    del previous, rng
    openspiel = _openspiel("algorithms.regret_matching")
    unit = _unit(checked_means(payoffs))
    found = openspiel.regret_matching([unit, -unit], iterations=_LEARNING_STEPS, gamma=1e-6)
    return _mixture(payoffs, (found[0], found[1]))


@_answering_for_itself
def replicator_dynamics(payoffs: PayoffTensor, previous: Mixture | None, rng: np.random.Generator) -> Mixture:
    """Average play of projected replicator dynamics (Lanctot et al. 2017, arXiv:1711.00832), OpenSpiel's."""
    del previous, rng
    openspiel = _openspiel("algorithms.projected_replicator_dynamics")
    unit = _unit(checked_means(payoffs))
    found = openspiel.projected_replicator_dynamics(
        [unit, -unit], prd_iterations=_REPLICATOR_STEPS, prd_dt=_REPLICATOR_DT, prd_gamma=1e-6
    )
    return _mixture(payoffs, (found[0], found[1]))


@_answering_for_itself
def alpha_rank(payoffs: PayoffTensor, previous: Mixture | None, rng: np.random.Generator) -> Mixture:
    """Marginals of alpha-rank at infinite alpha (Omidshafiei et al. 2019), OpenSpiel's; no equilibrium concept.

    Cost grows with the fourth power of the populations: 20 x 20 takes seconds.
    """
    del previous, rng
    ranking, utils = _openspiel("egt.alpharank"), _openspiel("algorithms.psro_v2.utils")
    unit = _unit(checked_means(payoffs))
    if unit.shape == (1, 1):
        return _mixture(payoffs, (np.ones(1), np.ones(1)))
    profiles = ranking.compute([unit, -unit], use_inf_alpha=True, inf_alpha_eps=_ALPHA_NOISE)[2]
    red, blue = utils.get_alpharank_marginals([unit, -unit], profiles)
    return _mixture(payoffs, (red, blue))


@_answering_for_itself
def fictitious_play(payoffs: PayoffTensor, previous: Mixture | None, rng: np.random.Generator) -> Mixture:
    """Average of alternating best responses to each other's averages (Brown 1951), inside the payoffs."""
    del previous, rng
    unit = _unit(checked_means(payoffs))
    red, blue = np.zeros(unit.shape[0]), np.zeros(unit.shape[1])
    against_blue, against_red = unit[:, 0].copy(), np.zeros(unit.shape[1])
    for _ in range(_PLAY_STEPS):
        row = int(against_blue.argmax())
        red[row] += 1
        against_red += unit[row]
        column = int(against_red.argmin())
        blue[column] += 1
        against_blue += unit[:, column]
    return _mixture(payoffs, (red, blue))


@_answering_for_itself
def uniform(payoffs: PayoffTensor, previous: Mixture | None, rng: np.random.Generator) -> Mixture:
    """Every member alike: with one best response per iteration, fictitious play over the population."""
    del previous, rng
    rows, columns = checked_means(payoffs).shape
    return _mixture(payoffs, (np.ones(rows), np.ones(columns)))


@_answering_for_itself
def latest(payoffs: PayoffTensor, previous: Mixture | None, rng: np.random.Generator) -> Mixture:
    """The newest member of each side: self-play, and what SEAS and MART train against."""
    del previous, rng
    rows, columns = checked_means(payoffs).shape
    return _mixture(payoffs, (np.eye(rows)[-1], np.eye(columns)[-1]))


META_SOLVERS: Final[Mapping[str, MetaSolver]] = {
    "nash": nash,
    "logit": logit,
    "regret-matching": regret_matching,
    "replicator-dynamics": replicator_dynamics,
    "alpha-rank": alpha_rank,
    "fictitious-play": fictitious_play,
    "uniform": uniform,
    "latest": latest,
}
"""By the names that configs use."""


def meta_solver(name: str) -> MetaSolver:
    """A meta-solver by its name.

    Raises:
        ConfigError: If there is none of that name.
    """
    if name not in META_SOLVERS:
        raise ConfigError(f"expected a meta-solver among {', '.join(META_SOLVERS)}, got {name!r}")
    return META_SOLVERS[name]


def logit_equilibrium(matrix: np.ndarray, tau: float, *, tolerance: float = 1e-10) -> Marginals:
    """The unique pair with x = softmax(A y / tau) and y = softmax(-A^T x / tau).

    It minimises tau logsumexp(A y / tau) + tau sum y log y over the simplex, a strictly convex function: Newton's method
    on log y with a line search, tau lowered step by step from the payoffs' range.

    Args:
        matrix: [R, C] what the row player wins, finite.
        tau: Above 0.
        tolerance: Of the residual, in probability.

    Raises:
        ConfigError: If tau is not above 0.
        SolverError: If Newton's method does not arrive.
    """
    if not tau > 0:
        raise ConfigError(f"expected tau > 0 for the logit meta-solver, got {tau!r}; 0.02 is usual, nash has none")
    log_y = np.full(matrix.shape[1], -np.log(matrix.shape[1]))
    heat = max(tau, float(np.ptp(matrix)))
    while True:
        log_y, residual = _newton(matrix, heat, log_y, tolerance)
        if heat == tau:
            break
        heat = max(tau, heat / 2)
    if not residual <= max(tolerance, 1e-8):
        raise SolverError(
            f"expected the logit meta-solver to converge at tau {tau:g}, its residual is {residual:.1e}; "
            "take a larger tau, or another meta-solver"
        )
    return _softmax(matrix @ np.exp(log_y) / tau), np.exp(log_y)


def _newton(matrix: np.ndarray, tau: float, log_y: np.ndarray, tolerance: float) -> tuple[np.ndarray, float]:
    """Minimise over log y at one tau; the residual is the largest difference from the fixed point."""
    for _ in range(200):
        y = np.exp(log_y)
        x = _softmax(matrix @ y / tau)
        wanted = -(x @ matrix) / tau
        target = wanted - _logsumexp(wanted)
        residual = float(np.abs(np.exp(target) - y).max())
        if residual <= tolerance:
            return log_y, residual
        # The slope in y is log y + 1 - wanted, the Hessian M + 1 / y. With r = dy / sqrt(y) it becomes at least I: entries
        # near 0 do no harm. Steps keep the sum of y: they are orthogonal to sqrt(y).
        root = np.exp(0.5 * log_y)
        spread = (matrix - x @ matrix) * root / tau
        system = (spread.T * x) @ spread + np.eye(y.size)
        slope = root * (log_y - wanted)
        inverse = np.linalg.solve(system, np.c_[slope, root])
        move = -(inverse[:, 0] - inverse[:, 1] * (root @ inverse[:, 0]) / (root @ inverse[:, 1]))
        log_y = _searched(matrix, tau, log_y, move / np.maximum(root, 1e-150), float(slope @ move))
    return log_y, residual


def _searched(matrix: np.ndarray, tau: float, log_y: np.ndarray, step: np.ndarray, descent: float) -> np.ndarray:
    """The first of ever shorter steps that lowers the objective enough; near the end the objective is all rounding."""
    if -descent < 1e-9:
        return np.asarray(log_y + step - _logsumexp(log_y + step))
    before = _objective(matrix, tau, log_y)
    size = min(1.0, 5.0 / max(1e-300, float(np.abs(step).max())))
    for _ in range(60):
        moved = log_y + size * step
        moved -= _logsumexp(moved)
        if _objective(matrix, tau, moved) <= before + 1e-4 * size * descent + 1e-15:
            return moved
        size /= 2
    return log_y


def _objective(matrix: np.ndarray, tau: float, log_y: np.ndarray) -> float:
    y = np.exp(log_y)
    return _logsumexp(matrix @ y / tau) + float(y @ log_y)


def _logsumexp(values: np.ndarray) -> float:
    top = float(values.max())
    return top + float(np.log(np.exp(values - top).sum()))


def _softmax(values: np.ndarray) -> np.ndarray:
    weights = np.exp(values - values.max())
    return np.asarray(weights / weights.sum())


def _openspiel(module: str) -> Any:
    """A module of OpenSpiel, untyped.

    Raises:
        MissingExtraError: If it, or what it imports, is not installed.
    """
    try:
        return importlib.import_module(f"open_spiel.python.{module}")
    except ImportError as error:
        raise MissingExtraError(error.name or "open_spiel", "solve") from error


def _unit(matrix: np.ndarray) -> np.ndarray:
    """Payoffs scaled to [0, 1]: equilibria stay."""
    scale = float(np.ptp(matrix)) or 1.0
    return np.asarray((matrix - matrix.min()) / scale)


def _mixture(payoffs: PayoffTensor, marginals: Marginals, value: float | None = None) -> Mixture:
    mean = checked_means(payoffs)
    red, blue = (distribution(weights) for weights in marginals)
    return Mixture(
        red=red,
        blue=blue,
        red_names=payoffs.red,
        blue_names=payoffs.blue,
        value=solve_zero_sum(mean).value if value is None else value,
        expected=float(red @ mean @ blue),
        diagnostics={"nash_conv_in_matrix": nash_conv(mean, red, blue).total},
    )
