from __future__ import annotations

import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtg_env.dialogue import Transcript
from rtg_env.engine import DialogueBatch
from rtg_env.errors import ConfigError, RunError
from rtg_env.goals import GoalSet
from rtg_env.rules import Deal, GameConfig
from rtg_env.transcripts import Played, TranscriptStore, transcript_from_json, transcript_to_json
from tests import rewrite_golden
from tests.doubles import ANY_TEXT, BENIGN, GOALS, HARMFUL, FaultyJudge, RaisingJudge, TextJudge, canonical, play

ROOT = Path(__file__).resolve().parents[2]
CONFIG = GameConfig(num_exchanges=2)


def played(count: int, *, size: int = 10) -> list[Played]:
    batch = DialogueBatch(CONFIG, [Deal(goal=(HARMFUL, BENIGN)[i % 2]) for i in range(count)], TextJudge())
    transcripts = play(batch, lambda seen: f"{seen.turn}" + "x" * size)
    return [
        Played(red="red_00@v1", blue="blue_00@v1", seed=2**64 + i, transcript=item)
        for i, item in enumerate(transcripts)
    ]


def unscored() -> Transcript:
    return play(DialogueBatch(CONFIG, [Deal(goal=HARMFUL)], RaisingJudge()), lambda seen: "x")[0]


def contents(store: TranscriptStore) -> dict[str, list[str]]:
    return {name: [canonical(item.transcript) for item in store.block(name)] for name in store.block_names()}


@pytest.fixture
def store(tmp_path: Path):
    with TranscriptStore(tmp_path / "run.db", GOALS) as opened:
        yield opened


# Reading and writing


def test_a_block_is_read_back_as_it_was_written(store: TranscriptStore) -> None:
    block = played(3)
    store.put_block("cell", block, {"figures": [1, 2]})
    assert store.block("cell") == block
    assert store.block_data("cell") == {"figures": [1, 2]}


def test_blocks_outlive_the_process_that_wrote_them(tmp_path: Path) -> None:
    with TranscriptStore(tmp_path / "run.db", GOALS) as first:
        first.put_block("cell", played(2))
    with TranscriptStore(tmp_path / "run.db", GOALS) as second:
        assert second.block("cell") == played(2)


def test_an_unscored_dialogue_is_read_back_unscored(store: TranscriptStore) -> None:
    store.put_block("cell", [Played(red="r", blue="b", seed=0, transcript=unscored())])
    again = store.block("cell")[0].transcript
    assert canonical(again) == canonical(unscored())
    assert math.isnan(again.utility)


def test_block_names_come_in_the_order_of_their_commits(store: TranscriptStore) -> None:
    for name in ("z", "a", "m"):
        store.put_block(name, [])
    assert store.block_names() == ["z", "a", "m"]


def test_a_block_without_dialogues_is_finished_too(store: TranscriptStore) -> None:
    store.put_block("figures", [], {"loss": 0.5})
    assert (store.has_block("figures"), store.block("figures")) == (True, [])


def test_a_block_that_was_never_written_is_empty(store: TranscriptStore) -> None:
    assert (store.has_block("x"), store.block("x"), store.block_data("x")) == (False, [], {})


def test_a_name_with_quotes_is_only_a_name(store: TranscriptStore) -> None:
    name = "x'); DROP TABLE blocks; --"
    store.put_block(name, played(1))
    assert store.block_names() == [name]


def test_records_are_the_dialogues_of_a_block_as_they_are_stored(store: TranscriptStore) -> None:
    block = played(3)
    store.put_block("other", played(1))
    store.put_block("cell", block)
    records = list(store.records("cell"))
    assert [(record.position, record.red, record.blue, record.seed) for record in records] == [
        (position, item.red, item.blue, item.seed) for position, item in enumerate(block)
    ]
    assert [transcript_from_json(json.loads(record.data), GOALS) for record in records] == [
        item.transcript for item in block
    ]


