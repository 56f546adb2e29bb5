"""rtg_env: red teaming as a game. What happens: rules, goals, judges, pay, transcripts, environment views."""

from rtg_env import errors, goals, judges
from rtg_env.dialogue import Transcript
from rtg_env.engine import DialogueBatch, Turn, replay, rescore
from rtg_env.env import env, parallel_env, raw_env
from rtg_env.goal_groups import group_near_duplicates
from rtg_env.goals import Goal, GoalSet
from rtg_env.limits import Limits
from rtg_env.policies import Policy
from rtg_env.registration import register_environments
from rtg_env.rules import Deal, GameConfig
from rtg_env.table import Pool
from rtg_env.types import Action, Case, Exchange, Observation, Role, Verdict

__all__ = [
    "Action",
    "Case",
    "Deal",
    "DialogueBatch",
    "Exchange",
    "GameConfig",
    "Goal",
    "GoalSet",
    "Limits",
    "Observation",
    "Policy",
    "Pool",
    "Role",
    "Transcript",
    "Turn",
    "Verdict",
    "env",
    "errors",
    "goals",
    "group_near_duplicates",
    "judges",
    "parallel_env",
    "raw_env",
    "register_environments",
    "replay",
    "rescore",
]

__version__ = "0.1.0"

register_environments()
