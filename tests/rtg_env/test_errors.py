from __future__ import annotations

import builtins
import inspect
import pickle
import re

import pytest

from rtg_env import errors
from rtg_env.errors import MissingExtraError, RTGError

ALL = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if cls.__module__ == errors.__name__]
LEAVES = [cls for cls in ALL if not cls.__subclasses__() and cls is not RTGError]


@pytest.mark.parametrize("error", ALL, ids=lambda cls: cls.__name__)
def test_every_error_is_an_rtg_error(error: type[Exception]) -> None:
    assert issubclass(error, RTGError)


@pytest.mark.parametrize("error", LEAVES, ids=lambda cls: cls.__name__)
def test_every_leaf_also_inherits_the_builtin_it_refines(error: type[Exception]) -> None:
    assert issubclass(error, (ValueError, RuntimeError, ImportError, AssertionError))


def test_the_tree_in_the_docstring_lists_exactly_the_errors_that_exist() -> None:
    drawn = set(re.findall(r"(?:\|--|`--|^ +)\s*(\w+Error)\b", errors.__doc__ or "", flags=re.MULTILINE))
    assert drawn == {cls.__name__ for cls in ALL}


def test_the_tree_in_the_docstring_names_the_right_builtins() -> None:
    drawn = re.findall(r"-- (\w+) \((\w+)\)", errors.__doc__ or "")
    assert len(drawn) >= 10
    wrong = [(name, base) for name, base in drawn if not issubclass(getattr(errors, name), getattr(builtins, base))]
    assert wrong == []


@pytest.mark.parametrize("error", ALL, ids=lambda cls: cls.__name__)
def test_an_error_survives_the_way_between_two_processes(error: type[Exception]) -> None:
    original = MissingExtraError("torch", "llm") if error is MissingExtraError else error("expected a, got b")
    copy = pickle.loads(pickle.dumps(original))  # noqa: S301 - our own bytes, as multiprocessing makes them
    assert (type(copy), str(copy), vars(copy)) == (type(original), str(original), vars(original))


def test_a_missing_extra_says_what_to_install() -> None:
    error = MissingExtraError("torch", "llm")
    assert "'torch'" in str(error)
    assert 'pip install -c constraints.txt ".[llm]"' in str(error)
