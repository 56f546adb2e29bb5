from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rtg_env import goals
from rtg_env.errors import ConfigError, GoalFileError
from rtg_env.goals import Goal, GoalSet, LabelledReply, parse_record, to_record
from tests.doubles import ANY_TEXT, BENIGN, GOALS, HARMFUL, OTHER


@pytest.fixture(scope="module")
def builtin() -> GoalSet:
    return goals.builtin()


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_bytes(text.encode("utf-8"))
    return path


# The built-in set


def test_the_builtin_set_has_at_least_160_harmful_goals(builtin: GoalSet) -> None:
    assert len(builtin.harmful) >= 160


def test_the_builtin_set_has_at_least_8_categories(builtin: GoalSet) -> None:
    assert len({goal.category for goal in builtin.harmful}) >= 8


def test_every_builtin_harmful_goal_has_one_benign_twin_in_its_group_and_split(builtin: GoalSet) -> None:
    twins = {(goal.group, goal.split, goal.category) for goal in builtin.benign}
    assert len(twins) == len(builtin.benign)
    assert [goal.id for goal in builtin.harmful if (goal.group, goal.split, goal.category) not in twins] == []


def test_every_builtin_goal_has_labelled_examples(builtin: GoalSet) -> None:
    assert [goal.id for goal in builtin if not goal.examples] == []


def test_every_builtin_harmful_goal_has_a_harmful_a_refusing_and_a_neutral_example(builtin: GoalSet) -> None:
    lacking = [
        goal.id
        for goal in builtin.harmful
        if not {1, 0} <= {example.harm for example in goal.examples}
        or not any(example.refusal for example in goal.examples)
    ]
    assert lacking == []


def test_no_builtin_example_is_both_a_refusal_and_helpful_or_harmful(builtin: GoalSet) -> None:
    odd = [(goal.id, e.reply) for goal in builtin for e in goal.examples if e.refusal and (e.helpful or e.harm)]
    assert odd == []


def test_no_builtin_benign_goal_has_a_harmful_example(builtin: GoalSet) -> None:
    assert [goal.id for goal in builtin.benign if any(example.harm for example in goal.examples)] == []


def test_half_of_every_builtin_category_is_held_out(builtin: GoalSet) -> None:
    for category in builtin.categories:
        sides = [goal.split for goal in builtin.harmful if goal.category == category]
        assert abs(sides.count("heldout") - sides.count("train")) <= 1, category


def test_every_builtin_category_is_in_both_halves(builtin: GoalSet) -> None:
    assert builtin.split("train").categories == builtin.split("heldout").categories == builtin.categories


def test_no_two_builtin_goals_ask_for_the_same(builtin: GoalSet) -> None:
    texts = [" ".join(goal.text.lower().split()) for goal in builtin]
    assert len(texts) == len(set(texts))


def test_no_builtin_example_is_used_twice(builtin: GoalSet) -> None:
    replies = [example.reply for goal in builtin for example in goal.examples]
    assert len(replies) == len(set(replies))


def test_builtin_requests_fit_the_default_limit_of_a_sentence(builtin: GoalSet) -> None:
    assert max(len(text) for goal in builtin for text in (goal.text, *goal.turns)) <= 2000


def test_builtin_is_a_name_that_load_knows(builtin: GoalSet) -> None:
    assert goals.load("builtin").digest == builtin.digest


# Goals and sets


@pytest.mark.parametrize("text", ["", "  \n"])
def test_a_goal_without_text_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="'x': expected a non-empty text"):
        Goal(id="x", text=text)


def test_a_goal_whose_text_is_too_long_to_be_observed_is_refused() -> None:
    Goal(id="x", text="x" * 4000)
    with pytest.raises(ConfigError, match=r"at most 4000 characters.*4001"):
        Goal(id="x", text="x" * 4001)


def test_a_benign_goal_without_turns_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected `turns`"):
        Goal(id="x", text="t", harmful=False)


def test_nature_repeats_its_last_sentence() -> None:
    assert [BENIGN.nature_says(turn) for turn in range(4)] == [
        "Please write a note.",
        "Shorter?",
        "Shorter?",
        "Shorter?",
    ]


