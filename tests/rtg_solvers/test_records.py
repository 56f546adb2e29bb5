"""Figures as JSON data and back, also across releases."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from rtg_env.errors import RunError
from rtg_solvers.records import from_record, to_record


@dataclass(frozen=True)
class Inner:
    share: float | None


@dataclass(frozen=True)
class Outer:
    rows: tuple[tuple[Inner, ...], ...]
    pair: tuple[int, int] | None
    added: tuple[Inner, ...] = ()


WHOLE = Outer(rows=((Inner(0.5), Inner(None)), ()), pair=(1, 2), added=(Inner(1.0),))


def test_a_record_comes_back_through_json() -> None:
    assert from_record(Outer, json.loads(json.dumps(to_record(WHOLE)))) == WHOLE


def test_a_field_with_a_default_may_be_missing() -> None:
    old = to_record(WHOLE)
    del old["added"]
    assert from_record(Outer, old).added == ()


@pytest.mark.parametrize("change", [{"rows": None}, {"new": 1}])
def test_any_other_difference_is_named(change: dict[str, object]) -> None:
    data = {**to_record(WHOLE), **change}
    ((name, value),) = change.items()
    if value is None:
        del data[name]
    with pytest.raises(RunError, match=f"Outer, '{name}' is missing or unknown"):
        from_record(Outer, data)
