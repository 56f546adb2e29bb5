"""How long work tells a person what it is doing, without the worker knowing about terminals."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives announcements and advances; `rtg` draws them, tests count them."""

    def message(self, text: str) -> None:
        """One line that a person should see now."""
        ...

    def advance(self, task: str, done: float, total: float) -> None:
        """`done` of `total` units of the named task are finished."""
        ...


class SilentProgress:
    """Tells nobody."""

    def message(self, text: str) -> None:
        """Drop the line."""

    def advance(self, task: str, done: float, total: float) -> None:
        """Drop the advance."""


class WorkMeter:
    """Adds up finished work against a plan.

    Args:
        progress: Is told after each piece.
        task: Name of the work.
        total: Planned units.
    """

    def __init__(self, progress: Progress, task: str, total: float) -> None:
        self._progress = progress
        self._task = task
        self._total = total
        self._done = 0.0

    def add(self, units: float) -> None:
        """`units` more are finished."""
        self._done += units
        self._progress.advance(self._task, min(self._done, self._total), self._total)
