"""The members of both sides: append-only, each with its lineage, on disk as PEFT folders.

    population/red_03/adapter_model.safetensors, adapter_config.json, lineage.json

A member never changes once it is added; a new best response is a new member under a new name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal, Protocol, cast

from rtg_agents.archive import ArchivePolicy, Elite
from rtg_agents.in_context import Example, InContextPolicy
from rtg_agents.policy import BASE, Backend, BackendPolicy, Policy, Prompting, Sampling
from rtg_agents.prompting import blue_view, red_view
from rtg_agents.scripted import PlannedPolicy, TemplatePolicy, plain_attacker
from rtg_agents.seed_prompt import one_shot_view, seed_view
from rtg_agents.tactics import TacticPolicy
from rtg_env.errors import ConfigError, PolicyError, RunError
from rtg_env.files import write_text
from rtg_env.judges.base import Encoder, Judge
from rtg_env.types import Role

MemberKind = Literal[
    "base",
    "plain",
    "templates",
    "script",
    "adapter",
    "tactics",
    "in-context",
    "archive",
    "seeded",
    "seeded-base",
    "one-shot",
    "one-shot-base",
]
"""What speaks. The last four are red adapters and the base model that write a prompt after a few others, or after one
(`rtg_agents.seed_prompt`)."""

_ADAPTERS: Final = ("adapter", "seeded", "one-shot")
_SEEDED: Final[Mapping[str, Prompting]] = {
    "seeded": seed_view,
    "seeded-base": seed_view,
    "one-shot": one_shot_view,
    "one-shot-base": one_shot_view,
}
_LINEAGE = "lineage.json"
_COLD: Final = 0.1
"""Temperature of in-context members (arXiv:2405.18540)."""


class AdapterBackend(Backend, Protocol):
    """A backend that holds adapters, as `rtg_agents.hf.TorchBackend` does."""

    @property
    def versions(self) -> tuple[str, ...]:
        """Names that requests may use."""
        ...

    def load_adapter(self, version: str, folder: Path) -> None:
        """Add a saved adapter."""
        ...

    def save_adapter(self, version: str, folder: Path, *, extra: Mapping[str, str] | None = None) -> None:
        """Write an adapter and extra text files, all or nothing."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One policy of one side."""

    version: str
    """Unique name, such as `red_03@v1`."""

    role: Role
    """Its side."""

    kind: MemberKind
    """What speaks: the base model, a script, or an adapter."""

    label: str
    """A few words for tables."""

    lineage: Mapping[str, object] = field(default_factory=dict)
    """How it came to be: iteration, the mixture it answers, settings."""

    script: tuple[str, ...] = ()
    """What a `script` member says, one template per exchange (`PlannedPolicy`); empty for other kinds."""

    examples: tuple[Example, ...] = ()
    """What an `in-context` member is shown: goals and attacks on them; empty for other kinds."""

    elites: tuple[Elite, ...] = ()
    """What an `archive` member says; empty for other kinds."""

    def __post_init__(self) -> None:
        """Refuse a script without lines, and lines of anything else; the same for examples and elites."""
        object.__setattr__(self, "script", tuple(self.script))  # JSON has lists
        object.__setattr__(self, "examples", tuple((goal, attack) for goal, attack in self.examples))
        object.__setattr__(self, "elites", tuple(Elite(*elite) for elite in self.elites))
        if (self.kind == "archive") != bool(self.elites):
            raise ConfigError(f"expected elites for an archive member alone, got {len(self.elites)} for a {self.kind}")
        if (self.kind == "in-context") != bool(self.examples):
            raise ConfigError(
                f"expected examples for an in-context member alone, got {len(self.examples)} for a {self.kind}"
            )
        if (self.kind == "script") != bool(self.script) or not all(isinstance(line, str) for line in self.script):
            raise ConfigError(f"expected lines for a script member alone, got {len(self.script)} for a {self.kind} one")
        if self.kind in _SEEDED and self.role != "red":
            raise ConfigError(
                f"expected members that read seeds on red's side alone, got {self.version} of {self.role}"
            )

    @property
    def folder_name(self) -> str:
        """Name of its folder."""
        return self.version.split("@")[0]

    @property
    def holds_adapter(self) -> bool:
        """Whether it is an adapter, whatever it reads: its folder then holds one."""
        return self.kind in _ADAPTERS


