"""The one exit for untrusted text: everything that reaches a terminal or a file passes through here."""

from __future__ import annotations

import re
import unicodedata

_CSI_OSC = re.compile(r"\x1b(?:\[[0-?]{0,64}[ -/]{0,16}[@-~]|\][^\x07\x1b]{0,4096}(?:\x07|\x1b\\)|[@-Z\\-_])")
_BIDI = dict.fromkeys([0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)])
_KEPT_CONTROLS = {"\n", "\t"}
_SURROGATE = re.compile("[\ud800-\udfff]")


def well_formed(text: str) -> str:
    """Text that every encoder accepts: lone surrogates become U+FFFD."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def for_terminal(text: str, *, max_chars: int = 10_000) -> str:
    """Text that cannot move the cursor, change colours or reorder a line.

    Escape sequences, C0 and C1 controls (newline and tab apart) and bidirectional overrides are removed.
    """
    clean = _CSI_OSC.sub("", text[: max_chars + 1])
    clean = "".join(
        char
        for char in clean.translate(_BIDI)
        if char in _KEPT_CONTROLS or unicodedata.category(char) not in ("Cc", "Cs")
    )
    return clean if len(text) <= max_chars else clean[:max_chars] + " [..]"


def one_line(text: str, *, max_chars: int = 200) -> str:
    """Terminal-safe text without line breaks, shortened."""
    return " ".join(for_terminal(text, max_chars=max_chars).split())
