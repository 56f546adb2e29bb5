"""From a config to a finished run: load the model, run the loop, check the result on fresh dialogues.

Everything is a named unit in the run directory, so that the same call goes on after a kill.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from rtg_agents.models import resolve_encoder
from rtg_agents.progress import Progress, WorkMeter
from rtg_agents.prompting import PROMPT_VERSION
from rtg_agents.scripted import longest_filled
from rtg_env import rules
from rtg_env.encoding import HashingEncoder
from rtg_env.engine import rescore
from rtg_env.errors import ConfigError, RunError
from rtg_env.goals import GoalSet, Split
from rtg_env.judges.base import Encoder, Judge
from rtg_env.transcripts import Played, TranscriptStore
from rtg_solvers import loop, result
from rtg_solvers.configs import to_mapping
from rtg_solvers.gaps import measure_gap, oracle_deviations, paired_gain, restricted_deviations
from rtg_solvers.geometry import shape_of
from rtg_solvers.intervals import payoff_value_interval
from rtg_solvers.measures import Estimate, paired_estimate
from rtg_solvers.methods import registry
from rtg_solvers.methods.grts import GRTSConfig
from rtg_solvers.model_loading import load_backend
from rtg_solvers.oracles.tactics import require_extra
from rtg_solvers.plugins import imported, is_named
from rtg_solvers.result import Result
from rtg_solvers.rollout import Pairing
from rtg_solvers.run import IDENTITY, RunDirectory, default_name, read_goals, read_settings
from rtg_solvers.seeding import draw_seed, rng_for
from rtg_solvers.version import __version__
from rtg_solvers.workbench import Workbench, cycled

if TYPE_CHECKING:
    from rtg_agents.hf import TorchBackend

RESULT: Final = "result"
"""Block that holds a finished run's numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A finished run."""

    path: Path
    """Its directory."""

    result: Result
    """Its numbers."""

    was_finished: bool
    """Whether it had been finished before this call."""


def resolve_judge(
    name: str, *, offline: bool = False, cache_dir: Path | None = None, progress: Progress | None = None
) -> Judge:
    """A judge by its name in configs.

    Args:
        name: `offline-a`, `offline-b`, or `module:attribute`, a class without arguments or an object.
        offline: Never fetch the encoder that B needs.
        cache_dir: For that encoder.
        progress: Is told about downloads.

    Raises:
        ConfigError: If there is no such judge.
    """
    if name == "offline-a":
        from rtg_env.judges.offline import OfflineJudge

        return OfflineJudge()
    if name == "offline-b":
        from rtg_agents.embedding import SentenceEncoder
        from rtg_env.judges.embedding import EmbeddingJudge

        return EmbeddingJudge(SentenceEncoder(resolve_encoder(offline=offline, cache_dir=cache_dir, progress=progress)))
    if not is_named(name):
        raise ConfigError(f"expected a judge `offline-a`, `offline-b` or `module:attribute`, got {name!r}")
    judge = imported(name, "judge")
    if not isinstance(judge, Judge):
        raise ConfigError(f"expected {name!r} to have judge_id and judge(cases), got {type(judge).__name__}")
    return judge


def load_encoder(
    embeddings: str, *, offline: bool = False, cache_dir: Path | None = None, progress: Progress | None = None
) -> Encoder:
    """Sentence vectors by their name in configs: `hashed` words, or `sentences` (all-MiniLM-L6-v2).

    Args:
        embeddings: The name.
        offline: Never fetch that encoder.
        cache_dir: For it.
        progress: Is told about downloads.
    """
    if embeddings == "hashed":
        return HashingEncoder()
    from rtg_agents.embedding import SentenceEncoder

    return SentenceEncoder(resolve_encoder(offline=offline, cache_dir=cache_dir, progress=progress))


