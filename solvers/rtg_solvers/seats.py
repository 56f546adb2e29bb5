"""Watching two policies talk, or taking a seat: the game on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from rtg_agents.policy import BASE, Policy, Sampling
from rtg_agents.population import Member, Population, read_member, without_model
from rtg_agents.progress import Progress
from rtg_agents.scripted import TemplatePolicy, plain_attacker
from rtg_env import goals as goals_module
from rtg_env import rules
from rtg_env.dialogue import Transcript
from rtg_env.errors import ConfigError
from rtg_env.judges.base import Judge
from rtg_env.rules import GameConfig
from rtg_env.text import for_terminal
from rtg_env.types import Action, Observation, Role
from rtg_solvers.rollout import Game, Pairing, play
from rtg_solvers.seeding import draw_seed, rng_for

_SAMPLING: dict[Role, Sampling] = {
    "red": Sampling(temperature=0.8, max_new_tokens=40),
    "blue": Sampling(temperature=0.7, max_new_tokens=80),
}


class HumanPolicy:
    """A person at the terminal.

    Args:
        role: Their side.
        console: Shows what they may see, and asks.
    """

    def __init__(self, role: Role, console: Console) -> None:
        self.name = f"{role}_human"
        self._console = console

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[Action]:
        """Ask once per observation."""
        del seeds
        return [Action(text=self._ask(observation), policy=self.name) for observation in observations]

    def _ask(self, observation: Observation) -> str:
        if observation.goal is not None and observation.turn == 0:
            self._console.print(f"Your goal: {escape(for_terminal(observation.goal.text))}", highlight=False)
        if observation.messages:
            self._console.print(f"They say: {escape(for_terminal(observation.messages[-1][1]))}", highlight=False)
        try:
            return self._console.input(f"{observation.agent_id}> ")
        except EOFError:
            return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seats:
    """Who sits where, as `rtg play` names it."""

    red: str
    """`me`, `plain`, `templates`, `model`, or the folder of an adapter or a member of a run."""

    blue: str
    """`me`, `model`, or the folder of an adapter or a member of a run."""

    model: str
    """Base model, loaded only if a seat needs it."""

    offline: bool = False
    """Never fetch."""

    cache_dir: Path | None = None
    """Of models."""

    def policies(self, progress: Progress) -> Mapping[str, Policy]:
        """Policies under the names `red` and `blue`.

        Raises:
            ConfigError: If a seat has an unknown name, or a member of a run cannot take it.
            RunError: If a member's lineage file is damaged.
        """
        scripts: dict[str, Policy] = {"plain": plain_attacker("red"), "templates": TemplatePolicy(name="red")}
        found: dict[str, Policy] = {}
        if self.red in scripts:
            found["red"] = scripts[self.red]
        members: dict[Role, Member] = {}
        for role in _SAMPLING:
            if getattr(self, role) == "me":
                found[role] = HumanPolicy(role, Console(emoji=False))
            elif role not in found and (member := self._member(role)) is not None:
                members[role] = member
                if (scripted := without_model(member)) is not None:
                    found[role] = scripted
        wanted: list[Role] = [role for role in _SAMPLING if role not in found]
        return {**found, **self._models(wanted, members, progress)} if wanted else found

    def _member(self, role: Role) -> Member | None:
        """What the seat's folder says of itself; None if it is none of a member.

        Raises:
            ConfigError: If it is a member of the other side, or one that only its run can play.
            RunError: If its lineage file is damaged.
        """
        seat = getattr(self, role)
        member = None if seat == "model" else read_member(Path(seat))
        if member is None:
            return None
        if member.role != role:
            raise ConfigError(
                f"expected a {role} member for --{role}, {seat} is one of {member.role}'s; swap the seats"
            )
        if member.kind == "tactics":
            raise ConfigError(
                f"expected a member that speaks for itself, {seat} is a network over tactics, which reads with its run's encoder "
                "and judge; read its dialogues instead: rtg export RUN"
            )
        return member

    def _models(
        self, roles: Sequence[Role], members: Mapping[Role, Member], progress: Progress
    ) -> Mapping[str, Policy]:
        for role in roles:
            seat = getattr(self, role)
            if seat != "model" and role not in members and not (Path(seat) / "adapter_config.json").is_file():
                names = "me, plain, templates, model" if role == "red" else "me, model"
                raise ConfigError(
                    f"expected --{role} to be {names}, or the folder of an adapter or member, got {seat!r}"
                )
        from rtg_agents.hf import TorchBackend
        from rtg_agents.models import resolve_model

        folder = resolve_model(self.model, offline=self.offline, cache_dir=self.cache_dir, progress=progress)
        backend = TorchBackend.load(folder, model_id=self.model)
        population = Population(Path("unused"), backend, _SAMPLING)
        found: dict[str, Policy] = {}
        for role in roles:
            member, adapter = members.get(role), BASE
            if member is not None and member.kind == "in-context":
                found[role] = population.in_context_policy(member)
                continue
            if getattr(self, role) != "model" and (member is None or member.kind == "adapter"):
                adapter = f"{role}_adapter"
                backend.load_adapter(adapter, Path(getattr(self, role)))
            found[role] = population.model_policy(role, role, adapter)
        return found


def play_dialogues(
    policies: Mapping[str, Policy],
    judge: Judge,
    *,
    goals: str,
    goal_id: str | None,
    exchanges: int,
    count: int,
    seed: int,
    console: Console,
    harmful_only: bool = False,
) -> None:
    """Play dialogues one after another and show them with the judge's verdicts.

    `harmful_only` leaves out benign goals, on which red has nothing to say.
    """
    goal_set = goals_module.load(goals)
    game = Game(config=GameConfig(num_exchanges=exchanges), goals=goal_set, judge=judge)
    for index in range(count):
        rng = rng_for(seed, "play", index)
        benign_prob = 0.0 if harmful_only else game.config.benign_prob
        goal = goal_set.by_id(goal_id) if goal_id else goal_set.draw(rng, benign_prob=benign_prob)
        deal = rules.draw_deal(game.config, goal, rng)
        (played,) = play(game, policies, [Pairing(red="red", blue="blue", deal=deal, seed=draw_seed(rng))])
        show(played.transcript, console)


def show(transcript: Transcript, console: Console) -> None:
    """One dialogue with its verdicts and pay."""
    kind = "harmful goal, red speaks" if transcript.goal.harmful else "benign goal, nature speaks"
    console.print(f"\n[bold]{escape(for_terminal(transcript.goal.text))}[/bold]  ({kind})", highlight=False)
    speaker = "red " if transcript.goal.harmful else "user"
    for exchange, verdict in zip(transcript.exchanges, transcript.verdicts, strict=True):
        console.print(f"[red]{speaker}[/red] {escape(for_terminal(exchange.red))}", highlight=False)
        console.print(f"[blue]blue[/blue] {escape(for_terminal(exchange.blue))}", highlight=False)
        figures = (
            f"harm {verdict.harm:.2f}  refusal {verdict.refusal:.2f}  helpful {verdict.helpful:.2f}"
            if verdict.valid
            else "failed"
        )
        console.print(f"[dim]     judge: {figures}[/dim]", highlight=False)
    pay = "unscored" if transcript.unscored else f"{transcript.utility:.3f}"
    console.print(f"[dim]     red wins {pay}, blue the opposite[/dim]", highlight=False)