class Population:
    """Members of both sides, in the order they were added.

    Args:
        folder: Where members live; created on the first `add`.
        backend: Computes model members.
        sampling: How each side's models draw.
        senses: Encoder and judge of tactic members, as in their training; not needed while there are none.
    """

    def __init__(
        self,
        folder: Path,
        backend: AdapterBackend,
        sampling: Mapping[Role, Sampling],
        *,
        senses: tuple[Encoder, Judge] | None = None,
    ) -> None:
        self._folder = folder
        self.backend = backend
        self.sampling = sampling
        self.senses = senses
        self._members: dict[str, Member] = {}
        self._policies: dict[str, Policy] = {}

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members.values())

    def __getitem__(self, version: str) -> Member:
        return self._members[version]

    @property
    def policies(self) -> Mapping[str, Policy]:
        """Policy of every member, by version."""
        return self._policies

    def side(self, role: Role) -> tuple[Member, ...]:
        """Members of one side, oldest first."""
        return tuple(member for member in self if member.role == role)

    def names(self, role: Role) -> tuple[str, ...]:
        """Versions of one side, oldest first."""
        return tuple(member.version for member in self.side(role))

    def next_version(self, role: Role, missed: int = 0) -> str:
        """Name for the next member of a side, of which so many names were tried in vain: none of them is used again."""
        return f"{role}_{len(self.side(role)) + missed:02d}@v1"

    def model_policy(self, version: str, role: Role, adapter: str) -> BackendPolicy:
        """A model policy of this population, whether a member or still in training."""
        return BackendPolicy(
            name=version,
            backend=self.backend,
            adapter=adapter,
            prompting=red_view if role == "red" else blue_view,
            sampling=self.sampling[role],
        )

    def add(self, member: Member, policy: TacticPolicy | None = None) -> None:
        """Freeze a member and write it to disk; an adapter must be known to the backend under its version.

        Args:
            member: What is added.
            policy: Of a tactic member, under its version name; for no other kind.

        Raises:
            PolicyError: If the name is taken, or the policy does not fit the member.
            RunError: If the folder cannot be written.
        """
        if member.version in self._members:
            raise PolicyError(
                f"expected a new version, {member.version} is a member already; members are never overwritten"
            )
        if (member.kind == "tactics") != (policy is not None) or (policy is not None and policy.name != member.version):
            given = "none" if policy is None else f"{policy.name!r}"
            raise PolicyError(f"expected a policy named {member.version!r} for a tactic member alone, got {given}")
        try:
            self._write(member, policy)
        except OSError as error:
            raise RunError(
                f"expected to write {member.version} into {self._folder}: {error}; free space and run again"
            ) from error
        self._register(member, policy)

    def extend(self, members: Iterable[Member]) -> None:
        """Add those that are not here yet."""
        for member in members:
            if member.version not in self._members:
                self.add(member)

    def restored(self, version: str) -> Member | None:
        """A member that an earlier, interrupted process wrote to disk; None if there is none.

        Raises:
            RunError: If its lineage file is damaged.
        """
        folder = self._folder / version.split("@", maxsplit=1)[0]
        member = read_member(folder)
        if member is None:
            return None
        if member.holds_adapter and version not in self.backend.versions:
            self.backend.load_adapter(version, folder)
        self._register(member, self._sensed(member, folder) if member.kind == "tactics" else None)
        return member

    def _sensed(self, member: Member, folder: Path) -> TacticPolicy:
        if self.senses is None:
            raise RunError(
                f"expected an encoder and a judge to restore the tactic member {member.version}, got none; "
                "pass them: Population(.., senses=(encoder, judge))"
            )
        encoder, judge = self.senses
        return TacticPolicy.load(folder, name=member.version, encoder=encoder, judge=judge)

    def _register(self, member: Member, policy: Policy | None) -> None:
        self._members[member.version] = member
        self._policies[member.version] = policy or self._policy(member)

    def _policy(self, member: Member) -> Policy:
        if (scripted := without_model(member)) is not None:
            return scripted
        if member.kind == "in-context":
            return self.in_context_policy(member)
        spoken = self.model_policy(member.version, member.role, member.version if member.holds_adapter else BASE)
        return replace(spoken, prompting=_SEEDED[member.kind]) if member.kind in _SEEDED else spoken

    def in_context_policy(self, member: Member) -> InContextPolicy:
        """An in-context member on this population's model. Drawn cold, as published: what varies is which examples are shown."""
        return InContextPolicy(
            name=member.version,
            backend=self.backend,
            adapter=BASE,
            prompting=red_view,
            sampling=replace(self.sampling["red"], temperature=_COLD),
            examples=member.examples,
        )

    def _write(self, member: Member, policy: TacticPolicy | None) -> None:
        folder = self._folder / member.folder_name
        record = {name: getattr(member, name) for name in ("version", "role", "kind", "label", "lineage")}
        said = {name: value for name in ("script", "examples", "elites") if (value := getattr(member, name))}
        text = json.dumps({**record, **said}, indent=1)
        if member.holds_adapter:
            self.backend.save_adapter(member.version, folder, extra={_LINEAGE: text})
            return
        folder.mkdir(parents=True, exist_ok=True)
        if policy is not None:
            policy.save(folder)
        write_text(folder / _LINEAGE, text)


def without_model(member: Member) -> Policy | None:
    """The policy of a member that is text alone; None if it needs a model or a network."""
    if member.kind == "plain":
        return plain_attacker(member.version)
    if member.kind == "templates":
        return TemplatePolicy(name=member.version)
    if member.kind == "script":
        return PlannedPolicy(name=member.version, templates=member.script)
    if member.kind == "archive":
        return ArchivePolicy(name=member.version, elites=member.elites)
    return None


def read_member(folder: Path) -> Member | None:
    """What the lineage file in a member's folder says; None if there is none.

    Raises:
        RunError: If it is damaged.
    """
    path = folder / _LINEAGE
    if not path.is_file():
        return None
    try:
        return Member(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise RunError(
            f"expected a lineage file in {path}, it is damaged ({error}); remove the folder and run again"
        ) from None


def untrained_seeded_members(kind: MemberKind = "seeded-base") -> tuple[Member, ...]:
    """What populations start with where red's goals are seeds: the base model on both sides, red's reading seeds.

    Args:
        kind: `seeded-base` or `one-shot-base`.
    """
    red, _, _, blue = untrained_members()
    return replace(red, kind=kind), blue


def untrained_members(role: Role | None = None) -> tuple[Member, ...]:
    """What populations start with, of both sides or of one: the base model, and red's scripts."""
    rows = (
        ("red_00@v1", "red", "base", "base model"),
        ("red_01@v1", "red", "plain", "plain goal"),
        ("red_02@v1", "red", "templates", "templates"),
        ("blue_00@v1", "blue", "base", "base model"),
    )
    return tuple(
        Member(
            version=version,
            role=cast("Role", side),
            kind=cast("MemberKind", kind),
            label=label,
            lineage={"iteration": 0},
        )
        for version, side, kind, label in rows
        if role in (None, side)
    )