def run_method(
    config: registry.AnyConfig,
    *,
    runs: Path,
    name: str | None,
    progress: Progress,
    offline: bool = False,
    cache_dir: Path | None = None,
    backend: TorchBackend | None = None,
) -> Outcome:
    """Run a method, or go on with it, or report it if it is finished.

    Args:
        config: Decides everything that is computed.
        runs: Folder that holds runs.
        name: Of the run; default: derived from the config.
        progress: Is told how far the work is.
        offline: Never fetch anything.
        cache_dir: Of models.
        backend: Default: loads `config.model`.

    Raises:
        RTGError: Any of the tree, with a remedy; the run stays resumable.
    """
    if isinstance(config, GRTSConfig) and config.red_oracle == "tactics":
        require_extra()
    goal_set = registry.goals(config)
    judge = registry.referee(
        config, resolve_judge(config.judge, offline=offline, cache_dir=cache_dir, progress=progress)
    )
    check_goals(config, goal_set)
    settings = run_settings(config, goal_set, judge)
    with RunDirectory(runs, name or default_name(config.method, settings), settings, goal_set) as run:
        if run.store.has_block(RESULT):
            return Outcome(path=run.path, result=result.from_json(run.store.block_data(RESULT)), was_finished=True)
        if backend is None:
            backend = load_backend(config, progress, offline=offline, cache_dir=cache_dir)
        second = (
            registry.referee(
                config, resolve_judge(config.report_judge, offline=offline, cache_dir=cache_dir, progress=progress)
            )
            if config.report_judge
            else None
        )
        if second is not None and second.judge_id == judge.judge_id:
            raise ConfigError(f"expected a second judge that differs from the first, both are {judge.judge_id}")
        check_identity(run, {"model": backend.fingerprint, "report_judge": second.judge_id if second else ""})
        total = registry.cost(config, goal_set).units
        meter = WorkMeter(progress, "solve", total)
        encoder = load_encoder(config.reads_with, offline=offline, cache_dir=cache_dir, progress=progress)
        bench = Workbench(config, goal_set, judge, run, backend=backend, meter=meter, encoder=encoder)
        found = Session(bench, second).finish()
        run.store.put_block(RESULT, [], result.to_json(found))
        return Outcome(path=run.path, result=found, was_finished=False)


def read_result(path: Path) -> Result | None:
    """The result of a run on disk; None if it is not finished."""
    read_settings(path)
    with TranscriptStore(path / "run.db", read_goals(path)) as store:
        data = store.block_data(RESULT)
    return result.from_json(data) if data else None


