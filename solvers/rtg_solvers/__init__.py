"""rtg_solvers: who should speak. Rollouts, oracles, the empirical game, methods, reports, the command line.

Names that need torch are loaded on first use.
"""

from typing import TYPE_CHECKING, Any

from rtg_solvers.empirical import Equilibrium, Mixture, NashConv, nash_conv, solve_zero_sum
from rtg_solvers.measures import Estimate, mean_estimate, paired_estimate
from rtg_solvers.meta_solvers import META_SOLVERS, meta_solver, nash, uniform
from rtg_solvers.optimizer import OptimizerSettings
from rtg_solvers.payoffs import Cell, PayoffTensor, Samples
from rtg_solvers.rollout import Game, Pairing, draw_pairings, joint_version, play
from rtg_solvers.version import __version__ as __version__

if TYPE_CHECKING:
    from rtg_solvers.methods.grts import GRTSConfig
    from rtg_solvers.session import run_grts
    from rtg_solvers.trainer import Trainer

_LAZY = {"GRTSConfig": "methods.grts", "Trainer": "trainer", "run_grts": "session"}

__all__ = [
    "META_SOLVERS",
    "Cell",
    "Equilibrium",
    "Estimate",
    "GRTSConfig",
    "Game",
    "Mixture",
    "NashConv",
    "OptimizerSettings",
    "Pairing",
    "PayoffTensor",
    "Samples",
    "Trainer",
    "draw_pairings",
    "joint_version",
    "mean_estimate",
    "meta_solver",
    "nash",
    "nash_conv",
    "paired_estimate",
    "play",
    "run_grts",
    "solve_zero_sum",
    "uniform",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(f"rtg_solvers.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'rtg_solvers' has no attribute {name!r}")
