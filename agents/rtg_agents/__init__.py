"""rtg_agents: who speaks. Policies, generation backends, model files, published goal sets, populations.

`TorchBackend`, `PolicyBank` and `SentenceEncoder` are loaded on first use: importing this package loads no torch.
"""

from typing import TYPE_CHECKING, Any

from rtg_agents.goal_sets import GOAL_SOURCES, GoalSource, load_goal_set
from rtg_agents.lora import LoraSettings
from rtg_agents.models import resolve_encoder, resolve_model
from rtg_agents.policy import (
    BASE,
    Backend,
    BackendPolicy,
    ChatMessage,
    Completion,
    Policy,
    Request,
    Sampling,
    TokenSequence,
)
from rtg_agents.population import Member, Population
from rtg_agents.scripted import (
    ATTACK_TEMPLATES,
    ESCALATION,
    HELDOUT_TEMPLATES,
    PlannedPolicy,
    RandomPolicy,
    ScriptedPolicy,
    TemplatePolicy,
    always_comply,
    always_refuse,
    escalation,
    heldout_templates,
    plain_attacker,
)
from rtg_agents.sequences import RecordedSequence, RecordedSequences, SpanSource, recorded_sequences
from rtg_agents.tactics import Perceptron, TacticPolicy
from rtg_agents.wheels import fetch_wheel

if TYPE_CHECKING:
    from rtg_agents.bank import PolicyBank
    from rtg_agents.embedding import SentenceEncoder
    from rtg_agents.hf import TorchBackend

_LAZY = {"PolicyBank": "bank", "SentenceEncoder": "embedding", "TorchBackend": "hf"}

__all__ = [
    "ATTACK_TEMPLATES",
    "BASE",
    "ESCALATION",
    "GOAL_SOURCES",
    "HELDOUT_TEMPLATES",
    "Backend",
    "BackendPolicy",
    "ChatMessage",
    "Completion",
    "GoalSource",
    "LoraSettings",
    "Member",
    "Perceptron",
    "PlannedPolicy",
    "Policy",
    "PolicyBank",
    "Population",
    "RandomPolicy",
    "RecordedSequence",
    "RecordedSequences",
    "Request",
    "Sampling",
    "ScriptedPolicy",
    "SentenceEncoder",
    "SpanSource",
    "TacticPolicy",
    "TemplatePolicy",
    "TokenSequence",
    "TorchBackend",
    "always_comply",
    "always_refuse",
    "escalation",
    "fetch_wheel",
    "heldout_templates",
    "load_goal_set",
    "plain_attacker",
    "recorded_sequences",
    "resolve_encoder",
    "resolve_model",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(f"rtg_agents.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'rtg_agents' has no attribute {name!r}")
