"""Benchmarks that are run elsewhere, tried at a size that any machine has."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest


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
