"""Text on which the side effects of steering are measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jax_interp.core.errors import UserError
from jax_interp.data.stdlib import stdlib_corpus
from jax_interp.data.tokenizer import Tokenizer


def neutral_windows(
    tokenizer: Tokenizer, file: Path | None, count: int, length: int, seed: int = 0
) -> list[tuple[int, ...]]:
    """Windows of a text, as tokens, BOS first if the tokenizer has one.

    Args:
      tokenizer: the tokenizer of the model.
      file: a UTF-8 text. None: the held-out modules of Python's standard library.
      count: the number of windows.
      length: the number of tokens of each window, BOS included.
      seed: which windows are drawn.

    Raises:
      UserError: the file cannot be read, or has less tokens than one window.
    """
    texts = [document.text for document in stdlib_corpus().validation] if file is None else [_read(file)]
    start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    size = length - len(start)
    windows = []
    for ids in tokenizer.encode_batch(texts, bos=False):
        windows += [(*start, *ids[i : i + size]) for i in range(0, len(ids) - size + 1, size)]
    if not windows:
        where = "the held-out text" if file is None else str(file)
        raise UserError(f"{where} has less than {size} tokens: give a longer text, or shorter windows")
    chosen = np.sort(np.random.default_rng(seed).permutation(len(windows))[:count])
    return [windows[i] for i in chosen.tolist()]


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text: {error}") from None
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from error