def test_records_may_be_left_unread_when_the_store_is_closed(tmp_path: Path) -> None:
    store = TranscriptStore(tmp_path / "run.db", GOALS)
    store.put_block("cell", played(3))
    records = store.records("cell")
    next(records)
    store.close()
    records.close()


def test_a_store_needs_the_goals_that_were_played(tmp_path: Path) -> None:
    with TranscriptStore(tmp_path / "run.db", GOALS) as writer:
        writer.put_block("cell", played(1))
    with TranscriptStore(tmp_path / "run.db", GoalSet([BENIGN])) as reader, pytest.raises(ConfigError, match="'h'"):
        reader.block("cell")


@given(st.integers(1, 3), st.lists(ANY_TEXT, min_size=1, max_size=5), st.integers(0, 2**16), st.integers(0, 4))
def test_a_transcript_survives_json(num_red: int, texts: list[str], seed: int, num_moves: int) -> None:
    config = GameConfig(num_exchanges=2, num_red=num_red)
    deals = [Deal(goal=goal, red_order=tuple(reversed(range(num_red)))) for goal in (HARMFUL, BENIGN)]
    batch = DialogueBatch(config, deals, FaultyJudge(TextJudge(), share=0.3, seed=seed))
    for _ in range(num_moves):
        batch.submit({turn.dialogue: texts[len(turn.observation.messages) % len(texts)] for turn in batch.pending()})
    for transcript in batch.transcripts():
        text = json.dumps(transcript_to_json(transcript), allow_nan=False)
        again = transcript_from_json(json.loads(text), GOALS)
        assert canonical(again) == canonical(transcript)
        if not transcript.unscored:
            assert (again.exchanges, again.actions, again.verdicts) == (
                transcript.exchanges,
                transcript.actions,
                transcript.verdicts,
            )


# All or nothing


def test_a_block_cannot_be_written_twice(store: TranscriptStore) -> None:
    store.put_block("cell", played(2))
    before = contents(store)
    with pytest.raises(RunError, match=r"'cell'.*exists"):
        store.put_block("cell", played(3))
    assert contents(store) == before


def test_a_block_that_fails_in_the_middle_leaves_nothing(store: TranscriptStore) -> None:
    store._db.execute(
        "CREATE TRIGGER stop BEFORE INSERT ON dialogues WHEN NEW.position = 2 BEGIN SELECT RAISE(ABORT, 'stop'); END"
    )
    with pytest.raises(RunError, match="stop"):
        store.put_block("cell", played(4))
    assert (store.has_block("cell"), store.block("cell")) == (False, [])


def test_a_block_can_be_written_after_it_failed(store: TranscriptStore) -> None:
    store._db.execute(
        "CREATE TRIGGER stop BEFORE INSERT ON dialogues WHEN NEW.position = 2 BEGIN SELECT RAISE(ABORT, 'stop'); END"
    )
    with pytest.raises(RunError):
        store.put_block("cell", played(4))
    store._db.execute("DROP TRIGGER stop")
    store.put_block("cell", played(4))
    assert store.block("cell") == played(4)


def test_a_full_database_is_a_run_error_and_leaves_nothing(store: TranscriptStore) -> None:
    store.put_block("before", played(1))
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages + 4}")
    with pytest.raises(RunError, match=r"full.*free space"):
        store.put_block("cell", played(50, size=1000))
    assert contents(store) == {"before": [canonical(played(1)[0].transcript)]}


def test_the_run_goes_on_when_there_is_space_again(store: TranscriptStore) -> None:
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages + 4}")
    with pytest.raises(RunError):
        store.put_block("cell", played(50, size=1000))
    store._db.execute("PRAGMA max_page_count = 1000000")
    store.put_block("cell", played(50, size=1000))
    assert len(store.block("cell")) == 50


