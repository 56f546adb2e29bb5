"""Whom each side deviates to when a gap is measured."""

from __future__ import annotations

import numpy as np
import pytest

from rtg_solvers.empirical import Mixture
from rtg_solvers.gaps import oracle_deviations

BOTH = ("red", "blue")


def mixture(red: list[float], blue: list[float]) -> Mixture:
    names = [tuple(f"{side}{n}" for n in range(len(weights))) for side, weights in (("r", red), ("b", blue))]
    return Mixture(
        red=np.array(red), blue=np.array(blue), red_names=names[0], blue_names=names[1], value=0.0, expected=0.0
    )


@pytest.mark.parametrize(
    ("new", "asked", "wanted"),
    [
        ({"red": "r3", "blue": "b2"}, BOTH, ("r3", "b2")),  # both have learned
        ({"blue": "b2"}, BOTH, ("r2", "b2")),  # red has searched in vain: its newest
        ({"red": "r3"}, ("red",), ("r3", "b0")),  # red alone was to learn: blue stays with its part of the mixture
        ({"blue": "b2"}, ("blue",), ("r1", "b2")),
    ],
)
def test_a_side_deviates_to_what_it_learned_to_its_newest_or_to_nothing(new, asked, wanted) -> None:
    assert oracle_deviations(mixture([0.0, 1.0, 0.0], [1.0, 0.0]), new, asked) == wanted


def test_a_side_that_stays_with_several_members_deviates_to_its_newest() -> None:
    assert oracle_deviations(mixture([0.2, 0.8, 0.0], [1.0]), {"blue": "b1"}, ("blue",)) == ("r2", "b1")
