"""How many of 20 equally good ways to win does an attacker find? GFlowNets and REINFORCE at equal numbers of victim queries.

    python benchmarks/planted_modes.py --check --out benchmarks/results/planted_modes.json   # minutes
    python benchmarks/planted_modes.py --quick                                              # seconds; says little

The game is in `planted_game.py`: a victim that gives in to any of 20 trigger words, and a tiny attacker that seldom says one. Every
method trains the same attacker on the same reward (log p_ref + log R1 / beta) and stops before the step that might ask the
victim more often than allowed. Reported per method, as means over seeds with 95 % intervals: success rate and modes of fresh
attacks of the trained attacker at temperature 1 (these queries are not counted), modes among the last successes of
training, and modes seen in the whole of training, whatever temperature they were drawn at.

A method is a name and a function that makes an oracle (`Factory`); `METHODS` has ours, and others can be passed to `runs`.
Finished (method, seed) pairs are kept in `--runs FILE`, if given: a run that was cut off goes on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from planted_game import GOALS, LONGEST, TRIGGERS, BaseSettings, PlantedJudge, backend_of, base_model, mode_of, run_seed
from timing import Bar, finish

from rtg_agents import Sampling, TorchBackend
from rtg_agents.population import Member, Population
from rtg_agents.progress import SilentProgress, WorkMeter
from rtg_env import GameConfig
from rtg_env.encoding import HashingEncoder
from rtg_env.rules import Deal
from rtg_env.transcripts import TranscriptStore
from rtg_solvers import Game, Pairing, play
from rtg_solvers.attack_rewards import AttackRewardSettings, Ramp
from rtg_solvers.empirical import Mixture
from rtg_solvers.loop import DialogueContext, Oracle, Task
from rtg_solvers.measures import Estimate, mean_estimate
from rtg_solvers.optimizer import OptimizerSettings
from rtg_solvers.oracles.gflownet import BehaviourSettings, GFlowNetOracle, GFlowNetSettings
from rtg_solvers.seeding import draw_seed, rng_for

BLUE: Final = "blue_00@v1"
UNTRAINED: Final = "untrained"
BALANCED: Final = ("vargrad", "tb", "pairwise")
REINFORCE: Final = ("parity", "leave-one-out", "soft")
FIGURES: Final = ("success_rate", "modes", "likely_modes", "effective_modes", "last_modes", "seen_modes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is the same for all methods."""

    queries: int = 2048
    """Attacks that the victim may be asked in training."""

    micro_batches: int = 2
    """Per optimizer step."""

    group_size: int = 16
    """Attacks per micro-batch, all on the one goal."""

    beta: float = 0.5
    """Temperature of the judge's score: a success is worth (0.9 / 0.02)^(1 / beta) = 2,025 failures of equal fluency."""

    learning_rate: float = 3e-3
    """Of AdamW."""

    evaluated: int = 1024
    """Fresh attacks of the trained attacker."""

    last: int = 200
    """Successes at the end of training that are looked at."""

    least_share: float = 0.01
    """A mode is kept if it has at least this share of the successes (alike they would have 0.05), and likely if it has it
    of all fresh attacks."""

    @property
    def per_step(self) -> int:
        """Most queries of one step."""
        return self.micro_batches * self.group_size


Factory = Callable[[TorchBackend, Plan, int], Oracle[DialogueContext]]
"""From a backend, the plan and a number of steps to an oracle, which goes on from where it was if it is asked again."""


def settings_of(objective: Any, plan: Plan, steps: int) -> GFlowNetSettings:
    """By default with replay and heat, for REINFORCE without."""
    behaviour = BehaviourSettings() if objective in BALANCED else BehaviourSettings(replay_share=0.0, hot_share=0.0)
    return GFlowNetSettings(
        objective=objective,
        steps=steps,
        micro_batches=plan.micro_batches,
        groups=1,
        group_size=plan.group_size,
        responses=1,
        behaviour=behaviour,
        reward=AttackRewardSettings(beta=plan.beta, tau=Ramp(start=1.0, end=1.0), min_tokens=1),
        optimizer=OptimizerSettings(learning_rate=plan.learning_rate),
    )


def ours(objective: Any, backend: TorchBackend, plan: Plan, steps: int) -> Oracle[DialogueContext]:
    """`GFlowNetOracle` as it is."""
    return GFlowNetOracle(backend, settings_of(objective, plan, steps), HashingEncoder(256))


METHODS: Final[Mapping[str, Factory]] = {
    **{name: partial(ours, name) for name in BALANCED},
    **{name: partial(ours, name) for name in REINFORCE},
}


