"""rtg_solvers: who should speak. Rollouts, oracles, the empirical game, methods, reports, the command line."""

__version__ = "0.1.0"