def run_settings(
    config: registry.AnyConfig, goal_set: GoalSet, judge: Judge, *, files: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What identifies a run: the config, and what its names stand for.

    Args:
        config: Of the run.
        goal_set: Its goals.
        judge: Who pays.
        files: Hashes of the other files it reads; default: those of now.

    Raises:
        ConfigError: If such a file cannot be read.
    """
    if files is None:
        files = config.sources.digests() if registry.on_seeds(config) else {}
    return {
        "config": to_mapping(config),
        "goals_digest": goal_set.digest,
        "judge_id": judge.judge_id,
        "prompt_version": PROMPT_VERSION,
        "version": __version__,
        **({"files": dict(files)} if files else {}),
    }


def check_identity(run: RunDirectory, identity: dict[str, str]) -> None:
    """Note what the names in the config stand for on this machine, or refuse to go on with something else.

    Raises:
        RunError: If a model of the same name has other weights than before, or the second judge another version.
    """
    if not run.store.has_block(IDENTITY):
        run.store.put_block(IDENTITY, [], identity)
        return
    before = run.store.block_data(IDENTITY)
    for name, value in identity.items():
        if before.get(name) != value:
            raise RunError(
                f"expected the {name} that the run in {run.path} began with ({before.get(name)}), "
                f"got another one ({value}); restore it or choose another --name"
            )


def check_goals(config: registry.AnyConfig, goal_set: GoalSet) -> None:
    """Refuse goals on which the run would fail hours later.

    Raises:
        ConfigError: If a half lacks harmful goals, or benign ones that the game draws.
    """
    for goal in goal_set.harmful:
        length = longest_filled(goal.text, config.fills) if config.fills else 0
        if length > config.game.max_action_chars:
            raise ConfigError(
                f"expected game.max_action_chars of at least {length}, which the templates need for goal {goal.id!r} "
                f"({len(goal.text)} characters), got {config.game.max_action_chars}; raise it or shorten the goal"
            )
    splits: tuple[Split, ...] = ("train", "heldout")
    for split in splits:
        half = goal_set.split(split)
        if not half.harmful or (config.game.benign_prob > 0 and not half.benign):
            raise ConfigError(
                f"expected harmful and benign goals in the {split} half of {goal_set.source}, got {len(half.harmful)} "
                f"and {len(half.benign)}; add goals, set their `split`, or set game.benign_prob to 0"
            )


class Session:
    """One process's work on a run."""

    def __init__(self, bench: Workbench, second_judge: Judge | None) -> None:
        self._bench = bench
        self._second_judge = second_judge
        self._started = time.monotonic()

    def finish(self) -> Result:
        """Run the loop to its end and measure the result."""
        bench, config = self._bench, self._bench.config
        for member in registry.untrained(config):
            if bench.population.restored(member.version) is None:
                bench.population.add(member)
        method = registry.method(config, bench.backend, bench.encoder, bench.run.store)
        solution = loop.solve(method, bench.context())
        payoffs, mixture = solution.payoffs, solution.mixture
        gap_settings = {"seed": config.seed, "count": config.dialogues_per_gap}
        oracle_gaps = []
        for k, iteration in enumerate(solution.iterations):
            new = {member.role: member.version for member in iteration.new}
            pair = oracle_deviations(iteration.mixture, new, iteration.asked)
            oracle_gaps.append(
                measure_gap(f"oracle-gap/{k}", bench.game, iteration.mixture, pair, bench.play_unit, **gap_settings)
            )
        pair = restricted_deviations(payoffs, mixture)
        restricted = measure_gap("restricted-gap", bench.game, mixture, pair, bench.play_unit, **gap_settings)
        red_gain, second_red = self._heldout_gain("red", bench.population.names("red")[-1])
        newest_blue = bench.population.names("blue")[-1]
        learned = bench.population[newest_blue].kind != "base"
        blue_gain, second_blue = self._heldout_gain("blue", newest_blue) if learned else (None, None)
        second = (
            {"judge_id": self._second_judge.judge_id, "red": second_red, "blue": second_blue}
            if self._second_judge
            else {}
        )
        value = payoff_value_interval(payoffs) if payoffs.num_goals > 1 else None
        return Result(
            red=payoffs.red,
            blue=payoffs.blue,
            labels={member.version: member.label for member in bench.population},
            cells=tuple(tuple(payoffs.estimate(r, b) for b in payoffs.blue) for r in payoffs.red),
            harm_cells=_rows(payoffs.mean_on(harmful=True)),
            unhelpful_cells=_rows(payoffs.mean_on(harmful=False)),
            refuser_loss=config.game.benign_prob * config.game.helpfulness_weight,
            red_mixture=tuple(float(weight) for weight in mixture.red),
            blue_mixture=tuple(float(weight) for weight in mixture.blue),
            value=mixture.value,
            value_interval=(value.low, value.high) if value else None,
            expected=mixture.expected,
            oracle_gaps=tuple(oracle_gaps),
            restricted_gap=restricted,
            shape=shape_of(payoffs, rng=rng_for(config.seed, "shape")),
            heldout_red_gain=red_gain,
            heldout_blue_gain=blue_gain,
            second_judge=second,
            wall_s=time.monotonic() - self._started,
            warnings=(*payoffs.unscored_warnings(), *registry.remarks(config, bench.run.store)),
        )

    def _heldout_gain(self, role: str, newest: str) -> tuple[Estimate, Any]:
        """Gain of the newest member of a side over the base model, goal by goal, the base model on the other side."""
        base = {"red": self._bench.population.names("red")[0], "blue": self._bench.population.names("blue")[0]}
        pairings = self._heldout_pairings(role, base)
        # The same goals, but seeds of its own: a policy that has not changed then gains nothing only within its noise,
        # so that a null run checks the interval too.
        rng = rng_for(self._bench.config.seed, "heldout", role, "newest")
        fresh = [replace(_with(pairing, role, newest), seed=draw_seed(rng)) for pairing in pairings]
        before = self._bench.play_unit(f"heldout/{role}/base", pairings, self._bench.heldout)
        after = self._bench.play_unit(f"heldout/{role}/newest", fresh, self._bench.heldout)
        side: Any = role
        gain = paired_gain(self._bench.heldout, side, after, before)
        if self._second_judge is None:
            return gain, None
        return gain, asdict(self._second_opinion(role, before, after, self._second_judge))

    def _heldout_pairings(self, role: str, base: dict[str, str]) -> list[Pairing]:
        """As many deals as held-out harmful goals times repeats; for blue in the game's own mixture of both kinds."""
        rng = rng_for(self._bench.config.seed, "heldout", role)
        goals = self._bench.heldout.goals
        count = len(goals.harmful) * self._bench.config.heldout_repeats
        num_benign = round(count * self._bench.config.game.benign_prob) if role == "blue" else 0
        order = cycled(goals.harmful, count - num_benign, rng) + cycled(goals.benign, num_benign, rng)
        return [
            Pairing(
                red=base["red"],
                blue=base["blue"],
                deal=rules.draw_deal(self._bench.config.game, goal, rng),
                seed=draw_seed(rng),
            )
            for goal in order
        ]

    def _second_opinion(self, role: str, before: Sequence[Played], after: Sequence[Played], judge: Judge) -> Estimate:
        first, second = (after, before) if role == "red" else (before, after)
        pair = [
            [t.utility for t in rescore(self._bench.config.game, [item.transcript for item in played], judge)]
            for played in (first, second)
        ]
        clusters = [item.transcript.goal.id for item in before]
        return paired_estimate(pair[0], pair[1], clusters, max_utility=self._bench.config.game.max_utility)


def _rows(table: np.ndarray) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(number) for number in row) for row in table)


def _with(pairing: Pairing, role: str, version: str) -> Pairing:
    return replace(pairing, red=version) if role == "red" else replace(pairing, blue=version)