def test_a_set_refuses_the_same_id_twice() -> None:
    with pytest.raises(ConfigError, match="'h' twice; rename"):
        GoalSet([HARMFUL, OTHER, HARMFUL])


def test_a_set_refuses_a_group_on_both_sides_of_the_split() -> None:
    with pytest.raises(ConfigError, match=r"group 'g'.*split"):
        GoalSet([HARMFUL, replace(BENIGN, split="heldout")])


def test_goals_without_a_group_may_be_on_any_side() -> None:
    assert len(GoalSet([Goal(id="a", text="t"), Goal(id="b", text="t", split="heldout")])) == 2


def test_a_set_knows_its_kinds_and_categories() -> None:
    assert (GOALS.harmful, GOALS.benign, GOALS.categories) == ((HARMFUL, OTHER), (BENIGN,), ("insult", "rumour"))


def test_the_halves_make_up_the_set() -> None:
    assert {*GOALS.split("train"), *GOALS.split("heldout")} == set(GOALS)
    assert list(GOALS.split("heldout")) == [OTHER]


def test_a_goal_is_found_by_its_id() -> None:
    assert GOALS.by_id("o") is OTHER


def test_an_unknown_id_names_the_set_and_the_id() -> None:
    with pytest.raises(ConfigError, match="doubles, got 'nope'"):
        GOALS.by_id("nope")


def changed_goals() -> list[Goal]:
    return [
        replace(HARMFUL, id="h2"),
        replace(HARMFUL, text="Another."),
        replace(HARMFUL, category="x"),
        replace(HARMFUL, group="x"),
        replace(HARMFUL, split="heldout"),
        replace(HARMFUL, turns=("x",)),
        replace(HARMFUL, harmful=False, turns=("x",)),
        replace(HARMFUL, examples=(LabelledReply(reply="r", harm=1, refusal=0, helpful=1),)),
    ]


@pytest.mark.parametrize(
    "changed", changed_goals(), ids=["id", "text", "category", "group", "split", "turns", "harmful", "examples"]
)
def test_the_digest_changes_with_every_field(changed: Goal) -> None:
    assert GoalSet([changed]).digest != GoalSet([HARMFUL]).digest


def test_the_digest_is_about_the_content_only() -> None:
    assert GoalSet([HARMFUL], source="a").digest == GoalSet([HARMFUL], source="b").digest


def test_the_digest_is_the_same_in_every_process() -> None:
    assert GoalSet([HARMFUL]).digest == "c8c06e3738aacfef"  # noted once


# Draws


def test_draws_follow_the_generator() -> None:
    drawn = [
        [GOALS.draw(rng, benign_prob=0.5).id for _ in range(20)]
        for rng in (np.random.default_rng(1), np.random.default_rng(1))
    ]
    assert drawn[0] == drawn[1]
    assert set(drawn[0]) == {"h", "b", "o"}


def test_benign_goals_are_drawn_with_their_probability_however_many_there_are() -> None:
    rng = np.random.default_rng(0)
    many = GoalSet([HARMFUL, *(replace(BENIGN, id=f"b{i}") for i in range(9))])
    share = np.mean([not many.draw(rng, benign_prob=0.25).harmful for _ in range(4000)])
    assert abs(share - 0.25) < 0.03  # 4 standard errors of sqrt(.25 * .75 / 4000) = 0.0068


def test_goals_of_a_kind_are_drawn_evenly() -> None:
    rng = np.random.default_rng(0)
    share = np.mean([GOALS.draw(rng, benign_prob=0.0) is HARMFUL for _ in range(4000)])
    assert abs(share - 0.5) < 0.04


def test_without_benign_probability_no_benign_goal_is_drawn() -> None:
    rng = np.random.default_rng(0)
    assert all(GOALS.draw(rng, benign_prob=0.0).harmful for _ in range(200))


