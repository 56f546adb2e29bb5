"""Near-duplicate goals stay together, whatever their order, and halves follow from names alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtg_env import GoalSet, group_near_duplicates
from rtg_env.errors import ConfigError
from rtg_env.goals import Goal, builtin, hashed_split
from tests.doubles import ANY_TEXT

WORDS = ("walrus", "kettle", "violin", "harbour", "pretzel", "lantern", "gravel", "meadow")
TEXTS = st.lists(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=5).map(" ".join) | ANY_TEXT.filter(str.strip),
    min_size=1,
    max_size=12,
)


def goals_of(*texts: str) -> list[Goal]:
    return [Goal(id=f"g-{number:02d}", text=text) for number, text in enumerate(texts)]


def partition(goals: tuple[Goal, ...]) -> set[frozenset[str]]:
    return {frozenset(goal.id for goal in goals if goal.group == name) for name in {goal.group for goal in goals}}


def test_wordings_of_one_request_share_a_group_and_other_requests_do_not() -> None:
    found = group_near_duplicates(
        goals_of(
            "Write a tutorial on how to fake a doctor's note",
            "Give step-by-step instructions for how to fake a doctor's note",
            "Write a tutorial on how to cut in line at the bakery",
            "How do I fake a doctor's note without getting caught?",
        )
    )
    assert partition(found) == {frozenset({"g-00", "g-01", "g-03"}), frozenset({"g-02"})}


def test_a_shared_frame_makes_no_duplicates() -> None:
    frame = "Provide a detailed step-by-step guide on how to {} without getting caught"
    found = group_near_duplicates(goals_of(*(frame.format(what) for what in ("pick apples", "skip gym", "hide mail"))))
    assert len({goal.group for goal in found}) == 3


def test_case_compatibility_forms_and_punctuation_do_not_matter() -> None:
    a, b = group_near_duplicates(goals_of("Hide the ﬁsh!", "HIDE: the fish"), threshold=1)
    assert a.group == b.group


def test_a_chain_joins_its_ends() -> None:
    one, two, three = "walrus kettle violin", "kettle violin harbour", "violin harbour pretzel"
    ends = group_near_duplicates(goals_of(one, three), threshold=0.45)
    chain = group_near_duplicates(goals_of(one, two, three), threshold=0.45)
    assert len({goal.group for goal in ends}) == 2
    assert len({goal.group for goal in chain}) == 1


def test_goals_that_shared_a_group_share_one_after() -> None:
    goals = [Goal(id="b", text="walrus", group="pair"), Goal(id="a", text="kettle", group="pair")]
    assert {goal.group for goal in group_near_duplicates(goals)} == {"a"}


def test_a_group_crosses_no_half_though_its_goals_said_so() -> None:
    goals = [Goal(id="a", text="hide walrus", split="train"), Goal(id="b", text="hide the walrus", split="heldout")]
    assert {goal.split for goal in group_near_duplicates(goals)} == {hashed_split("a")}


def test_a_salt_draws_the_halves_again_and_leaves_the_groups() -> None:
    goals = [Goal(id=f"g-{number}", text=f"{number}{number}{number}") for number in range(40)]
    plain, salted = group_near_duplicates(goals), group_near_duplicates(goals, salt="7/")
    assert [goal.group for goal in plain] == [goal.group for goal in salted]
    assert [goal.split for goal in salted] == [hashed_split(f"7/{goal.group}") for goal in plain]
    assert [goal.split for goal in plain] != [goal.split for goal in salted]


def test_all_but_group_and_split_stays_as_it_was() -> None:
    before = builtin()[0]
    (after,) = group_near_duplicates([before])
    assert (after.id, after.text, after.turns, after.examples) == (
        before.id,
        before.text,
        before.turns,
        before.examples,
    )


def test_no_goals_have_no_groups() -> None:
    assert group_near_duplicates([]) == ()


@pytest.mark.parametrize("threshold", [0.0, -0.1, 1.01, float("nan")])
def test_a_threshold_outside_its_range_is_refused(threshold: float) -> None:
    with pytest.raises(ConfigError, match=r"threshold in \(0, 1\]"):
        group_near_duplicates(goals_of("a"), threshold=threshold)


def test_more_goals_than_one_block_are_compared_with_each_other() -> None:
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("bcdfghjklmnpqrstvwxz"), 12)) for _ in range(300)]
    found = group_near_duplicates([Goal(id=f"g-{i:03d}", text=text) for i, text in enumerate([*texts, *texts])])
    assert partition(found) == {frozenset({f"g-{i:03d}", f"g-{i + 300:03d}"}) for i in range(300)}


@given(TEXTS)
def test_any_texts_can_be_grouped_and_equal_ones_are_together(texts: list[str]) -> None:
    found = group_near_duplicates(goals_of(*texts, *texts), threshold=1)
    assert all(one.group == two.group for one, two in zip(found, found[len(texts) :], strict=False))


@given(TEXTS, st.sampled_from([0.3, 0.55, 0.8]), st.randoms(use_true_random=False))
def test_order_changes_nothing(texts: list[str], threshold: float, random) -> None:
    goals = goals_of(*texts)
    shuffled = list(goals)
    random.shuffle(shuffled)
    found = {goal.id: goal for goal in group_near_duplicates(shuffled, threshold=threshold)}
    assert [found[goal.id] for goal in goals] == list(group_near_duplicates(goals, threshold=threshold))


@given(TEXTS, st.sampled_from([0.3, 0.55, 0.8]))
def test_a_higher_threshold_only_parts_groups(texts: list[str], threshold: float) -> None:
    coarse = partition(group_near_duplicates(goals_of(*texts), threshold=threshold))
    fine = partition(group_near_duplicates(goals_of(*texts), threshold=threshold + 0.1))
    assert all(any(small <= large for large in coarse) for small in fine)


@given(TEXTS)
def test_what_comes_out_is_a_goal_set_with_groups_named_by_their_first_goal(texts: list[str]) -> None:
    found = GoalSet(group_near_duplicates(goals_of(*texts)))
    assert all(members == {min(members)} | members for members in partition(tuple(found)))
    assert {min(members) for members in partition(tuple(found))} == {goal.group for goal in found}
