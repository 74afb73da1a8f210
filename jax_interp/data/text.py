"""Encode a user's text for a model, as a training split and a validation split."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Int

from jax_interp.core.errors import UserError
from jax_interp.data.batches import WindowSampler, evaluation_windows, special_mask
from jax_interp.data.token_store import pack

HELD_OUT = 0.1  # the validation part of a user's text: every tenth document, or the end of a single document

Batch = tuple[Int[np.ndarray, "seq pos"], Bool[np.ndarray, "seq pos"]]


class TextTokenizer(Protocol):
    """The attributes and methods of a tokenizer that `text_for` uses. `data.tokenizer.Tokenizer` has them."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def bos_id(self) -> int | None: ...
    @property
    def special_ids(self) -> Collection[int]: ...
    def encode_batch(self, texts: Sequence[str], *, bos: bool) -> list[list[int]]: ...


@dataclass(frozen=True)
class Text:
    """Two disjoint splits of a text, as flat arrays of concatenated documents. `text_for` makes it."""

    train: Int[np.ndarray, " n"]
    validation: Int[np.ndarray, " n"]
    special: frozenset[int]
    """The ids of special tokens. Training and evaluation ignore their positions."""
    source: str
    """The `source` that was given to `text_for`."""

    def fingerprint(self) -> str:
        """The SHA-256 of both splits. A resumed run uses it to check that the tokens are the same."""
        digest = hashlib.sha256()
        for split in (self.train, self.validation):
            digest.update(np.ascontiguousarray(split.astype(np.int32)).tobytes())
        return digest.hexdigest()

    def keep(self, tokens: Int[np.ndarray, "seq pos"]) -> Bool[np.ndarray, "seq pos"]:
        """False at special tokens."""
        return special_mask(tokens, self.special)

    def training_batches(self, batch: int, context: int, seed: int) -> Callable[[int], Batch]:
        """Random windows of the training split.

        Args:
          batch: windows in a batch.
          context: tokens in a window.
          seed: the seed of the order.

        Returns:
          A function from a step number to (tokens, keep), both `[batch, context]`. It depends only on (seed, step).
        """
        sampler = WindowSampler(self.train, batch, context, seed=seed, stride=context)

        def batch_at(step: int) -> Batch:
            tokens = sampler.batch_at(step)
            return tokens, self.keep(tokens)

        return batch_at

    def validation_batches(self, batch: int, context: int, sequences: int) -> list[Batch]:
        """Windows that are evenly spaced over the validation split, in full batches.

        Args:
          batch: windows in a batch.
          context: tokens in a window.
          sequences: the approximate number of windows in all batches.

        Returns:
          Pairs (tokens, keep), both `[batch, context]`.

        Raises:
          UserError: the split is shorter than one batch.
        """
        pad = min(self.special) if self.special else 0
        windows = evaluation_windows(self.validation, context, pad_id=pad, overlap=0)
        whole = len(windows) if len(windows) * context == self.validation.size else len(windows) - 1
        if whole < batch:
            raise UserError(
                f"the held-out part of {self.source} has {self.validation.size} tokens: less than one batch of {batch} "
                f"windows of {context}; give more text, or a smaller batch or context"
            )
        count = min(whole, -(-sequences // batch) * batch) // batch * batch
        chosen = windows[:whole][np.linspace(0, whole - 1, count).round().astype(int)]
        return [(rows, self.keep(rows)) for rows in chosen.reshape(-1, batch, context)]


def text_for(source: str, tokenizer: TextTokenizer) -> Text:
    """Read a text and encode it.

    Args:
      source: "stdlib" for the standard library of the running interpreter (a few seconds). Otherwise a UTF-8 file, or a
        directory in which every .txt, .py and .md file is a document.
      tokenizer: the tokenizer of the model.

    Returns:
      The text. For a user's own text, every tenth document is held out for validation. If there is only one document,
      its last tenth is held out.

    Raises:
      UserError: the text does not exist, or is not UTF-8.

    Example:
        text = text_for("stdlib", tokenizer)
        batch_at = text.training_batches(batch=16, context=128, seed=0)
    """
    if source == "stdlib":
        from jax_interp.data.stdlib import stdlib_corpus

        corpus = stdlib_corpus()
        train, validation = ([d.text for d in split] for split in (corpus.train, corpus.validation))
    else:
        train, validation = _split(_documents(Path(source)))
    parts = [_tokens(documents, tokenizer) for documents in (train, validation)]
    return Text(*parts, special=frozenset(tokenizer.special_ids), source=source)


def _tokens(documents: Sequence[str], tokenizer: TextTokenizer) -> np.ndarray:
    ids = tokenizer.encode_batch(list(documents), bos=tokenizer.bos_id is not None)
    return pack(ids, vocab_size=tokenizer.vocab_size)


def _documents(path: Path) -> list[str]:
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix in (".txt", ".py", ".md") and p.is_file())
    else:
        files = [path]
    try:
        documents = [file.read_text(encoding="utf-8") for file in files]
    except OSError as error:
        raise UserError(f"no text at {path}: {error.strerror}; give 'stdlib', a file or a directory") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}") from error
    if not any(documents):
        raise UserError(f"no text in {path}: a directory is searched for .txt, .py and .md files")
    return documents


def _split(documents: list[str]) -> tuple[list[str], list[str]]:
    if len(documents) == 1:
        cut = int(len(documents[0]) * (1 - HELD_OUT))
        return [documents[0][:cut]], [documents[0][cut:]]
    every = round(1 / HELD_OUT)
    held = set(range(every - 1, len(documents), every)) or {len(documents) - 1}
    train = [document for i, document in enumerate(documents) if i not in held]
    return train, [documents[i] for i in sorted(held)]
