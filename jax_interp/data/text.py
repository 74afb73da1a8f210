"""Encode a user's text for a model, as a training split and a validation split."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

import numpy as np
from jaxtyping import Bool, Int

from jax_interp.core.errors import UserError
from jax_interp.data.batches import WindowSampler, evaluation_windows, special_mask
from jax_interp.data.document_rows import DocumentRows
from jax_interp.data.documents import COLUMN, read_documents
from jax_interp.data.token_cache import cached_arrays
from jax_interp.data.token_store import pack
from jax_interp.training.row_batches import RowBatches

HELD_OUT = 0.1  # the validation part of a user's text: every tenth document, or the end of a single document

Rows = Literal["windows", "documents"]
Batch = tuple[Int[np.ndarray, "seq pos"], Bool[np.ndarray, "seq pos"]]


class TextTokenizer(Protocol):
    """The attributes and methods of a tokenizer that `text_for` uses. `data.tokenizer.Tokenizer` has them."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def bos_id(self) -> int | None: ...
    @property
    def special_ids(self) -> Collection[int]: ...
    @property
    def digest(self) -> str: ...
    def encode_batch(self, texts: Sequence[str], *, bos: bool) -> list[list[int]]: ...


@dataclass(frozen=True)
class Split:
    """Concatenated documents of token ids, and where each document starts."""

    tokens: Int[np.ndarray, " n"]
    starts: Int[np.ndarray, " documents"]


