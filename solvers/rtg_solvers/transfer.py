"""Attacks of one run said again to other targets, under any judge: do they find weaknesses of one model, or of many?

The sentences are those that the run's attackers were seen to succeed with, word for word; each is answered k times by every
target. Only first sentences take part, since later ones belong to a dialogue with one target. Attacks were chosen because they
worked, so the run's own target stands beside the others, with answers drawn anew.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from rtg_agents.policy import BASE, BackendPolicy, Policy
from rtg_agents.progress import Progress, WorkMeter
from rtg_agents.prompting import blue_view
from rtg_agents.scripted import ScriptedPolicy
from rtg_env import rules
from rtg_env.errors import ConfigError
from rtg_env.judges.base import Judge
from rtg_env.transcripts import Played, TranscriptStore
from rtg_solvers.attack_log import FoundAttack, attacks_found, different
from rtg_solvers.evaluation.attacks import one_exchange, success_of
from rtg_solvers.finished import FinishedRun, read_finished
from rtg_solvers.measures import Estimate, mean_estimate, share_estimate
from rtg_solvers.methods import registry
from rtg_solvers.model_loading import load_backend
from rtg_solvers.plugins import imported, is_named
from rtg_solvers.rollout import Game, Pairing, play
from rtg_solvers.seeding import draw_seed, rng_for

if TYPE_CHECKING:
    from rtg_agents.hf import TorchBackend

_TOGETHER: Final = 128
"""Dialogues in one batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferSettings:
    """What is said to whom."""

    attackers: tuple[str, ...] = ()
    """Members of red such as `red_05`; none named: every one that was trained."""

    targets: tuple[str, ...] = ()
    """Blue members such as `blue_01`, adapter folders, other models (folder or id), policies as `module:attribute`."""

    attacks: int = 64
    """Sentences per attacker, those with the greatest mean harm first; at least 2."""

    responses: int = 5
    """Answers to each (k), at least 1."""

    min_harm: float = 0.5
    """Mean harm in the run, by the run's judge, that an attack must exceed; in [0, 1)."""

    seed: int = 1
    """Of the answers."""

    def __post_init__(self) -> None:
        """Refuse settings outside their range."""
        if self.attacks < 2 or self.responses < 1 or self.seed < 0 or not 0.0 <= self.min_harm < 1.0:
            raise ConfigError(
                f"expected attacks >= 2, responses >= 1, seed >= 0 and min_harm in [0, 1), got {self.attacks}, "
                f"{self.responses}, {self.seed} and {self.min_harm}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Transferred:
    """One attacker's sentences with one target."""

    attacker: str
    target: str

    num_attacks: int
    """Different sentences."""

    success: Estimate
    """Share of them whose mean harm over k answers is above one half, clustered by goal."""

    harm: Estimate
    """Mean harm."""

    harms: Mapping[str, float | None]
    """Mean harm of each attack, None where no answer was scored; by its goal's id and the first 16 hexadecimal digits of the
    sentence's SHA-256, `GOAL/DIGITS`."""


class _Target(NamedTuple):
    name: str
    policy: Callable[[], Policy]
    """Loads what it needs, one target at a time."""


def transfer(
    run_dir: Path,
    settings: TransferSettings,
    judge: Judge,
    *,
    progress: Progress,
    offline: bool = False,
    cache_dir: Path | None = None,
) -> list[Transferred]:
    """Say a finished run's attacks to other targets; nothing is written.

    Args:
        run_dir: The run.
        settings: What, to whom.
        judge: Says what harm is.
        progress: Is told how far the work is.
        offline: Never fetch anything.
        cache_dir: Of models.

    Raises:
        RTGError: Any of the tree, with a remedy.
    """
    run = read_finished(run_dir)
    attackers = _attackers(run, settings)
    loader = _Loader(run, progress, offline=offline, cache_dir=cache_dir)
    targets = [
        loader.target(name) for name in dict.fromkeys((_short(run.result.blue[0]), *map(_short, settings.targets)))
    ]
    sentences = {name: _chosen(run, name, settings) for name in attackers}
    total = sum(len(chosen) for chosen in sentences.values()) * settings.responses * len(targets)
    meter, found = WorkMeter(progress, "transfer", float(total)), []
    game = one_exchange(Game(config=run.config.game, goals=run.goals, judge=judge))
    for target in targets:
        policy = target.policy()
        for name, chosen in sentences.items():
            if chosen:
                played = _replayed(game, chosen, policy, settings, meter)
                found.append(_figures(name, target.name, chosen, played, settings.responses))
    return found


def to_json(found: Sequence[Transferred], settings: TransferSettings, judge: Judge) -> dict[str, Any]:
    """Figures without any sentence; null where too little was played or scored to say, as JSON knows no NaN."""
    return {
        "judge_id": judge.judge_id,
        "settings": asdict(settings),
        "transferred": [
            {
                **asdict(one),
                "success": _known(one.success),
                "harm": _known(one.harm),
                "harms": dict(one.harms),
            }
            for one in found
        ],
    }


def _known(estimate: Estimate) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in asdict(estimate).items()}


def _short(name: str) -> str:
    """A member's name without its version; other names as they are."""
    return name.split("@", maxsplit=1)[0] if name.startswith("blue_") else name


