from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtg_env import export
from rtg_env.dialogue import Transcript
from rtg_env.errors import ConfigError, InvalidActionError, MissingExtraError, RunError
from rtg_env.export import COLUMNS, export_dialogues, read_dialogues
from rtg_env.goals import Goal, GoalSet
from rtg_env.transcripts import Played, TranscriptStore
from rtg_env.types import Action, Exchange, FinishReason, Verdict
from tests.doubles import ANY_TEXT, BENIGN, GOALS, HARMFUL, OTHER

ROOT = Path(__file__).resolve().parents[2]
KINDS = ["parquet", "jsonl"]
NASTY = 'a\u2028b\u2029c\x85d\ne\r\x00=cmd|" /C calc"!A0\u202e😀'
PER_EXCHANGE = ["harm", "refusal", "helpful", "valid", "judge_id", "verdict_raw", "utilities", "payments"]
PER_ACTION = ["agents", *export.ACTION_COLUMNS.values(), "num_tokens"]

pytest.importorskip("pyarrow")


def dialogue(goal: Goal = HARMFUL, *, text: str = "hello", seed: int = 7, unscored: bool = False) -> Played:
    """Two exchanges with two members of red, each answered by a model."""
    good = Verdict(harm=0.1 + 0.2, refusal=0.0, helpful=1.0, judge_id="j@1", raw={"part": 1 / 3, "note": text})
    verdicts = (good, Verdict.failed("j@1", "429") if unscored else good)
    tokens = {"prompt_ids": (1, 2, 3), "token_ids": (4, 5), "logps": (-1 / 3, -1e-300), "temperature": 0.7}
    red = [(f"red_{i}", Action(text=f"{text} {i}", policy="red_00@v1", reasoning=f"why {text}")) for i in (1, 0)]
    blue = [("blue_0", Action(text=f"no {text}", policy="blue_00@v1", finish_reason="length", **tokens))] * 2
    actions = (red[0], blue[0], red[1], blue[1]) if goal.harmful else tuple(blue)
    return Played(
        red="red_00@v1",
        blue="blue_00@v1",
        seed=seed,
        transcript=Transcript(
            goal=goal,
            red_order=(1, 0),
            exchanges=(Exchange(text, f"no {text}"), Exchange(f"{text} again", "no")),
            verdicts=verdicts,
            actions=actions,
            utilities=() if unscored else (0.1 + 0.2, 1 / 3),
            payments=() if unscored else (0.1 + 0.2, -0.0),
            utility=math.nan if unscored else 1 / 3,
            unscored=unscored,
        ),
    )


@pytest.fixture
def store(tmp_path: Path):
    with TranscriptStore(tmp_path / "run.db", GOALS) as opened:
        opened.put_block("cell/a/b", [dialogue(seed=2**63 - 1), dialogue(BENIGN, unscored=True)])
        opened.put_block("figures", [], {"loss": 0.5})
        opened.put_block("train/a/0", [dialogue(OTHER, text=NASTY)])
        yield opened


def rows_of(path: Path) -> list[dict]:
    """Rows as a stranger reads them."""
    if path.suffix == ".jsonl":
        return [json.loads(line, parse_constant=pytest.fail) for line in path.read_bytes().splitlines()]
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path).to_pylist()


def exactly(played: list[Played]) -> list[str]:
    """Text that differs where any bit of a number or any character does; NaN is equal to itself."""
    return [repr(item) for item in played]


def stored(store: TranscriptStore, names: list[str] | None = None) -> list[Played]:
    return [item for name in names or store.block_names() for item in store.block(name)]


