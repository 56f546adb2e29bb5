"""The tuple log: three classes of verdicts that always sum up, and lines that fit together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtg_env.errors import ConfigError
from rtg_env.types import Verdict
from rtg_solvers.tuples import (
    AttackTuple,
    Place,
    StageSize,
    TupleLog,
    parse_guard,
    raw_verdict,
    read_tuples,
    verdict_class,
    write_tuples,
)
from tests.doubles import ANY_TEXT, failed, verdict

SECRET = "unmistakable words"
LINE = {"seed_id": "s", "attack": SECRET, "reply": SECRET, "verdict_raw": "safe"}


def written(tmp_path: Path, *lines: object) -> Path:
    path = tmp_path / "t.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("safe", "safe"),
        ("\n\nsafe", "safe"),
        ("  safe \r\n", "safe"),
        ("unsafe\nS3", "unsafe"),
        ("\n\nunsafe\nO3,O4", "unsafe"),
        ("unsafe", "unsafe"),
        ("Unsafe\nS3", "invalid"),
        ("UNSAFE", "invalid"),
        ("safe. not unsafe", "invalid"),
        ("not unsafe", "invalid"),
        ("unsafe safe", "invalid"),
        ("safe\nunsafe\nS3", "invalid"),
        ("unsafe\nsafe", "invalid"),
        ("safe\u2028unsafe", "invalid"),
        ("safe\x0bunsafe", "invalid"),
        ("\u200bsafe", "invalid"),
        ("ｓafe", "invalid"),
        ("un\nsafe", "invalid"),
        ("", "invalid"),
        ("\n", "invalid"),
        pytest.param("safe" * 1_000_000, "invalid", id="huge"),
    ],
)
def test_a_guard_is_read_to_the_letter(text: str, expected: str) -> None:
    assert parse_guard(text) == expected


@settings(deadline=None)
@given(ANY_TEXT, ANY_TEXT)
def test_no_text_with_unsafe_in_its_first_line_is_read_as_safe(before: str, after: str) -> None:
    assert parse_guard(before.replace("\n", "") + "unsafe" + after) != "safe"
    assert parse_guard(f"{before}\nunsafe\n{after}") != "safe"


@pytest.mark.parametrize(
    ("given_verdict", "expected"),
    [(verdict(0.5), "safe"), (verdict(0.51), "unsafe"), (verdict(0.0), "safe"), (failed(), "invalid")],
)
def test_a_scoring_judge_is_unsafe_above_the_threshold_and_invalid_where_it_failed(given_verdict, expected) -> None:
    assert verdict_class(given_verdict) == expected


@pytest.mark.parametrize("harm", [float("nan"), -0.1, 1.1, float("inf")])
def test_numbers_outside_their_range_are_no_verdict(harm: float) -> None:
    assert verdict_class(Verdict(harm=harm, refusal=0.0, helpful=0.0)) == "invalid"


def test_the_threshold_is_checked_and_raw_verdicts_are_strict_json() -> None:
    with pytest.raises(ConfigError, match="threshold"):
        verdict_class(verdict(0.5), threshold=1.0)
    assert json.loads(raw_verdict(failed()), parse_constant=pytest.fail)["raw"] == {"error": "asked to fail"}


TUPLES = st.lists(
    st.builds(
        lambda seed, attack, reply, reply_text, verdict: AttackTuple(
            seed_id=f"s{seed}",
            prompt=f"prompt {seed}\x1b[2J",
            seed_type="t",
            attack=f"attack {seed} {attack} \u202e",
            attack_index=attack,
            reply=reply_text,
            reply_index=reply,
            verdict=verdict,
            judge_id="j@1",
        ),
        *(st.integers(0, 3),) * 3,
        ANY_TEXT,
        st.sampled_from(["unsafe", "safe", "invalid"]),
    ),
    min_size=1,
    max_size=20,
    unique_by=lambda item: item.place,
)


@settings(max_examples=15, deadline=None)
@given(tuples=TUPLES)
def test_writing_and_reading_is_the_identity_and_verdicts_sum_up(tuples: list[AttackTuple], tmp_path_factory) -> None:
    path = tmp_path_factory.mktemp("log") / "t.jsonl"
    assert write_tuples(path, tuples) == len(tuples)
    log = read_tuples(path)
    assert [item.place for item in log.tuples] == [item.place for item in tuples]
    again = path.with_name("u.jsonl")
    write_tuples(again, log.tuples)
    assert read_tuples(again) == log  # lone surrogates became U+FFFD the first time
    assert sum(log.verdicts.values()) == len(tuples)
    assert all(
        item.reply == known.reply for item, known in zip(log.tuples, tuples, strict=True) if known.reply.isascii()
    )


def test_the_published_field_names_are_read_and_seeds_named_without_their_text(tmp_path: Path) -> None:
    rows = [("p", "a", "unsafe\nS1"), ("p", "a", "safe"), ("p", "b", "safe"), ("q", "a", "Unsafe"), ("p", "a", "safe")]
    lines = [
        {"prompt": p + SECRET, "category": "C", "atk_output": a, "tgt_output": "r", "evaluation": e} for p, a, e in rows
    ]
    log = read_tuples(written(tmp_path, *lines))
    first, other = log.tuples[0].seed_id, log.tuples[3].seed_id
    assert [item.place for item in log.tuples] == [
        Place(first, 0, 0),
        Place(first, 0, 1),
        Place(first, 1, 0),
        Place(other, 0, 0),
        Place(first, 0, 2),
    ]
    assert SECRET not in first
    assert log.verdicts == {"unsafe": 1, "safe": 3, "invalid": 1}
    assert (log.num_seeds, log.num_attacks, log.tuples[0].seed_type) == (2, 3, "C")


def test_other_fields_are_left_alone_and_named(tmp_path: Path) -> None:
    assert read_tuples(written(tmp_path, {**LINE, "model": "m", "step": 3})).ignored_fields == ("model", "step")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (json.dumps({**LINE, "verdict": "Unsafe"}), "expected verdict unsafe, safe or invalid"),
        (json.dumps({**LINE, "verdict": "safe", "verdict_raw": "unsafe\nS3"}), "to agree"),
        (json.dumps({**LINE, "verdict": "safe", "verdict_raw": "Unsafe\nS3"}), "to agree"),
        (json.dumps({**LINE, "verdict": "unsafe", "verdict_raw": "safe"}), "to agree"),
        (json.dumps({**LINE, "verdict": True}), "got bool"),
        (json.dumps({**LINE, "verdict": SECRET}), "got another text"),
        (json.dumps({**LINE, "attack_index": SECRET}), "from 0, got str"),
        (json.dumps({**LINE, "verdict_raw": 0.3}), "got float"),
        (json.dumps({**LINE, "verdict_raw": None}), "`verdict` or `verdict_raw`"),
        (json.dumps({**LINE, "attack": None}), "'attack', it is missing"),
        (json.dumps({**LINE, "reply": {"x": SECRET}}), "got dict"),
        (json.dumps({**LINE, "seed_id": ""}), "neither"),
        (json.dumps({**LINE, "seed_id": 7}), "got int"),
        (json.dumps({**LINE, "attack_index": -1}), "whole number from 0"),
        (json.dumps({**LINE, "attack_index": True}), "whole number from 0"),
        (json.dumps({**LINE, "attack_index": 1.0}), "whole number from 0"),
        (json.dumps({**LINE, "reply_index": "0"}), "whole number from 0"),
        (json.dumps({**LINE, "reply_index": 0}), "reply 0 to attack 0 of its seed once"),
        (json.dumps({**LINE, "attack": "other", "attack_index": 0}), "at its index 0, got another"),
        (json.dumps({**LINE, "prompt": "other"}), "got others"),
        (json.dumps({**LINE, "atk_output": SECRET}), "under two names"),
        (json.dumps(LINE)[:-1] + ', "reply": "b"}', "'reply' stands twice"),
        (json.dumps(LINE)[:-1] + ', "x": NaN}', "NaN is no JSON number"),
        (json.dumps(LINE)[:-1] + ', "x": -Infinity}', "-Infinity is no JSON number"),
        (json.dumps(LINE)[:-1], "whole JSON object"),
        pytest.param(json.dumps(LINE)[:-1] + ', "x": ' + "9" * 5000 + "}", "plain JSON object", id="long number"),
        ('"unmistakable words"', "got str"),
        pytest.param("{" + " " * 4_000_001, "at most 4000000 bytes", id="huge line"),
    ],
)
def test_a_broken_line_is_named_and_never_quoted(tmp_path: Path, line: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=r"t\.jsonl line 2") as caught:
        read_tuples(written(tmp_path, LINE, line))
    assert complaint in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_judge_may_withdraw_a_verdict_that_reads_well(tmp_path: Path) -> None:
    assert read_tuples(written(tmp_path, {**LINE, "verdict": "invalid"})).verdicts["invalid"] == 1


def test_the_papers_stage_has_five_thousand_times_five_times_five() -> None:
    assert (StageSize().num_attacks, StageSize().num_tuples) == (25_000, 125_000)
    with pytest.raises(ConfigError, match="at least 1"):
        StageSize(replies=0)


def test_only_whole_seeds_are_finished() -> None:
    def item(seed: str, attack: int, reply: int) -> AttackTuple:
        return AttackTuple(seed_id=seed, attack="a", attack_index=attack, reply="r", reply_index=reply, verdict="safe")

    size = StageSize(seeds=2, attacks=2, replies=2)
    whole = [item("a", attack, reply) for attack in (0, 1) for reply in (0, 1)]
    assert TupleLog((*whole, item("b", 0, 0), item("b", 0, 1), item("b", 1, 0))).finished_seeds(size) == {"a"}
