"""The README promises nothing that does not run."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from tests.rtg_solvers.runs import run_here

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
EXAMPLES = sorted((ROOT / "examples").glob("[0-9]*.py"))


def test_the_first_block_holds_exactly_the_two_commands() -> None:
    lines = [line for line in BLOCKS[0][1].splitlines() if line.strip()]
    assert len(lines) == 2
    assert lines[0].endswith("rtg solve")
    assert "pytest" in lines[1]


def test_the_environment_is_stepped_in_eight_lines() -> None:
    code = next(body for language, body in BLOCKS if language == "python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 8
    out = io.StringIO()
    with redirect_stdout(out):
        exec(compile(code, "README.md", "exec"), {})  # the README's own snippet
    assert 0.0 <= float(out.getvalue()) <= 1.0


def test_every_file_the_readme_links_to_exists() -> None:
    links = re.findall(r"\]\((?!http|#)([^)#]+)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_constraints_pin_every_line_and_torch_by_its_public_version() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9._]+", line) for line in lines)
    assert "torch==2.13.0" in lines


@pytest.fixture(scope="module")
def finished(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_here(tiny_folder, tmp_path_factory.mktemp("runs")).path


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_run_and_end_as_their_docstring_says(path: Path, request: pytest.FixtureRequest) -> None:
    given = [request.getfixturevalue("finished")] if "finished_run" in path.stem else []
    done = subprocess.run(
        [sys.executable, path, *given], capture_output=True, text=True, check=False, timeout=100, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    expected = re.search(r"Expected last line: `([^`]*)`", path.read_text())
    assert expected
    pattern = ".*".join(re.escape(part) for part in expected.group(1).split("..."))
    assert re.fullmatch(pattern, done.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_have_less_than_eighty_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 80


@pytest.mark.parametrize("path", EXAMPLES[1:4], ids=lambda path: path.stem)
def test_custom_agent_judge_and_goals_take_under_thirty_lines(path: Path) -> None:
    body = path.read_text().split('"""', 2)[2]
    assert len([line for line in body.splitlines() if line.strip()]) < 30
