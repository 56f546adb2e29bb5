"""Preference pairs: the published rules by hand, ties, caps, and that everything dropped is counted once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtg_env.errors import ConfigError
from rtg_solvers.pair_files import read_pairs, write_pairs
from rtg_solvers.pairs import (
    GENERAL_PAIRS,
    BuiltPairs,
    PairSettings,
    PreferencePair,
    mix_pairs,
    red_pairs,
    target_pairs,
)
from rtg_solvers.tuples import AttackTuple, Place, StageSize

CLASS = {"u": "unsafe", "s": "safe", "i": "invalid"}


def stage(**seeds: Sequence[str]) -> list[AttackTuple]:
    """One word per attack, one letter per reply: stage(a=["uus", "sss"])."""
    return [
        AttackTuple(
            seed_id=seed,
            prompt=f"read {seed}",
            attack=f"{seed} attack {number}",
            attack_index=number,
            reply=f"{seed} {number} reply {place} {letter}",
            reply_index=place,
            verdict=CLASS[letter],  # type: ignore[arg-type]
        )
        for seed, attacks in seeds.items()
        for number, letters in enumerate(attacks)
        for place, letter in enumerate(letters)
    ]


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def places(found: BuiltPairs) -> list[tuple[Place | None, Place | None]]:
    return [(pair.chosen_place, pair.rejected_place) for pair in found.pairs]


# Red


def test_reds_pair_is_the_strongest_attack_over_the_weakest() -> None:
    found = red_pairs(stage(a=["ussss", "uuuss", "sssss", "uusss"]))  # shares 1/5, 3/5, 0, 2/5
    assert places(found) == [(Place("a", 1), Place("a", 2))]
    (pair,) = found.pairs
    assert (pair.prompt, pair.chosen, pair.rejected) == ("read a", "a attack 1", "a attack 2")
    assert (pair.chosen_unsafe_share, pair.rejected_unsafe_share) == (0.6, 0.0)


def test_the_first_seen_wins_ties_also_between_different_numbers_of_verdicts() -> None:
    # Shares 1/2, 2/4, 0/1, 0/4: equal shares, whatever they are shares of.
    found = red_pairs(stage(a=["uiss", "uuss", "siii", "ssss"]), PairSettings(replies_per_attack=2))
    assert found.pairs[0].chosen_place == Place("a", 1)
    assert places(red_pairs(stage(a=["usii", "uuss", "ssii", "ssss"]))) == [(Place("a", 0), Place("a", 2))]


@pytest.mark.parametrize(
    ("attacks", "why"),
    [
        (["sss", "sss"], "all replies safe"),
        (["uuu", "uuu"], "all replies unsafe"),
        (["uss", "ssu"], "all attacks equally strong"),
        (["uss"], "one attack only"),
        (["iii", "iii"], "no attack can be ranked"),
        (["iii", "uss"], "one attack only"),
    ],
)
def test_a_seed_whose_attacks_do_not_differ_gives_no_pair(attacks: list[str], why: str) -> None:
    found = red_pairs(stage(a=attacks))
    assert found.pairs == ()
    assert found.tallies["seeds"] == (1, 0, {why: 1})


def test_an_attack_needs_verdicts_on_half_of_its_replies() -> None:
    # ceil(5 / 2) = 3: two verdicts rank nothing, three do.
    found = red_pairs(stage(a=["uuiii", "uusii", "sssss"]))
    assert places(found) == [(Place("a", 1), Place("a", 2))]
    assert found.tallies["attacks"] == (3, 2, {"fewer than half of its replies have a verdict": 1})
    assert found.tallies["replies"] == (15, 8, {"no valid verdict": 5, "its attack was dropped": 2})


def test_replies_that_never_came_count_against_an_attack_where_their_number_is_known() -> None:
    log = stage(a=["uu", "sssss"])
    assert len(red_pairs(log).pairs) == 1
    assert red_pairs(log, PairSettings(replies_per_attack=5)).pairs == ()


@pytest.mark.parametrize(("margin", "count"), [(0.0, 1), (0.2, 1), (0.21, 0)])
def test_min_margin_is_reached_by_an_equal_difference(margin: float, count: int) -> None:
    assert len(red_pairs(stage(a=["uuuss", "uusss"]), PairSettings(min_margin=margin)).pairs) == count  # 3/5 - 2/5


@pytest.mark.parametrize(
    ("attacks", "count"), [(["uuuss", "uusss"], 1), (["uusss", "sssss"], 0), (["uuuuu", "uuuss"], 0), (["us", "ss"], 0)]
)
def test_success_and_failure_may_be_required_of_a_pair(attacks: list[str], count: int) -> None:
    assert len(red_pairs(stage(a=attacks), PairSettings(require_success_and_failure=True)).pairs) == count


def test_equal_attacks_of_a_seed_are_counted_together_and_those_of_other_seeds_are_not() -> None:
    log = [
        AttackTuple(seed_id=seed, attack=attack, attack_index=index, reply="r", reply_index=0, verdict=verdict)
        for seed, attack, index, verdict in [
            ("a", "one", 0, "unsafe"),
            ("a", " one ", 1, "safe"),
            ("a", "two", 2, "safe"),
            ("b", "one", 0, "unsafe"),
        ]
    ]
    found = red_pairs(log)
    assert (found.pairs[0].chosen_unsafe_share, found.pairs[0].rejected_unsafe_share) == (0.5, 0.0)
    assert found.tallies["attacks"] == (4, 3, {"same text as another of its seed": 1})
    apart = red_pairs(log, PairSettings(dedupe=False))
    assert apart.tallies["seeds"].dropped == {"chosen and rejected are equal": 1, "all replies unsafe": 1}


def test_empty_and_long_attacks_are_dropped() -> None:
    log = [
        AttackTuple(seed_id="a", attack=text, attack_index=index, reply="r", verdict=verdict)
        for index, (text, verdict) in enumerate(
            [("x" * 3001, "unsafe"), (" \n", "unsafe"), ("x" * 3000, "unsafe"), ("y", "safe")]
        )
    ]
    found = red_pairs(log)
    assert places(found) == [(Place("a", 2), Place("a", 3))]
    assert found.tallies["attacks"] == (4, 2, {"over 3000 characters": 1, "empty": 1})
    assert red_pairs(log, PairSettings(max_chars=None)).pairs[0].chosen_place == Place("a", 0)


# Target


def test_the_targets_pair_is_the_first_safe_reply_over_the_first_unsafe_one() -> None:
    found = target_pairs(stage(a=["iusus", "sssss", "uuuuu", "iiiii"]), rng=rng())
    assert places(found) == [(Place("a", 0, 2), Place("a", 0, 1))]
    (pair,) = found.pairs
    assert (pair.prompt, pair.chosen, pair.rejected) == ("a attack 0", "a 0 reply 2 s", "a 0 reply 1 u")
    assert found.tallies["attacks"] == (
        4,
        1,
        {"all replies safe": 1, "all replies unsafe": 1, "no reply can be used": 1},
    )
    assert found.tallies["replies"] == (
        20,
        2,
        {"no valid verdict": 6, "not the first of its verdict": 2, "its attack gave no pair": 10},
    )


def test_replies_that_are_empty_long_or_equal_make_no_pair() -> None:
    replies = [
        ("a", "x" * 3001, "safe"),
        ("a", "no", "unsafe"),
        ("b", " ", "unsafe"),
        ("b", "yes", "safe"),
        ("c", "same", "safe"),
        ("c", " same", "unsafe"),
    ]
    log = [
        AttackTuple(seed_id=s, attack=s, reply=text, reply_index=index, verdict=verdict)
        for index, (s, text, verdict) in enumerate(replies)
    ]
    found = target_pairs(log, rng=rng())
    assert found.pairs == ()
    assert found.tallies["attacks"].dropped == {
        "all replies unsafe": 1,
        "all replies safe": 1,
        "chosen and rejected are equal": 1,
    }
    assert found.tallies["replies"].dropped == {"over 3000 characters": 1, "empty": 1, "its attack gave no pair": 4}


def test_one_attack_text_gives_one_target_pair_in_the_whole_log() -> None:
    log = [
        AttackTuple(seed_id=seed, attack="one", reply=f"{seed} {verdict}", reply_index=index, verdict=verdict)
        for seed in ("a", "b")
        for index, verdict in enumerate(("safe", "unsafe"))
    ]
    assert places(target_pairs(log, rng=rng())) == [(Place("a", 0, 0), Place("a", 0, 1))]
    assert len(target_pairs(log, PairSettings(dedupe=False), rng=rng()).pairs) == 2


def test_a_seeded_choice_of_the_targets_pairs_is_kept_in_order() -> None:
    log = stage(**{f"s{number:03d}": ["us"] for number in range(100)})
    settings = PairSettings(max_target_pairs=30)
    found = target_pairs(log, settings, rng=rng())
    ids = [pair.chosen_place.seed_id for pair in found.pairs if pair.chosen_place]
    assert len(ids) == 30
    assert ids == sorted(ids)
    assert target_pairs(log, settings, rng=rng()).pairs == found.pairs
    assert target_pairs(log, settings, rng=np.random.default_rng(1)).pairs != found.pairs
    assert found.tallies["attacks"] == (100, 30, {"beyond the number of pairs wanted": 70})
    assert len(target_pairs(log, PairSettings(max_target_pairs=None), rng=rng()).pairs) == 100


# Counts


LOGS = st.lists(
    st.tuples(
        st.integers(0, 3), st.integers(0, 3), st.sampled_from("usi"), st.sampled_from(["", "a", " a", "bb", "ccc"])
    ),
    max_size=40,
)


@settings(deadline=None)
@given(LOGS, st.booleans(), st.sampled_from([None, 1, 2]), st.sampled_from([None, 1]), st.floats(0, 1))
def test_whatever_is_not_used_is_counted_once(rows, dedupe, max_chars, cap, margin) -> None:
    log = [
        AttackTuple(
            seed_id=f"s{seed}",
            attack=("x", "x ", "", "yyy")[attack],
            attack_index=attack,
            reply=reply,
            reply_index=index,
            verdict=CLASS[letter],
        )
        for index, (seed, attack, letter, reply) in enumerate(rows)
    ]
    rules = PairSettings(dedupe=dedupe, max_chars=max_chars, max_target_pairs=cap, min_margin=margin)
    red, target = red_pairs(log, rules), target_pairs(log, rules, rng=rng())
    sizes = {
        "seeds": len({item.seed_id for item in log}),
        "attacks": len({item.place[:2] for item in log}),
        "replies": len(log),
    }
    for found, kinds in ((red, sizes), (target, {"attacks": 0, "replies": 0})):
        assert set(found.tallies) == set(kinds)
        for kind, tally in found.tallies.items():
            assert tally.total == sizes[kind]
            assert tally.used + sum(tally.dropped.values()) == tally.total
            assert all(count > 0 for count in tally.dropped.values())
    assert red.tallies["seeds"].used == len(red.pairs)
    assert target.tallies["replies"].used == 2 * len(target.pairs)
    by_place = {item.place: item for item in log}
    for pair in target.pairs:
        assert pair.chosen_place is not None
        assert pair.rejected_place is not None
        assert by_place[pair.chosen_place].verdict == "safe"
        assert by_place[pair.rejected_place].verdict == "unsafe"
    assert all(pair.chosen.strip() != pair.rejected.strip() for pair in (*red.pairs, *target.pairs))


@settings(deadline=None)
@given(LOGS)
def test_an_unreadable_verdict_changes_no_pair_of_the_target(rows) -> None:
    log = [
        AttackTuple(seed_id="s", attack=f"{a}", attack_index=a, reply=f"r{i}", reply_index=i, verdict=CLASS[v])
        for i, (_, a, v, _) in enumerate(rows)
    ]
    without = [item for item in log if item.verdict != "invalid"]
    assert set(target_pairs(log, rng=rng()).pairs) == set(target_pairs(without, rng=rng()).pairs)  # in another order


def test_the_papers_sizes_are_counted_to_the_last_tuple() -> None:
    # Of every ten seeds one is all safe and one all unsafe; the others have shares 0, 1/5, .., 4/5.
    graded = ["sssss", "ussss", "uusss", "uuuss", "uuuus"]
    kinds = (["sssss"] * 5, ["uuuuu"] * 5, *[graded] * 8)
    log = stage(**{f"s{number:04d}": kinds[number % 10] for number in range(5000)})
    assert len(log) == StageSize().num_tuples
    red, target = red_pairs(log), target_pairs(log, rng=rng())
    assert red.tallies["seeds"] == (5000, 4000, {"all replies safe": 500, "all replies unsafe": 500})
    assert red.tallies["attacks"] == (25_000, 25_000, {})
    assert red.tallies["replies"] == (125_000, 125_000, {})
    assert {(p.chosen_place.attack, p.rejected_place.attack) for p in red.pairs} == {(4, 0)}  # type: ignore[union-attr]
    assert len(target.pairs) == 2000
    assert target.tallies["attacks"].dropped == {
        "all replies safe": 500 * 5 + 4000,
        "all replies unsafe": 2500,
        "beyond the number of pairs wanted": 14_000,
    }


# Mixing and files


def test_flipped_pairs_are_the_same_ones_told_the_other_way_round() -> None:
    log = stage(a=["uus", "sss"], b=["uss", "uuu"])
    for build in (red_pairs, lambda log, settings: target_pairs(log, settings, rng=rng())):
        told, flipped = build(log, PairSettings()), build(log, PairSettings(flipped=True))
        assert flipped.tallies == told.tallies
        assert [(p.rejected, p.rejected_place, p.rejected_unsafe_share) for p in flipped.pairs] == [
            (p.chosen, p.chosen_place, p.chosen_unsafe_share) for p in told.pairs
        ]
        assert [(p.chosen, p.chosen_place, p.chosen_unsafe_share) for p in flipped.pairs] == [
            (p.rejected, p.rejected_place, p.rejected_unsafe_share) for p in told.pairs
        ]
        assert [p.prompt for p in flipped.pairs] == [p.prompt for p in told.pairs]
        assert flipped.pairs


def test_lengths_say_which_side_is_the_shorter() -> None:
    said = [("one", "one two"), ("one two three", "one"), ("one", "two"), ("a", "b c d e")]
    found = BuiltPairs(tuple(PreferencePair(prompt="p", chosen=c, rejected=r) for c, r in said), {})
    assert found.lengths == (1.5, 2.0, 0.625)  # shorter, longer, equal, shorter
    assert BuiltPairs((), {}).lengths is None


def test_general_pairs_are_drawn_once_each_and_shuffled_among_the_targets() -> None:
    own = [PreferencePair(prompt="o", chosen=f"o{i}", rejected="x") for i in range(5)]
    general = [PreferencePair(prompt="g", chosen=f"g{i}", rejected="x") for i in range(50)]
    mixed = mix_pairs(own, general, num_general=20, rng=rng())
    chosen = [pair.chosen for pair in mixed]
    assert len(set(chosen)) == 25
    assert {pair.chosen for pair in own} <= set(chosen)
    assert [name[0] for name in chosen] != sorted(name[0] for name in chosen)
    assert mix_pairs(own, general, num_general=20, rng=rng()) == mixed
    assert len(mix_pairs([], general, num_general=50, rng=rng())) == 50
    assert mix_pairs([], [], num_general=0, rng=rng()) == []
    assert GENERAL_PAIRS == (7000, 14000, 14000)
    with pytest.raises(ConfigError, match="the 50 general pairs there are, got 51"):
        mix_pairs(own, general, num_general=51, rng=rng())


def test_pair_files_come_back_as_they_were(tmp_path) -> None:
    log = stage(a=["us", "ss"])
    pairs = [*red_pairs(log).pairs, *target_pairs(log, rng=rng()).pairs]
    assert write_pairs(tmp_path / "p.jsonl", pairs) == 2
    assert read_pairs(tmp_path / "p.jsonl") == pairs


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"prompt": "p", "chosen": "SECRET"}', "'rejected', it is missing"),
        ('{"prompt": [{"role": "user"}], "chosen": "SECRET", "rejected": "b"}', "got list"),
        ('{"prompt": "p", "chosen": "SECRET", "rejected": "SECRET "}', "equal texts"),
        ('{"prompt": "p", "chosen": "SECRET", "rejected": "b", "chosen_place": ["s", true, 0]}', "chosen_place"),
        ('{"prompt": "p", "chosen": "SECRET", "rejected": "b", "chosen_unsafe_share": 1e999}', "share in"),
    ],
)
def test_broken_pairs_are_named_and_never_quoted(tmp_path, line: str, complaint: str) -> None:
    (tmp_path / "p.jsonl").write_text(line)
    with pytest.raises(ConfigError, match="line 1") as caught:
        read_pairs(tmp_path / "p.jsonl")
    assert complaint in str(caught.value)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong", [{"min_margin": -0.1}, {"min_margin": float("nan")}, {"max_chars": 0}, {"max_target_pairs": 0}]
)
def test_settings_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        PairSettings(**wrong)
