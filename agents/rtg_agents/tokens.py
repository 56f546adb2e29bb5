"""Chat messages to token ids, such that no content can become a control token.

A chat template is rendered once per sequence of roles, with a placeholder for every content. The template's own text is
encoded with control tokens, every content apart with control tokens split into ordinary ones, and the ids are spliced.
So an opponent who types `<|im_end|>` sends ten characters, not the end of its turn.

What a model has said itself is never tokenised again: decoding and encoding need not lead back to the ids it sampled.
Its own sentences come with their ids, which stand where they stood when they were sampled, so that each prompt begins
with the prompt before it and what was sampled after that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from rtg_agents.policy import ChatMessage, Prompting, with_own_ids
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
        self._templates: dict[tuple[str, ...], _Template] = {}

    def encode(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Token ids of a chat up to where the assistant is to speak.

        Sampled ids stand as they are, the id that ended them included; where the template closes a message with that
        same id, it is not said twice. A template that shows an assistant's earlier message after other ids than those
        it was sampled after (reasoning left out, say) gets it as text, as its authors meant it.
        """
        template = self._template(tuple(message.role for message in messages))
        ids = list(template.pieces[0])
        for index, (message, piece) in enumerate(zip(messages, template.pieces[1:], strict=True)):
            own = message.ids if index in template.continued else ()
            ids += own or self.plain(message.content)
            ids += piece[1:] if own and piece[:1] == own[-1:] else piece
        return ids

    def before(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Token ids of a chat up to where the content of its last message begins."""
        after = len(self._template(tuple(message.role for message in messages)).pieces[-1])
        whole, content = self.encode(messages), self.plain(messages[-1].content)
        return whole[: len(whole) - after - len(content)]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of sampled ids, control tokens left out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def plain(self, text: str) -> list[int]:
        """Ids of a text, in which nothing is a control token; half of a surrogate pair becomes a replacement character."""
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # tokenizers take no such halves
        return list(self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def _template(self, roles: tuple[str, ...]) -> _Template:
        if roles not in self._templates:
            pieces = self._pieces(roles)
            assistants = [index for index, role in enumerate(roles) if role == "assistant"]
            continued = frozenset(index for index in assistants if self._continues(pieces, roles[:index]))
            self._templates[roles] = _Template(pieces, continued)
        return self._templates[roles]

    def _continues(self, pieces: Sequence[tuple[int, ...]], before: tuple[str, ...]) -> bool:
        """Whether the template's text up to a message is what it was when that message was about to be said."""
        try:
            return self._template(before).pieces == tuple(pieces[: len(before) + 1])
        except ModelError:  # a chat that cannot end there was never answered there
            return False

    def _pieces(self, roles: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
        """Ids of the template's text before, between and after the contents."""
        marks = [f"\ue000{index}\ue001" for index in range(len(roles))]
        chat = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
        try:
            text = str(self._tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
        except Exception as error:  # jinja templates raise errors of their own, such as "system role not supported"
            raise ModelError(f"expected a chat template that takes the roles {roles}, it does not: {error}") from error
        return tuple(self._control(part) for part in _split(text, marks))

    def _control(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"]) if text else ()


class _Template(NamedTuple):
    """What a chat template writes around the contents of one sequence of roles."""

    pieces: tuple[tuple[int, ...], ...]
    """Ids before, between and after the contents."""

    continued: frozenset[int]
    """Places of the assistant's messages that stand after the very ids after which such a message is generated."""


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
        """What the model reads before a sentence: its chat template over one role's view (`rtg_agents.prompting`).

        The token level records the learner's sentences without a name; they are never tokenised again.
        """
        return lambda observation: self.chat.encode(with_own_ids(prompting(observation), observation.said, policy=""))


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
