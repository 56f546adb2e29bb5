"""What a clause is, how all of them are run, and what is reported.

A clause is one small function that raises `Unmet` if its subject does not keep it. Each runs isolated from the
others, so that one run names everything that is wrong; a clause that builds on another one is skipped if that one
failed, so that one mistake is named once.
"""

from __future__ import annotations

import io
import traceback
from collections.abc import Callable, Collection, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from rtg_env.errors import ConfigError, ConformanceError
from rtg_env.text import one_line

Subject = TypeVar("Subject")


class Unmet(Exception):
    """A clause is not kept; never leaves this package, `ConformanceError` does.

    Args:
        expected: What the clause asks for, as in "expected ...".
        got: What came instead.
        where: Agent, step and seed.
    """

    def __init__(self, expected: str, got: str, where: str = "") -> None:
        super().__init__(f"expected {expected}, got {got}" + (f" ({where})" if where else ""))


class NotApplicable(Exception):
    """A clause says nothing about this subject, for the reason given; never leaves this package."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clause(Generic[Subject]):
    """One thing that is asked of every subject."""

    name: str
    """Unique, in lower case with hyphens; `skip` takes it."""

    asks: str
    """What is asked, in one sentence."""

    remedy: str
    """What to do if it is not kept."""

    check: Callable[[Subject], None]
    """Raises `Unmet` if it is not kept, `NotApplicable` if it says nothing about the subject."""

    needs: tuple[str, ...] = ()
    """Clauses without which a failure of this one would say nothing new."""

    kinds: tuple[str, ...] = ()
    """Kinds of subject that it is about; empty for all."""


def clause(
    remedy: str, *, needs: tuple[str, ...] = (), kinds: tuple[str, ...] = ()
) -> Callable[[Callable[[Subject], None]], Clause[Subject]]:
    """Make a clause of a function: its name with hyphens, its docstring the sentence."""

    def made(check: Callable[[Subject], None]) -> Clause[Subject]:
        asks = (check.__doc__ or "").partition("\n")[0]
        name = check.__name__.replace("_", "-")
        return Clause(name=name, asks=asks, remedy=remedy, check=check, needs=needs, kinds=kinds)

    return made


@dataclass(frozen=True, slots=True)
class Finding:
    """A clause that failed or was skipped."""

    clause: str
    """Its name."""

    reason: str
    """What was expected, what came and what to do; or why it was skipped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conformance:
    """What came of all clauses; printed as a table."""

    subject: str
    """What was checked."""

    passed: tuple[str, ...]
    """Clauses that are kept."""

    failed: tuple[Finding, ...]
    """Clauses that are not."""

    skipped: tuple[Finding, ...]
    """Clauses that were not checked."""

    def __str__(self) -> str:
        rows = [(name, "passed", "") for name in self.passed]
        rows += [(finding.clause, "FAILED", finding.reason) for finding in self.failed]
        rows += [(finding.clause, "skipped", finding.reason) for finding in self.skipped]
        width = max((len(name) for name, *_ in rows), default=0)
        counts = f"{len(self.passed)} passed, {len(self.failed)} failed, {len(self.skipped)} skipped"
        lines = [f"{name:<{width}}  {result:<7}  {reason}".rstrip() for name, result, reason in rows]
        return "\n".join([f"{self.subject}: {counts}", *lines])

    def raise_if_failed(self) -> Conformance:
        """Itself, if nothing failed.

        Raises:
            ConformanceError: With every clause that failed; `report` holds this report.
        """
        if not self.failed:
            return self
        found = "\n".join(f"- {finding.clause}: {finding.reason}" for finding in self.failed)
        error = ConformanceError(
            f"expected {self.subject} to keep every clause, {len(self.failed)} failed (mend them, or skip by name"
            f" what cannot apply):\n{found}"
        )
        error.report = self
        raise error


def run(
    clauses: Sequence[Clause[Subject]],
    subject: Subject,
    *,
    name: str,
    skip: Collection[str] = (),
    kind: str = "",
    after: Callable[[], None] = lambda: None,
) -> Conformance:
    """Check one clause after another; nothing that a subject prints reaches the screen.

    Args:
        clauses: What is asked, in the order in which it is checked.
        subject: What is checked.
        name: What the report calls it.
        skip: Names of clauses to leave out.
        kind: Kind of the subject.
        after: Called after each clause, to tidy up.

    Raises:
        ConfigError: If a name in `skip` is unknown.
    """
    known = [item.name for item in clauses]
    unknown = [skip] if isinstance(skip, str) else [item for item in skip if item not in known]
    if unknown:
        raise ConfigError(f"expected skip to be a tuple of names of clauses ({', '.join(known)}), got {unknown[0]!r}")
    passed: list[str] = []
    failed: list[Finding] = []
    skipped: list[Finding] = []
    blocked: set[str] = set()
    for item in clauses:
        missing = [need for need in item.needs if need in blocked]
        try:
            if reason := _not_asked(item, skip, kind):
                raise NotApplicable(reason)
            if missing:
                blocked.add(item.name)
                raise NotApplicable(f"needs {missing[0]}, which was not kept")
            with redirect_stdout(io.StringIO()):
                item.check(subject)
        except NotApplicable as why:
            skipped.append(Finding(item.name, str(why)))
        except Exception as error:  # noqa: BLE001 - whatever the code of others raises is what is reported
            blocked.add(item.name)
            failed.append(Finding(item.name, _reason(item, error)))
        else:
            passed.append(item.name)
        with redirect_stdout(io.StringIO()):
            after()
    return Conformance(subject=name, passed=tuple(passed), failed=tuple(failed), skipped=tuple(skipped))


def _not_asked(item: Clause[Subject], skip: Collection[str], kind: str) -> str:
    if item.name in skip:
        return "left out by the caller"
    if kind and item.kinds and kind not in item.kinds:
        return f"is about environments of the kind {' and '.join(item.kinds)}, this one is {kind}"
    return ""


def _reason(item: Clause[Subject], error: Exception) -> str:
    if isinstance(error, Unmet):
        return f"{error}; {item.remedy}"
    return f"expected no exception while checking this: {item.asks[:-1]}, got {described(error)}; {item.remedy}"


def described(error: BaseException) -> str:
    """An exception with its message and the line that raised it, on one line."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" (raised in {Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return one_line(f"{type(error).__name__}: {error}", max_chars=600) + place
