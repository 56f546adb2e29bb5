from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {
    "torch",
    "transformers",
    "peft",
    "sentence_transformers",
    "stable_baselines3",
    "pyspiel",
    "open_spiel",
    "ray",
    "sklearn",
    "cvxpy",
    "matplotlib",
    "pyarrow",
    "pandas",
    "datasets",
}
CHILD = """
import json, random, sys
import numpy as np
before = repr(random.getstate()) + repr(np.random.get_state()[1].tolist())
for name in sys.argv[1:]:
    __import__(name)
after = repr(random.getstate()) + repr(np.random.get_state()[1].tolist())
print(json.dumps({"modules": sorted({name.split(".")[0] for name in sys.modules}), "same_random": before == after}))
"""


def after_import(*names: str) -> dict[str, object]:
    """What a fresh process has loaded after these imports; it has no network to ask and nothing on its screen."""
    path = os.pathsep.join(str(ROOT / folder) for folder in (".", "agents", "solvers"))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", CHILD, *names],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        check=True,
    )
    assert done.stderr == ""
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def core() -> dict[str, object]:
    return after_import("rtg_env", "rtg_env.export")


@pytest.fixture(scope="module")
def everything() -> dict[str, object]:
    return after_import("rtg_env", "rtg_agents", "rtg_solvers")


def test_importing_the_core_loads_no_heavy_package(core: dict[str, object]) -> None:
    assert HEAVY & set(core["modules"]) == set()


def test_importing_the_core_loads_none_of_the_packages_above_it(core: dict[str, object]) -> None:
    assert {"rtg_agents", "rtg_solvers"} & set(core["modules"]) == set()


def test_importing_all_three_packages_loads_no_heavy_package(everything: dict[str, object]) -> None:
    assert {"rtg_env", "rtg_agents", "rtg_solvers"} <= set(everything["modules"])
    assert HEAVY & set(everything["modules"]) == set()


def test_importing_draws_from_no_global_generator(everything: dict[str, object]) -> None:
    assert everything["same_random"]


def test_the_check_would_notice_a_heavy_package() -> None:
    # json stands for torch: the list of modules must hold what was really imported.
    assert {"sqlite3", "decimal"} <= set(after_import("sqlite3", "decimal")["modules"])
