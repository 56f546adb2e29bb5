"""`rtg export`: what it writes into which folder, what it says, and that a run does not notice."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rtg_env.engine import DialogueBatch
from rtg_env.errors import RTGError
from rtg_env.export import read_dialogues
from rtg_env.goals import load
from rtg_env.rules import Deal, GameConfig
from rtg_env.transcripts import Played, TranscriptStore
from rtg_solvers.cli import run
from rtg_solvers.run import RunDirectory, default_name
from tests.doubles import BENIGN, GOALS, HARMFUL, TextJudge, play

ROOT = Path(__file__).resolve().parents[2]
SECRET = "unmistakable"
SETTINGS = {"config": {"seed": 0}, "judge_id": "text-a@1", "goals_digest": GOALS.digest, "version": "0"}


def block(count: int) -> list[Played]:
    batch = DialogueBatch(GameConfig(), [Deal(goal=(HARMFUL, BENIGN)[i % 2]) for i in range(count)], TextJudge())
    said = play(batch, lambda seen: f"{SECRET} {seen.turn}\x1b[2J")
    return [Played(red="red_00@v1", blue="blue_00@v1", seed=i, transcript=item) for i, item in enumerate(said)]


def opened(folder: Path) -> RunDirectory:
    return RunDirectory(folder.parent, folder.name, SETTINGS, GOALS)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "one"
    with opened(folder) as made:
        made.store.put_block("cell/red_00@v1/blue_00@v1", block(3))
        made.store.put_block("train/red_01@v1/0", block(2))
    return folder


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_run_is_written_beside_its_database_and_nothing_else_changes(run_dir: Path, kind: str, capsys) -> None:
    pytest.importorskip("pyarrow")
    before = content(run_dir)
    assert run(["export", str(run_dir), "--format", kind]) == 0
    after = content(run_dir)
    written = after.pop(f"dialogues.{kind}")
    assert after == before
    text = capsys.readouterr().out
    assert re.search(r"^dialogues +5$", text, re.MULTILINE)
    assert re.search(rf"^size +{len(written)} bytes$", text, re.MULTILINE)
    assert hashlib.sha256(written).hexdigest() in text
    with TranscriptStore(run_dir / "run.db", GOALS) as store:
        played = [item for name in store.block_names() for item in store.block(name)]
    assert read_dialogues(run_dir / f"dialogues.{kind}", load(run_dir / "goals.jsonl")) == played


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_the_lines_it_prints_load_the_file(run_dir: Path, kind: str, capsys, tmp_path: Path, monkeypatch) -> None:
    pandas, datasets = pytest.importorskip("pandas"), pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    assert run(["export", str(run_dir), "--format", kind]) == 0
    first, second = re.findall(r"(?:pandas|datasets)\..*\)", capsys.readouterr().out)
    frame = eval(first, {"pandas": pandas})  # noqa: S307 - the line that users are told to type
    assert (len(frame), frame.run[0], frame.block[4]) == (5, "one", "train/red_01@v1/0")
    loaded = eval(second, {"datasets": datasets})  # noqa: S307 - the same
    assert len(loaded["train"]) == 5


def test_metadata_name_the_run_and_its_config(run_dir: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    assert run(["export", str(run_dir)]) == 0
    told = parquet.read_schema(run_dir / "dialogues.parquet").metadata
    assert (told[b"run"], told[b"goals_digest"], told[b"version"]) == (b"one", GOALS.digest.encode(), b"0")
    assert default_name("grts", SETTINGS) == f"grts-{told[b'config_digest'].decode()[:8]}"


def test_a_run_that_goes_on_is_exported_and_not_disturbed(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    with opened(folder) as going:
        going.store.put_block("cell/a/b", block(2))
        before = files(folder)
        going.store._db.execute("BEGIN IMMEDIATE")  # in the middle of a commit
        going.store._db.execute("INSERT INTO blocks VALUES ('half', 0, '{}')")
        assert run(["export", str(folder), "--format", "jsonl"]) == 0
        going.store._db.execute("COMMIT")
        assert files(folder) - before == {"dialogues.jsonl"}
        assert len(read_dialogues(folder / "dialogues.jsonl", GOALS)) == 2
        going.store.put_block("cell/a/c", block(2))
        assert run(["export", str(folder), "--format", "jsonl", "--force"]) == 0
        assert len(read_dialogues(folder / "dialogues.jsonl", GOALS)) == 4
    assert files(folder) - {"dialogues.jsonl"} == before - {"run.db-wal", "run.db-shm"}


def test_chosen_blocks_go_where_they_are_wanted(run_dir: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "cells.jsonl"
    before = files(run_dir)
    assert run(["export", str(run_dir), "--format", "jsonl", "--out", str(out), "--block", "cell/*"]) == 0
    assert [json.loads(line)["position"] for line in out.read_text().splitlines()] == [0, 1, 2]
    assert files(run_dir) == before


def test_without_text_no_sentence_and_no_goal_is_written(run_dir: Path) -> None:
    assert run(["export", str(run_dir), "--format", "jsonl", "--no-text"]) == 0
    text = (run_dir / "dialogues-no-text.jsonl").read_text()
    assert SECRET not in text
    assert HARMFUL.text not in text
    assert text.count('"redacted": true') == 5


def test_nothing_that_a_model_wrote_reaches_the_terminal(run_dir: Path, capsys) -> None:
    assert run(["export", str(run_dir), "--format", "jsonl"]) == 0
    text = capsys.readouterr().out
    assert SECRET not in text
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--format", "csv"], "parquet or jsonl, got 'csv'"),
        (["--out", "d.jsonl"], "--out to end in .parquet"),
        (["--format", "jsonl", "--out", "d.parquet"], "--out to end in .jsonl"),
        (["--format", "jsonl", "--block", "cel/*"], "got none; names begin with cell, train"),
        (["--format", "jsonl", "--out", "missing/d.jsonl"], "expected to write"),
    ],
)
def test_a_wrong_option_is_one_sentence(
    run_dir: Path, tmp_path: Path, monkeypatch, capsys, arguments: list[str], expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    before = files(run_dir)
    assert run(["export", str(run_dir), *arguments]) == 1
    told = capsys.readouterr()
    assert (told.out, expected in told.err, "Traceback" in told.err) == ("", True, False)
    assert files(run_dir) == before
    assert files(tmp_path) == {"runs"}


def test_a_file_that_exists_is_kept_unless_forced(run_dir: Path, capsys) -> None:
    path = run_dir / "dialogues.jsonl"
    path.write_text("mine")
    assert run(["export", str(run_dir), "--format", "jsonl"]) == 1
    assert "there is one" in capsys.readouterr().err
    assert path.read_text() == "mine"
    assert run(["export", str(run_dir), "--format", "jsonl", "--force"]) == 0
    assert len(read_dialogues(path, GOALS)) == 5


def test_a_folder_that_is_no_run_is_refused_and_left_as_it_is(tmp_path: Path, capsys) -> None:
    assert run(["export", str(tmp_path)]) == 1
    assert "expected a run directory" in capsys.readouterr().err
    assert files(tmp_path) == set()


def test_a_run_without_dialogues_yet_is_one_sentence(tmp_path: Path, capsys) -> None:
    opened(tmp_path / "one").__exit__(None, None, None)
    assert run(["export", str(tmp_path / "one"), "--format", "jsonl"]) == 1
    assert "no block is finished" in capsys.readouterr().err


def test_an_exported_run_goes_on(run_dir: Path) -> None:
    assert run(["export", str(run_dir), "--format", "jsonl"]) == 0
    try:
        with opened(run_dir) as again:
            assert len(again.store.block_names()) == 2
    except RTGError as error:
        pytest.fail(str(error))


WITHOUT = """
import sys
class Without:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in sys.argv[1].split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Without())
from rtg_solvers.cli import run
sys.exit(run(sys.argv[2:]))
"""


def without(packages: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(str(ROOT / part) for part in (".", "agents", "solvers"))
    command = [sys.executable, "-c", WITHOUT, packages, *arguments]
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)


def test_an_export_needs_no_torch_and_jsonl_no_pyarrow(run_dir: Path) -> None:
    done = without("torch,transformers,peft,pyarrow,pandas", "export", str(run_dir), "--format", "jsonl")
    assert (done.returncode, done.stderr) == (0, "")
    done = without("torch,pyarrow", "export", str(run_dir))
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert '".[data]"' in done.stderr
    assert "dialogues.parquet" not in files(run_dir)
