"""Skill and cycles: rock, paper, scissors; Elo; the disc game; and noise that looks like cycles."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtg_env.errors import PayoffShapeError
from rtg_solvers.geometry import Shape, controls, energy, nash_layers, num_cycles, pair_game, shape_of
from rtg_solvers.intervals import CellMeans, independent_cells
from rtg_solvers.payoffs import Cell, PayoffTensor, Samples
from rtg_solvers.records import from_record, to_record

ROCK = np.array([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]])


def exact(payoff: np.ndarray) -> CellMeans:
    return independent_cells(payoff, np.zeros(payoff.shape), np.full(payoff.shape, 2))


def disc(num: int) -> np.ndarray:
    """Points on a circle; each beats those within half a turn behind it."""
    angles = 2 * np.pi * np.arange(num) / num
    return np.sin(angles - angles[:, None])


def test_rock_paper_scissors_is_all_cycle() -> None:
    # Row and column means are 0, so I = U with mean square 6 / 9; cyclic energy is half of it.
    found = energy(exact(ROCK))
    assert found.transitive == pytest.approx(0.0, abs=1e-12)
    assert found.cyclic == pytest.approx(1 / 3)
    assert found.cyclic_share == pytest.approx(1.0)


def test_skill_alone_has_no_cycles() -> None:
    # Row effects -1, 0, 1 (mean square 2/3), column effects -2, 2 (mean square 4): (2/3 + 4) / 2.
    found = energy(exact(np.array([-1.0, 0.0, 1.0])[:, None] + np.array([-2.0, 2.0])))
    assert found.transitive == pytest.approx(7 / 3)
    assert found.cyclic == pytest.approx(0.0, abs=1e-12)
    assert found.cyclic_share == pytest.approx(0.0, abs=1e-12)


def test_the_disc_game_is_all_cycle_and_one_layer() -> None:
    assert energy(exact(disc(7))).cyclic_share == pytest.approx(1.0)
    (layer,) = nash_layers(disc(7))
    assert layer.members == tuple(range(7))
    # Of the 35 triples of 7 points on a circle, those that hold the centre are cycles: 14.
    assert layer.num_cycles == 14


def test_one_member_a_side_has_no_energy() -> None:
    found = energy(exact(np.array([[0.4]])))
    assert (found.transitive, found.cyclic) == (0.0, 0.0)
    assert np.isnan(found.cyclic_share)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 10_000))
def test_energies_are_those_of_the_pair_game_itself(rows: int, columns: int, seed: int) -> None:
    payoff = np.random.default_rng(seed).normal(size=(rows, columns))
    game = pair_game(payoff)
    assert game == pytest.approx(-game.T)
    rating = game.mean(axis=1)
    transitive = rating[:, None] - rating
    found = energy(exact(payoff))
    assert found.transitive == pytest.approx((transitive**2).mean(), abs=1e-12)
    assert found.cyclic == pytest.approx(((game - transitive) ** 2).mean(), abs=1e-12)


def test_the_pair_game_is_what_both_roles_win() -> None:
    # Pair (0, 0) against (1, 1): as red 0 against blue 1 it wins 0.2, as blue 0 against red 1 it loses 0.3.
    game = pair_game(np.array([[0.8, 0.2], [0.3, 0.6]]))
    assert game[0, 3] == pytest.approx((0.2 - 0.3) / 2)
    assert game[3, 0] == pytest.approx(-game[0, 3])


@pytest.mark.parametrize("clustered", [False, True])
def test_noise_is_taken_out_of_both_energies(clustered: bool) -> None:
    rng = np.random.default_rng(0)
    truth = 0.3 * rng.normal(size=6)[:, None] + 0.3 * rng.normal(size=5) + 0.1 * rng.normal(size=(6, 5))
    wanted, found = energy(exact(truth)), []
    for _ in range(300):
        errors = rng.normal(size=(40, 6, 5))
        mean = truth + errors.mean(axis=0)
        influence = (errors - errors.mean(axis=0)) / 40
        variance = 40 / 39 * (influence**2).sum(axis=0)
        cells = CellMeans(
            mean=mean, variance=variance, count=np.full((6, 5), 40), influence=influence if clustered else None
        )
        found.append(energy(cells))
    for name in ("transitive", "cyclic"):
        estimates = np.array([getattr(one, name) for one in found])
        error = estimates.std(ddof=1) / np.sqrt(300)
        assert abs(estimates.mean() - getattr(wanted, name)) < 4 * error
    uncorrected = np.mean([one.cyclic + 0.5 * (5 * 4 / 30) / 40 for one in found])
    assert uncorrected > 1.5 * wanted.cyclic


def test_controls_tell_noise_from_cycles() -> None:
    rng = np.random.default_rng(0)
    skill = rng.normal(size=6)[:, None] - rng.normal(size=6)
    cycle = skill + 1.5 * disc(6)
    shape = (6, 6)
    for payoff, cyclic in ((skill, False), (cycle, True)):
        noisy = payoff + rng.normal(size=shape) * 0.3
        cells = independent_cells(noisy, np.full(shape, 3.0), np.full(shape, 100))
        control = controls(cells, rng=np.random.default_rng(1), num=100)
        assert control.additive.size == control.shuffled.size == 100
        assert (energy(cells).cyclic_share > np.quantile(control.additive, 0.95)) == cyclic
        # Of 35 degrees of freedom, 25 are interaction.
        assert control.shuffled.mean() == pytest.approx(25 / 35, abs=0.07)


def test_controls_keep_goals_together() -> None:
    rng = np.random.default_rng(0)
    influence = np.repeat(rng.normal(size=(30, 1, 1)), 9, axis=1).reshape(30, 3, 3)
    influence -= influence.mean(axis=0)
    cells = CellMeans(mean=ROCK, variance=np.ones((3, 3)), count=np.full((3, 3), 30), influence=influence)
    # What goals do to all cells alike is no interaction: nothing is subtracted, and the additive control is exact.
    assert energy(cells).cyclic == pytest.approx(1 / 3)
    assert energy(cells).noise == pytest.approx(0.0, abs=1e-12)


def test_layers_of_skill_are_single_and_in_order() -> None:
    skill = np.array([0.3, 2.0, 1.0])
    assert [layer.members for layer in nash_layers(skill[:, None] - skill)] == [(1,), (2,), (0,)]
    assert [layer.num_cycles for layer in nash_layers(skill[:, None] - skill)] == [0, 0, 0]


def test_layers_are_cycles_on_top_of_cycles() -> None:
    # Two games of rock, paper, scissors; every strategy of the first beats every one of the second.
    game = np.block([[ROCK, np.full((3, 3), 2.0)], [np.full((3, 3), -2.0), ROCK]])
    layers = nash_layers(game)
    assert [layer.members for layer in layers] == [(0, 1, 2), (3, 4, 5)]
    assert [layer.num_cycles for layer in layers] == [1, 1]


def test_duplicates_share_a_layer_though_an_equilibrium_could_do_without() -> None:
    names = [0, 1, 2, 0]
    (layer,) = nash_layers(ROCK[np.ix_(names, names)])
    assert layer.members == (0, 1, 2, 3)
    assert layer.num_cycles == 2
    assert [layer.members for layer in nash_layers(np.zeros((3, 3)))] == [(0, 1, 2)]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 7), st.integers(0, 10_000), st.sampled_from([1e-6, 1.0, 1e6]))
def test_layers_part_the_members_and_follow_their_names(num: int, seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    half = rng.normal(size=(num, num)) * scale
    game, order = half - half.T, rng.permutation(num)
    layers = nash_layers(game)
    assert sorted(member for layer in layers for member in layer.members) == list(range(num))
    moved = nash_layers(game[np.ix_(order, order)])
    assert [sorted(order[list(layer.members)]) for layer in moved] == [sorted(layer.members) for layer in layers]
    assert sum(layer.num_cycles for layer in layers) <= num_cycles(game)


def test_a_game_that_is_not_antisymmetric_has_no_layers() -> None:
    with pytest.raises(PayoffShapeError, match="antisymmetric"):
        nash_layers(np.eye(2))
    with pytest.raises(PayoffShapeError, match="antisymmetric"):
        nash_layers(np.zeros((2, 3)))


def tensor(utilities: dict[tuple[str, str], list[float]], goals: tuple[str, ...]) -> PayoffTensor:
    samples = {
        Cell(*cell): Samples(utilities=np.array(values), goal_ids=goals, harmful=np.ones(len(goals), bool))
        for cell, values in utilities.items()
    }
    red, blue = sorted({r for r, _ in utilities}), sorted({b for _, b in utilities})
    return PayoffTensor(red=tuple(red), blue=tuple(blue), samples=samples)


def test_the_shape_of_a_payoff_tensor_names_its_members() -> None:
    # Matching pennies without noise: the row effects and column effects are 0, all energy is interaction.
    pennies = {("r0", "b0"): [1.0, 1.0], ("r0", "b1"): [0.0, 0.0], ("r1", "b0"): [0.0, 0.0], ("r1", "b1"): [1.0, 1.0]}
    shape = shape_of(tensor(pennies, ("g0", "g1")), rng=np.random.default_rng(0))
    assert shape is not None
    assert shape.cyclic_share == pytest.approx(1.0)
    assert shape.cyclic_energy == pytest.approx(0.125)  # interaction is 1/2 everywhere: (1/4) / 2
    assert sorted(shape.layers[0]) == [("r0", "b0"), ("r0", "b1"), ("r1", "b0"), ("r1", "b1")]
    assert from_record(Shape, json.loads(json.dumps(to_record(shape)))) == shape


def test_a_game_without_cycles_has_a_share_inside_its_control() -> None:
    rng = np.random.default_rng(1)
    goals = tuple(f"g{i}" for i in range(40))
    skill = {
        (f"r{r}", f"b{c}"): list(0.5 + 0.1 * r - 0.1 * c + 0.05 * rng.normal(size=40))
        for r in range(3)
        for c in range(3)
    }
    shape = shape_of(tensor(skill, goals), rng=rng)
    assert shape is not None
    assert shape.additive is not None
    assert shape.cyclic_share is not None
    assert shape.cyclic_share <= shape.additive[2]
    assert shape.layers[0] == (("r2", "b2"),)


def test_the_shape_from_one_goal_is_not_known() -> None:
    assert shape_of(tensor({("r0", "b0"): [0.5, 0.5]}, ("g", "g")), rng=np.random.default_rng(0)) is None
