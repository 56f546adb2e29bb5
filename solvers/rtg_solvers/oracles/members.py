"""Populations that live in memory: strategies of games small enough to be learned again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from rtg_env.types import Role


class Named(Protocol):
    """A member."""

    @property
    def version(self) -> str:
        """Its name."""
        ...

    @property
    def role(self) -> Role:
        """Its side."""
        ...


M = TypeVar("M", bound=Named)


class MembersInMemory(Generic[M]):
    """Members of both sides, in the order they were added; what the loop asks of a population."""

    def __init__(self) -> None:
        self._members: dict[str, M] = {}

    def __getitem__(self, version: str) -> M:
        return self._members[version]

    def names(self, role: Role) -> tuple[str, ...]:
        """Versions of one side, oldest first."""
        return tuple(member.version for member in self._members.values() if member.role == role)

    def next_version(self, role: Role, missed: int = 0) -> str:
        """Name for the next member, after so many names that were tried in vain."""
        return f"{role}_{len(self.names(role)) + missed:02d}@v1"

    def restored(self, version: str) -> None:
        """Nothing is kept on disk."""
        del version

    def extend(self, members: Sequence[M]) -> None:
        """Add those that are not here yet."""
        for member in members:
            self._members.setdefault(member.version, member)