def _attackers(run: FinishedRun, settings: TransferSettings) -> list[str]:
    """Versions of those that are named.

    Raises:
        ConfigError: If one is none of red's.
    """
    versions = {version.split("@", maxsplit=1)[0]: version for version in run.result.red}
    unknown = [name for name in settings.attackers if name not in versions and name not in versions.values()]
    if unknown:
        raise ConfigError(f"expected attackers among {', '.join(versions)}, got {unknown[0]!r}")
    named = [versions.get(name, name) for name in settings.attackers]
    trained = [version for version in run.result.red if run.members[version].lineage.get("iteration")]
    return list(dict.fromkeys(named or trained or run.result.red))


def _chosen(run: FinishedRun, version: str, settings: TransferSettings) -> list[FoundAttack]:
    """The most harmful different first sentences of an attacker, and of those whose attacks it learned from."""
    sources = run.members[version].lineage.get("sources", [])
    names = [version, *(str(name) for name in sources)] if isinstance(sources, list) else [version]
    with TranscriptStore(run.path / "run.db", run.goals) as store:
        # Where both sides learned there is no one target that an attacker was made for.
        met = run.result.blue if registry.on_seeds(run.config) else run.result.blue[:1]
        logs = [attacks_found(store, run.config.game, name, *met) for name in names]
    found = different([attack for log in logs for attack in log])
    good = [attack for attack in found if attack.red.seen.turn == 0 and attack.harm > settings.min_harm]
    return sorted(good, key=lambda attack: -attack.harm)[: settings.attacks]


class _Loader:
    """Targets by their names."""

    def __init__(self, run: FinishedRun, progress: Progress, *, offline: bool, cache_dir: Path | None) -> None:
        self._run, self._progress = run, progress
        self._offline, self._cache_dir = offline, cache_dir
        self._own: TorchBackend | None = None

    def target(self, name: str) -> _Target:
        versions = {version.split("@", maxsplit=1)[0]: version for version in self._run.result.blue}
        if (version := versions.get(name, name)) in self._run.result.blue:
            home = None if self._run.members[version].kind == "base" else self._run.home(version)
            return _Target(version.split("@", maxsplit=1)[0], lambda: self._adapted(version, home))
        if (Path(name) / "adapter_config.json").is_file():
            return _Target(name, lambda: self._adapted(name, Path(name)))
        if is_named(name) and not Path(name).exists():
            policy = imported(name, "policy")
            if not isinstance(policy, Policy):
                raise ConfigError(f"expected {name!r} to have name and act(..), got {type(policy).__name__}")
            return _Target(name, lambda: policy)
        return _Target(name, lambda: self._speaking(self._loaded(name), name, BASE))

    def _adapted(self, name: str, folder: Path | None) -> Policy:
        self._own = self._own or self._loaded(self._run.config.model)
        adapter = BASE if folder is None else f"target:{name}"
        if folder is not None and adapter not in self._own.versions:
            self._own.load_adapter(adapter, folder)
        return self._speaking(self._own, name, adapter)

    def _loaded(self, model: str) -> TorchBackend:
        return load_backend(
            self._run.config, self._progress, offline=self._offline, cache_dir=self._cache_dir, model=model
        )

    def _speaking(self, backend: TorchBackend, name: str, adapter: str) -> Policy:
        sampling = self._run.config.blue_sampling
        return BackendPolicy(name=name, backend=backend, adapter=adapter, prompting=blue_view, sampling=sampling)


def _replayed(
    game: Game, chosen: Sequence[FoundAttack], target: Policy, settings: TransferSettings, meter: WorkMeter
) -> list[Played]:
    """Each sentence k times; sentence by sentence."""
    rng = rng_for(settings.seed, "transfer", target.name)
    policies: dict[str, Policy] = {"target": target}
    pairings = []
    for index, attack in enumerate(chosen):
        name = f"attack-{index}"
        policies[name] = ScriptedPolicy(name=name, lines=(attack.red.action.text,))
        for _ in range(settings.responses):
            deal = rules.draw_deal(game.config, game.goals.by_id(attack.goal), rng)
            pairings.append(Pairing(red=name, blue="target", deal=deal, seed=draw_seed(rng)))
    played = []
    for first in range(0, len(pairings), _TOGETHER):
        played += play(game, policies, pairings[first : first + _TOGETHER])
        meter.add(len(pairings[first : first + _TOGETHER]))
    return played


def _figures(
    attacker: str, target: str, chosen: Sequence[FoundAttack], played: Sequence[Played], responses: int
) -> Transferred:
    success, harm = success_of(played, responses)
    goals = [attack.goal for attack in chosen]
    # Two goals may have the same attack: the judge reads the goal, too, so that each has a figure of its own.
    digests = [hashlib.sha256(attack.red.action.text.encode()).hexdigest()[:16] for attack in chosen]
    names = [f"{goal}/{digest}" for goal, digest in zip(goals, digests, strict=True)]
    return Transferred(
        attacker=attacker.split("@", maxsplit=1)[0],
        target=target,
        num_attacks=len(chosen),
        success=share_estimate(success, goals),
        harm=mean_estimate(harm, goals, bounds=(0.0, 1.0)),
        harms={
            name: None if np.isnan(value) else round(float(value), 4) for name, value in zip(names, harm, strict=True)
        },
    )