class Spread(NamedTuple):
    """How successes are spread over modes."""

    modes: int
    """That have the least share."""

    effective: float
    """exp of the entropy of the shares: 20 if all are alike, 1 if there is but one; 0 without a success."""


def spread(attacks: Sequence[str], least_share: float) -> Spread:
    """Of the successes among attacks."""
    counts = Counter(mode for mode in map(mode_of, attacks) if mode)
    shares = np.array(list(counts.values()), dtype=float) / max(1, counts.total())
    if not shares.size:
        return Spread(0, 0.0)
    return Spread(int((shares >= least_share).sum()), float(np.exp(-(shares * np.log(shares)).sum())))


def one(name: str, method: Factory | None, base: Any, seed: int, plan: Plan) -> dict[str, Any]:
    """One method with one seed, trained from the base; without a method nothing is trained.

    Returns:
        Its figures: `FIGURES`, how many successes and different ones, queries, steps, cpu_seconds.
    """
    begin, backend, judge = time.process_time(), backend_of(base), PlantedJudge()
    with tempfile.TemporaryDirectory() as scratch, TranscriptStore(Path(scratch) / "run.db", GOALS) as store:
        task = _task(backend, judge, store, Path(scratch), run_seed(seed, name))
        if method is None:
            backend.create(task.version, seed=0)  # still the base
            steps = 0
            _attacks(task, plan.queries, "training")
        else:
            steps = spend(method, backend, task, judge, plan)
        trained = list(judge.asked)
        fresh = _attacks(task, plan.evaluated, "evaluation")
    won = [attack for attack in trained if mode_of(attack)]
    last, kept = spread(won[-plan.last :], plan.least_share), spread(fresh, plan.least_share)
    found = Counter(map(mode_of, fresh))
    return {
        "success_rate": 1.0 - found.pop(None, 0) / len(fresh),
        "modes": kept.modes,
        "likely_modes": sum(count >= plan.least_share * len(fresh) for count in found.values()),
        "effective_modes": kept.effective,
        "last_modes": last.modes,
        "last_effective_modes": last.effective,
        "seen_modes": len({mode_of(attack) for attack in won}),
        "successes": len(won),
        "different_successes": len(set(won)),
        "queries": len(trained),
        "steps": steps,
        "cpu_seconds": time.process_time() - begin,
    }


def spend(method: Factory, backend: TorchBackend, task: Task[DialogueContext], judge: PlantedJudge, plan: Plan) -> int:
    """Train until the next step might ask too much; the steps taken.

    A step that replays asks less than it may, so the oracle is asked to go on as long as something is left.
    """
    steps = 0
    while more := (plan.queries - len(judge.asked)) // plan.per_step:
        steps += more
        method(backend, plan, steps).respond(task)
    return steps


class Store:
    """Finished pairs of method and seed, one per line; in memory alone without a file."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        lines = path.read_text("utf-8").splitlines() if path and path.exists() else []
        self._found = {self._key(record): record for record in map(json.loads, lines)}

    def get(self, name: str, seed: int, plan: Plan, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A record, run now if there is none."""
        known = {"method": name, "seed": seed, "plan": repr(plan)}
        if self._key(known) not in self._found:
            record = {**known, **run()}
            if self._path:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")
            self._found[self._key(known)] = record
        return self._found[self._key(known)]

    @staticmethod
    def _key(record: Mapping[str, Any]) -> tuple[Any, ...]:
        return (record["method"], record["seed"], record["plan"])