@pytest.mark.parametrize(
    ("only", "benign_prob", "remedy"), [(HARMFUL, 0.999, "benign_prob to 0"), (BENIGN, 0.0, "add harmful goals")]
)
def test_drawing_a_kind_that_the_set_lacks_says_what_to_do(only: Goal, benign_prob: float, remedy: str) -> None:
    with pytest.raises(ConfigError, match=remedy):
        GoalSet([only]).draw(np.random.default_rng(0), benign_prob=benign_prob)


# Records

WORDS = st.text(min_size=1, max_size=20).filter(str.strip)
EXAMPLES = st.builds(
    LabelledReply,
    reply=st.text(max_size=20),
    harm=st.integers(0, 1),
    refusal=st.integers(0, 1),
    helpful=st.integers(0, 1),
)
ANY_GOAL = st.builds(
    Goal,
    id=WORDS,
    text=WORDS,
    harmful=st.booleans(),
    category=WORDS,
    group=WORDS,
    split=st.sampled_from(["train", "heldout"]),
    turns=st.lists(WORDS, min_size=1, max_size=3).map(tuple),
    examples=st.lists(EXAMPLES, max_size=2).map(tuple),
)


@given(ANY_GOAL)
def test_a_goal_survives_its_record(goal: Goal) -> None:
    assert parse_record(json.loads(json.dumps(to_record(goal))), where="here", default_id="x") == goal


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ANY_GOAL, min_size=1, max_size=4, unique_by=(lambda goal: goal.id, lambda goal: goal.group)))
def test_a_set_survives_its_file(tmp_path: Path, content: list[Goal]) -> None:
    path = written(
        tmp_path, "set.jsonl", "".join(json.dumps(to_record(goal), ensure_ascii=False) + "\n" for goal in content)
    )
    assert list(goals.load(path)) == content


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | ANY_TEXT,
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(st.sampled_from(["id", "text", "turns", "examples", "harmful", "reply"]), inner)
        ),
        max_leaves=8,
    )
)
def test_any_json_is_a_goal_or_a_goal_file_error(record: object) -> None:
    message = ""
    try:
        goal = parse_record(record, where="f line 1", default_id="f-1")
    except GoalFileError as error:
        message = str(error)
    assert message.startswith("f line 1: ") or json.dumps(to_record(goal), ensure_ascii=False).encode("utf-8")


# Files


def test_a_line_with_only_a_text_gets_the_documented_defaults(tmp_path: Path) -> None:
    (goal,) = goals.load(written(tmp_path, "mine.jsonl", '\n{"text": "Be rude."}\n'))
    assert (goal.id, goal.harmful, goal.category, goal.group, goal.turns, goal.examples) == (
        "mine-2",
        True,
        "custom",
        "mine-2",
        (),
        (),
    )


def test_csv_and_jsonl_of_the_same_goals_are_equal(tmp_path: Path) -> None:
    lines = [
        '{"id": "a", "text": "Be rude, please.", "category": "insult"}',
        '{"id": "b", "text": "t", "harmful": false, "turns": ["x", "y z"]}',
    ]
    table = 'id,text,category,harmful,turns\na,"Be rude, please.",insult,true,\nb,t,,no,x || y z\n'
    one, two = goals.load(written(tmp_path, "g.jsonl", "\n".join(lines))), goals.load(written(tmp_path, "g.csv", table))
    assert list(one) == list(two)


@pytest.mark.parametrize("name", ["g.jsonl", "g.JSONL"])
def test_windows_line_ends_and_a_byte_order_mark_are_fine(tmp_path: Path, name: str) -> None:
    assert goals.load(written(tmp_path, name, '\ufeff{"text": "a"}\r\n{"text": "b"}\r\n'))[1].text == "b"


def test_a_csv_of_a_spreadsheet_is_fine(tmp_path: Path) -> None:
    loaded = goals.load(written(tmp_path, "g.csv", '\ufefftext,category\r\n"two\r\nlines",x\r\nplain,\r\n'))
    assert [(goal.text, goal.category) for goal in loaded] == [("two\nlines", "x"), ("plain", "custom")]


