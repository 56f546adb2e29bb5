"""What `rtg export` does and says."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Final

from rtg_env.errors import ConfigError
from rtg_env.export import Exported, export_dialogues
from rtg_env.transcripts import TranscriptStore
from rtg_solvers.run import read_goals, read_settings

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
