from __future__ import annotations

import ast
import importlib
import re
import sys
from pathlib import Path

import pytest

import rtg_env

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("rtg_env", "agents/rtg_agents", "solvers/rtg_solvers")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


# Public names


@pytest.mark.parametrize("name", rtg_env.__all__)
def test_every_public_name_is_importable(name: str) -> None:
    assert getattr(rtg_env, name) is not None


def test_public_names_are_sorted_and_unique() -> None:
    assert rtg_env.__all__ == sorted(set(rtg_env.__all__))


def test_a_star_import_brings_exactly_the_public_names() -> None:
    brought: dict[str, object] = {}
    exec("from rtg_env import *", brought)
    assert set(brought) - {"__builtins__"} == set(rtg_env.__all__)


def test_no_class_or_function_is_public_by_accident() -> None:
    loose = [
        name
        for name, thing in vars(rtg_env).items()
        if not name.startswith("_")
        and getattr(thing, "__module__", "").startswith("rtg_env")
        and name not in rtg_env.__all__
    ]
    assert loose == []


@pytest.mark.parametrize("name", [name for name in rtg_env.__all__ if name[0].isupper() and name != "Role"])
def test_every_public_class_says_what_it_is(name: str) -> None:
    assert (getattr(rtg_env, name).__doc__ or "").strip()


def test_the_module_env_is_importable_though_a_function_has_its_name() -> None:
    module = importlib.import_module("rtg_env.env")
    assert (module.env, module.raw_env, module.parallel_env) == (rtg_env.env, rtg_env.raw_env, rtg_env.parallel_env)


