"""A finished run on disk, for those who take something home from it: read, checked, never written to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from rtg_agents.population import Member, read_member
from rtg_env.errors import RunError
from rtg_env.goals import GoalSet
from rtg_env.transcripts import TranscriptStore
from rtg_env.types import Role
from rtg_solvers.empirical import Mixture
from rtg_solvers.methods.registry import AnyConfig, read_config
from rtg_solvers.result import Result
from rtg_solvers.run import IDENTITY, read_goals, read_settings
from rtg_solvers.session import read_result

MIN_WEIGHT: Final = 1e-6
"""Members with less weight are rounding of the solver, and left out; the weights of the others then sum to 1 again."""

ADAPTER_FILES: Final = ("adapter_model.safetensors", "adapter_config.json")
"""What an adapter is on disk."""

LINEAGE_FILE: Final = "lineage.json"
"""Where a member says how it came to be."""

EXPORTED_KINDS: Final = ("base", "adapter", "plain", "templates", "script")
"""Kinds of members that can be taken out of a run."""

_OTHERS: Final = {
    "tactics": "a network over tactics, which reads with its run's encoder and judge",
    "in-context": "the base model with examples in its prompt, so that it has no weights to take home: talk to it with `rtg play "
    "--red FOLDER`, say its attacks to other targets with `rtg transfer RUN`, take its dialogues with `rtg export RUN`",
    "archive": "a list of sentences, so that it has no weights to take home: read them in its lineage.json, play them with `rtg "
    "play --red FOLDER`, say them to other targets with `rtg transfer RUN`",
}
"""What the other kinds are, and what can be done with them instead."""

_VERSION: Final = re.compile(r"(red|blue)_[0-9]{2,6}@v[0-9]{1,6}")


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedRun:
    """A run with a result."""

    path: Path
    """Its directory."""

    config: AnyConfig
    """What it was made with."""

    settings: Mapping[str, Any]
    """The same with what its names stand for, as in `config.json`."""

    goals: GoalSet
    """As they were played."""

    result: Result
    """Its numbers."""

    model_fingerprint: str
    """Of the base model's files."""

    members: Mapping[str, Member]
    """Every member of both sides, by version."""

    def side(self, role: Role) -> dict[str, float]:
        """Weight of every member of a side, as the result has it."""
        names, shares = (
            (self.result.red, self.result.red_mixture)
            if role == "red"
            else (self.result.blue, self.result.blue_mixture)
        )
        return dict(zip(names, shares, strict=True))

    def mixture_of(self, role: Role) -> dict[str, float]:
        """Weights of the members that have one; they sum to 1."""
        kept = {name: share for name, share in self.side(role).items() if share > MIN_WEIGHT}
        whole = sum(kept.values())
        return {name: share / whole for name, share in kept.items()}

    @property
    def mixture(self) -> Mixture:
        """Both sides' mixtures, without members of no weight."""
        red, blue = self.mixture_of("red"), self.mixture_of("blue")
        return Mixture(
            red=np.array(list(red.values())),
            blue=np.array(list(blue.values())),
            red_names=tuple(red),
            blue_names=tuple(blue),
            value=self.result.value,
            expected=self.result.expected,
        )

    def home(self, version: str) -> Path:
        """Folder of a member."""
        return _home(self.path, version)


def read_finished(run_dir: Path) -> FinishedRun:
    """A run that has come to its end.

    Raises:
        RunError: If it is no run, not finished, damaged, or holds links.
        ConfigError: If its config is of another release.
    """
    if run_dir.is_symlink():
        raise RunError(f"expected a plain folder for the run, {run_dir} is a link; give the folder itself")
    path = run_dir.resolve()
    settings = read_settings(path)
    found = read_result(path)
    if found is None:
        raise RunError(f"expected a finished run, {path} has no result yet; finish it with its `rtg solve` command")
    goals = read_goals(path)
    with TranscriptStore(path / "run.db", goals) as store:
        identity = store.block_data(IDENTITY)
    sides: dict[Role, tuple[str, ...]] = {"red": found.red, "blue": found.blue}
    return FinishedRun(
        path=path,
        config=read_config(settings["config"], "config.json"),
        settings=settings,
        goals=goals,
        result=found,
        model_fingerprint=str(identity.get("model", "")),
        members={version: _member(path, role, version) for role, names in sides.items() for version in names},
    )


def _member(run: Path, role: Role, version: str) -> Member:
    """A member as its folder describes it, if that is a folder of this run.

    Raises:
        RunError: If it is a link, missing, damaged or another member's, or its name is no name of a member of this side.
    """
    if not _VERSION.fullmatch(version) or not version.startswith(f"{role}_"):
        raise RunError(f"expected versions such as {role}_01@v1 in the result of {run}, got {version!r}")
    folder = _home(run, version)
    for path in (folder.parent, folder, *(folder / name for name in (*ADAPTER_FILES, LINEAGE_FILE))):
        if path.is_symlink():
            raise RunError(f"expected plain files in the run directory, {path} is a link; put the file itself there")
    member = read_member(folder)
    if member is None or (member.version, member.role) != (version, role):
        raise RunError(f"expected {version} in {folder}, it is not there; restore the run's population folder")
    missing = [name for name in ADAPTER_FILES if not (folder / name).is_file()] if member.holds_adapter else []
    if missing:
        raise RunError(
            f"expected a whole member in {folder}, {missing[0]} is missing; restore the run's population folder"
        )
    return member


def check_exportable(run: FinishedRun, role: Role) -> None:
    """Refuse to take home what is more than an adapter or a script.

    Raises:
        RunError: If a member of the side's mixture is of another kind.
    """
    for version in run.mixture_of(role):
        if (kind := run.members[version].kind) not in EXPORTED_KINDS:
            raise RunError(
                f"expected members of the kinds {', '.join(EXPORTED_KINDS)} to export, {version} is {_OTHERS[kind]}; "
                f"{run.home(version)} holds all there is of it"
            )


def _home(run: Path, version: str) -> Path:
    return run / "population" / version.split("@", maxsplit=1)[0]
