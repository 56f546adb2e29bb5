"""Evaluate a run on disk, or go on with it: open the run, load its members, follow the protocol, keep the figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from rtg_agents.progress import Progress, WorkMeter
from rtg_env.errors import ConfigError, RunError
from rtg_env.judges.base import Encoder, Judge
from rtg_env.transcripts import TranscriptStore
from rtg_solvers.configs import from_mapping
from rtg_solvers.evaluation.protocol import EvaluationSettings, Protocol, by_members, num_sides
from rtg_solvers.evaluation.results import Evaluation
from rtg_solvers.finished import read_finished
from rtg_solvers.methods import registry
from rtg_solvers.methods.registry import AnyConfig
from rtg_solvers.model_loading import load_backend
from rtg_solvers.oracles.rl import step_units
from rtg_solvers.records import from_record, to_record
from rtg_solvers.result import Result
from rtg_solvers.run import RunDirectory, read_goals, read_settings
from rtg_solvers.session import check_identity, load_encoder, resolve_judge, run_settings
from rtg_solvers.workbench import Workbench

if TYPE_CHECKING:
    from rtg_agents.hf import TorchBackend

_VERSION: Final = 2


class Evaluated(NamedTuple):
    """An evaluation that is kept with its run."""

    settings: EvaluationSettings
    """How much was measured."""

    figures: Evaluation
    """What was found."""


def evaluate_run(
    path: Path,
    settings: EvaluationSettings,
    *,
    progress: Progress,
    offline: bool = False,
    cache_dir: Path | None = None,
    backend: TorchBackend | None = None,
    judge: Judge | None = None,
) -> Evaluated:
    """Measure what a finished run is worth, or go on with it; the figures stay in the run's store.

    Args:
        path: The run directory.
        settings: How much is measured.
        progress: Is told how far the work is.
        offline: Never fetch anything.
        cache_dir: Of models.
        backend: Default: loads the run's model.
        judge: Reports; default: the run's `report_judge`, or `offline-b`.

    Raises:
        RTGError: Any of the tree, with a remedy; what was measured so far is kept.
    """

    def measure(opened: Opened) -> dict[str, Any]:
        figures = Protocol(opened.bench, opened.result, opened.judge, opened.encoder, settings).finish()
        return _record(settings, figures)

    config = read_finished(path).config
    if registry.on_seeds(config):
        raise ConfigError(
            f"expected a run whose goals are no seeds, {path.name} is one of {config.method}; "
            "call rtg_solvers.evaluation.seas_run.evaluate_seas_run"
        )
    if settings.static:
        raise ConfigError(
            f"expected a run of seas or mart for static sets, {path.name} is one of {config.method}; leave --static out"
        )
    block = f"evaluation/{settings.digest}/result"
    means = Means(progress=progress, offline=offline, cache_dir=cache_dir, backend=backend, judge=judge)
    return _read(
        measured(path, settings, block, measure, means, num_units(settings, config, read_finished(path).result))
    )


class Opened(NamedTuple):
    """A finished run that is ready to be measured."""

    bench: Workbench
    """With the run's members."""

    result: Result
    """The run's numbers."""

    judge: Judge
    """Reports, as it judges this run."""

    plain_judge: Judge
    """The same as it is."""

    encoder: Encoder
    """For variety."""


class Means(NamedTuple):
    """What an evaluation works with."""

    progress: Progress
    """Is told how far the work is."""

    offline: bool = False
    """Never fetch anything."""

    cache_dir: Path | None = None
    """Of models."""

    backend: TorchBackend | None = None
    """None: loads the run's model."""

    judge: Judge | None = None
    """None: the run's `report_judge`, or `offline-b`."""