@pytest.mark.parametrize("data", [{"x": object()}, {"x": {1, 2}}])
def test_data_that_is_no_json_is_refused_before_anything_is_written(
    store: TranscriptStore, data: dict[str, object]
) -> None:
    with pytest.raises(TypeError):
        store.put_block("cell", played(1), data)
    store.put_block("next", played(1))
    assert store.block_names() == ["next"]


def test_an_interrupt_in_the_middle_of_a_block_leaves_nothing_and_no_open_transaction(store: TranscriptStore) -> None:
    class Interrupting:
        """Raises while SQLite binds the second row, as Ctrl-C would."""

        def __conform__(self, protocol: object) -> str:
            raise KeyboardInterrupt

    block = played(3)
    object.__setattr__(block[1], "red", Interrupting())
    with pytest.raises(KeyboardInterrupt):
        store.put_block("cell", block)
    assert not store._db.in_transaction
    store.put_block("next", played(1))
    assert store.block_names() == ["next"]


def test_a_policy_name_that_cannot_be_encoded_leaves_no_open_transaction(store: TranscriptStore) -> None:
    bad = Played(red="\ud800", blue="b", seed=0, transcript=played(1)[0].transcript)
    with pytest.raises(UnicodeEncodeError):
        store.put_block("cell", [bad])
    store.put_block("next", played(1))
    assert store.block_names() == ["next"]


def test_another_reader_never_sees_a_part_of_a_block(store: TranscriptStore, tmp_path: Path) -> None:
    with TranscriptStore(tmp_path / "run.db", GOALS) as reader:
        store._db.create_function("peek", 0, lambda: len(reader.block_names()) + len(reader.block("cell")))
        store._db.execute("CREATE TABLE seen (number INTEGER)")
        store._db.execute("CREATE TRIGGER peek AFTER INSERT ON dialogues BEGIN INSERT INTO seen VALUES (peek()); END")
        store.put_block("cell", played(3))
        assert store._db.execute("SELECT number FROM seen").fetchall() == [(0,)] * 3
        assert len(reader.block("cell")) == 3


def test_a_second_writer_gets_a_run_error_not_a_broken_block(store: TranscriptStore, tmp_path: Path) -> None:
    with TranscriptStore(tmp_path / "run.db", GOALS) as second:
        second._db.execute("PRAGMA busy_timeout = 0")
        store._db.execute("BEGIN IMMEDIATE")
        with pytest.raises(RunError, match=r"locked.*other writer"):
            second.put_block("cell", played(1))
        store._db.execute("ROLLBACK")
        second.put_block("cell", played(1))
        assert second.block_names() == ["cell"]


# Killed processes and full disks

WRITER = """
import resource, sys
from pathlib import Path
from rtg_env.errors import RunError
from rtg_env.transcripts import TranscriptStore
from tests.doubles import GOALS
from tests.rtg_env.test_transcripts import played
store = TranscriptStore(Path(sys.argv[1]), GOALS)
block = played(20, size=1000)
limit = int(sys.argv[2])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
for index in range(10_000):
    try:
        store.put_block(f"block-{index}", block)
    except RunError as error:
        print(f"RunError: {error}", flush=True)
        break
    print(f"block-{index}", flush=True)
"""


def writer(path: Path, *, max_file_bytes: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path), str(max_file_bytes)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )


def test_a_killed_writer_leaves_whole_blocks_only(tmp_path: Path) -> None:
    with writer(tmp_path / "run.db") as process:
        reported = [process.stdout.readline().strip() for _ in range(5)]
        process.send_signal(signal.SIGKILL)
        reported += process.stdout.read().split()
    assert process.returncode == -signal.SIGKILL
    with TranscriptStore(tmp_path / "run.db", GOALS) as store:
        names = store.block_names()
        assert names[: len(reported)] == reported  # what was reported is there; one more may be
        assert len(names) <= len(reported) + 1
        assert {len(store.block(name)) for name in names} == {20}
        store.put_block("next", played(1))