# What is written


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_holds_what_was_played(store: TranscriptStore, tmp_path: Path, kind: str) -> None:
    written = export_dialogues(store, tmp_path / f"d.{kind}", run="r")
    first, second, third = rows_of(written.path)
    assert list(first) == [column.name for column in COLUMNS]
    assert [(r["run"], r["block"], r["position"]) for r in (first, second, third)] == [
        ("r", "cell/a/b", 0),
        ("r", "cell/a/b", 1),
        ("r", "train/a/0", 0),
    ]
    assert (first["seed"], first["goal_id"], first["goal"], first["split"]) == (2**63 - 1, "h", HARMFUL.text, "train")
    assert (first["harmful"], second["harmful"], third["category"]) == (True, False, "insult")
    assert first["messages"] == [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "no hello"},
        {"role": "user", "content": "hello again"},
        {"role": "assistant", "content": "no"},
    ]
    assert (first["utility"], first["utilities"], first["harm"]) == (1 / 3, [0.1 + 0.2, 1 / 3], [0.1 + 0.2] * 2)
    assert (first["agents"], first["num_tokens"]) == (["red_1", "blue_0", "red_0", "blue_0"], [0, 2, 0, 2])
    assert (first["texts"][0], first["reasoning"][:2]) == ("hello 1", ["why hello", ""])
    assert (first["token_ids"], first["logps"][1]) == ([[], [4, 5], [], [4, 5]], [-1 / 3, -1e-300])
    assert (second["utility"], second["unscored"], second["agents"]) == (None, True, ["blue_0", "blue_0"])
    assert (second["valid"], second["harm"], second["payments"]) == ([True, False], [0.1 + 0.2, None], [None, None])
    assert json.loads(second["verdict_raw"][1]) == {"error": "429"}
    assert third["messages"][0]["content"] == NASTY


def test_both_formats_hold_the_same_rows(store: TranscriptStore, tmp_path: Path) -> None:
    parquet, jsonl = (export_dialogues(store, tmp_path / f"d.{kind}").path for kind in KINDS)
    assert repr(rows_of(parquet)) == repr(rows_of(jsonl))


@pytest.mark.parametrize("name", [*PER_EXCHANGE, *PER_ACTION])
def test_columns_of_one_kind_have_one_length(store: TranscriptStore, tmp_path: Path, name: str) -> None:
    for row in rows_of(export_dialogues(store, tmp_path / "d.jsonl").path):
        assert len(row[name]) == (row["num_exchanges"] if name in PER_EXCHANGE else len(row["agents"]))


def test_what_is_reported_is_what_was_written(store: TranscriptStore, tmp_path: Path) -> None:
    written = export_dialogues(store, tmp_path / "d.parquet")
    content = written.path.read_bytes()
    assert (written.num_dialogues, written.num_bytes) == (3, len(content))
    assert written.sha256 == hashlib.sha256(content).hexdigest()


def test_one_run_gives_one_file_bit_for_bit(store: TranscriptStore, tmp_path: Path) -> None:
    for kind in KINDS:
        one, other = (export_dialogues(store, tmp_path / f"{name}.{kind}").sha256 for name in "ab")
        assert one == other


def test_the_types_of_a_parquet_file_are_declared_and_its_metadata_tells_the_run(
    store: TranscriptStore, tmp_path: Path
) -> None:
    import pyarrow.parquet

    path = export_dialogues(store, tmp_path / "d.parquet", run="r", about={"config_digest": "c"}).path
    schema = pyarrow.parquet.read_schema(path)
    assert schema.equals(export.arrow_schema())
    assert [str(field.type).replace("element: ", "").replace("item: ", "") for field in schema] == [
        column.type for column in COLUMNS
    ]
    told = {key.decode(): value.decode() for key, value in schema.metadata.items()}
    assert told | {"schema_version": "1", "run": "r", "redacted": "false", "config_digest": "c"} == told
    assert pyarrow.parquet.ParquetFile(path).metadata.row_group(0).column(0).compression == "ZSTD"


