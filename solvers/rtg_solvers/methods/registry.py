"""Which method a config is of: the one place that knows all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeGuard

from rtg_agents.population import Member, untrained_members, untrained_seeded_members
from rtg_env import goals as goals_module
from rtg_env.errors import ConfigError
from rtg_env.goals import GoalSet
from rtg_env.judges.base import Encoder, Judge
from rtg_env.judges.given_attack import GivenAttack
from rtg_env.transcripts import TranscriptStore
from rtg_solvers.configs import from_mapping, read_config_file
from rtg_solvers.loop import DialogueContext, Method
from rtg_solvers.methods import attackers, grts, mart, seas
from rtg_solvers.methods.common import Cost

if TYPE_CHECKING:
    from pathlib import Path

    from rtg_agents.hf import TorchBackend

AnyConfig = grts.GRTSConfig | attackers.AttackConfig | seas.SeasConfig | mart.MartConfig
"""Of any method."""

SeedsConfig = seas.SeasConfig | mart.MartConfig
"""Of methods in which red's goals are seeds."""

DEFAULT: Final = "grts"
"""The method of a config that names none."""


def _given_goals(config: AnyConfig) -> GoalSet:
    return goals_module.load(config.goals)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    """Methods with one kind of config, and what a run of them is made of."""

    names: tuple[str, ...]
    config: type[AnyConfig]

    method: Callable[[Any, TorchBackend, Encoder, TranscriptStore | None], Method[DialogueContext]]
    """The point of the population loop."""

    cost: Callable[[Any, GoalSet], Cost]

    goals: Callable[[Any], GoalSet] = _given_goals
    """What red is to reach."""

    untrained: Callable[[], tuple[Member, ...]] = untrained_members
    """Members to begin with."""

    plan: Callable[[Any], list[str]] = lambda _: []
    remarks: Callable[[Any, TranscriptStore], list[str]] = lambda _, __: []


_FAMILIES: Final = (
    _Family(
        names=grts.METHODS,
        config=grts.GRTSConfig,
        method=lambda config, backend, encoder, log: grts.method(config, backend),
        cost=grts.cost,
    ),
    _Family(
        names=attackers.METHODS,
        config=attackers.AttackConfig,
        method=lambda config, backend, encoder, log: attackers.method(config, backend, encoder),
        cost=attackers.cost,
    ),
    _Family(
        names=seas.METHODS,
        config=seas.SeasConfig,
        method=lambda config, backend, encoder, log: seas.method(config, backend),
        cost=seas.cost,
        goals=seas.goals,
        untrained=untrained_seeded_members,
        plan=seas.plan,
    ),
    _Family(
        names=mart.METHODS,
        config=mart.MartConfig,
        method=lambda config, backend, encoder, log: mart.method(config, backend, log),
        cost=mart.cost,
        goals=mart.goals,
        untrained=lambda: untrained_seeded_members("one-shot-base"),
        plan=mart.plan,
        remarks=mart.remarks,
    ),
)

_BY_NAME: Final = {name: family for family in _FAMILIES for name in family.names}

METHODS: Final = tuple(_BY_NAME)
"""Names for `rtg solve --method`."""


def read_config(data: Mapping[str, Any], where: str = "config") -> AnyConfig:
    """A config of the method that it names.

    Raises:
        ConfigError: If there is no such method, or a setting is not one of its own.
    """
    name = data.get("method", DEFAULT)
    if not isinstance(name, str) or name not in _BY_NAME:
        raise ConfigError(f"{where}.method: expected one of {', '.join(METHODS)}, got {name!r}")
    return from_mapping(_BY_NAME[name].config, data, where)


def settings_from(file: Path | None, options: Mapping[str, Any]) -> AnyConfig:
    """A config from a file, if there is one; options that are given win.

    Raises:
        ConfigError: As for `read_config`; also if an option is none of the method's.
    """
    data = read_config_file(file) if file else {}
    given = {name: value for name, value in options.items() if value is not None}
    method = {"method": given.get("method", data.get("method", DEFAULT))}
    config = read_config({**data, **method}, file.name if file else "config")
    foreign = [name for name in given if name not in type(config).__dataclass_fields__]
    if foreign:
        raise ConfigError(
            f"expected options of method {config.method!r}, --{foreign[0].replace('_', '-')} is none; leave it out or "
            "choose another --method"
        )
    return replace(config, **given)


def method(
    config: AnyConfig, backend: TorchBackend, encoder: Encoder, log: TranscriptStore | None = None
) -> Method[DialogueContext]:
    """The config's point of the population loop.

    Args:
        config: Of the run.
        backend: Holds the models.
        encoder: By `config.reads_with`.
        log: The run's store, for methods that end by what happened; not needed for solvers alone.
    """
    return _BY_NAME[config.method].method(config, backend, encoder, log)


def stages(config: AnyConfig) -> tuple[attackers.Stage, ...]:
    """Stages in each of which one side learns alone; none for methods in which both sides learn in every iteration."""
    return attackers.stages(config) if isinstance(config, attackers.AttackConfig) else ()


def cost(config: AnyConfig, goals: GoalSet) -> Cost:
    """Count the work of a run.

    Args:
        config: Of the run.
        goals: Both halves.
    """
    return _BY_NAME[config.method].cost(config, goals)


def plan(config: AnyConfig) -> list[str]:
    """What a run does, stage by stage, in words; nothing for methods whose cost says it all."""
    return _BY_NAME[config.method].plan(config)


def remarks(config: AnyConfig, log: TranscriptStore) -> list[str]:
    """What a reader of a finished run must know about how it ended.

    Args:
        config: Of the run.
        log: Its store.
    """
    return _BY_NAME[config.method].remarks(config, log)


def goals(config: AnyConfig) -> GoalSet:
    """What red is to reach in a run, in both halves.

    Raises:
        ConfigError: If the goals or seeds cannot be read.
    """
    return _BY_NAME[config.method].goals(config)


def on_seeds(config: AnyConfig) -> TypeGuard[SeedsConfig]:
    """Whether red's goals are seeds, texts to write a prompt after."""
    return isinstance(config, seas.SeasConfig | mart.MartConfig)


def referee(config: AnyConfig, judge: Judge) -> Judge:
    """A judge as it judges a run of this config: where red's goals are seeds, it judges the reply by its own attack.

    Args:
        config: Of the run.
        judge: Any.
    """
    return GivenAttack(judge) if on_seeds(config) else judge


def untrained(config: AnyConfig) -> tuple[Member, ...]:
    """The members that a run begins with."""
    return _BY_NAME[config.method].untrained()