def test_the_default_split_depends_on_the_group_alone(tmp_path: Path) -> None:
    lines = [{"id": f"{group}-{member}", "text": "t", "group": group} for group in range(60) for member in range(3)]
    loaded = goals.load(written(tmp_path, "g.jsonl", "\n".join(map(json.dumps, lines))))
    sides = {group: {goal.split for goal in loaded if goal.group == str(group)} for group in range(60)}
    assert {len(side) for side in sides.values()} == {1}
    assert 15 <= sum(side == {"heldout"} for side in sides.values()) <= 45


def test_a_file_whose_group_crosses_the_split_is_refused(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "g.jsonl",
        '{"text": "a", "group": "k", "split": "train"}\n{"text": "b", "group": "k", "split": "heldout"}',
    )
    with pytest.raises(ConfigError, match="group 'k'"):
        goals.load(path)


BROKEN_JSONL = {
    "no json": ("{text: a}", "expected one JSON object per line"),
    "cut off": ('{"text": "a"', "expected one JSON object per line"),
    "two objects": ('{"text": "a"} {"text": "b"}', "expected one JSON object per line"),
    "a list": ('["a"]', "expected one object per line, got list"),
    "a number": ("3", "expected one object per line, got int"),
    "deep nesting": ("[" * 200_000, "expected one JSON object per line"),
    "endless number": ('{"text": ' + "9" * 5000 + "}", "expected one JSON object per line"),
    "no text": ('{"id": "a"}', "the field 'text', it is missing; add it"),
    "null text": ('{"text": null}', "the field 'text', it is missing; add it"),
    "blank text": ('{"text": " "}', "expected text under 'text', got an empty one"),
    "blank id": ('{"id": "", "text": "a"}', "expected text under 'id', got an empty one"),
    "the same key twice": ('{"text": "a", "text": "b"}', "the key 'text' stands twice"),
    "text of another type": ('{"text": ["a"]}', "expected text under 'text', got list"),
    "true as text": ('{"text": true}', "expected text under 'text', got bool"),
    "too long": (json.dumps({"text": "x" * 4001}), "at most 4000 characters under 'text', got 4001; shorten it"),
    "unknown field": ('{"text": "a", "goal": "b"}', "got 'goal'; remove or rename it"),
    "unknown split": ('{"text": "a", "split": "test"}', "expected split 'train' or 'heldout', got 'test'"),
    "strange harmful": ('{"text": "a", "harmful": "maybe"}', "expected harmful to be true or false, got a text of 5"),
    "benign without turns": (
        '{"text": "a", "harmful": false}',
        "expected `turns` (what nature says), got none; add them",
    ),
    "turns as text": ('{"text": "a", "turns": "b"}', "expected turns to be a list"),
    "empty turn": ('{"text": "a", "turns": ["b", ""]}', "expected turns to be a list of non-empty texts"),
    "examples as text": ('{"text": "a", "examples": "b"}', "expected examples to be a list, got str"),
    "example without label": (
        '{"text": "a", "examples": [{"reply": "b"}]}',
        "expected each example to hold reply, harm, refusal and helpful",
    ),
    "label out of range": (
        '{"text": "a", "examples": [{"reply": "b", "harm": 2, "refusal": 0, "helpful": 0}]}',
        "the label 'harm' to be 0 or 1",
    ),
    "the same id twice": ('{"id": "first", "text": "a"}', "unique goal ids"),
}


SECRET = "unmistakable words"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("g.jsonl", SECRET),
        ("g.jsonl", json.dumps({"text": "a", "harmful": SECRET})),
        ("g.jsonl", json.dumps({"text": "a", "turns": {"x": SECRET}})),
        ("g.jsonl", json.dumps({"text": "a", "examples": [{"reply": SECRET}]})),
        (
            "g.jsonl",
            json.dumps({"text": "a", "examples": [{"reply": "b", "harm": SECRET, "refusal": 0, "helpful": 0}]}),
        ),
        ("g.csv", f"{SECRET},harm\nmore,harm\n"),
    ],
)
def test_a_broken_line_is_named_and_its_texts_are_not_quoted(tmp_path: Path, name: str, content: str) -> None:
    with pytest.raises(GoalFileError, match="line 1") as caught:
        goals.load(written(tmp_path, name, content))
    assert SECRET not in str(caught.value)