def test_a_large_export_is_written_in_groups(
    store: TranscriptStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet

    monkeypatch.setattr(export, "_GROUP_CHARS", 1)
    path = export_dialogues(store, tmp_path / "d.parquet").path
    assert pyarrow.parquet.ParquetFile(path).metadata.num_row_groups == 3
    assert exactly(read_dialogues(path, GOALS)) == exactly(stored(store))


def test_dialogues_are_read_from_the_store_one_group_at_a_time(
    store: TranscriptStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_GROUP_CHARS", 1)
    groups = export._groups(store, ["cell/a/b", "missing", "train/a/0"], "", True)
    assert [len(group) for group in groups] == [1, 1, 1]


@pytest.mark.parametrize("line", [NASTY, "\u2028", "\x85", "\x0b\x0c\x1c\x1d\x1e"])
def test_no_text_breaks_a_line_of_jsonl(tmp_path: Path, line: str) -> None:
    with TranscriptStore(tmp_path / "run.db", GOALS) as store:
        store.put_block("a", [dialogue(text=line)] * 2)
        path = export_dialogues(store, tmp_path / "d.jsonl").path
    assert path.read_bytes().isascii()
    assert len(path.read_text(encoding="utf-8").splitlines()) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_lone_surrogates_anywhere_become_valid_text(tmp_path: Path, kind: str) -> None:
    bad = dialogue()
    action = Action(text="t\ud800", policy="p\udfff", reasoning="r\ud800")
    verdict = Verdict(harm=0.0, refusal=0.0, helpful=0.0, judge_id="j\ud800", raw={"k\ud800": "v\ud800"})
    transcript = dataclasses.replace(
        bad.transcript,
        actions=(("red_0", action),),
        verdicts=(verdict, verdict),
        exchanges=(Exchange("x\ud800", "y\ud800"), Exchange("", "")),
    )
    with TranscriptStore(tmp_path / "run.db", GOALS) as store:
        store.put_block("a", [dataclasses.replace(bad, transcript=transcript)])
        (row,) = rows_of(export_dialogues(store, tmp_path / f"d.{kind}").path)
    json.dumps(row, ensure_ascii=False).encode()  # would raise
    assert (row["texts"], row["policies"], row["reasoning"]) == (["t\ufffd"], ["p\ufffd"], ["r\ufffd"])
    assert row["messages"][0]["content"] == "x\ufffd"


@pytest.mark.parametrize("pattern", ["cell/*", "*a/b", "cell/?/[b]"])
def test_a_pattern_chooses_blocks(store: TranscriptStore, tmp_path: Path, pattern: str) -> None:
    path = export_dialogues(store, tmp_path / "d.parquet", blocks=pattern).path
    assert exactly(read_dialogues(path, GOALS)) == exactly(store.block("cell/a/b"))


@pytest.mark.parametrize("pattern", ["nothing", "figures", ""])
def test_an_export_of_nothing_is_refused_and_leaves_no_file(
    store: TranscriptStore, tmp_path: Path, pattern: str
) -> None:
    with pytest.raises(ConfigError, match="got none; names begin with cell, figures, train"):
        export_dialogues(store, tmp_path / "d.parquet", blocks=pattern)
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith("run.db")] == []


@pytest.mark.parametrize("name", ["d.csv", "d", "d.PARQUET", "d.json"])
def test_another_format_is_refused(store: TranscriptStore, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"\.parquet or \.jsonl"):
        export_dialogues(store, tmp_path / name)
    with pytest.raises(ConfigError, match=r"\.parquet or \.jsonl"):
        read_dialogues(tmp_path / name, GOALS)


@pytest.mark.parametrize("seed", [2**63, -(2**63) - 1])
def test_a_seed_that_fits_no_column_is_refused(tmp_path: Path, seed: int) -> None:
    with TranscriptStore(tmp_path / "run.db", GOALS) as store:
        store.put_block("a", [dialogue(seed=seed)])
        with pytest.raises(RunError, match=r"seed of dialogue 0 of block 'a' to fit 64 bits"):
            export_dialogues(store, tmp_path / "d.jsonl")


def test_a_token_id_that_fits_no_column_is_refused(tmp_path: Path) -> None:
    item = dialogue()
    actions = (("blue_0", Action(text="", token_ids=(2**31,))),)
    with TranscriptStore(tmp_path / "run.db", GOALS) as store:
        store.put_block(
            "a", [dataclasses.replace(item, transcript=dataclasses.replace(item.transcript, actions=actions))]
        )
        with pytest.raises(RunError, match="fit the columns in block 'a'"):
            export_dialogues(store, tmp_path / "d.parquet")
    assert not (tmp_path / "d.parquet").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_number_that_json_does_not_know_is_refused_in_both_formats(tmp_path: Path, kind: str) -> None:
    item = dialogue()
    bad = dataclasses.replace(item, transcript=dataclasses.replace(item.transcript, payments=(math.inf, 0.0)))
    with TranscriptStore(tmp_path / "run.db", GOALS) as store:
        store.put_block("a", [bad])
        with pytest.raises(RunError, match="finite"):
            export_dialogues(store, tmp_path / f"d.{kind}")
    assert not (tmp_path / f"d.{kind}").exists()


def test_every_field_of_an_action_has_a_column() -> None:
    assert set(export.ACTION_COLUMNS) == {field.name for field in dataclasses.fields(Action)}


def test_the_document_describes_every_column() -> None:
    _, _, section = (ROOT / "docs/data.md").read_text(encoding="utf-8").partition("## Columns")
    assert [line for line in section.splitlines() if line.startswith("| `")] == [
        f"| `{column.name}` | `{column.type}` | {column.about} |" for column in COLUMNS
    ]


# Back again

NUMBER = st.floats(allow_nan=False, allow_infinity=False)
PROBABILITY = st.floats(0, 1)
TEXT = ANY_TEXT.map(export.well_formed)
TOKENS = st.lists(st.tuples(st.integers(-(2**31), 2**31 - 1), NUMBER), max_size=4)
VERDICT = st.one_of(
    st.builds(
        Verdict,
        harm=PROBABILITY,
        refusal=PROBABILITY,
        helpful=PROBABILITY,
        judge_id=TEXT,
        raw=st.dictionaries(ANY_TEXT, st.one_of(NUMBER, ANY_TEXT), max_size=3),
    ),
    st.builds(Verdict.failed, TEXT, ANY_TEXT),
)


@st.composite
def actions(draw: st.DrawFn) -> Action:
    sampled = draw(TOKENS)
    return Action(
        text=draw(TEXT),
        policy=draw(TEXT),
        prompt_ids=draw(st.lists(st.integers(0, 2**31 - 1), max_size=4).map(tuple)),
        token_ids=tuple(number for number, _ in sampled),
        logps=tuple(logp for _, logp in sampled) if draw(st.booleans()) else (),
        temperature=draw(NUMBER),
        finish_reason=draw(st.sampled_from(get_args(FinishReason))),
        reasoning=draw(TEXT),
    )


@st.composite
def games(draw: st.DrawFn) -> Played:
    num = draw(st.integers(0, 3))
    unscored = draw(st.booleans())
    paid = st.lists(NUMBER, min_size=num, max_size=num).map(tuple)
    agents = st.sampled_from(["red_0", "red_1", "blue_0"])
    transcript = Transcript(
        goal=draw(st.sampled_from([HARMFUL, BENIGN, OTHER])),
        red_order=tuple(draw(st.permutations(range(draw(st.integers(1, 3)))))),
        exchanges=tuple(draw(st.lists(st.builds(Exchange, TEXT, TEXT), min_size=num, max_size=num))),
        verdicts=tuple(draw(st.lists(VERDICT, min_size=num, max_size=num))),
        actions=tuple(draw(st.lists(st.tuples(agents, actions()), max_size=4))),
        utilities=() if unscored else draw(paid),
        payments=() if unscored else draw(paid),
        utility=math.nan if unscored else draw(NUMBER),
        unscored=unscored,
    )
    name = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=8)
    return Played(red=draw(name), blue=draw(name), seed=draw(st.integers(-(2**63), 2**63 - 1)), transcript=transcript)


