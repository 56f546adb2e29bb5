"""Every error that rtg-env raises on purpose.

    RTGError
    |-- ConfigError (ValueError)           a setting is out of range, unknown or contradictory
    |   `-- GoalFileError                  a line of a goal file cannot be read
    |-- OrderError (RuntimeError)          a call came in the wrong order (step before reset)
    |-- InvalidActionError (ValueError)    an action is not text, too long, or its tokens do not fit
    |-- JudgeError (RuntimeError)          a judge failed on every case, or on too many
    |-- PolicyError (RuntimeError)         a policy or backend broke its contract
    |-- PayoffShapeError (ValueError)      a payoff tensor and a mixture disagree about sizes
    |-- SolverError (RuntimeError)         a meta-solver does not converge
    |-- ZeroSumError (RuntimeError)        rewards of the two teams do not cancel
    |-- ModelError (RuntimeError)          a model cannot be found, fetched or verified
    |-- ConformanceError (AssertionError)  an environment or a judge does not keep what `rtg_env.testing` asks
    |-- RunError (RuntimeError)            a run directory is locked, foreign, damaged or full
    `-- MissingExtraError (ImportError)    an optional dependency is not installed

Messages state what was expected, what came, and what to do about it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rtg_env.testing.clause import Conformance


class RTGError(Exception):
    """Base of all errors of this project."""


class ConfigError(RTGError, ValueError):
    """A setting is out of range, unknown or contradictory."""


class GoalFileError(ConfigError):
    """A line of a goal file cannot be read."""


class OrderError(RTGError, RuntimeError):
    """A call came in the wrong order."""


class InvalidActionError(RTGError, ValueError):
    """An action is not text, or is too long."""


class JudgeError(RTGError, RuntimeError):
    """A judge failed on every case, or on more than the allowed share."""


class PolicyError(RTGError, RuntimeError):
    """A policy or a backend broke its contract."""


class PayoffShapeError(RTGError, ValueError):
    """A payoff tensor and a mixture disagree about sizes."""


class SolverError(RTGError, RuntimeError):
    """A meta-solver does not converge."""


class ZeroSumError(RTGError, RuntimeError):
    """The rewards of the two teams do not cancel; this is a bug, never a user error."""


class ModelError(RTGError, RuntimeError):
    """A model cannot be found, fetched or verified."""


class ConformanceError(RTGError, AssertionError):
    """An environment or a judge fails clauses of `rtg_env.testing`; the message lists all of them."""

    report: Conformance | None = None
    """What passed, failed and was skipped."""


class RunError(RTGError, RuntimeError):
    """A run directory is locked, belongs to another config, is damaged, or cannot be written."""


class MissingExtraError(RTGError, ImportError):
    """An optional dependency is not installed.

    Args:
        package: Import name that was missing.
        extra: The extra of this distribution that brings it.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"expected the package {package!r} to be installed, it is not; "
            f'install the extra that brings it, in your clone: pip install -c constraints.txt ".[{extra}]"'
        )
        self.package = package
        self.extra = extra

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str]]:
        """Pickle by the two names: worker processes send their errors home."""
        return type(self), (self.package, self.extra)
