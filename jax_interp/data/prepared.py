"""Convert a corpus into token stores on disk and a tokenizer. This is done once; later calls read the files."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jax_interp.core.errors import UserError
from jax_interp.core.json_files import read_bytes
from jax_interp.core.processes import from_first_process, process_index
from jax_interp.data.stdlib import Corpus, Document, stdlib_corpus
from jax_interp.data.token_store import MANIFEST, TokenStore, open_token_store, pack, write_token_store
from jax_interp.data.tokenizer import Tokenizer, load_tokenizer, train_bpe

NEEDED = ("fingerprint", "max_documents", "python", "tokenizer_sha256", "validation_bytes")
"""What the manifest says about the corpus and is used later."""


@dataclass(frozen=True)
class TextConfig:
    """A corpus and the size of its vocabulary."""

    corpus: Literal["stdlib"] = "stdlib"
    """"stdlib": the source of the standard library of the running interpreter."""
    vocab_size: int = 2048
    """The size of the vocabulary, including BOS."""
    max_documents: int | None = None
    """Use about this many training documents (every k-th document). None: all. The validation split is not reduced."""


@dataclass(frozen=True)
class PreparedText:
    """A tokenizer, and both splits as token stores."""

    tokenizer: Tokenizer
    train: TokenStore
    validation: TokenStore
    about: dict[str, Any]
    """A description of the corpus (`Corpus.describe`)."""


def prepare_text(config: TextConfig, directory: str | Path) -> PreparedText:
    """Read the tokens of a corpus. If they do not exist yet, make them (about 10 s for the standard library).

    The files are `tokenizer.json`, one file per split, and a manifest, which is written last. An interrupted
    preparation starts again from the beginning. Of a run over several processes, the first one makes them.

    Args:
      config: the corpus and the vocabulary.
      directory: the directory of the tokens.

    Returns:
      The tokenizer and both splits.

    Raises:
      UserError: the directory contains the tokens of another corpus (of another Python version, for example) or of
        another config, or the text is too short for the vocabulary.
    """
    directory = Path(directory)
    corpus = _corpus(config)
    from_first_process(lambda: _write_if_missing(config, corpus, directory))
    if not (directory / MANIFEST).is_file():
        raise UserError(
            f"process 0 wrote the tokens to {directory}, and they are not there for process {process_index()}: give a "
            "directory on a disk that all processes share"
        )
    train, validation = (open_token_store(directory, split) for split in ("train", "validation"))
    about = train.manifest.about
    if lacks := [name for name in NEEDED if name not in about]:
        raise UserError(f"{directory} holds other tokens than prepare_text writes: its manifest has no {lacks[0]}")
    if about["fingerprint"] != corpus.fingerprint or about["max_documents"] != config.max_documents:
        raise UserError(
            f"{directory} holds the tokens of Python {about['python']}'s library (fingerprint "
            f"{about['fingerprint']!s:.12}, max_documents={about['max_documents']}), and this is Python "
            f"{corpus.python} (fingerprint {corpus.fingerprint[:12]}, max_documents={config.max_documents}); use "
            "the interpreter that wrote it, or a new directory"
        )
    file = directory / "tokenizer.json"
    if hashlib.sha256(read_bytes(file)).hexdigest() != about["tokenizer_sha256"]:
        raise UserError(f"{file} does not belong to the tokens in {directory}: remove the directory")
    tokenizer = load_tokenizer(file)
    if tokenizer.vocab_size != config.vocab_size:
        raise UserError(f"{directory} holds a tokenizer of {tokenizer.vocab_size} tokens, not {config.vocab_size}")
    return PreparedText(tokenizer, train, validation, about)


def _corpus(config: TextConfig) -> Corpus:
    corpus = stdlib_corpus()
    if config.max_documents is None or config.max_documents >= len(corpus.train):
        return corpus
    if config.max_documents < 1:
        raise UserError(
            f"max_documents={config.max_documents} must be at least 1, or None for all {len(corpus.train)} documents"
        )
    every = -(-len(corpus.train) // config.max_documents)
    return Corpus(corpus.train[::every], corpus.validation, corpus.fingerprint, corpus.python, corpus.skipped)


def _write_if_missing(config: TextConfig, corpus: Corpus, directory: Path) -> None:
    if not (directory / MANIFEST).is_file():
        _write(config, corpus, directory)


def _write(config: TextConfig, corpus: Corpus, directory: Path) -> None:
    tokenizer = train_bpe((document.text for document in corpus.train), config.vocab_size)
    if tokenizer.vocab_size != config.vocab_size or tokenizer.bos_id is None:
        raise UserError(
            f"the text gives only {tokenizer.vocab_size} tokens, fewer than vocab_size={config.vocab_size}; "
            "lower vocab_size or use more documents"
        )
    tokenizer.save(directory / "tokenizer.json")

    def tokens(documents: tuple[Document, ...]):
        ids = tokenizer.encode_batch([document.text for document in documents], bos=True)
        return pack(ids, vocab_size=config.vocab_size)

    sha256 = hashlib.sha256(read_bytes(directory / "tokenizer.json")).hexdigest()
    about = corpus.describe() | {"tokenizer_sha256": sha256, "max_documents": config.max_documents}
    splits = {"train": tokens(corpus.train), "validation": tokens(corpus.validation)}
    write_token_store(directory, splits, bos_id=tokenizer.bos_id, about=about)
