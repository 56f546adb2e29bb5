"""Who speaks, as the game sees it: anything that turns observations into sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol, runtime_checkable

from rtg_env.errors import PolicyError
from rtg_env.types import Action, Observation


@runtime_checkable
class Policy(Protocol):
    """Turns observations into sentences."""

    @property
    def name(self) -> str:
        """Version name, stored with every action."""
        ...

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[Action]:
        """One action per observation, in order.

        Args:
            observations: Any number of dialogues, each at its own turn.
            seeds: One per observation; all the randomness a policy may use.
        """
        ...


class Asked(NamedTuple):
    """What one policy is asked at a time."""

    policy: Policy
    """Who is to speak."""

    observations: Sequence[Observation]
    """Any number of dialogues."""

    seeds: Sequence[int]
    """One per observation."""


@runtime_checkable
class SharingPolicy(Policy, Protocol):
    """A policy that is computed by something that others share, such as one model with many adapters."""

    @property
    def shared(self) -> object:
        """What computes it; policies with the same object here are asked in one call."""
        ...

    def act_together(self, asked: Sequence[Asked]) -> list[list[Action]]:
        """Actions of each of these policies, in order; all of them share what this one does."""
        ...


def answers(asked: Sequence[Asked]) -> list[list[Action]]:
    """Actions of each policy, in order: one call per policy, and one for all that share what computes them.

    Raises:
        PolicyError: If a policy breaks its contract.
    """
    groups: dict[int, list[int]] = {}
    for place, one in enumerate(asked):
        owner = one.policy.shared if isinstance(one.policy, SharingPolicy) else one.policy
        groups.setdefault(id(owner), []).append(place)
    said: dict[int, list[Action]] = {}
    for places in groups.values():
        own = [asked[place] for place in places]
        first = own[0].policy
        if isinstance(first, SharingPolicy):
            said.update(zip(places, first.act_together(own), strict=True))
        else:
            said.update({place: first.act(asked[place].observations, asked[place].seeds) for place in places})
    return [checked_actions(one.policy, said[place], len(one.observations)) for place, one in enumerate(asked)]


def checked_actions(policy: Policy, actions: object, expected: int) -> list[Action]:
    """What a policy returned, if it kept its contract.

    Raises:
        PolicyError: If it is not a list of that many actions with text.
    """
    if not isinstance(actions, list) or len(actions) != expected:
        size = f"{len(actions)} items" if isinstance(actions, list | tuple) else type(actions).__name__
        raise PolicyError(f"expected policy {policy.name} to return a list of {expected} actions, got {size}")
    for action in actions:
        if not isinstance(action, Action) or not isinstance(action.text, str):
            raise PolicyError(f"expected policy {policy.name} to return Action(text=..), got {type(action).__name__}")
    return actions


def within_limit(action: Action, limit: int) -> Action:
    """A sampled sentence without what is beyond the limit on characters; a model cannot be asked to count them.

    It then ended for the reason `cut`: its ids are kept, but they are no longer what was said. A script that is too long
    is left as it is, for the rules to refuse.
    """
    if not action.token_ids or len(action.text) <= limit:
        return action
    return replace(action, text=action.text[:limit], finish_reason="cut")
