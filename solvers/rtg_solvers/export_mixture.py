"""The solution of a finished run as a folder to take home: one side's mixture, and one adapter that imitates it.

    OUT/mixture.json                weights, versions, base model and its fingerprint, sampling, rules, how to play it
        README.md                   the same for people, with code that runs
        members/blue_01/            adapter_model.safetensors, adapter_config.json (PEFT), lineage.json: copies
        distilled/                  adapter_model.safetensors, adapter_config.json, cost.json: what the one adapter costs

The run is only read. OUT is there whole or not at all; what distilling plays lives beside it until then. No sentence that a
model said is written into any of these files.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from rtg_agents.progress import Progress, SilentProgress
from rtg_agents.prompting import RED_SYSTEM
from rtg_env.errors import RunError
from rtg_env.files import whole_folder, write_text
from rtg_env.text import one_line
from rtg_env.types import Role
from rtg_solvers.configs import to_mapping
from rtg_solvers.distil import DistilSettings
from rtg_solvers.export_student import Means, student_of
from rtg_solvers.export_texts import readme
from rtg_solvers.finished import ADAPTER_FILES, LINEAGE_FILE, MIN_WEIGHT, FinishedRun, check_exportable, read_finished
from rtg_solvers.version import __version__

FORMAT: Final = "rtg-mixture/1"
"""What `mixture.json` says it is."""

_MIXTURE: Final = "mixture.json"
_BUILT_BY: Final = {
    "base": "the base model without an adapter",
    "adapter": "a PEFT adapter of the base model, in `folder`",
    "plain": "a script, no model: rtg_agents.plain_attacker()",
    "templates": "a script, no model: rtg_agents.TemplatePolicy()",
    "script": "a script, no model: rtg_agents.PlannedPolicy(name=.., templates=..) with the `script` in `folder`/lineage.json",
}
"""How to build a member, by kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One member of an exported mixture."""

    version: str
    """Its name in the run."""

    weight: float
    """Probability of drawing it."""

    kind: str
    """`base`, `adapter`, or the kind of script."""

    label: str
    """A few words."""

    folder: str
    """Where its files are in the export; empty for one without files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedMixture:
    """A folder that was written."""

    path: Path
    """Where it is."""

    role: Role
    """Whose mixture."""

    members: tuple[Part, ...]
    """Of the mixture, oldest first."""

    distilled: Mapping[str, Any]
    """What `distilled/cost.json` says; empty without distilling."""


def export_solution(
    run_dir: Path,
    role: Role,
    out: Path | None = None,
    *,
    distil: DistilSettings | None = None,
    force: bool = False,
    progress: Progress | None = None,
    offline: bool = False,
    cache_dir: Path | None = None,
) -> ExportedMixture:
    """Write one side's mixture of a finished run, and an adapter that imitates it, into a folder.

    Args:
        run_dir: The run.
        role: Which side.
        out: The folder; default: `export-blue` or `export-red` in the run directory.
        distil: How to distil the mixture into one adapter; None: the mixture alone, for which no model is loaded.
        force: Replace an earlier export.
        progress: Is told how far the work is.
        offline: Never fetch the model.
        cache_dir: Of models.

    Raises:
        RunError: If the run is not finished, damaged, or of another model, judge or prompt than there is now, or the folder
            cannot be written.
        RTGError: Any other of the tree, while distilling; the same call then goes on.
    """
    run = read_finished(run_dir)
    check_exportable(run, role)
    target = _target(run.path, role, out, force=force)
    parts = _parts(run, role)
    means = Means(progress=progress or SilentProgress(), offline=offline, cache_dir=cache_dir)
    with (
        nullcontext() if distil is None else student_of(run, role, distil, target, means) as student,
        whole_folder(target, force=force) as scratch,
    ):
        for part in parts:
            if part.folder:
                _copy(run.home(part.version), scratch / part.folder, part.kind)
        about = student.about if student is not None else {}
        if student is not None:
            if student.write_adapter is not None:
                student.write_adapter(scratch / "distilled")
            (scratch / "distilled").mkdir(exist_ok=True)
            write_text(scratch / "distilled" / "cost.json", json.dumps(about, indent=1) + "\n")
        mixture = _mixture_json(run, role, parts)
        write_text(scratch / _MIXTURE, json.dumps(mixture, indent=1) + "\n")
        write_text(scratch / "README.md", readme(mixture, about))
    return ExportedMixture(path=target, role=role, members=parts, distilled=about)


def _parts(run: FinishedRun, role: Role) -> tuple[Part, ...]:
    parts = []
    for version, weight in run.mixture_of(role).items():
        member = run.members[version]
        folder = f"members/{member.folder_name}" if member.kind in ("adapter", "script") else ""
        label = one_line(member.label, max_chars=60)
        parts.append(Part(version=version, weight=weight, kind=member.kind, label=label, folder=folder))
    return tuple(parts)


def _target(run: Path, role: Role, out: Path | None, *, force: bool) -> Path:
    """Where the export goes, checked before anything is computed.

    Raises:
        RunError: If something stands there, or it would disturb the run.
    """
    shown = run / f"export-{role}" if out is None else out
    if shown.name in ("", ".."):
        raise RunError(f"expected a folder to write as --out, got {str(shown)!r}; name it")
    path = shown.parent.resolve() / shown.name
    if path.is_symlink():
        raise RunError(f"expected a plain folder to write, {path} is a link; remove it or choose another --out")
    if path.is_relative_to(run) and (path.parent != run or not path.name.startswith("export")):
        raise RunError(f"expected --out outside the run, or named export.. in it, got {path}; choose another --out")
    if path.exists() and not force:
        raise RunError(f"expected no folder at {path}, there is one; choose another --out, or replace it with --force")
    if path.exists() and not _is_export(path):
        raise RunError(f"expected an earlier export at {path} to replace, it is something else; choose another --out")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"expected to write into {path.parent}: {error}; choose another --out") from error
    return path


def _is_export(path: Path) -> bool:
    try:
        data = json.loads((path / _MIXTURE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and data.get("format") == FORMAT


def _copy(source: Path, target: Path, kind: str) -> None:
    target.mkdir(parents=True)
    for name in (*ADAPTER_FILES, LINEAGE_FILE) if kind == "adapter" else (LINEAGE_FILE,):
        shutil.copyfile(source / name, target / name)


def _mixture_json(run: FinishedRun, role: Role, parts: tuple[Part, ...]) -> dict[str, Any]:
    config, sampling = run.config, run.config.sampling[role]
    return {
        "format": FORMAT,
        "role": role,
        "how_to_play": (
            "At the beginning of each dialogue draw one member with its weight, and keep it to the end; do not tell the other "
            "side which. Drawing anew for each sentence is another policy."
        ),
        "members": [{**asdict(part), "built_by": _BUILT_BY[part.kind]} for part in parts],
        "left_out_below": MIN_WEIGHT,
        "value": run.result.value,
        "expected": run.result.expected,
        "value_is": "what red wins per dialogue at an equilibrium of the sampled payoffs; expected: by both sides' mixtures",
        "base_model": {"id": config.model, "fingerprint": run.model_fingerprint},
        "system_prompt": config.game.blue_system_prompt if role == "blue" else RED_SYSTEM,
        "prompting": f"rtg_agents.prompting.{role}_view",
        "prompt_version": run.settings.get("prompt_version"),
        "sampling": asdict(sampling),
        "game": to_mapping(config.game),
        "judge_id": run.settings["judge_id"],
        "run": run.path.name,
        "method": config.method,
        "seed": config.seed,
        "run_version": run.settings.get("version"),
        "export_version": __version__,
    }
