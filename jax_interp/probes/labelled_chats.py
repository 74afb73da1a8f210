"""Conversations as labelled examples, with spans for each role: a monitor scores the tokens of the assistant.

data = from_chats(tokenizer, [[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]], ["safe"])
gather(model, data, "blocks.*.resid_post", Span("assistant"))
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from jax_interp.core.errors import UserError
from jax_interp.data.tokenizer import Tokenizer
from jax_interp.probes.labelled_texts import tokenized
from jax_interp.probes.labelled_tokens import LabelledTokens

Conversation = Sequence[Mapping[str, str]]
"""Turns `{"role": ..., "content": ...}`, in order."""


@dataclasses.dataclass(frozen=True)
class ChatFormat:
    """How a conversation is written as one text. `{role}` stands for the role of a turn.

    Args:
      before: the text before the content of each turn.
      after: the text after it.
      names: other names for roles, such as `{"assistant": "model"}`.
    """

    before: str = "{role}: "
    after: str = "\n\n"
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def written(self, conversation: Conversation) -> tuple[str, dict[str, list[tuple[int, int]]]]:
        """The text, and the characters (start, end) of each named part.

        Returns:
          The text; the contents of each role ("assistant"), of the last turn of each role ("last assistant"), and of
          each turn ("turn 0"). A turn without content has no part.

        Raises:
          UserError: the conversation has no turn, or a turn is not `{"role": text, "content": text}`.
        """
        if not conversation or not isinstance(conversation, Sequence) or isinstance(conversation, str):
            raise UserError("a conversation must be a list of turns, with at least one")
        text, spans = "", dict[str, list[tuple[int, int]]]()
        for number, turn in enumerate(conversation):
            role, content = (turn.get(key) if isinstance(turn, Mapping) else None for key in ("role", "content"))
            if not isinstance(role, str) or not isinstance(content, str):
                raise UserError(f"turn {number} must be {{'role': text, 'content': text}}, and is {turn!r}"[:200])
            named = self.names.get(role, role)
            text += self.before.replace("{role}", named)
            start = len(text)
            text += content
            if content:
                span = (start, len(text))
                spans.setdefault(role, []).append(span)
                spans[f"last {role}"] = spans[f"turn {number}"] = [span]
            text += self.after.replace("{role}", named)
        return text, spans


PLAIN = ChatFormat()
"""`user: Hi`, and an empty line after each turn."""
CHATML = ChatFormat("<|im_start|>{role}\n", "<|im_end|>\n")
"""The format of Qwen and many others."""


def from_chats(
    tokenizer: Tokenizer,
    conversations: Sequence[Conversation],
    labels: Sequence[Any],
    *,
    chat: ChatFormat = PLAIN,
    name: str = "conversations",
    groups: Sequence[Any] | None = None,
    pairs: Int[np.ndarray, "pair 2"] | None = None,
    context: int | None = None,
) -> LabelledTokens:
    """Make examples from conversations. The spans are those of `ChatFormat.written`.

    Args:
      tokenizer: the tokenizer of the model.
      conversations: the conversations.
      labels: the label of each conversation, as in `tokenized`.
      chat: how a conversation is written as one text.
      name: the name of the set in tables.
      groups: as in `tokenized`.
      pairs: as in `tokenized`.
      context: as in `tokenized`. A conversation whose turns it would cut is refused.

    Raises:
      UserError: as in `tokenized`; or a turn is not a role and a content, or a content has the name of a special token,
        which would be read as this token.
    """
    texts, spans = written_chats(name, tokenizer, conversations, chat)
    return tokenized(tokenizer, texts, labels, name=name, groups=groups, pairs=pairs, context=context, spans=spans)


def written_chats(
    name: str, tokenizer: Tokenizer, conversations: Sequence[Conversation], chat: ChatFormat
) -> tuple[list[str], dict[str, list[list[tuple[int, int]] | None]]]:
    """The text of each conversation, and for each named part its characters in each text (None: no such part).

    Raises:
      UserError: as in `from_chats`.
    """
    special = [token for i in sorted(tokenizer.special_ids) if (token := tokenizer.backend.id_to_token(i))]
    texts: list[str] = []
    spans: list[dict[str, list[tuple[int, int]]]] = []
    for row, conversation in enumerate(conversations):
        try:
            text, parts = chat.written(conversation)
        except UserError as error:
            raise UserError(f"{name}, example {row}: {error}") from None
        for number, turn in enumerate(conversation):
            if found := next((token for token in special if token in turn["content"]), None):
                raise UserError(
                    f"{name}: turn {number} of example {row} contains {found!r}, which the tokenizer reads as a "
                    "special token: change it, or leave the conversation out"
                )
        texts.append(text)
        spans.append(parts)
    names = dict.fromkeys(part for parts in spans for part in parts)
    return texts, {part: [parts.get(part) for parts in spans] for part in names}