def test_a_full_disk_leaves_whole_blocks_only_and_says_so(tmp_path: Path) -> None:
    with writer(tmp_path / "run.db", max_file_bytes=600_000) as process:
        lines = process.stdout.read().splitlines()
    assert lines[-1].startswith("RunError: expected to commit block")
    with TranscriptStore(tmp_path / "run.db", GOALS) as store:
        assert store.block_names() == lines[:-1] != []
        assert {len(store.block(name)) for name in lines[:-1]} == {20}


# Files that are not ours


def write_version(path: Path, version: str) -> None:
    TranscriptStore(path, GOALS).close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE meta SET value = ?", (version,))
    db.close()


@pytest.mark.parametrize("version", ["0", "4", "x"])
def test_another_schema_version_is_refused_by_both_numbers(tmp_path: Path, version: str) -> None:
    write_version(tmp_path / "run.db", version)
    with pytest.raises(RunError, match=f"schema version 3 .* got {version}"):
        TranscriptStore(tmp_path / "run.db", GOALS)


@pytest.mark.parametrize(
    "garbage", [b"not a database at all" * 100, b"\x00" * 5000, b"SQLite format 3\x00" + b"\xff" * 4096]
)
def test_a_damaged_file_is_refused_and_left_as_it_was(tmp_path: Path, garbage: bytes) -> None:
    path = tmp_path / "run.db"
    path.write_bytes(garbage)
    with pytest.raises(RunError, match="move it away"):
        TranscriptStore(path, GOALS)
    assert path.read_bytes() == garbage


def test_damage_found_while_reading_is_a_run_error(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    with TranscriptStore(path, GOALS) as store:
        store.put_block("cell", played(60, size=1000))
    with path.open("r+b") as file:  # every page but the first: the header still looks right
        file.seek(4096 * 8)
        file.write(b"\xff" * (path.stat().st_size - 4096 * 8))
    with pytest.raises(RunError), TranscriptStore(path, GOALS) as store:
        store.block("cell")


def test_a_file_that_is_refused_is_not_kept_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_version(tmp_path / "run.db", "4")
    opened = []
    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3, "connect", lambda *args, **kwargs: opened.append(connect(*args, **kwargs)) or opened[-1]
    )
    with pytest.raises(RunError):
        TranscriptStore(tmp_path / "run.db", GOALS)
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        opened[0].execute("SELECT 1")


def test_a_database_of_another_program_is_refused_and_not_written_to(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE recipes (name TEXT)")
    db.close()
    before = path.read_bytes()
    with pytest.raises(RunError, match="move it away"):
        TranscriptStore(path, GOALS)
    assert path.read_bytes() == before


def test_a_folder_that_is_missing_is_a_run_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="missing"):
        TranscriptStore(tmp_path / "missing" / "run.db", GOALS)


def test_a_folder_in_place_of_the_file_is_a_run_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="run database"):
        TranscriptStore(tmp_path, GOALS)


def test_an_empty_file_is_a_new_store(tmp_path: Path) -> None:
    (tmp_path / "run.db").touch()
    with TranscriptStore(tmp_path / "run.db", GOALS) as store:
        assert store.block_names() == []


# Golden transcripts


@pytest.mark.parametrize("name", sorted(rewrite_golden.games()))
def test_scripted_games_play_their_golden_transcripts(name: str) -> None:
    expected = (rewrite_golden.GOLDEN / name).read_text(encoding="utf-8").splitlines()
    assert rewrite_golden.games()[name] == expected, "if the rules were meant to change: python tests/rewrite_golden.py"


def test_every_golden_file_has_its_game() -> None:
    assert {path.name for path in rewrite_golden.GOLDEN.glob("*.jsonl")} == set(rewrite_golden.games())


def test_golden_transcripts_are_read_back_without_loss() -> None:
    for lines in rewrite_golden.games().values():
        for line in lines:
            again = json.dumps(transcript_to_json(transcript_from_json(json.loads(line), GOALS)), sort_keys=True)
            assert again == line
