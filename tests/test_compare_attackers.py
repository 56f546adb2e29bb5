"""The comparison of attackers over seeds, on figures worked out by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from rtg_solvers.evaluation.results import Attacked, Helped, Variety, Written
from rtg_solvers.measures import Estimate

FLOW, PPO = "red_05 smoothed attacker", "red_06 PPO + novelty attacker"
LABELS = {
    "red_05@v1": "smoothed attacker",
    "red_06@v1": "PPO + novelty attacker",
    "blue_01@v1": "tuned on red_05",
    "blue_02@v1": "tuned on red_06",
}


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import compare_attackers

    return compare_attackers


def estimate(mean: float) -> Estimate:
    return Estimate(mean=mean, se=0.0, low=mean, high=mean, count=8, num_unscored=0, num_clusters=4)


def written(attacker: str, sizes: tuple[int, ...]) -> Written:
    won = Variety(num=sum(sizes), sizes=sizes, vendi=1.0, mean_distance=0.5, self_bleu=0.5)
    every = Variety(num=8, sizes=(4, 4), vendi=2.0, mean_distance=0.5, self_bleu=0.5)
    return Written(
        attacker=attacker,
        perplexity=20.0,
        nats_per_token=estimate(3.0),
        variety=every,
        variety_of_successes=won,
        training_queries=640,
    )


def run(seed: int, sizes: dict[str, tuple[int, ...]], cells: dict[tuple[str, str], float], **changes):
    figures = SimpleNamespace(
        judge_id="b@1",
        written=tuple(written(name, own) for name, own in sizes.items()),
        attacked=tuple(
            Attacked(
                attacker=attacker,
                target=target,
                success=estimate(share),
                harm=estimate(0.3),
                success_by_trained=estimate(0.2),
                queries=16,
            )
            for (attacker, target), share in cells.items()
        ),
        helped=(
            Helped(
                target="base model",
                refusal=estimate(0.1),
                helpful=estimate(0.6),
                refusal_change=None,
                helpful_change=None,
            ),
        ),
    )
    steps = [{"version": "red_06@v1", "step": n, "log_score": float(n), "reference_logp": -20.0} for n in range(12)]
    return SimpleNamespace(
        name=f"run-{seed}",
        settings={"seed": seed, "queries": 640, **changes},
        figures=figures,
        found=SimpleNamespace(labels=LABELS),
        steps=steps,
    )


def two_runs():
    targets = ("base model", "blue_01", "blue_02")
    first = dict(zip([(a, t) for a in (FLOW, PPO) for t in targets], (0.5, 0.1, 0.4, 0.25, 0.2, 0.1), strict=True))
    second = dict(zip([(a, t) for a in (FLOW, PPO) for t in targets], (0.7, 0.1, 0.6, 0.25, 0.2, 0.1), strict=True))
    return [run(0, {FLOW: (1, 1, 1, 1), PPO: (2,)}, first), run(1, {FLOW: (2, 2), PPO: (1, 1)}, second)]


def test_unique_successes_are_compared_at_the_fewest_of_each_run(compare) -> None:
    flow, ppo = compare.unique_successes(two_runs(), [FLOW, PPO])
    # Two of four that differ: 2. Two of two pairs: 2 * (1 - C(2, 2) / C(4, 2)) = 5 / 3.
    assert flow.values == pytest.approx((2.0, 5 / 3))
    assert ppo.values == pytest.approx((1.0, 2.0))


def test_a_run_without_a_success_gives_no_number(compare) -> None:
    runs = [*two_runs(), run(2, {FLOW: (1,), PPO: ()}, {(a, "base model"): 0.0 for a in (FLOW, PPO)})]
    flow, _ = compare.unique_successes(runs, [FLOW, PPO])
    assert len(flow.known) == 2
    assert flow.mean == pytest.approx((2.0 + 5 / 3) / 2)


def test_claims_are_differences_over_seeds(compare) -> None:
    unique, resisted = compare.claims(two_runs())
    # (2 - 1, 5/3 - 2): mean 1/3; success (0.25, 0.45): mean 0.35, half-width 12.706 * 0.1.
    assert "PPO + novelty: 0.33 [" in unique
    assert "Success: 0.35 [-0.92, 1.62]" in unique
    # PPO against blue_01 less the GFlowNet against blue_02: 0.2 - 0.4 and 0.2 - 0.6.
    assert "(blue_01)" in resisted
    assert "(blue_02): -0.30 [" in resisted


def test_seeds_that_agree_by_chance_are_no_surer_than_their_dialogues(compare) -> None:
    alike = compare.Seeds((0.1, 0.1), (0.03, 0.04))
    assert (alike.low, alike.high) == pytest.approx((0.1 - 1.96 * 0.025, 0.1 + 1.96 * 0.025))
    less = compare._difference(alike, compare.Seeds((0.0, 0.0), (0.04, 0.03)))
    assert less.high == pytest.approx(0.1 + 1.96 * (0.05**2 + 0.05**2) ** 0.5 / 2)
    apart = compare.Seeds((0.0, 0.2), (0.01, 0.01))
    assert apart.high == pytest.approx(0.1 + 12.706 * 0.1, abs=1e-3)


def test_tables_and_figure_hold_every_attacker_and_target(compare) -> None:
    text = compare.markdown(two_runs())
    assert f"| {FLOW} | 640, 640 | 0.60 [" in text
    assert "| blue_01, tuned on red_05 smoothed attacker |" in text
    # Steps 0 to 4 and 7 to 11, alike in both runs.
    assert "| red_06 PPO + novelty attacker | 12 | 2.00 [2.00, 2.00] | 9.00 [9.00, 9.00] | -20.00 [" in text
    left, right = compare.figure(two_runs()).axes
    assert [label.get_text() for label in left.get_legend().get_texts()] == [FLOW, PPO]
    assert [label.get_text() for label in right.get_yticklabels()] == [FLOW, PPO]


def test_runs_of_two_configs_are_refused(compare) -> None:
    first = two_runs()[0]
    other = run(1, {FLOW: (1,), PPO: (1,)}, {}, **{"queries": 1280})
    with pytest.raises(SystemExit, match="run-1 differs in queries"):
        compare.check([first, other])
