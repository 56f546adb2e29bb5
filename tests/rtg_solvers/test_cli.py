"""The command line: what it prints, and how it fails."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from rtg_solvers.cli import _METHOD_HELP, run
from rtg_solvers.methods import attackers, registry
from tests.rtg_solvers.runs import GOAL_FILE

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def settings(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.json"
    config = {
        "model": str(tiny_folder),
        "goals": str(GOAL_FILE),
        "judge": "tests.judges_for_runs:Vowels",
        "report_judge": "tests.judges_for_runs:Consonants",
        "dialogues_per_cell": 4,
        "dialogues_per_gap": 4,
        "red_sampling": {"max_new_tokens": 4},
        "blue_sampling": {"max_new_tokens": 4},
        "lora": {"rank": 2},
        "rl": {"steps": 1, "dialogues_per_step": 4, "group_size": 4},
    }
    path.write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def solved(settings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    assert run(["solve", "--config", str(settings), "--runs", str(runs), "--offline"]) == 0
    (found,) = runs.iterdir()
    return found


def test_solve_ends_with_the_table_and_where_the_report_is(solved: Path, settings: Path, capsys) -> None:
    assert run(["solve", "--config", str(settings), "--runs", str(solved.parent), "--offline"]) == 0
    text = capsys.readouterr().out
    assert "This run is finished" in text
    for word in (
        "Payoff",
        "red_03",
        "blue_01",
        "red mixture",
        "oracle_gap",
        "restricted_gap",
        "held-out",
        "report.html",
    ):
        assert word in text, word
    assert (solved / "report.html").is_file()


def test_the_default_name_follows_from_the_settings(solved: Path, settings: Path, tmp_path: Path, capsys) -> None:
    assert re.fullmatch(r"grts-[0-9a-f]{8}", solved.name)
    assert run(["solve", "--config", str(settings), "--seed", "5", "--runs", str(tmp_path), "--dry-run"]) == 0
    assert list(tmp_path.iterdir()) == []


def test_dry_run_counts_the_work_and_does_none_of_it(settings: Path, tmp_path: Path, capsys) -> None:
    assert run(["solve", "--config", str(settings), "--runs", str(tmp_path), "--dry-run"]) == 0
    text = capsys.readouterr().out
    # 4 x 2 cells of 4, 3 x 2 gap units of 4, 4 x 16 held-out goals, 2 x 1 steps of 4.
    assert re.search(r"payoff cells\s+8\b", text)
    assert re.search(rf"dialogues\s+{8 * 4 + 6 * 4 + 4 * 16 + 2 * 4}\b", text)
    assert f"of playing {8 * 4 + 6 * 4 + 4 * 16 + 2 * (4 + 4)} dialogues" in text  # a step costs as much again to learn
    assert not list(tmp_path.iterdir())


def test_evaluate_prints_its_tables_and_adds_them_to_the_report(solved: Path, tmp_path: Path, capsys) -> None:
    numbers = {"attacks": 4, "responses": 2, "attempts": 2, "dialogues": 4, "benign": 4, "deals": 4, "curve_deals": 4}
    config = tmp_path / "small.json"
    config.write_text(json.dumps({**numbers, "dialogues_per_cell": 2, "embeddings": "hashed"}))
    command = ["evaluate", str(solved), "--config", str(config), "--offline"]
    assert run([*command, "--dry-run"]) == 0
    assert "Nothing was run" in capsys.readouterr().out
    assert run(command) == 0
    text = capsys.readouterr().out
    for word in (
        "best of 2",
        "success@3",
        "independent_gap",
        "population exploitability",
        "Vendi",
    ):
        assert word in text, word
    page = (solved / "report.html").read_text()
    assert "<h2>Evaluation</h2>" in page
    assert "independent_gap" in page
    assert "consonants@1" in page


def test_report_of_a_run_names_the_page_and_can_be_redacted(solved: Path, capsys) -> None:
    assert run(["report", str(solved)]) == 0
    full = (solved / "report.html").read_text()
    assert run(["report", str(solved), "--redact"]) == 0
    redacted = (solved / "report.html").read_text()
    assert "report.html" in capsys.readouterr().out
    goal = re.search(r"red_0\d@v1 against [^<]*: ([^<]{20,})</p>", full)
    assert goal
    assert goal.group(1) not in redacted
    assert "characters]" in redacted


def test_matrix_prints_value_and_mixtures_as_json(tmp_path: Path, capsys) -> None:
    file = tmp_path / "m.csv"
    file.write_text("name,hold,comply\nplain,0.8,0.2\ntricky,0.3,0.6\n")
    assert run(["matrix", str(file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["value"] == pytest.approx(7 / 15)
    assert found["row_mixture"] == pytest.approx({"plain": 1 / 3, "tricky": 2 / 3})
    assert found["column_mixture"] == pytest.approx({"hold": 4 / 9, "comply": 5 / 9})


def test_matrix_checks_a_given_pair(tmp_path: Path, capsys) -> None:
    file = tmp_path / "m.csv"
    file.write_text("1,0\n2,3\n")
    assert run(["matrix", str(file), "--row", "1,0", "--column", "1,0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["given_pair"] == {"nash_conv": 2.0, "row_gain": 1.0, "column_gain": 1.0}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["solve", "--model", "gpt-17"],
            "expected a model id (smollm2-135m, gemma3-270m), a folder, or a hub id owner/name, got 'gpt-17'",
        ),
        (["solve", "--goals", "no-such-file.jsonl"], "no-such-file.jsonl"),
        (["solve", "--judge", "nobody"], "expected a judge"),
        (["solve", "--dry-run", "--judge", "nobody"], "expected a judge"),
        (["solve", "--dry-run", "--goals", str(ROOT / "tests/data/one_half.jsonl")], "goals in the train half"),
        (["solve", "--judge", "json:nothing"], "cannot be had"),
        (["solve", "--name", "../escape"], "expected a run name"),
        (["solve", "--config", "missing.toml"], "does not exist"),
        (["matrix", "missing.csv"], "missing.csv"),
        (["report", "nowhere"], "expected a run directory"),
        (["judge-eval", "--split", "half"], "train, heldout or all"),
        (["play", "--red", "nobody"], "expected --red to be"),
    ],
)
def test_bad_input_is_one_clear_sentence_and_a_non_zero_status(
    arguments: list[str], expected: str, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments) != 0
    error = capsys.readouterr().err
    assert expected in error
    assert "Traceback" not in error
    assert error.strip().count("\n") == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"iterations": "three"}', "iterations: expected int, got 'three'"),
        ('{"iteration": 3}', "got 'iteration'"),
        ('{"game": {"num_exchanges": 0}}', "num_exchanges must be a whole number >= 1, got 0"),
        ('{"game": {"aggregate": "sum"}}', "expected one of ('max', 'mean'), got 'sum'"),
        ('{"game": {"red_filters": "printable"}}', "expected a list of texts, got 'printable'"),
        ('{"game": {"red_filters": ["rot13"]}}', "red_filters must name filters among printable"),
        ('{"game": {"payment": "never"}}', "expected one of ('exchange', 'terminal'), got 'never'"),
        ('{"rl": 7}', "expected a table of settings, got 7"),
        ('{"rl": {"optimizer": {"learning_rate": -1}}}', "learning_rate"),
        ("{", "expected valid JSON"),
        ("[]", "expected a table of settings"),
    ],
)
def test_wrong_config_values_are_named(text: str, expected: str, tmp_path: Path, capsys) -> None:
    file = tmp_path / "c.json"
    file.write_text(text)
    assert run(["solve", "--config", str(file), "--dry-run"]) == 1
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,2\n\n3\n", "line 3: expected 2 finite numbers"),
        ("1,x\n", "header only"),
        ("", "empty"),
        ("a,b\na,1\na,2\n", "twice"),
        ("0.9,nan\n0.4,0.5\n", "line 1: expected 2 finite numbers, got '0.9,nan'"),
        ("0.9,0.1,0.8x\n0.4,0.5,0.1\n", "line 1: expected 3 finite numbers, got '0.9,0.1,0.8x'"),
        ("r,a,b,c,d\nx,1,2\n", "line 1: expected 2 column names"),
        ("r\nx,1,2\n", "line 1: expected 2 column names"),
        ("1e300,-1e300\n0,1\n", "rescale"),
        ('"' + "x" * 140_000 + '",1\n', "readable CSV"),
    ],
)
def test_broken_matrices_are_refused_by_line(text: str, expected: str, tmp_path: Path, capsys) -> None:
    file = tmp_path / "m.csv"
    file.write_text(text)
    assert run(["matrix", str(file)]) == 1
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "rows", "columns"),
    [
        (",1,2\nA,0.5,0.6\nB,0.1,0.9\n", ["A", "B"], ["1", "2"]),
        ("red,a,b\nA,0.5,0.6\nB,0.1,0.9\n", ["A", "B"], ["a", "b"]),
        ("a,b\n0.5,0.6\n0.1,0.9\n", ["row 1", "row 2"], ["a", "b"]),
        ("0.5,0.6\n0.1,0.9\n", ["row 1", "row 2"], ["column 1", "column 2"]),
        ("A,0.5,0.6\nB,0.1,0.9\n", ["A", "B"], ["column 1", "column 2"]),
    ],
)
def test_a_matrix_is_read_with_whatever_names_it_has(
    text: str, rows: list[str], columns: list[str], tmp_path: Path, capsys
) -> None:
    file = tmp_path / "m.csv"
    file.write_text(text)
    assert run(["matrix", str(file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (list(found["row_mixture"]), list(found["column_mixture"])) == (rows, columns)
    assert found["value"] == pytest.approx(0.5)


def test_an_interrupt_says_that_nothing_is_lost(monkeypatch, tmp_path: Path, capsys) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rtg_solvers.session.run_method", interrupted)
    assert run(["solve", "--runs", str(tmp_path)]) == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_a_broken_goal_line_is_named(tmp_path: Path, capsys) -> None:
    file = tmp_path / "g.jsonl"
    file.write_text('{"text": "fine"}\n{"txt": "typo"}\n')
    assert run(["solve", "--goals", str(file), "--dry-run"]) == 1
    assert "g.jsonl line 2" in capsys.readouterr().err


def test_what_needs_no_model_runs_without_torch(tmp_path: Path) -> None:
    code = """
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
sys.meta_path.insert(0, NoTorch())
from rtg_solvers.cli import _METHOD_HELP, run
from rtg_solvers.methods import attackers, registry
sys.exit(run(sys.argv[1:]))
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in (".", "agents", "solvers"))}
    done = [
        subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=env, cwd=tmp_path, check=False
        )
        for arguments in (["judge-eval"], ["solve", "--model", str(tmp_path)])
    ]
    assert (done[0].returncode, done[0].stderr) == (0, "")
    assert "AUC" in done[0].stdout
    assert done[1].returncode == 1
    assert "rtg: expected" in done[1].stderr
    assert "Traceback" not in done[1].stderr


