"""The one adapter of an export: distilled from the mixture, or copied where the mixture is one member."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rtg_agents.population import Population
from rtg_agents.progress import Progress, WorkMeter
from rtg_agents.prompting import PROMPT_VERSION
from rtg_env.errors import RunError
from rtg_env.judges.base import Judge
from rtg_env.types import Role
from rtg_solvers import distil_cost
from rtg_solvers.configs import to_mapping
from rtg_solvers.distil import MODEL_KINDS, STUDENT, Distillation, DistilSettings, learn, to_json
from rtg_solvers.finished import ADAPTER_FILES, FinishedRun
from rtg_solvers.methods import registry
from rtg_solvers.model_loading import load_backend
from rtg_solvers.rollout import Game
from rtg_solvers.run import RunDirectory
from rtg_solvers.session import resolve_judge

if TYPE_CHECKING:
    from rtg_agents.hf import TorchBackend


class Student(NamedTuple):
    """What goes into `distilled/`."""

    about: Mapping[str, Any]
    """What `cost.json` says."""

    write_adapter: Callable[[Path], None] | None
    """Writes the adapter into a folder that does not exist; None if there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """Where a model and a judge come from, and who is told."""

    progress: Progress
    """Is told how far the work is."""

    offline: bool = False
    """Never fetch anything."""

    cache_dir: Path | None = None
    """Of models."""


@contextmanager
def student_of(run: FinishedRun, role: Role, settings: DistilSettings, target: Path, means: Means) -> Iterator[Student]:
    """The adapter that stands for a side's mixture.

    Args:
        run: Is only read.
        role: Whose mixture.
        settings: Of distilling.
        target: Where the export goes; the work is kept beside it, and removed when the context ends without an error.
        means: Model, judge, progress.

    Raises:
        RunError: If model, judge or prompts are not those of the run.
    """
    mixture = run.mixture_of(role)
    if len(mixture) == 1:
        yield _copied(run, next(iter(mixture)))
        return
    with _work(run, role, settings, target) as work:
        yield _distilled(run, role, settings, work, means)
    shutil.rmtree(work.path, ignore_errors=True)


def _copied(run: FinishedRun, version: str) -> Student:
    """A mixture of one member is one policy already."""
    is_adapter = run.members[version].kind == "adapter"
    what = "its adapter is copied" if is_adapter else f"it is no adapter ({run.members[version].kind})"
    about = {
        "kind": "copied" if is_adapter else "none",
        "about": f"The mixture is one member, {version}: {what}, and there was nothing to distil.",
        "imitated": {version: 1.0},
        "cost": {"by_construction": 0.0},
    }

    def copy(folder: Path) -> None:
        folder.mkdir()
        for name in ADAPTER_FILES:
            shutil.copyfile(run.home(version) / name, folder / name)

    return Student(about, copy if is_adapter else None)


@contextmanager
def _work(run: FinishedRun, role: Role, settings: DistilSettings, target: Path) -> Iterator[RunDirectory]:
    """Where distilling keeps its dialogues and its checkpoint; named by all that decides them, so that it can go on."""
    decides = {
        "export": role,
        "run": dict(run.settings),
        "model": run.model_fingerprint,
        "mixtures": {"red": run.side("red"), "blue": run.side("blue")},
        "distil": to_mapping(settings),
        "target": target.name,
    }
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:8]
    with RunDirectory(target.parent, f"export-{role}.work-{digest}", decides, run.goals) as work:
        yield work


def _distilled(run: FinishedRun, role: Role, settings: DistilSettings, work: RunDirectory, means: Means) -> Student:
    backend, judge = _model_and_judge(run, means)
    population = Population(run.path / "population", backend, run.config.sampling)
    for version in run.members:
        population.restored(version)
    opponents = tuple(run.side("blue" if role == "red" else "red"))
    lessons = settings.held_back + 2 * settings.steps * settings.dialogues_per_step
    total = lessons + distil_cost.num_dialogues(settings.cost_dialogues, len(opponents))
    task = Distillation(
        role=role,
        game=Game(config=run.config.game, goals=run.goals.split("train"), judge=judge),
        mixture=run.mixture,
        opponents=opponents,
        population=population,
        backend=backend,
        work=work,
        settings=settings,
        seed=run.config.seed,
        meter=WorkMeter(means.progress, "distil", total),
    )
    learned = learn(task)
    cost = distil_cost.measure_cost(task)
    about = {
        "kind": "distilled",
        "about": (
            f"One adapter that imitates {role}'s mixture: maximum likelihood on sentences that the mixture said against the "
            "other side's mixture, on training goals. Payoffs are what red wins per dialogue on fresh deals of training "
            f"goals; `cost` is what {role} is paid less than with its mixture, paired, 95 % intervals clustered by goal. "
            "against_best: the member of the other side that wins most, chosen on one half of the deals, estimated on the "
            "other; no other opponent was tried."
        ),
        "imitated": task.weights,
        "scripts_imitated_as_text": [name for name in task.weights if population[name].kind not in MODEL_KINDS],
        "settings": to_mapping(settings),
        "seed": run.config.seed,
        "lora": to_mapping(backend.lora),
        "learned": to_json(learned),
        "cost": distil_cost.to_json(cost),
    }
    return Student(_without_nan(about), lambda folder: backend.save_adapter(STUDENT, folder))


def _model_and_judge(run: FinishedRun, means: Means) -> tuple[TorchBackend, Judge]:
    """The model and the judge that the run was made with.

    Raises:
        RunError: If those of the same names are others now.
    """
    config, prompts = run.config, run.settings.get("prompt_version")
    if prompts != PROMPT_VERSION:
        raise RunError(
            f"expected a run with prompts of version {PROMPT_VERSION}, got {prompts}; export it with the release that made "
            "it, or without distilling (--no-distil)"
        )
    judge = registry.referee(
        config, resolve_judge(config.judge, offline=means.offline, cache_dir=means.cache_dir, progress=means.progress)
    )
    _check_same("judge", str(run.settings["judge_id"]), judge.judge_id)
    backend = load_backend(config, means.progress, offline=means.offline, cache_dir=means.cache_dir)
    _check_same("model", run.model_fingerprint, backend.fingerprint)
    return backend, judge


def _check_same(what: str, before: str, now: str) -> None:
    """Refuse another model or judge under the same name: the cost would be one of another game.

    Raises:
        RunError: Naming both.
    """
    if before != now:
        raise RunError(
            f"expected the {what} that the run was made with ({before}), got another one ({now}); restore it, "
            "or export without distilling (--no-distil)"
        )


def _without_nan(data: Any) -> Any:
    """JSON has no NaN: what could not be said is null."""
    if isinstance(data, Mapping):
        return {key: _without_nan(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_without_nan(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
