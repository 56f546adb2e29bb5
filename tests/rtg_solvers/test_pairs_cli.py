"""`rtg pairs`: what it writes, what it says, what it refuses, and that no attack is printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rtg_solvers.cli import run
from rtg_solvers.pair_files import read_pairs
from rtg_solvers.tuples import AttackTuple, write_tuples

SECRET = "unmistakable"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Two seeds: in one the attacks differ, in the other all replies are safe; one verdict cannot be read."""
    tuples = [
        AttackTuple(
            seed_id=seed,
            prompt=f"{SECRET} prompt",
            attack=f"{SECRET} attack {attack}\x1b[2J",
            attack_index=attack,
            reply=f"{SECRET} {seed} reply {reply}",
            reply_index=reply,
            verdict=verdict,  # type: ignore[arg-type]
        )
        for seed, attacks in {
            "a": [["unsafe", "unsafe"], ["safe", "invalid"]],
            "b": [["safe", "safe"], ["safe", "safe"]],
        }.items()
        for attack, verdicts in enumerate(attacks)
        for reply, verdict in enumerate(verdicts)
    ]
    write_tuples(tmp_path / "log.jsonl", tuples)
    return tmp_path / "log.jsonl"


def test_both_sides_are_written_beside_the_log_and_counted(log: Path, capsys) -> None:
    assert run(["pairs", str(log)]) == 0
    text = capsys.readouterr().out
    assert "8 tuples of 2 seeds and 4 attacks" in text
    assert "2 unsafe, 5 safe, 1 invalid" in text
    assert "1   dropped: all replies safe" in text
    assert text.count("the chosen one is the shorter in 50 % of the pairs") == 2
    assert SECRET not in text
    assert "\x1b" not in text
    assert len(read_pairs(log.with_name("log-red-pairs.jsonl"))) == 1
    (pair,) = read_pairs(log.with_name("log-blue-pairs.jsonl"))  # attack 0 of both seeds is one text
    assert (pair.chosen, pair.rejected) == (f"{SECRET} b reply 0", f"{SECRET} a reply 0")


def test_json_counts_conserve_and_name_the_files(log: Path, tmp_path: Path, capsys) -> None:
    red, blue = tmp_path / "r.jsonl", tmp_path / "b.jsonl"
    assert run(["pairs", str(log), "--out-red", str(red), "--out-blue", str(blue), "--keep-duplicates", "--json"]) == 0
    text = capsys.readouterr().out
    found = json.loads(text)
    assert SECRET not in text
    assert sum(found["verdicts"].values()) == found["tuples"] == 8
    assert (found["red"]["file"], found["blue"]["file"]) == (str(red), str(blue))
    for side in ("red", "blue"):
        assert found[side]["pairs"] == len((tmp_path / f"{side[0]}.jsonl").read_text().splitlines())
        for tally in found[side]["counts"].values():
            assert tally["used"] + sum(tally["dropped"].values()) == tally["total"]
    assert found["blue"]["pairs"] == 0
    assert found["blue"]["words"] is None
    assert found["red"]["words"] == {"chosen": 3.0, "rejected": 3.0, "shorter": 0.5}


def test_a_dry_run_writes_nothing(log: Path, capsys) -> None:
    assert run(["pairs", str(log), "--dry-run"]) == 0
    assert "Nothing was written." in capsys.readouterr().out
    assert [path.name for path in log.parent.iterdir()] == ["log.jsonl"]


def test_the_same_seed_writes_the_same_files(tmp_path: Path, capsys) -> None:
    write_tuples(
        tmp_path / "t.jsonl",
        (
            AttackTuple(seed_id=f"s{i}", attack=f"a{i}", reply=v, reply_index=j, verdict=v)  # type: ignore[arg-type]
            for i in range(50)
            for j, v in enumerate(("safe", "unsafe"))
        ),
    )

    def drawn(seed: int) -> bytes:
        out = tmp_path / "b.jsonl"
        options = ["--max-blue", "5", "--seed", str(seed), "--force", "--out-blue", str(out)]
        assert run(["pairs", str(tmp_path / "t.jsonl"), *options]) == 0
        return out.read_bytes()

    assert drawn(1) == drawn(1) != drawn(2)
    assert "empty prompt" not in capsys.readouterr().out  # red has no pairs here


def test_nothing_is_written_over_unasked(log: Path, capsys) -> None:
    red = log.with_name("log-red-pairs.jsonl")
    red.write_text("mine")
    assert run(["pairs", str(log)]) == 1
    assert "--force" in capsys.readouterr().err
    assert red.read_text() == "mine"
    assert not log.with_name("log-blue-pairs.jsonl").exists()
    assert run(["pairs", str(log), "--force"]) == 0
    assert len(read_pairs(red)) == 1


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--out-red", "{log}", "--force"], "three files"),
        (["--out-red", "{folder}/x", "--out-blue", "{folder}/./x"], "three files"),
        (["--out-red", "{folder}/none/x"], "folder that exists"),
        (["--out-blue", "{folder}", "--force"], "to be free"),
        (["--min-margin", "2"], "min_margin in [0, 1]"),
        (["--replies", "0"], "replies_per_attack"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_written(
    log: Path, options: list[str], complaint: str, capsys
) -> None:
    before = log.read_bytes()
    filled = [option.format(log=log, folder=log.parent) for option in options]
    assert run(["pairs", str(log), *filled]) == 1
    assert complaint in capsys.readouterr().err
    assert log.read_bytes() == before
    assert [path.name for path in log.parent.iterdir()] == ["log.jsonl"]


def test_a_broken_log_is_one_sentence_without_its_text(log: Path, capsys) -> None:
    with log.open("a") as file:
        file.write(f'{{"seed_id": "a", "attack": "{SECRET}\\u001b[2J", "reply"')
    assert run(["pairs", str(log)]) == 1
    said = capsys.readouterr().err
    assert "log.jsonl line 9" in said
    assert SECRET not in said
    assert said.count("\n") == 1


def test_field_names_of_others_reach_the_terminal_as_plain_text(tmp_path: Path, capsys) -> None:
    record = {
        "prompt": SECRET,
        "atk_output": SECRET,
        "tgt_output": SECRET,
        "evaluation": "unsafe",
        "\x1b[2J\u202ex\ny": 1,
    }
    (tmp_path / "t.jsonl").write_text(json.dumps(record))
    assert run(["pairs", str(tmp_path / "t.jsonl"), "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "fields that were not read: x y\n" in text
    assert SECRET not in text


def test_a_missing_prompt_is_said(tmp_path: Path, capsys) -> None:
    rows = [("strong", "unsafe"), ("weak", "safe")]
    write_tuples(
        tmp_path / "t.jsonl",
        (AttackTuple(seed_id="s", attack=a, attack_index=i, reply="r", verdict=v) for i, (a, v) in enumerate(rows)),  # type: ignore[arg-type]
    )
    assert run(["pairs", str(tmp_path / "t.jsonl"), "--dry-run"]) == 0
    assert "does not say what red read" in capsys.readouterr().out


def test_help_teaches(capsys) -> None:
    assert run(["pairs", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for option in ("--out-red", "--out-blue", "--max-blue", "--dry-run", "--json"):
        assert option in text
    assert "neither safe nor unsafe" in text