@dataclass(frozen=True)
class Text:
    """Two disjoint splits of a text. `text_for` makes it."""

    splits: dict[str, Split]
    """"train" and "validation"."""
    special: frozenset[int]
    """The ids of special tokens. Training and evaluation ignore their positions."""
    bos_id: int | None
    source: str
    """The `source` that was given to `text_for`."""
    rows: Rows = "windows"
    """What a row of a batch is (see `text_for`)."""

    @property
    def train(self) -> Int[np.ndarray, " n"]:
        """The tokens of the training split."""
        return self.splits["train"].tokens

    @property
    def validation(self) -> Int[np.ndarray, " n"]:
        """The tokens of the validation split."""
        return self.splits["validation"].tokens

    def fingerprint(self) -> str:
        """The SHA-256 of both splits. A resumed run uses it to check that the tokens are the same."""
        digest = hashlib.sha256()
        for split in (self.train, self.validation):
            digest.update(np.ascontiguousarray(split.astype(np.int32)).tobytes())
        return digest.hexdigest()

    def keep(self, tokens: Int[np.ndarray, "seq pos"]) -> Bool[np.ndarray, "seq pos"]:
        """False at special tokens."""
        return special_mask(tokens, self.special)

    def training_batches(self, batch: int, context: int, seed: int) -> RowBatches[Batch]:
        """Random rows of the training split.

        Args:
          batch: rows in a batch.
          context: tokens in a row.
          seed: the seed of the order.

        Returns:
          A function from a step number to (tokens, keep), both `[batch, context]`. It depends only on (seed, step). On
          a mesh over several processes each one reads only the rows of its devices.
        """
        if self.rows == "documents":
            return self._documents("train", context).batches(batch, seed).map(lambda rows: self._kept(*rows))
        sampler = WindowSampler(self.train, batch, context, seed=seed, stride=context)
        return RowBatches(batch, sampler.rows).map(lambda tokens: (tokens, self.keep(tokens)))

    def validation_batches(self, batch: int, context: int, sequences: int) -> list[Batch]:
        """Rows that are evenly spaced over the validation split, in full batches.

        Args:
          batch: rows in a batch.
          context: tokens in a row.
          sequences: the approximate number of rows in all batches.

        Returns:
          Pairs (tokens, keep), both `[batch, context]`.

        Raises:
          UserError: the split is shorter than one batch.
        """
        if self.rows == "documents":
            documents = self._documents("validation", context)
            whole, rows_at = len(documents), documents.at
        else:
            windows = evaluation_windows(self.validation, context, pad_id=self._pad_id, overlap=0)
            whole = len(windows) if len(windows) * context == self.validation.size else len(windows) - 1
            rows_at = lambda chosen: (windows[chosen], np.ones((len(chosen), context), bool))
        if whole < batch:
            raise UserError(
                f"the held-out part of {self.source} has {self.validation.size} tokens: {max(whole, 0)} rows of "
                f"{context}, less than one batch of {batch}; give more text, or a smaller batch or context"
            )
        count = min(whole, -(-sequences // batch) * batch) // batch * batch
        tokens, keep = self._kept(*rows_at(np.linspace(0, whole - 1, count).round().astype(int)))
        return list(zip(tokens.reshape(-1, batch, context), keep.reshape(-1, batch, context)))

    @property
    def _pad_id(self) -> int:
        return min(self.special) if self.special else 0

    def _documents(self, name: str, context: int) -> DocumentRows:
        split = self.splits[name]
        return DocumentRows(split.tokens, split.starts, context, self.bos_id, self._pad_id)

    def _kept(self, tokens: Int[np.ndarray, "seq pos"], real: Bool[np.ndarray, "seq pos"]) -> Batch:
        return tokens, real & self.keep(tokens)


def text_for(source: str, tokenizer: TextTokenizer, *, rows: Rows = "windows", column: str = COLUMN) -> Text:
    """Read a text and encode it. The tokens of a large text are kept in the user's cache folder.

    Args:
      source: "stdlib" for the standard library of the running interpreter. Otherwise a UTF-8 file; a .jsonl or
        .parquet file, in which every row is a document; or a directory of .txt, .py, .md, .jsonl and .parquet files.
      tokenizer: the tokenizer of the model.
      rows: "windows": the documents are concatenated, each with BOS first, and cut at any place. "documents": a row
        belongs to one document and begins with BOS; rows that are not full are padded at the end and masked.
      column: the column of .jsonl and .parquet files that holds the text.

    Returns:
      The text. For a user's own text, every tenth document is held out for validation. If there is only one document,
      its last tenth is held out.

    Raises:
      UserError: the text does not exist, or cannot be read.

    Example:
        text = text_for("stdlib", tokenizer)
        batch_at = text.training_batches(batch=16, context=128, seed=0)
    """
    if rows not in ("windows", "documents"):
        raise UserError(f"rows={rows!r}: give 'windows' or 'documents'")
    if source == "stdlib":
        from jax_interp.data.stdlib import stdlib_corpus

        corpus = stdlib_corpus()
        parts = [[d.text for d in split] for split in (corpus.train, corpus.validation)]
    else:
        parts = _split(read_documents(source, column))
    splits = {name: _encoded(part, tokenizer) for name, part in zip(("train", "validation"), parts)}
    return Text(splits, frozenset(tokenizer.special_ids), tokenizer.bos_id, source, rows)


def _encoded(documents: Sequence[str], tokenizer: TextTokenizer) -> Split:
    return Split(**cached_arrays([tokenizer.digest, *documents], partial(_encode, documents, tokenizer)))


def _encode(documents: Sequence[str], tokenizer: TextTokenizer) -> dict[str, np.ndarray]:
    ids = tokenizer.encode_batch(list(documents), bos=tokenizer.bos_id is not None)
    lengths = np.array([len(document) for document in ids], np.int64)
    return {"tokens": pack(ids, vocab_size=tokenizer.vocab_size), "starts": np.cumsum(lengths) - lengths}


def _split(documents: list[str]) -> tuple[list[str], list[str]]:
    if len(documents) == 1:
        cut = int(len(documents[0]) * (1 - HELD_OUT))
        return [documents[0][:cut]], [documents[0][cut:]]
    every = round(1 / HELD_OUT)
    held = set(range(every - 1, len(documents), every)) or {len(documents) - 1}
    train = [document for i, document in enumerate(documents) if i not in held]
    return train, [documents[i] for i in sorted(held)]