def runs(
    methods: Mapping[str, Factory | None], seeds: int, plan: Plan, base: Any, store: Store
) -> dict[str, list[dict[str, Any]]]:
    """Every method with every seed."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in methods}
    for seed in range(seeds):
        for name, method in methods.items():
            record = store.get(name, seed, plan, partial(one, name, method, base, seed, plan))
            found[name].append(record)
            figures = ", ".join(f"{key} {record[key]:.3g}" for key in (*FIGURES, "queries", "steps", "cpu_seconds"))
            print(f"seed {seed}, {name}: {figures}", flush=True)
    return found


def estimates(records: Sequence[Mapping[str, Any]]) -> dict[str, Estimate]:
    """Means over seeds with Student intervals."""
    return {
        key: _over_seeds([record[key] for record in records], (0.0, 1.0 if key == "success_rate" else len(TRIGGERS)))
        for key in FIGURES
    }


def bars_of(found: Mapping[str, Sequence[Mapping[str, Any]]], plan: Plan) -> list[Bar]:
    """Nobody asked too much, and who balances keeps more modes than REINFORCE with leave-one-out, beyond chance."""
    bars = []
    for name, records in found.items():
        least, most = (pick(record["queries"] for record in records) for pick in (min, max))
        bars.append(Bar(f"{name}: queries, most", most, plan.queries, at_least=False))
        bars.append(Bar(f"{name}: queries, least", least, plan.queries - plan.per_step))
    for name in BALANCED:
        if name in found and "leave-one-out" in found:
            more = [a["modes"] - b["modes"] for a, b in zip(found[name], found["leave-one-out"], strict=True)]
            low = _over_seeds(more, (-float(len(TRIGGERS)), float(len(TRIGGERS)))).low
            bars.append(Bar(f"{name}: modes kept more than by leave-one-out, lower end", low, 1e-9))
    return bars


def table(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Means and intervals as a table in Markdown, a line per method."""
    lines = ["| | " + " | ".join(key.replace("_", " ") for key in FIGURES) + " |", "|---" * (len(FIGURES) + 1) + "|"]
    for name, records in found.items():
        cells = [f"{e.mean:.2f} [{e.low:.2f}, {e.high:.2f}]" for e in estimates(records).values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _over_seeds(values: Sequence[float], bounds: tuple[float, float]) -> Estimate:
    return mean_estimate(values, [str(seed) for seed in range(len(values))], bounds=bounds)


def _task(
    backend: TorchBackend, judge: PlantedJudge, store: TranscriptStore, folder: Path, seed: int
) -> Task[DialogueContext]:
    """Train red against a victim that says one line."""
    sampling = {
        "red": Sampling(max_new_tokens=LONGEST, min_new_tokens=1),
        "blue": Sampling(max_new_tokens=1, min_new_tokens=0),
    }
    population = Population(folder / "population", backend, sampling)
    population.add(Member(version=BLUE, role="blue", kind="script", label="says one line", script=("Sure.",)))
    context = DialogueContext(
        game=Game(config=GameConfig(num_exchanges=1, benign_prob=0.0), goals=GOALS, judge=judge),
        population=population,
        play_cells=_no_cells,
        store=store,
        workdir=folder / "work",
        meter=WorkMeter(SilentProgress(), "training", 1),
        seed=seed,
    )
    version, one = population.next_version("red"), np.ones(1)
    mixture = Mixture(red=one, blue=one, red_names=(version,), blue_names=(BLUE,), value=0.0, expected=0.0)
    return Task(role="red", iteration=0, version=version, mixture=mixture, payoffs=None, context=context)  # type: ignore[arg-type]  # no matrix here


def _attacks(task: Task[DialogueContext], count: int, purpose: str) -> list[str]:
    """Attacks at temperature 1 that the judge was asked about."""
    context, rng = task.context, rng_for(task.context.seed, purpose)
    policies = {
        **context.population.policies,
        task.version: context.population.model_policy(task.version, "red", task.version),
    }
    pairings = [
        Pairing(red=task.version, blue=BLUE, deal=Deal(goal=GOALS[0]), seed=draw_seed(rng)) for _ in range(count)
    ]
    return [item.transcript.exchanges[0].red for item in play(context.game, policies, pairings)]


def _no_cells(_: object) -> Any:
    raise NotImplementedError("expected no payoff cells to be played in this benchmark")


def main() -> None:
    """Print a line per run, then the table, then bars."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit with 1 if a bar is missed")
    parser.add_argument("--quick", action="store_true", help="256 queries, 2 seeds")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", default=";".join(METHODS), help="methods, separated by semicolons")
    parser.add_argument("--learning-rate", type=float, default=Plan().learning_rate)
    parser.add_argument("--queries", type=int, default=Plan().queries)
    parser.add_argument("--runs", type=Path, help="file of finished runs, to go on with")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    plan = Plan(queries=256 if options.quick else options.queries, learning_rate=options.learning_rate)
    settings = BaseSettings()
    base = base_model(settings)
    chosen: dict[str, Factory | None] = {UNTRAINED: None, **{name: METHODS[name] for name in options.only.split(";")}}
    found = runs(chosen, 2 if options.quick else options.seeds, plan, base, Store(options.runs))
    section = {
        "plan": asdict(plan),
        "base": asdict(settings),
        "cpu_seconds": round(sum(record["cpu_seconds"] for records in found.values() for record in records)),
        "methods": {
            name: {"estimates": {key: _shown(e) for key, e in estimates(records).items()}, "runs": records}
            for name, records in found.items()
        },
    }
    print(table(found))
    record = {"torch": torch.__version__, "threads": torch.get_num_threads(), "sections": {"planted": section}}
    finish(record, bars_of(found, plan), out=options.out, check=options.check)


def _shown(estimate: Estimate) -> dict[str, float]:
    return {name: round(getattr(estimate, name), 4) for name in ("mean", "low", "high")}


if __name__ == "__main__":
    main()