@settings(max_examples=40)  # each writes a database and two files
@given(st.lists(games(), min_size=1, max_size=4))
def test_what_was_stored_is_read_back_bit_for_bit(played: list[Played]) -> None:
    with tempfile.TemporaryDirectory() as folder, TranscriptStore(Path(folder) / "run.db", GOALS) as store:
        store.put_block("a", played[:1])
        store.put_block("b", played[1:])
        for kind in KINDS:
            path = export_dialogues(store, Path(folder) / f"d.{kind}").path
            assert exactly(read_dialogues(path, GOALS)) == exactly(stored(store))


def test_a_file_that_pandas_has_filtered_is_still_read(store: TranscriptStore, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    export_dialogues(store, tmp_path / "d.parquet")
    frame = pandas.read_parquet(tmp_path / "d.parquet")
    frame[frame.harmful].assign(mine=1).to_parquet(tmp_path / "less.parquet")
    harmful = [item for item in stored(store) if item.transcript.goal.harmful]
    assert exactly(read_dialogues(tmp_path / "less.parquet", GOALS)) == exactly(harmful)


@pytest.mark.parametrize("kind", KINDS)
def test_other_goals_than_the_ones_that_were_played_are_refused(
    store: TranscriptStore, tmp_path: Path, kind: str
) -> None:
    path = export_dialogues(store, tmp_path / f"d.{kind}").path
    with pytest.raises(ConfigError, match="'h'"):
        read_dialogues(path, GoalSet([BENIGN]))
    with pytest.raises(ConfigError, match="goal 'h' as it was played"):
        read_dialogues(path, GoalSet([dataclasses.replace(HARMFUL, text="Another one."), BENIGN, OTHER]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("content", [None, b"garbage", b"\xff\n", b"[]\n", b"1\n", b'{"schema_version": 1}\n'])
def test_a_file_of_something_else_is_refused(tmp_path: Path, kind: str, content: bytes | None) -> None:
    path = tmp_path / f"d.{kind}"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RunError, match=r"expected .*d\."):
        read_dialogues(path, GOALS)


def test_a_table_of_something_else_is_refused(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"recipes": ["soup"]}), tmp_path / "d.parquet")
    with pytest.raises(RunError, match="columns that `rtg export` writes"):
        read_dialogues(tmp_path / "d.parquet", GOALS)


