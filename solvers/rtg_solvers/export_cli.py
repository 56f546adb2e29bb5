"""What `rtg export` does and says: the dialogues of a run as a table, or one side's solution as a folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rtg_agents.progress import Progress
from rtg_env.errors import ConfigError
from rtg_env.export import Exported, export_dialogues
from rtg_env.transcripts import TranscriptStore
from rtg_env.types import Role
from rtg_solvers.run import read_goals, read_settings

if TYPE_CHECKING:
    from rtg_solvers.export_mixture import ExportedMixture

_LOADERS: Final = {
    "parquet": ("read_parquet({})", "parquet"),
    # Without these two options pandas rounds floats, and turns texts that are numbers into numbers.
    "jsonl": ("read_json({}, lines=True, precise_float=True, dtype=False)", "json"),
}
"""By format: how pandas loads a file, and what `datasets` calls the format."""


def export_command(run_dir: Path, *, kind: str, out: Path | None, blocks: str, force: bool, text: bool) -> str:
    """Write the dialogues of a run as a table, and say what was written.

    Args:
        run_dir: The run; it may be going on.
        kind: `parquet` or `jsonl`.
        out: The file; default: `dialogues` in the run directory, or `dialogues-no-text`.
        blocks: Which units of work: a pattern.
        force: Replace a file that exists.
        text: False leaves numbers and hashes only.

    Raises:
        ConfigError: If there is no such format, `out` ends otherwise, or there is nothing to write.
        RunError: If this is no run, or the file exists or cannot be written.
        MissingExtraError: If the format needs a package that is missing.
    """
    if kind not in ("parquet", "jsonl"):
        raise ConfigError(f"expected --format parquet or jsonl, got {kind!r}")
    shown = run_dir / f"dialogues{'' if text else '-no-text'}.{kind}" if out is None else out
    if shown.suffix != f".{kind}":
        raise ConfigError(f"expected --out to end in .{kind}, got {shown.name!r}; rename it or choose another --format")
    path = run_dir.resolve()
    settings = read_settings(path)
    about = {
        "config_digest": hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
        "goals_digest": str(settings.get("goals_digest", "")),
        "version": str(settings.get("version", "")),
    }
    with TranscriptStore(path / "run.db", read_goals(path)) as store:
        written = export_dialogues(store, shown, run=path.name, blocks=blocks, text=text, force=force, about=about)
    return _summary(written, kind)


def solution_side(*, blue: bool, red: bool, dialogues: dict[str, bool], solution: dict[str, bool]) -> Role | None:
    """Which side's solution `rtg export` is asked for; None: the dialogues.

    Args:
        blue: Whether --blue was given.
        red: Whether --red was given.
        dialogues: Options that only concern dialogues, and whether each was given.
        solution: Options that only concern a solution, and whether each was given.

    Raises:
        ConfigError: If the options do not go together.
    """
    if blue and red:
        raise ConfigError(
            "expected --blue or --red, got both; a solution is of one side: run the command once for each"
        )
    wrong = [name for name, given in (dialogues if blue or red else solution).items() if given]
    if wrong:
        remedy = "leave it out" if blue or red else "add --blue or --red, or leave it out"
        raise ConfigError(f"expected {wrong[0]} only {'without' if blue or red else 'with'} --blue or --red; {remedy}")
    return "blue" if blue else "red" if red else None


def solution_command(
    run_dir: Path,
    role: Role,
    *,
    out: Path | None,
    force: bool,
    distil: bool,
    steps: int | None,
    offline: bool,
    cache_dir: Path | None,
    progress: Progress,
) -> str:
    """Write a side's mixture and the adapter distilled from it, and say what was written.

    Args:
        run_dir: A finished run.
        role: Whose solution.
        out: The folder; default: `export-ROLE` in the run directory.
        force: Replace an earlier export.
        distil: Whether to distil the mixture into one adapter.
        steps: Of that; None: the default.
        offline: Never fetch the model.
        cache_dir: Of models.
        progress: Is told how far the work is.

    Raises:
        ConfigError: If steps are given and nothing is distilled, or there are none.
        RTGError: As `export_solution`.
    """
    from rtg_solvers.distil import DistilSettings
    from rtg_solvers.export_mixture import export_solution

    if steps is not None and not distil:
        raise ConfigError("expected --steps or --no-distil, got both; without distilling there are no steps")
    settings = DistilSettings(steps=steps) if steps is not None else DistilSettings()
    written = export_solution(
        run_dir,
        role,
        out,
        distil=settings if distil else None,
        force=force,
        progress=progress,
        offline=offline,
        cache_dir=cache_dir,
    )
    return _solution_summary(written)


def _solution_summary(written: ExportedMixture) -> str:
    from rtg_solvers.export_texts import distilled_lines

    lines = [f"{written.role}'s mixture: draw one member per dialogue"]
    lines += [f"  {part.weight:.4f}  {part.version}  {part.label}" for part in written.members]
    lines.append(f"folder     {written.path}")
    if written.distilled:
        lines.append("distilled  one adapter that imitates the mixture, and what it costs (distilled/cost.json)")
        lines += [f"  {line}".rstrip() for line in distilled_lines(written.role, written.distilled)]
    lines.append(f"how to     {written.path / 'README.md'}")
    return "\n".join(lines)


def _summary(written: Exported, kind: str) -> str:
    name = str(written.path)
    pandas, datasets = _LOADERS[kind]
    return (
        f"dialogues  {written.num_dialogues}\n"
        f"file       {name}\n"
        f"size       {written.num_bytes} bytes\n"
        f"sha256     {written.sha256}\n"
        f"load       pandas.{pandas.format(repr(name))}\n"
        f"           datasets.load_dataset({datasets!r}, data_files={name!r})"
    )
