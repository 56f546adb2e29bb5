"""The payoff tensor grows: what is asked for, what is kept."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from rtg_env.errors import PayoffShapeError
from rtg_solvers.payoffs import Cell, PayoffTensor, Samples


def dialogues(count: int, offset: float = 0.0) -> Samples:
    return Samples(
        utilities=offset + np.arange(count) / 1000,
        goal_ids=tuple(f"g{number}" for number in range(count)),
        harmful=np.arange(count) % 2 == 0,
    )


class Player:
    def __init__(self) -> None:
        self.asked: list[dict[Cell, int]] = []

    def __call__(self, wanted: Mapping[Cell, int]) -> dict[Cell, Samples]:
        self.asked.append(dict(wanted))
        return {cell: dialogues(count) for cell, count in wanted.items()}


def test_only_missing_cells_are_played_in_one_call() -> None:
    play = Player()
    first = PayoffTensor().extended(["r0"], ["b0"], play, 3)
    second = first.extended(["r0", "r1"], ["b0", "b1"], play, 2)
    second.extended(["r0", "r1"], ["b0", "b1"], play, 2)
    assert play.asked == [
        {Cell("r0", "b0"): 3},
        {Cell("r0", "b1"): 2, Cell("r1", "b0"): 2, Cell("r1", "b1"): 2},
    ]
    assert second.num_played.tolist() == [[3, 2], [2, 2]]


def test_cells_are_deepened_where_they_have_fewer_than_wanted() -> None:
    play = Player()
    tensor = PayoffTensor().extended(["r0"], ["b0", "b1"], play, 3).deepened(np.array([[3, 5]]), play)
    assert play.asked[1:] == [{Cell("r0", "b1"): 5}]
    assert tensor.num_played.tolist() == [[3, 5]]
    assert tensor.samples[Cell("r0", "b1")].goal_ids == ("g0", "g1", "g2", "g3", "g4")
    assert tensor.deepened(np.array([[1, 1]]), play) == tensor
    assert len(play.asked) == 2


def test_more_dialogues_than_were_asked_for_are_cut_off() -> None:
    tensor = PayoffTensor().extended(["r0"], ["b0"], lambda wanted: {cell: dialogues(9) for cell in wanted}, 4)
    assert tensor.num_played.tolist() == [[4]]
    assert tensor.samples[Cell("r0", "b0")].goal_ids == ("g0", "g1", "g2", "g3")


@pytest.mark.parametrize("found", [{}, {Cell("r0", "b0"): dialogues(2)}], ids=["none", "too few"])
def test_fewer_dialogues_than_were_asked_for_are_an_error(found: dict[Cell, Samples]) -> None:
    with pytest.raises(PayoffShapeError, match=r"expected 4 dialogues of r0 against b0, got [02]"):
        PayoffTensor().extended(["r0"], ["b0"], lambda wanted: found, 4)


def test_dialogues_follow_one_another() -> None:
    joined = dialogues(2).followed_by(dialogues(3, offset=0.5))
    assert joined.utilities.tolist() == [0.0, 0.001, 0.5, 0.501, 0.502]
    assert joined.goal_ids == ("g0", "g1", "g0", "g1", "g2")
    assert joined.harmful.tolist() == [True, False, True, False, True]
    assert joined.first(2).utilities.tolist() == [0.0, 0.001]