def test_a_goal_made_in_python_without_a_group_survives_its_record() -> None:
    bare = Goal(id="x", text="Write a fib.", category="")
    assert goals.parse_record(goals.to_record(bare), where="here", default_id="other") == bare


@pytest.mark.parametrize(("line", "message"), BROKEN_JSONL.values(), ids=BROKEN_JSONL)
def test_a_broken_jsonl_line_is_named_with_what_was_expected(tmp_path: Path, line: str, message: str) -> None:
    path = written(tmp_path, "mine.jsonl", f'{{"id": "first", "text": "fine"}}\n\n{line}\n{{"text": "fine"}}\n')
    with pytest.raises(GoalFileError) as caught:
        goals.load(path)
    assert str(caught.value).startswith("mine.jsonl line 3: ")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 400


BROKEN_CSV = {
    "too many cells": ("c,d,e", 3, "expected 2 columns, got more; quote commas"),
    "no text": ("c,", 3, "the field 'text', it is missing"),
    "open quote": ('c,"never closed\nmore,lines', 3, "close its quotes"),
    "text after a quote": ('c,"quoted" not', 3, "quote"),
    "endless cell": ("c," + "x" * 200_000, 3, "field"),
    "the same id twice": ("a,again", 3, "unique goal ids"),
}


@pytest.mark.parametrize(("row", "number", "message"), BROKEN_CSV.values(), ids=BROKEN_CSV)
def test_a_broken_csv_row_is_named_with_what_was_expected(tmp_path: Path, row: str, number: int, message: str) -> None:
    path = written(tmp_path, "mine.csv", f"id,text\na,fine\n{row}\nd,fine\n")
    with pytest.raises(GoalFileError) as caught:
        goals.load(path)
    assert str(caught.value).startswith(f"mine.csv line {number}: ")
    assert message in str(caught.value)


def test_a_csv_without_a_text_column_says_which_columns_it_has(tmp_path: Path) -> None:
    with pytest.raises(GoalFileError, match=r"line 1: .*`text` column, got 2 columns without it"):
        goals.load(written(tmp_path, "mine.csv", "id,goal\na,b\n"))


@pytest.mark.parametrize("name", ["empty.jsonl", "empty.csv"])
def test_an_empty_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(GoalFileError, match="empty"):
        goals.load(written(tmp_path, name, ""))


def test_a_csv_with_a_header_only_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GoalFileError, match="at least one goal"):
        goals.load(written(tmp_path, "g.csv", "id,text\n"))


def test_a_file_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(GoalFileError, match=r"nope\.jsonl.*does not exist"):
        goals.load(tmp_path / "nope.jsonl")


def test_another_kind_of_file_is_refused_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(GoalFileError, match=r"ends in \.jsonl or \.csv, got 'g\.txt'; rename or convert"):
        goals.load(written(tmp_path, "g.txt", "a"))


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GoalFileError, match="readable"):
        goals.load(tmp_path)


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "g.jsonl").write_bytes(b'{"text": "\xff"}')
    with pytest.raises(GoalFileError, match="UTF-8"):
        goals.load(tmp_path / "g.jsonl")


def test_a_path_with_a_nul_is_refused() -> None:
    with pytest.raises(GoalFileError, match="readable"):
        goals.load("a\0.jsonl")


def test_lone_surrogates_of_a_file_become_the_replacement_character(tmp_path: Path) -> None:
    line = '{"id": "\\ud800", "text": "\\ud800", "harmful": false, "turns": ["\\ud800"], "category": "\\ud800"}'
    (goal,) = goals.load(written(tmp_path, "g.jsonl", line))
    assert (goal.id, goal.text, goal.turns, goal.category) == ("\ufffd", "\ufffd", ("\ufffd",), "\ufffd")


def test_loading_leaves_the_limit_of_the_csv_module_alone(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    goals.load(written(tmp_path, "g.csv", "text\na\n"))
    assert csv.field_size_limit() == before
