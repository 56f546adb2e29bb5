"""Evaluate a run whose goals are seeds, or go on with it; the figures stay in the run's store."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, NamedTuple

from rtg_env.errors import ConfigError, RunError
from rtg_env.transcripts import TranscriptStore
from rtg_solvers.configs import from_mapping
from rtg_solvers.evaluation.protocol import EvaluationSettings
from rtg_solvers.evaluation.run import Means, Opened, measured, shown
from rtg_solvers.evaluation.seas import SeasEvaluation, SeasProtocol
from rtg_solvers.evaluation.static import StaticPrompts, load_static
from rtg_solvers.finished import read_finished
from rtg_solvers.methods.registry import SeedsConfig, on_seeds
from rtg_solvers.records import from_record, to_record
from rtg_solvers.seeds import load_seeds

_VERSION: Final = 2
_KIND: Final = "evaluation-seas"


class SeasEvaluated(NamedTuple):
    """An evaluation that is kept with its run."""

    settings: EvaluationSettings
    """How much was measured: `attacks`, `goals`, `responses`, `benign`, `embeddings`, `static` and `seed` count here."""

    figures: SeasEvaluation
    """What was found."""


def evaluate_seas_run(path: Path, settings: EvaluationSettings, means: Means) -> SeasEvaluated:
    """Measure what a finished run of SEAS or MART is worth.

    Args:
        path: The run directory.
        settings: How much is measured.
        means: What it works with.

    Raises:
        RTGError: Any of the tree, with a remedy; what was measured so far is kept.
    """
    config = read_finished(path).config
    if not on_seeds(config):
        raise ConfigError(f"expected a run of seas or mart, {path.name} is one of {config.method}; call evaluate_run")
    if settings.fresh_steps:
        raise ConfigError("expected fresh_steps 0: no best response is trained on seeds; leave --fresh-steps out")

    static = _static(settings, config)

    def measure(opened: Opened) -> dict[str, Any]:
        protocol = SeasProtocol(opened.bench, opened.judge, opened.plain_judge, opened.encoder, settings, static)
        figures = protocol.finish(config)
        return {"evaluation_version": _VERSION, "settings": asdict(settings), "figures": to_record(figures)}

    block = f"{_KIND}/{'-'.join([settings.digest, *(one.digest[:8] for one in static)])}/result"
    return _read(measured(path, settings, block, measure, means, num_units(settings, config)))


def stored_seas_evaluation(store: TranscriptStore) -> SeasEvaluated | None:
    """The evaluation in a store that was asked for last; None if there is none."""
    name = shown(store, _KIND)
    return _read(store.block_data(name)) if name else None


def num_units(settings: EvaluationSettings, config: SeedsConfig) -> float:
    """Work of an evaluation, in played dialogues."""
    members = 1 + config.updates
    said = settings.attacks * members
    plainly = config.heldout_seeds + sum(len(one.goals) for one in _static(settings, config))
    return float(said + (said * members + plainly * members) * settings.responses)


def _static(settings: EvaluationSettings, config: SeedsConfig) -> tuple[StaticPrompts, ...]:
    """The static sets without what the run's players learned from."""
    if not settings.static:
        return ()
    return load_static(settings.static, [prompt.text for prompt in load_seeds(config.sources.seeds).split("train")])


def _read(data: dict[str, Any]) -> SeasEvaluated:
    if (version := data.get("evaluation_version")) != _VERSION:
        raise RunError(
            f"expected an evaluation of version {_VERSION}, got {version}; read it with the release that wrote it"
        )
    return SeasEvaluated(
        from_mapping(EvaluationSettings, data["settings"]), from_record(SeasEvaluation, data["figures"])
    )
