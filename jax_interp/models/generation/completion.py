"""Generation in text: prompts in, continuations out, cut at stop tokens and stop strings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Array

from jax_interp.core.errors import UserError
from jax_interp.models.generation.generate import GREEDY, generate, pad_left, stream

if TYPE_CHECKING:
    from jax_interp.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Completion:
    """What a model wrote after one prompt."""

    text: str
    """The new text, up to where it was stopped; what stopped it is left out."""
    tokens: list[int]
    """The new tokens, without a stop token. With a stop string they go on to the token that completed it."""
    stopped_by: int | str | None
    """The stop token or stop string that ended it; None: all tokens that were allowed were written."""


def complete(
    model: Callable,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    n_new: int,
    *,
    bos: bool,
    stop: Sequence[int | str] = (),
    choose: Callable = GREEDY,
    key: Array | None = None,
    repetition_penalty: Any = None,
) -> list[Completion]:
    """A continuation of each prompt, of at most `n_new` tokens.

    `stop` has token ids and strings. Strings are found wherever they come about in the text, across tokens too; they
    are looked for on the host after each token, so with them it runs token by token, and ends when all rows have ended.
    The other arguments are `generate`'s; `bos` is the tokenizer's.
    """
    if isinstance(prompts, str):
        raise UserError("complete takes a list of prompts: [prompt]")
    ids = tokenizer.encode_batch(prompts, bos=bos)
    tokens, mask = pad_left(ids)
    how = {"mask": mask, "choose": choose, "key": key, "repetition_penalty": repetition_penalty}
    stop_ids, stop_strings = _stops(stop)
    if not stop_strings:
        rows = np.asarray(generate(model, tokens, n_new, stop=stop_ids, **how)).tolist()
        return [_row(tokenizer, prompt, row, stop_ids, ()) for prompt, row in zip(ids, rows, strict=True)]
    rows: list[list[int]] = [[] for _ in ids]
    open_rows = set(range(len(ids)))
    for column in stream(model, tokens, n_new, stop=stop_ids, **how):
        for i in sorted(open_rows):
            rows[i].append(int(column[i]))
            if _row(tokenizer, ids[i], rows[i], stop_ids, stop_strings).stopped_by is not None:
                open_rows.discard(i)
        if not open_rows:
            break
    return [_row(tokenizer, prompt, row, stop_ids, stop_strings) for prompt, row in zip(ids, rows, strict=True)]


def stream_text(
    model: Callable,
    tokenizer: Tokenizer,
    prompt: str,
    n_new: int,
    *,
    bos: bool,
    stop: Sequence[int | str] = (),
    choose: Callable = GREEDY,
    key: Array | None = None,
    repetition_penalty: Any = None,
) -> Iterator[str]:
    """The text of `complete` for one prompt, in pieces as it comes: joined they are the same.

    Held back until what follows decides: the bytes of a character that is not complete, and a text that may become a
    stop string.
    """
    ids = tokenizer.encode(prompt, bos=bos)
    tokens, _ = pad_left([ids])
    stop_ids, stop_strings = _stops(stop)
    columns = stream(model, tokens, n_new, stop=stop_ids, choose=choose, key=key,
                     repetition_penalty=repetition_penalty)  # fmt: skip

    def pieces():
        row, said = [], 0
        for column in columns:
            row.append(int(column[0]))
            now = _row(tokenizer, ids, row, stop_ids, stop_strings)
            sure = now.text if now.stopped_by is not None or len(row) == n_new else settled(now.text, stop_strings)
            if len(sure) > said:
                yield sure[said:]
                said = len(sure)
            if now.stopped_by is not None:
                return

    return pieces()


def settled(text: str, stop_strings: Sequence[str]) -> str:
    """The part of a growing text that what follows cannot change: less an unfinished character (U+FFFD) at its end, and
    an ending that begins a stop string."""
    text = text.rstrip("\ufffd")
    held = (n for stop in stop_strings for n in range(1, len(stop)) if text.endswith(stop[:n]))
    return text[: len(text) - max(held, default=0)]


def continuation(tokenizer: Tokenizer, prompt: Sequence[int], new: Sequence[int]) -> str:
    """The text that `new` tokens add to those of `prompt`; a leading space that a tokenizer drops from a text that
    begins with it is kept. Special tokens have no text."""
    if min(new, default=0) < 0:
        raise UserError(
            "the logits became NaN: an edit's index that is data may lie outside, or the weights are damaged"
        )
    before = tokenizer.decode(prompt, skip_special=True)
    return tokenizer.decode([*prompt, *new], skip_special=True)[len(before) :]


def _row(tokenizer: Tokenizer, prompt: Sequence[int], new: Sequence[int], stop_ids: Sequence[int],
         stop_strings: Sequence[str]) -> Completion:  # fmt: skip
    """What a row of new tokens says, cut at the first stop."""
    end = next((i for i, token in enumerate(new) if token in stop_ids), None)
    tokens = list(new if end is None else new[:end])
    text = continuation(tokenizer, prompt, tokens)
    found = sorted((text.index(stop), -len(stop), stop) for stop in stop_strings if stop in text)
    if found:  # the first; of several there, the longest
        return Completion(text[: found[0][0]], tokens, found[0][2])
    return Completion(text, tokens, None if end is None else new[end])


def _stops(stop: Sequence[int | str]) -> tuple[list[int], list[str]]:
    """Token ids and strings apart."""
    if isinstance(stop, str):
        raise UserError(f"stop takes a list: [{stop!r}]")
    strings = [one for one in stop if isinstance(one, str)]
    if "" in strings:
        raise UserError("a stop string must not be empty")
    return [int(one) for one in stop if not isinstance(one, str)], strings
