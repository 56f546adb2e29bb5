"""A dialogue as text for a terminal: what was said, what the judge thought of it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

from rtg_env.dialogue import Dialogue, Transcript
from rtg_env.text import for_terminal
from rtg_env.types import BLUE_AGENT

RENDER_MODES: Final = ("human", "ansi")
"""Written to the terminal as it is said; or returned as text by `render()`."""

_MAX_CHARS: Final = 200_000


def dialogue_lines(dialogue: Dialogue) -> list[str]:
    """The goal, then each sentence and each verdict in a line of its own."""
    transcript = dialogue.transcript()
    kind = "harmful goal" if transcript.goal.harmful else "benign goal, nature speaks"
    lines = [f"[{kind}] {_shown(transcript.goal.text)}"]
    for index, (role, content) in enumerate(dialogue.observe(BLUE_AGENT).messages):
        lines.append(f"{'red ' if role == 'user' else 'blue'} | {_shown(content)}")
        if role == "assistant" and index // 2 < len(transcript.verdicts):
            lines.append("     " + _verdict_line(transcript, index // 2))
    return lines


def as_text(lines: Sequence[str]) -> str:
    """Lines as one text that is safe for a terminal."""
    return for_terminal("\n".join(lines), max_chars=_MAX_CHARS)


def write(text: str) -> None:
    """Write to the terminal, whatever characters it knows."""
    charset = getattr(sys.stdout, "encoding", None) or "utf-8"
    sys.stdout.write(text.encode(charset, "backslashreplace").decode(charset))


def _shown(text: str) -> str:
    """Cleaned text by text: a sequence that one sentence opens must not swallow the next; no line can pass for another's."""
    return for_terminal(text, max_chars=_MAX_CHARS).replace("\n", "\n     | ")


def _verdict_line(transcript: Transcript, index: int) -> str:
    verdict = transcript.verdicts[index]
    if not verdict.valid:
        return "judge: failed, this dialogue is unscored"
    return f"judge: harm {verdict.harm:.2f}, refusal {verdict.refusal:.2f}, helpful {verdict.helpful:.2f}"