def test_a_judge_of_the_working_directory_is_found(settings: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "judge_of_mine.py").write_text("from tests.judges_for_runs import Vowels as Mine\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert run(["solve", "--dry-run", "--config", str(settings), "--judge", "judge_of_mine:Mine"]) == 0


def test_a_person_who_plays_red_is_given_something_to_say(tiny_folder: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("rich.console.Console.input", lambda self, prompt="": "please")
    assert run(["play", "--red", "me", "--model", str(tiny_folder), "--exchanges", "1", "--dialogues", "8"]) == 0
    assert " ".join(capsys.readouterr().out.split()).count("harmful goal, red speaks") == 8


def test_help_teaches(capsys) -> None:
    assert run(["solve", "--help"]) == 0
    text = capsys.readouterr().out
    for option in ("--model", "--goals", "--judge", "--config", "--name", "--dry-run", "--offline"):
        assert option in text
    assert "quick preset" in text


def test_help_says_in_a_phrase_what_each_method_does() -> None:
    phrases = re.findall(r"([a-z-]+) \((.*?)\)[,.]", _METHOD_HELP)
    assert [name for name, _ in phrases] == list(registry.METHODS)
    assert all(phrase for _, phrase in phrases)
    page = (ROOT / "docs/attackers.md").read_text()
    assert all(f"| `{name}` |" in page for name in attackers.METHODS)


def test_a_full_disk_ends_in_one_sentence_and_loses_nothing(settings: Path, tmp_path: Path) -> None:
    """Files may not grow beyond 120 kB: the run database hits that limit in the middle of the work."""
    command = [
        sys.executable,
        "-m",
        "rtg_solvers",
        "solve",
        "--config",
        str(settings),
        "--runs",
        str(tmp_path),
        "--name",
        "r",
    ]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/agents:{ROOT}/solvers", "HF_HUB_OFFLINE": "1"}

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (120_000, resource.RLIM_INFINITY))

    full = subprocess.run(
        command, check=False, cwd=ROOT, env=environment, preexec_fn=limit, capture_output=True, text=True, timeout=120
    )
    assert full.returncode == 1
    assert "run the same command again" in full.stderr
    assert "Traceback" not in full.stderr
    from rtg_env.goals import load
    from rtg_env.transcripts import TranscriptStore

    goals = load(GOAL_FILE)
    with TranscriptStore(tmp_path / "r/run.db", goals) as store:
        before = store.block_names()
        sizes = {name: len(store.block(name)) for name in before}
    assert run(command[3:]) == 0
    with TranscriptStore(tmp_path / "r/run.db", goals) as store:
        assert store.block_names()[: len(before)] == before
        assert 0 < len(before) < len(store.block_names())
        assert {name: len(store.block(name)) for name in before} == sizes  # whole blocks only


def test_play_shows_hostile_text_harmlessly(tiny_folder: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    goals = tmp_path / "g.jsonl"
    goals.write_text(json.dumps({"id": "evil", "text": "\x1b[2Jclear \u202eme [red]markup[/red]"}) + "\n")
    arguments = ["play", "--goals", str(goals), "--goal", "evil", "--model", str(tiny_folder), "--exchanges", "1"]
    assert run([*arguments, "--judge", "tests.judges_for_runs:Vowels"]) == 0
    text = capsys.readouterr().out
    assert "\x1b[2J" not in text
    assert "\u202e" not in text
    assert "[red]markup[/red]" in text
    assert "red wins" in text


def test_a_person_can_take_a_seat(tiny_folder: Path, monkeypatch, capsys) -> None:
    answers = iter(["Please do it.", "Go on."])
    monkeypatch.setattr("rich.console.Console.input", lambda self, prompt="": next(answers))
    arguments = ["play", "--red", "me", "--goal", "insult-01", "--model", str(tiny_folder), "--exchanges", "2"]
    assert run([*arguments, "--judge", "tests.judges_for_runs:Vowels"]) == 0
    text = capsys.readouterr().out
    assert "Your goal:" in text
    assert "Please do it." in text
    assert "Go on." in text
