"""Benchmarks that are run elsewhere, tried at a size that any machine has."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import t as student


def time_of(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def test_large_shapes_are_measured_by_code_that_runs_at_a_tiny_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import random_models

    found = random_models.measure("tiny", "cpu", 1, time_of)
    # Embedding (shared with the head) 1024 x 128; per layer q, o 128 x 128, k, v 128 x 64, three of 128 x 256, two norms.
    assert found["parameters"] == 1024 * 128 + 2 * (2 * 128**2 + 2 * 128 * 64 + 3 * 128 * 256 + 2 * 128) + 128
    (decode,) = found["decode"]
    assert 0 < decode["floor : step"] < 1
    assert decode["tokens_per_s"] > 0
    assert 0 < found["train"]["share of the matmul rate"] < 1


def test_the_floor_of_decoding_counts_what_a_step_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import random_models

    backend = random_models.random_backend("tiny", "cpu", policies=3)
    few, more = (random_models.floor_bytes(backend, rows, 10) for rows in (1, 3))
    assert more - few == 2 * 10 * (2 * 2 * 2 * 32 * 4)  # rows, tokens, keys and values of 2 layers, 2 heads, 32 floats
    weights = 4 * sum(p.numel() for p in backend.bank.model.parameters())
    slots = len(next(iter(backend.bank.layers.values())).down)
    factors = 16 * 2 * (2 * (128 + 128) + 2 * (128 + 64) + 3 * (128 + 256))
    assert few == weights + 4 * slots * factors + 10 * (2 * 2 * 2 * 32 * 4)


def test_matrix_games_are_what_they_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import matrix_games

    rng = np.random.default_rng(0)
    symmetric = [matrix_games.skill(7, rng), matrix_games.blotto(4, 3), matrix_games.rock_paper_scissors()]
    for payoff in (*symmetric, matrix_games.transitive(5, rng), matrix_games.disc(5, rng)):
        assert np.allclose(payoff, -payoff.T)
        assert np.abs(payoff).max() <= 1.0
    # Four soldiers on three fields: 15 plans.
    plans = [(a, b, 4 - a - b) for a in range(5) for b in range(5 - a)]
    blotto = matrix_games.blotto(4, 3)
    assert blotto.shape == (15, 15)
    assert blotto[plans.index((1, 1, 2)), plans.index((4, 0, 0))] == 1.0
    assert blotto[plans.index((2, 2, 0)), plans.index((4, 0, 0))] == 0.0  # one field each, the third is tied


def test_the_published_saddle_is_found_by_every_solver_but_one_that_averages_over_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("pyspiel")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import ground_truth_games

    section = ground_truth_games.seas(1)
    # Projected replicator dynamics reports an average over time, which remembers its uniform start.
    missed = {bar.name: bar.value for bar in section.bars if not bar.holds}
    assert missed == {"SEAS cross-play, replicator-dynamics: weight of (R3, T3)": pytest.approx(0.924, abs=2e-3)}
    assert section.figures["nash_conv_of_pairs"] == [92.05, 89.98, 68.01, 0.0]


def test_an_iteration_plays_its_new_row_and_column_and_nothing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import ground_truth_cost
    from ground_truth_parts import Options

    from rtg_solvers.payoffs import Cell, PayoffTensor

    # One member a side: 2 x 2 cells after the first iteration, 3 of them new, then 5, 7 and 9; 4 dialogues in each.
    assert ground_truth_cost.dialogues_by_iteration((1, 1), 4, 4, 0) == [12, 20, 28, 36]
    section = ground_truth_cost.iteration_cost(Options(seed=0, quick=True))
    assert [bar.value for bar in section.bars] == [0, 0, 0, 0]
    # A loop that plays all cells anew is found out.
    forgetful = lambda self, red, blue, play, count: PayoffTensor(  # noqa: E731
        red=tuple(red),
        blue=tuple(blue),
        bounds=self.bounds,
        samples=play({Cell(r, b): count for r in red for b in blue}),
    )
    monkeypatch.setattr(PayoffTensor, "extended", forgetful)
    assert ground_truth_cost.dialogues_by_iteration((1, 1), 4, 4, 0) == [16, 36, 64, 100]
    assert not any(bar.holds for bar in ground_truth_cost.iteration_cost(Options(seed=0, quick=True)).bars)


@pytest.fixture
def population(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The modules of the benchmark of population methods."""
    pytest.importorskip("pyspiel")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import population_games
    import population_methods
    import population_psro
    import population_runs
    import population_verdict

    return SimpleNamespace(
        games=population_games,
        methods=population_methods,
        psro=population_psro.psro,
        runs=population_runs,
        verdict=population_verdict,
    )


