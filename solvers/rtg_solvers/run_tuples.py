"""The tuples of a run on disk: what its attack stages left behind, as the log that others read (`rtg_solvers.tuples`)."""

from __future__ import annotations

from pathlib import Path

from rtg_env.errors import ConfigError, RunError
from rtg_env.transcripts import TranscriptStore
from rtg_solvers.attack_stage import said_in, stages_in
from rtg_solvers.methods.registry import read_config
from rtg_solvers.methods.seas import SeasConfig
from rtg_solvers.run import read_goals, read_settings
from rtg_solvers.tuples import TupleLog


def run_log(path: Path, *, iteration: int = 0) -> Path:
    """Where `rtg pairs` writes a run's tuples: `tuples.jsonl`, or `tuples-K.jsonl` of one iteration."""
    return path / (f"tuples-{iteration}.jsonl" if iteration else "tuples.jsonl")


def tuples_of_run(path: Path, *, iteration: int = 0) -> TupleLog:
    """The tuples of a run's attack stages, in the order in which they were played; the run need not be finished.

    Verdicts are classed as the run classed them.

    Args:
        path: The run directory.
        iteration: Only of the stage of this one, from 1; 0: of all.

    Raises:
        RunError: If there is no run, or it has no such attack stage yet.
        ConfigError: If its config is of another release.
    """
    settings = read_settings(path)
    config = read_config(settings["config"], "config.json")
    if not isinstance(config, SeasConfig):
        raise ConfigError(
            f"expected a run of a method with attack stages (seas), {path.name} is one of {config.method}; give a tuple log"
        )
    with TranscriptStore(path / "run.db", read_goals(path)) as store:
        stages = [name for name in stages_in(store) if iteration in (0, int(name))]
        found = said_in(store, stages, threshold=config.seas.stage.unsafe_above)
    if not found.log.tuples:
        wanted = f"the attack stage of iteration {iteration}" if iteration else "an attack stage"
        raise RunError(f"expected {wanted} in {path}, it is not begun yet; go on with its `rtg solve` command")
    return found.log
