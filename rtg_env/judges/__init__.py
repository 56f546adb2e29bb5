"""Judges: what a reply is worth. The seam, the offline judges, and a double for tests."""

from rtg_env.judges.base import Encoder, Judge, judge_safely
from rtg_env.judges.embedding import EmbeddingJudge
from rtg_env.judges.lexical import KeywordJudge
from rtg_env.judges.offline import OfflineJudge

__all__ = ["EmbeddingJudge", "Encoder", "Judge", "KeywordJudge", "OfflineJudge", "judge_safely"]