def test_games_in_sequences_are_worth_what_openspiel_says(population: SimpleNamespace) -> None:
    import pyspiel
    from open_spiel.python.algorithms import exploitability
    from open_spiel.python.algorithms.expected_game_score import policy_value
    from open_spiel.python.policy import UniformRandomPolicy

    from rtg_solvers import tabular

    two = tabular.load(tabular.TableSettings(num_exchanges=2, num_goals=2, num_tactics=2, num_styles=3, seed=3))
    for game, tree, low, spread in (
        (pyspiel.load_game("kuhn_poker"), population.games.kuhn(0), -2.0, 4.0),
        (two, population.games.two_exchanges(3), 0.0, 1.0),
    ):
        policy = UniformRandomPolicy(game)
        red, blue = tree.uniform("red"), tree.uniform("blue")
        value = policy_value(game.new_initial_state(), [policy, policy])[0]
        assert low + spread * tree.value(red, blue) == pytest.approx(value)
        assert spread * tree.nash_conv(red, blue) == pytest.approx(exploitability.nash_conv(game, policy))
        assert tree.odds(red, blue) @ tree.utilities == pytest.approx(tree.value(red, blue))
    # Leduc's uniform exploitability, in chips: 2.3736 (facts of OpenSpiel's games; NashConv is twice that, the range 26).
    leduc = population.games.leduc(0)
    assert leduc.nash_conv(leduc.uniform("red"), leduc.uniform("blue")) == pytest.approx(2 * 2.3736 / 26, abs=1e-5)


def test_nearly_best_responses_lose_no_more_than_they_may_and_are_all_drawn(population: SimpleNamespace) -> None:
    rng = np.random.default_rng(0)
    tree = population.games.from_matrix(np.array([[0.0, 1.0], [0.9, 0.05], [0.2, 0.2]]), all_or_nothing=True)
    half = np.array([1.0, 0.5, 0.5])  # rows are worth .5, .475 and .2 against it
    for tolerance, rows in ((0.0, {0}), (0.03, {0, 1}), (0.31, {0, 1, 2})):
        drawn = tree.near_best("red", half, tolerance, 60, rng)
        assert set(drawn[:, 1:].argmax(axis=1)) == rows
        assert (drawn.sum(axis=1) == 2).all()  # the empty sequence and one row
    deep = population.games.two_exchanges(1)
    for role, other in (("red", deep.uniform("blue")), ("blue", deep.uniform("red"))):
        best = deep.best_value(role, other)
        for tolerance in (0.0, 0.1):
            plans = deep.near_best(role, other, tolerance, 200, rng)
            lost = best - plans @ deep.gains(role, other)
            assert -1e-9 < lost.min() <= lost.max() <= tolerance + 1e-9
        assert lost.max() > 0.005  # it is a handicap


def test_dialogues_of_members_are_prefixes_and_average_to_the_payoff(population: SimpleNamespace) -> None:
    from rtg_solvers.payoffs import Cell

    players = population.runs.Players(population.games.leduc(0), seed=1)
    cell = Cell("red_00@v1", "blue_00@v1")
    many = players.dialogues(cell, 20_000)
    assert (players.dialogues(cell, 50) == many[:50]).all()
    assert players.num_dialogues == 20_000
    assert len(set(many)) > 5  # chips won and lost, not all or nothing
    error = many.std() / np.sqrt(many.size)
    uniform = (players.tree.uniform("red"), players.tree.uniform("blue"))
    assert many.mean() == pytest.approx(players.tree.value(*uniform), abs=4 * error)