def test_the_version_is_that_of_the_distribution() -> None:
    declared = re.search(
        r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert declared is not None
    assert rtg_env.__version__ == declared[1]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_is_marked_as_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()


# What no source file may do

NEVER_IMPORTED = {"pickle", "cPickle", "_pickle", "joblib", "dill", "cloudpickle", "shelve", "marshal"}
NEVER_CALLED = {
    "eval",
    "exec",
    "torch.load",
    "torch.seed",
    "torch.manual_seed",
    "torch.random.manual_seed",
    "torch.cuda.manual_seed",
    "torch.cuda.manual_seed_all",
    "yaml.load",
    "yaml.unsafe_load",
    "os.system",
    "transformers.set_seed",
}
NUMPY_RANDOM = {"default_rng", "Generator", "SeedSequence", "BitGenerator", "PCG64", "Philox"}
"""The parts of numpy.random without global state; `random.Random` is the one of the standard library."""


def dotted(node: ast.AST, names: dict[str, str]) -> str:
    """`np.random.seed` as `numpy.random.seed`, by the imports of the file; empty for anything else."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        inner = dotted(node.value, names)
        return f"{inner}.{node.attr}" if inner else ""
    return ""


def imported_names(tree: ast.AST) -> dict[str, str]:
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {
                item.asname or item.name.split(".")[0]: item.name if item.asname else item.name.split(".")[0]
                for item in node.names
            }
        elif isinstance(node, ast.ImportFrom):
            names |= {item.asname or item.name: f"{node.module}.{item.name}" for item in node.names}
    return names


def forbidden_call(node: ast.Call, names: dict[str, str]) -> str | None:
    called = dotted(node.func, names).removeprefix("builtins.")
    head, _, tail = called.rpartition(".")
    if called in NEVER_CALLED or called.split(".")[0] in NEVER_IMPORTED:
        return called
    if (head == "numpy.random" and tail not in NUMPY_RANDOM) or (head == "random" and tail != "Random"):
        return called
    for keyword in node.keywords:
        if keyword.arg in ("trust_remote_code", "allow_pickle", "shell") and not (
            isinstance(keyword.value, ast.Constant) and keyword.value.value is False
        ):
            return f"{keyword.arg}={ast.unparse(keyword.value)}"
    return None


def forbidden(source: str) -> list[str]:
    """Everything in a source text that executes data or draws from a global generator."""
    tree = ast.parse(source)
    names = imported_names(tree)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [item.name for item in node.names]
            found += [f"line {node.lineno}: import {name}" for name in modules if name.split(".")[0] in NEVER_IMPORTED]
        elif isinstance(node, ast.Call) and (what := forbidden_call(node, names)):
            found.append(f"line {node.lineno}: {what}")
        elif isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            found += [
                f"line {node.lineno}: trust_remote_code in a dict"
                for key, value in pairs
                if isinstance(key, ast.Constant)
                and key.value == "trust_remote_code"
                and not (isinstance(value, ast.Constant) and value.value is False)
            ]
    return found


CONFORMANCE = {
    "rtg_env/global_random.py": {"random.getstate", "random.setstate", "random.seed", "numpy.random.get_state"}
    | {"numpy.random.set_state", "numpy.random.seed"},
    "rtg_env/testing/processes.py": {"import pickle", "pickle.dumps", "pickle.loads"},
}
"""The conformance suite looks whether others do this, so one file each does: what it unpickles it has pickled itself."""


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_source_file_executes_data_or_draws_from_a_global_generator(path: Path) -> None:
    allowed = CONFORMANCE.get(path.relative_to(ROOT).as_posix(), set())
    found = [item for item in forbidden(path.read_text(encoding="utf-8")) if item.partition(": ")[2] not in allowed]
    assert found == []


def test_the_source_files_of_all_three_packages_are_checked() -> None:
    checked = {path.relative_to(ROOT).parts[0] for path in SOURCES}
    assert checked == {"rtg_env", "agents", "solvers"}
    assert len(SOURCES) > 30


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import joblib",
        "def f():\n    import dill",
        "import torch\ntorch.load('x')",
        "import torch as t\nt.load('x')",
        "from torch import load\nload('x')",
        "eval('1')",
        "exec('1')",
        "import builtins\nbuiltins.eval('1')",
        "import yaml\nyaml.load('x')",
        "from yaml import load as read\nread('x')",
        "f(trust_remote_code=True)",
        "f(trust_remote_code=flag)",
        "f(**{'trust_remote_code': True})",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import numpy as np\nnp.random.seed(0)",
        "import numpy as np\nnp.random.rand(3)",
        "import numpy\nnumpy.random.shuffle([])",
        "from numpy import random\nrandom.choice([1])",
        "from numpy.random import rand\nrand()",
        "import numpy.random as npr\nnpr.normal()",
        "import random\nrandom.seed(0)",
        "import random\nrandom.random()",
        "from random import shuffle\nshuffle([])",
        "import torch\ntorch.manual_seed(0)",
        "import torch\ntorch.cuda.manual_seed_all(0)",
        "import subprocess\nsubprocess.run('x', shell=True)",
    ],
)
def test_the_check_finds_what_it_is_there_for(source: str) -> None:
    assert forbidden(source) != []


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "import torch\ntorch.Generator().manual_seed(0)",
        "import numpy as np\nnp.random.default_rng(0).normal()",
        "import random\nrandom.Random(0).random()",
        "f(trust_remote_code=False)",
        "import yaml\nyaml.safe_load('x')",
        "rng.random()",
    ],
)
def test_the_check_leaves_the_safe_ways_alone(source: str) -> None:
    assert forbidden(source) == []


def test_no_source_file_of_the_core_prints_or_asserts() -> None:
    loose = [
        f"{path.name}:{node.lineno}"
        for path in SOURCES
        if path.is_relative_to(ROOT / "rtg_env")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Assert) or (isinstance(node, ast.Call) and dotted(node.func, {}) == "print")
    ]
    assert loose == []


def test_the_core_opens_no_connection_and_starts_no_process_but_those_of_the_conformance_suite() -> None:
    banned = {
        "socket",
        "urllib",
        "http",
        "requests",
        "httpx",
        "subprocess",
        "multiprocessing",
        "ftplib",
        "smtplib",
        "ctypes",
    }
    found = []
    for path in SOURCES:
        if path.is_relative_to(ROOT / "rtg_env"):
            imported = imported_names(ast.parse(path.read_text(encoding="utf-8"))).values()
            found += [f"{path.name}: {name}" for name in imported if name.split(".")[0] in banned]
    assert found == ["processes.py: subprocess"]


def test_the_core_needs_only_its_declared_dependencies() -> None:
    allowed = {*sys.stdlib_module_names, "numpy", "scipy", "gymnasium", "pettingzoo", "rtg_env"}
    optional = {"export.py": {"pyarrow"}}
    found = []
    for path in SOURCES:
        if path.is_relative_to(ROOT / "rtg_env"):
            imported = imported_names(ast.parse(path.read_text(encoding="utf-8"))).values()
            found += [
                f"{path.name}: {name}"
                for name in imported
                if name.split(".")[0] not in allowed | optional.get(path.name, set())
            ]
    assert found == []
