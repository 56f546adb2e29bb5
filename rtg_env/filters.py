"""Message filters: what a defence (or a channel) does to a sentence before anybody else sees it.

A filter maps text to text and knows nothing else. Filters are named in the game's config (`red_filters`,
`blue_filters`), so that they are part of the game: rollouts, transcripts and resumed runs all apply them. The record
keeps what was said (`Transcript.actions`) beside what got through (`Transcript.exchanges`); judges see what got through.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from rtg_env.errors import ConfigError

Filter = Callable[[str], str]
"""From what was said to what gets through."""

_URL: Final = re.compile(r"\b(?:https?://|www\.)\S+", re.IGNORECASE)
_BRACKETED: Final = re.compile(r"<\|[^|<>]{1,40}\|>|</?s>|\[/?INST\]")
_SENTENCE_END: Final = re.compile(r"(?<=[.!?])\s+")


def printable(text: str) -> str:
    """Without control, format and unassigned characters (zero-width blanks, bidirectional marks); newlines stay."""
    return "".join(char for char in text if char == "\n" or unicodedata.category(char)[0] != "C")


def normalised(text: str) -> str:
    """Compatibility forms folded (NFKC): full-width and styled letters become plain ones."""
    return unicodedata.normalize("NFKC", text)


def without_urls(text: str) -> str:
    """Addresses replaced by [link]."""
    return _URL.sub("[link]", text)


def without_markup(text: str) -> str:
    """Without what looks like a control token of a chat template."""
    return _BRACKETED.sub("", text)


def first_line(text: str) -> str:
    """Up to the first line break, of whatever kind."""
    lines = text.strip().splitlines()
    return lines[0].strip() if lines else ""


def first_sentence(text: str) -> str:
    """Up to the first sentence end."""
    return _SENTENCE_END.split(text.strip(), maxsplit=1)[0]


_FILTERS: Final[dict[str, Filter]] = {
    "printable": printable,
    "normalised": normalised,
    "without-urls": without_urls,
    "without-markup": without_markup,
    "first-line": first_line,
    "first-sentence": first_sentence,
}

FILTERS: Final[Mapping[str, Filter]] = MappingProxyType(_FILTERS)
"""Filters by the name that configs use."""


def register_filter(name: str, function: Filter) -> None:
    """Make a filter of your own known under a name; call it at import, in every process that plays.

    Raises:
        ConfigError: If the name is taken by another function.
    """
    if _FILTERS.setdefault(name, function) is not function:
        raise ConfigError(f"expected a new filter name, {name!r} is taken; choose another")


def check_filters(names: tuple[str, ...], setting: str) -> None:
    """Refuse unknown names.

    Raises:
        ConfigError: Naming the setting and what is known.
    """
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{setting} must be a tuple of filter names, got {names!r}")
    for name in names:
        if name not in _FILTERS:
            raise ConfigError(f"{setting} must name filters among {', '.join(_FILTERS)}, got {name!r}; register it")


def filtered(text: str, names: tuple[str, ...]) -> str:
    """What gets through a chain of filters, first name first."""
    for name in names:
        text = _FILTERS[name](text)
    return text