def test_psro_v2_is_our_loop_with_its_choices_and_leaves_the_global_generator_alone(
    population: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = population.runs.Plan(iterations=4, dialogues_per_cell=32)
    tree = population.games.skill(2)
    state = np.random.get_state()  # noqa: NPY002
    theirs = population.psro(tree, 5, plan, meta_strategy="nash")
    assert (np.random.get_state()[1] == state[1]).all()  # noqa: NPY002
    assert capsys.readouterr().out == ""
    same = population.runs.ours(tree, 5, plan, prepare="nash", adaptive=False)
    assert [point.dialogues for point in theirs.curve] == [32 * (k + 1) ** 2 for k in range(5)]
    assert np.allclose(theirs.curve, same.curve, atol=1e-9)
    other = population.runs.ours(tree, 6, plan, prepare="nash", adaptive=False)
    assert not np.allclose(theirs.curve, other.curve, atol=1e-3)


def test_non_inferiority_is_judged_by_the_bound_and_seeds_by_power(population: SimpleNamespace) -> None:
    verdict = population.verdict
    # Differences 0, .01, .02: mean .01, standard error .01 / sqrt 3, Student's 95 % quantile at 2 degrees 2.920.
    found = verdict.compared(np.array([0.10, 0.11, 0.12]), np.array([0.10, 0.10, 0.10]))
    assert found.upper == pytest.approx(0.01 + 2.91999 * 0.01 / np.sqrt(3), abs=1e-6)
    assert (found.margin, found.holds, found.better) == (pytest.approx(0.025), False, False)
    assert verdict.compared(np.array([0.010, 0.012]), np.array([0.010, 0.011])).margin == 0.01
    assert verdict.compared(np.array([0.01, 0.02]), np.array([0.11, 0.13])).better
    rng = np.random.default_rng(0)
    other = np.full(4, 0.2)  # a margin of .05
    needed = verdict.seeds_needed(other + 0.05 * np.array([1.0, -1.0, 1.0, -1.0]), other)
    powers = []
    for count in (needed - 1, needed):
        drawn = rng.normal(size=(40_000, count)) * 0.05 * np.sqrt(4 / 3)
        bound = drawn.mean(axis=1) + student.ppf(0.95, count - 1) * drawn.std(axis=1, ddof=1) / np.sqrt(count)
        powers.append((bound <= 0.05).mean())
    assert powers[0] < 0.9 <= powers[1] + 0.005


def test_population_methods_are_compared_at_a_tiny_size(
    population: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = population.methods
    scope = methods.quick(["kuhn"])
    plan = population.runs.Plan(iterations=1, dialogues_per_cell=16, dialogues_per_response=8, candidates=4)
    scope = scope._replace(plan=plan)
    store = methods.Store(tmp_path / "runs.jsonl")
    records = methods.all_runs(scope, {"kuhn": {"psro_v2, nash": 7}}, store)["kuhn"]
    assert [record["methods"] == list(methods.METHODS) for record in records] == [True, True, False]  # at most 3 seeds
    for record in records[:2]:
        for name in methods.NAMES:
            iteration, dialogues, truth = record["curves"][name][1]
            assert (iteration, dialogues) == (1, 4 * 16)  # all methods have spent the same
            assert -1e-9 <= record["combined"][name] <= truth + 1e-9  # deviations to known members only
            assert record["curves"][name][0][2] == pytest.approx(0.91667 / 4, abs=1e-5)  # Kuhn, uniform play
    monkeypatch.setattr(methods, "one", None)  # a second look runs nothing again
    assert methods.all_runs(scope, {"kuhn": {"uniform": 3}}, methods.Store(tmp_path / "runs.jsonl"))["kuhn"] == records
    figures, bars = methods.judged("kuhn", records, {}, plan)
    assert len(bars) == len(methods.METHODS) + len(methods.NO_CELLS)
    assert figures["oracle_calls_training_counted"] == 2 * (1 + 4 * 16 // (2 * 8))
    assert figures["comparisons"]["uniform"]["difference"] == pytest.approx(
        np.mean([record["curves"]["ours"][1][2] - record["curves"]["uniform"][1][2] for record in records]), abs=1e-5
    )
    assert (figures["seeds"]["uniform"], figures["seeds"]["ours + nearest member"]) == (3, 2)
    methods.draw({"kuhn": figures}, 1, tmp_path / "curves.svg")
    assert "true NashConv" in (tmp_path / "curves.svg").read_text("utf-8")
