"""Text generation: continue prompts, and end each continuation at a stop token or a stop string."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Array

from jax_interp.core.errors import UserError
from jax_interp.data.tokenizer import Tokenizer
from jax_interp.models.generation.generate import GREEDY, generate, pad_left, stream
from jax_interp.models.generation.sampling import Chooser, Number
from jax_interp.surgery.contract import Model


@dataclass(frozen=True)
class Completion:
    """The continuation of one prompt."""

    text: str
    """The new text, without the stop token or stop string that ended it."""
    tokens: list[int]
    """The new tokens, without the stop token. The tokens of a stop string are included."""
    stopped_by: int | str | None
    """The stop token or stop string that ended the text. None: all `n_new` tokens were generated."""


def complete(
    model: Model,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    n_new: int,
    *,
    bos: bool,
    stop: Sequence[int | str] = (),
    choose: Chooser = GREEDY,
    key: Array | None = None,
    repetition_penalty: Number | None = None,
) -> list[Completion]:
    r"""Continue each prompt by at most `n_new` tokens.

    Args:
      model: a `Decoder`, with any edits.
      tokenizer: the tokenizer of the model.
      prompts: texts.
      n_new: the maximum number of new tokens.
      bos: whether to put the document-start token before each prompt.
      stop: token ids and strings that end a text. A stop string is found anywhere in the new text, also if it spans
        several tokens. With stop strings the loop runs on the host, token by token. Without them the whole generation
        is one compiled program.
      choose: how to choose a token, as in `generate`.
      key: a PRNG key, for a chooser that samples.
      repetition_penalty: makes tokens that already occur in the row less likely, as in `generate`.

    Returns:
      One `Completion` for each prompt.

    Raises:
      UserError: for the same reasons as in `generate`. Also if `prompts` or `stop` is a string and not a list, or a
        stop string is empty.

    Example:
        (completion,) = complete(model, tokenizer, ["def mean(self"], 24, bos=True, stop=["\n\n"])
        print(completion.text, completion.stopped_by)
    """
    if isinstance(prompts, str):
        raise UserError("complete takes a list of prompts: [prompt]")
    ids = tokenizer.encode_batch(prompts, bos=bos)
    tokens, mask = pad_left(ids)
    options = {"mask": mask, "choose": choose, "key": key, "repetition_penalty": repetition_penalty}
    stop_ids, stop_strings = _by_kind(stop)
    if not stop_strings:
        rows = np.asarray(generate(model, tokens, n_new, stop=stop_ids, **options)).tolist()
        return [completion_of(tokenizer, prompt, row, stop_ids, ()) for prompt, row in zip(ids, rows, strict=True)]
    rows: list[list[int]] = [[] for _ in ids]
    unfinished = set(range(len(ids)))
    for column in stream(model, tokens, n_new, stop=stop_ids, **options):
        for i in sorted(unfinished):
            rows[i].append(int(column[i]))
            if completion_of(tokenizer, ids[i], rows[i], stop_ids, stop_strings).stopped_by is not None:
                unfinished.discard(i)
        if not unfinished:
            break
    return [
        completion_of(tokenizer, prompt, row, stop_ids, stop_strings) for prompt, row in zip(ids, rows, strict=True)
    ]


def stream_text(
    model: Model,
    tokenizer: Tokenizer,
    prompt: str,
    n_new: int,
    *,
    bos: bool,
    stop: Sequence[int | str] = (),
    choose: Chooser = GREEDY,
    key: Array | None = None,
    repetition_penalty: Number | None = None,
) -> Iterator[str]:
    """Yield the text of `complete` for one prompt in parts, as soon as each part is final.

    A part is final when later tokens cannot change it. An incomplete character, and text that may become a stop string,
    are held back until then.

    Args:
      model: a `Decoder`, with any edits.
      tokenizer: the tokenizer of the model.
      prompt: the text to continue.
      n_new: the maximum number of new tokens.
      bos: whether to put the document-start token before the prompt.
      stop: token ids and strings that end the text, as in `complete`.
      choose: how to choose a token, as in `generate`.
      key: a PRNG key, for a chooser that samples.
      repetition_penalty: makes tokens that already occur in the text less likely.

    Returns:
      An iterator of strings. Their concatenation is the text of the completion.

    Example:
        for part in stream_text(model, tokenizer, "def mean(self", 24, bos=True):
            print(part, end="", flush=True)
    """
    ids = tokenizer.encode(prompt, bos=bos)
    tokens, _ = pad_left([ids])
    stop_ids, stop_strings = _by_kind(stop)
    columns = stream(model, tokens, n_new, stop=stop_ids, choose=choose, key=key,
                     repetition_penalty=repetition_penalty)  # fmt: skip

    def parts() -> Iterator[str]:
        row, n_given = [], 0
        for column in columns:
            row.append(int(column[0]))
            now = completion_of(tokenizer, ids, row, stop_ids, stop_strings)
            ended = now.stopped_by is not None or len(row) == n_new
            certain = now.text if ended else stable_prefix(now.text, stop_strings)
            if len(certain) > n_given:
                yield certain[n_given:]
                n_given = len(certain)
            if now.stopped_by is not None:
                return

    return parts()


def stable_prefix(text: str, stop_strings: Sequence[str]) -> str:
    """The part of a growing text that later text cannot change.

    This excludes an incomplete character (U+FFFD) at the end, and an ending that is the beginning of a stop string.
    """
    text = text.rstrip("\ufffd")
    begun = (n for stop in stop_strings for n in range(1, len(stop)) if text.endswith(stop[:n]))
    return text[: len(text) - max(begun, default=0)]


def continuation(tokenizer: Tokenizer, prompt: Sequence[int], new: Sequence[int]) -> str:
    """The text that the tokens `new` add to the text of the tokens `prompt`.

    A leading space is kept, even if the tokenizer drops it at the start of a text. Special tokens have no text.

    Raises:
      UserError: a token is -1, which `generate` returns where no token can be chosen.
    """
    if min(new, default=0) < 0:
        raise UserError(
            "the logits became NaN, or minus infinity for every token: a traced index of an edit may be out of range, "
            "or the weights may be damaged"
        )
    before = tokenizer.decode(prompt, skip_special=True)
    return tokenizer.decode([*prompt, *new], skip_special=True)[len(before) :]


def completion_of(
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    new: Sequence[int],
    stop_ids: Sequence[int],
    stop_strings: Sequence[str],
) -> Completion:
    """The completion of a row of new tokens, cut at the first stop.

    Args:
      tokenizer: the tokenizer of the model.
      prompt: the tokens before the new tokens.
      new: the new tokens.
      stop_ids: tokens that end the text.
      stop_strings: strings that end the text.
    """
    end = next((i for i, token in enumerate(new) if token in stop_ids), None)
    tokens = list(new if end is None else new[:end])
    text = continuation(tokenizer, prompt, tokens)
    stops = sorted((text.index(stop), -len(stop), stop) for stop in stop_strings if stop in text)
    if stops:  # the first stop; if several begin at the same place, the longest
        place, _, stop = stops[0]
        return Completion(text[:place], tokens, stop)
    return Completion(text, tokens, None if end is None else new[end])


def _by_kind(stop: Sequence[int | str]) -> tuple[list[int], list[str]]:
    """The token ids and the strings of `stop`."""
    if isinstance(stop, str):
        raise UserError(f"stop takes a list: [{stop!r}]")
    strings = [s for s in stop if isinstance(s, str)]
    if "" in strings:
        raise UserError("a stop string must not be empty")
    return [int(token) for token in stop if not isinstance(token, str)], strings