CHANGES = [
    ({"schema_version": 2}, RunError),
    ({"messages": None}, RunError),
    ({"messages": [{"role": "user", "content": "unanswered"}]}, RunError),
    ({"harm": [0.5]}, RunError),
    ({"harm": ["x", "y"]}, RunError),
    ({"verdict_raw": ["{", "{}"]}, RunError),
    ({"agents": ["blue_0"]}, RunError),
    ({"token_ids": [["x"], [], [], []]}, InvalidActionError),
]


@pytest.mark.parametrize(("change", "expected"), CHANGES)
def test_a_row_that_was_tampered_with_is_refused(
    store: TranscriptStore, tmp_path: Path, change: dict, expected: type[Exception]
) -> None:
    first, *_ = rows_of(export_dialogues(store, tmp_path / "d.jsonl").path)
    (tmp_path / "bad.jsonl").write_text(json.dumps(first) + "\n" + json.dumps({**first, **change}) + "\n")
    with pytest.raises(expected):
        read_dialogues(tmp_path / "bad.jsonl", GOALS)


# Without text


@pytest.mark.parametrize("kind", KINDS)
def test_without_text_nothing_that_was_said_or_thought_is_in_the_file(tmp_path: Path, kind: str) -> None:
    secret = "unmistakable"
    goal = dataclasses.replace(HARMFUL, text=f"{secret} goal")
    failed = Verdict.failed("j@1", f"cannot parse {secret}")
    item = dialogue(goal, text=secret)
    transcript = dataclasses.replace(item.transcript, verdicts=(failed, item.transcript.verdicts[0]))
    with TranscriptStore(tmp_path / "run.db", GoalSet([goal])) as store:
        store.put_block("a", [dataclasses.replace(item, transcript=transcript)])
        path = export_dialogues(store, tmp_path / f"d.{kind}", text=False).path
    (row,) = rows_of(path)
    assert secret not in json.dumps(row)
    assert secret.encode() not in path.read_bytes()
    assert (row["redacted"], row["prompt_ids"], row["token_ids"], row["logps"]) == (True, None, None, None)
    assert (row["num_tokens"], row["harm"], row["goal_id"]) == ([0, 2, 0, 2], [None, 0.1 + 0.2], "h")
    assert json.loads(row["verdict_raw"][1])["part"] == 1 / 3
    assert row["messages"][0] == {
        "role": "user",
        "content": "sha256:" + hashlib.sha256(secret.encode()).hexdigest(),
    }