def measured(
    path: Path,
    settings: EvaluationSettings,
    block: str,
    measure: Callable[[Opened], dict[str, Any]],
    means: Means,
    units: float,
) -> dict[str, Any]:
    """A record that is kept with a run: read back if it is there, else measured and committed.

    Args:
        path: The run directory.
        settings: What variety is measured on.
        block: Name of the record.
        measure: Measures it.
        means: What it works with.
        units: How much work it is, for the progress bar.

    Raises:
        ConfigError: If the reporting judge is the run's own.
    """
    finished = read_finished(path)
    config, found, goals = finished.config, finished.result, finished.goals
    fetching: dict[str, Any] = {"offline": means.offline, "cache_dir": means.cache_dir, "progress": means.progress}
    trained = registry.referee(config, resolve_judge(config.judge, **fetching))
    plain = means.judge or resolve_judge(config.report_judge or "offline-b", **fetching)
    judge = registry.referee(config, plain)
    if judge.judge_id == trained.judge_id:
        raise ConfigError(f"expected a judge other than the run's own to report with, both are {judge.judge_id}")
    # The goals as they were played stand in the run directory, wherever they came from; other files are not read again.
    identity = run_settings(config, goals, trained, files=read_settings(path).get("files", {}))
    with RunDirectory(path.parent, path.name, identity, goals) as run:
        if not run.store.has_block(block):
            backend = means.backend or load_backend(
                config, means.progress, offline=means.offline, cache_dir=means.cache_dir
            )
            check_identity(run, {"model": backend.fingerprint})
            encoder, senses = (load_encoder(name, **fetching) for name in (settings.embeddings, config.reads_with))
            meter = WorkMeter(means.progress, "evaluate", units)
            bench = Workbench(config, goals, trained, run, backend=backend, meter=meter, encoder=senses)
            restore_members(bench, found)
            run.store.put_block(block, [], measure(Opened(bench, found, judge, plain, encoder)))
        _show(run.store, block)
        return run.store.block_data(block)


def shown(store: TranscriptStore, kind: str) -> str | None:
    """Name of the record that was asked for last, which the report shows; None if there is none.

    Args:
        store: Of the run.
        kind: `evaluation` or `evaluation-seas`, with which its records begin.
    """
    asked = [name for name in store.block_names() if name.startswith(f"{kind}-shown/")]
    if asked:
        return str(store.block_data(asked[-1])["block"])
    records = [name for name in store.block_names() if name.startswith(f"{kind}/") and name.endswith("/result")]
    return records[-1] if records else None


def _show(store: TranscriptStore, block: str) -> None:
    """Note that a record was asked for, also if it had been measured before others."""
    kind = block.split("/", maxsplit=1)[0]
    if shown(store, kind) != block:
        number = sum(name.startswith(f"{kind}-shown/") for name in store.block_names())
        store.put_block(f"{kind}-shown/{number:04d}", [], {"block": block})


def restore_members(bench: Workbench, found: Result) -> None:
    """Make every member of a result known to a workbench.

    Raises:
        RunError: If one is missing on disk.
    """
    for version in (*found.red, *found.blue):
        if bench.population.restored(version) is None:
            raise RunError(
                f"expected the member {version} in {bench.run.population}, it is missing; restore the folder from a copy"
            )


def read_evaluation(path: Path) -> Evaluated | None:
    """The newest evaluation that is kept with a run; None if there is none."""
    read_settings(path)
    with TranscriptStore(path / "run.db", read_goals(path)) as store:
        return stored_evaluation(store)


def stored_evaluation(store: TranscriptStore) -> Evaluated | None:
    """The evaluation in a store that was asked for last; None if there is none."""
    name = shown(store, "evaluation")
    return _read(store.block_data(name)) if name else None


def num_units(settings: EvaluationSettings, config: AnyConfig, found: Result) -> float:
    """Work of an evaluation, in played dialogues, updates included."""
    fresh = bool(settings.fresh_steps)
    outside = (1 + fresh, 3 + fresh)  # those that are not members, red and blue
    tried = outside[0] + 2 + outside[1]
    attackers, targets = num_sides(config, found)
    heard = settings.attacks + (targets - 1) * (settings.attacks_on_others or settings.attacks)
    said = settings.attacks * attackers + (attackers + 1) * heard * settings.responses
    deals = settings.deals + (0 if by_members(config) else config.iterations * settings.curve_deals)
    red, blue = len(found.red), len(found.blue)
    new_cells = (red + outside[0]) * (blue + outside[1]) - red * blue
    inside = sum(cell.count + cell.num_unscored for row in found.cells for cell in row)
    return (
        said
        + heard * settings.attempts
        + targets * (2 * settings.dialogues + settings.benign)
        + deals * (3 + (tried + 3) / 2)
        + new_cells * settings.dialogues_per_cell
        + inside
        + 2 * settings.fresh_steps * step_units(config.rl)
    )


def _record(settings: EvaluationSettings, figures: Evaluation) -> dict[str, Any]:
    return {"evaluation_version": _VERSION, "settings": asdict(settings), "figures": to_record(figures)}


def _read(data: dict[str, Any]) -> Evaluated:
    if (version := data.get("evaluation_version")) != _VERSION:
        raise RunError(
            f"expected an evaluation of version {_VERSION}, got {version}; read it with the release that wrote it"
        )
    return Evaluated(from_mapping(EvaluationSettings, data["settings"]), from_record(Evaluation, data["figures"]))
