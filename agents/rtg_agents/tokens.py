"""Chat messages to token ids, such that no content can become a control token.

A chat template is rendered once per sequence of roles, with a placeholder for every content. The template's own text is
encoded with control tokens, every content apart with control tokens split into ordinary ones, and the ids are spliced.
So an opponent who types `<|im_end|>` sends seven characters, not the end of its turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rtg_agents.policy import ChatMessage, Prompting
from rtg_env.errors import ModelError
from rtg_env.tokens import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ChatEncoder:
    """Encodes chats for one tokenizer.

    Args:
        tokenizer: With a chat template.

    Raises:
        ModelError: If the tokenizer has no chat template, or its template drops or repeats messages.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ModelError(
                "expected a tokenizer with a chat template, this one has none; use an instruction-tuned model"
            )
        self._tokenizer = tokenizer
        self._templates: dict[tuple[str, ...], list[list[int]]] = {}

    def encode(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Token ids of a chat up to where the assistant is to speak."""
        pieces = self._pieces(tuple(message.role for message in messages))
        ids = list(pieces[0])
        for message, piece in zip(messages, pieces[1:], strict=True):
            ids += self.plain(message.content)
            ids += piece
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of sampled ids, control tokens left out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def plain(self, text: str) -> list[int]:
        """Ids of a text, in which nothing is a control token."""
        return list(self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def _pieces(self, roles: tuple[str, ...]) -> list[list[int]]:
        """Ids of the template's text before, between and after the contents."""
        if roles not in self._templates:
            marks = [f"\ue000{index}\ue001" for index in range(len(roles))]
            chat = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
            try:
                text = str(self._tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
            except Exception as error:  # jinja templates raise errors of their own, such as "system role not supported"
                raise ModelError(
                    f"expected a chat template that takes the roles {roles}, it does not: {error}"
                ) from error
            self._templates[roles] = [self._control(part) for part in _split(text, marks)]
        return self._templates[roles]

    def _control(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTokenizer:
    """A model's tokenizer as `RedTeam/Tokens-v0` asks for it (`rtg_env.tokens.Tokenizer`)."""

    chat: ChatEncoder
    """Encodes and decodes."""

    vocab_size: int
    """Rows of the model's vocabulary head; ids are below this."""

    end_ids: tuple[int, ...]
    """Ids that end a sentence."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text, in which nothing is a control token."""
        return self.chat.plain(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, control tokens left out."""
        return self.chat.decode(ids)

    def prompt(self, prompting: Prompting) -> Prompt:
        """What the model reads before a sentence: its chat template over one role's view (`rtg_agents.prompting`)."""
        return lambda observation: self.chat.encode(prompting(observation))


def _split(text: str, marks: Sequence[str]) -> list[str]:
    parts = []
    for mark in marks:
        if text.count(mark) != 1:
            raise ModelError(
                f"expected a chat template that shows each message once, it shows one {text.count(mark)} times"
            )
        before, text = text.split(mark)
        parts.append(before)
    return [*parts, text]