def test_a_file_without_text_has_the_same_columns_and_is_not_taken_for_dialogues(
    store: TranscriptStore, tmp_path: Path
) -> None:
    import pyarrow.parquet

    path = export_dialogues(store, tmp_path / "d.parquet", text=False).path
    assert pyarrow.parquet.read_schema(path).equals(export.arrow_schema())
    with pytest.raises(RunError, match="exported without"):
        read_dialogues(path, GOALS)


# In one line


@pytest.fixture
def exported(store: TranscriptStore, tmp_path: Path) -> Path:
    for kind in KINDS:
        export_dialogues(store, tmp_path / f"dialogues.{kind}")
    return tmp_path


def test_pandas_loads_a_run_in_one_line(exported: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_parquet(exported / "dialogues.parquet")
    assert (len(frame), frame.utility.isna().tolist()) == (3, [False, True, False])
    assert (str(frame.seed.dtype), frame.seed[0]) == ("int64", 2**63 - 1)
    assert frame.groupby("block").utility.mean()["train/a/0"] == 1 / 3


def test_pandas_explodes_exchanges_and_actions(exported: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_parquet(exported / "dialogues.parquet")
    exchanges = frame.explode(PER_EXCHANGE)
    assert (len(exchanges), exchanges.valid.tolist().count(False)) == (6, 1)
    assert frame.explode(PER_ACTION).agents.tolist().count("blue_0") == 6


def test_pandas_loads_jsonl_without_loss(exported: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_json(exported / "dialogues.jsonl", lines=True, precise_float=True, dtype=False)
    rows = rows_of(exported / "dialogues.jsonl")
    assert frame.seed.tolist() == [row["seed"] for row in rows]
    assert frame.logps.tolist() == [row["logps"] for row in rows]


@pytest.mark.parametrize(("loader", "kind"), [("parquet", "parquet"), ("json", "jsonl")])
def test_datasets_loads_a_run_in_one_line(exported: Path, loader: str, kind: str) -> None:
    datasets = pytest.importorskip("datasets")
    rows = rows_of(exported / f"dialogues.{kind}")
    files = str(exported / f"dialogues.{kind}")
    loaded = datasets.load_dataset(loader, data_files=files, cache_dir=str(exported / "cache"))["train"]
    assert loaded["messages"][:] == [row["messages"] for row in rows]
    assert loaded["seed"][:] == [row["seed"] for row in rows]
    if kind == "parquet":
        assert loaded.features == datasets.Features.from_arrow_schema(export.arrow_schema())
        assert loaded["logps"][:] == [row["logps"] for row in rows]


def test_datasets_takes_the_types_of_jsonl_from_the_schema(exported: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features.from_arrow_schema(export.arrow_schema())
    loaded = datasets.load_dataset(
        "json",
        data_files=str(exported / "dialogues.jsonl"),
        features=features,
        cache_dir=str(exported / "cache"),
        split="train",
    )
    assert loaded.features == features


# Whole or not at all


def beside(path: Path) -> set[str]:
    """Names in the folder, the database's own files apart."""
    return {entry.name for entry in path.iterdir() if not entry.name.startswith("run.db")}


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_exists_is_replaced_by_force_only(store: TranscriptStore, tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"d.{kind}"
    path.write_text("mine")
    with pytest.raises(RunError, match="there is one"):
        export_dialogues(store, path)
    assert path.read_text() == "mine"
    export_dialogues(store, path, force=True)
    assert len(read_dialogues(path, GOALS)) == 3


def test_a_link_is_not_followed(store: TranscriptStore, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    link = tmp_path / "d.jsonl"
    link.symlink_to(precious)
    with pytest.raises(RunError, match="there is one"):
        export_dialogues(store, link)
    precious.write_text("mine")
    export_dialogues(store, link, force=True)
    assert (precious.read_text(), link.is_symlink()) == ("mine", False)


def test_a_folder_that_is_missing_or_in_the_way_is_a_run_error(store: TranscriptStore, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="expected to write"):
        export_dialogues(store, tmp_path / "missing" / "d.jsonl")
    (tmp_path / "d.jsonl").mkdir()
    with pytest.raises(RunError, match="expected to write"):
        export_dialogues(store, tmp_path / "d.jsonl", force=True)
    assert beside(tmp_path) == {"d.jsonl"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_whatever_stops_an_export_nothing_is_left(
    store: TranscriptStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, stop: BaseException
) -> None:
    monkeypatch.setattr(export, "_GROUP_CHARS", 1)
    records = TranscriptStore.records

    def stopping(self: TranscriptStore, name: str):
        yield from records(self, name)
        if name == "cell/a/b":
            raise stop

    monkeypatch.setattr(TranscriptStore, "records", stopping)
    (tmp_path / f"old.{kind}").write_text("old")
    for name in ("new", "old"):
        with pytest.raises((KeyboardInterrupt, RunError)):
            export_dialogues(store, tmp_path / f"{name}.{kind}", force=True)
    assert beside(tmp_path) == {f"old.{kind}"}
    assert (tmp_path / f"old.{kind}").read_text() == "old"


EXPORTER = """
import os, resource, signal, sys
from pathlib import Path
from rtg_env import export
from rtg_env.errors import RunError
from rtg_env.transcripts import TranscriptStore
from tests.doubles import GOALS
database, out, fault = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
export._GROUP_CHARS = 1
if fault == "kill":
    records = TranscriptStore.records
    def deadly(self, name):
        yield from records(self, name)
        os.kill(os.getpid(), signal.SIGKILL)
    TranscriptStore.records = deadly
with TranscriptStore(database, GOALS) as store:
    if fault == "full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    try:
        export.export_dialogues(store, out, force=True)
    except RunError as error:
        print(f"RunError: {error}")
        sys.exit(1)
"""


def exporter(database: Path, out: Path, fault: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", EXPORTER, str(database), str(out), fault]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False, timeout=60)


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_leaves_the_old_file_and_no_scratch(tmp_path: Path, kind: str) -> None:
    with TranscriptStore(tmp_path / "run.db", GOALS) as store:
        store.put_block("a", [dialogue(text=os.urandom(500).hex(), seed=i) for i in range(40)])
    (tmp_path / f"d.{kind}").write_text("old")
    done = exporter(tmp_path / "run.db", tmp_path / f"d.{kind}", "full")
    assert (done.returncode, done.stderr) == (1, "")
    assert "RunError: expected to write" in done.stdout
    assert "free space" in done.stdout
    assert (beside(tmp_path), (tmp_path / f"d.{kind}").read_text()) == ({f"d.{kind}"}, "old")


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_export_leaves_no_half_file_and_the_next_one_succeeds(tmp_path: Path, kind: str) -> None:
    with TranscriptStore(tmp_path / "run.db", GOALS) as store:
        store.put_block("a", [dialogue(text=os.urandom(5000).hex(), seed=i) for i in range(20)])
    path = tmp_path / f"d.{kind}"
    assert exporter(tmp_path / "run.db", path, "kill").returncode == -signal.SIGKILL
    assert not path.exists()
    scratch = [tmp_path / name for name in beside(tmp_path)]
    assert [file.name.startswith(f".d.{kind}-") and file.stat().st_size > 0 for file in scratch] == [True]
    with TranscriptStore(tmp_path / "run.db", GOALS) as store:
        export_dialogues(store, path)
        assert exactly(read_dialogues(path, GOALS)) == exactly(store.block("a"))


def test_without_pyarrow_jsonl_works_and_parquet_names_the_extra(
    store: TranscriptStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"'pyarrow'.*\[data\]"):
        export_dialogues(store, tmp_path / "d.parquet")
    assert len(read_dialogues(export_dialogues(store, tmp_path / "d.jsonl").path, GOALS)) == 3
    (tmp_path / "d.parquet").touch()
    with pytest.raises(MissingExtraError):
        read_dialogues(tmp_path / "d.parquet", GOALS)
