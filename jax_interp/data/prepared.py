"""From text to tokens on disk, once per run directory: corpus, tokenizer, token stores."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jax_interp.core.errors import UserError
from jax_interp.data.batches import TokenStore, open_store, pack, read_manifest, write_store
from jax_interp.data.stdlib import Corpus, Document, stdlib_corpus
from jax_interp.data.tokenizer import Tokenizer, load_tokenizer, train_bpe


@dataclass(frozen=True)
class TextConfig:
    """Which text, and how it is cut into tokens.

    `corpus="stdlib"` is the source of the running interpreter's standard library. `max_documents` keeps every k-th
    training document so that about that many are left; validation stays whole.
    """

    corpus: Literal["stdlib"] = "stdlib"
    vocab_size: int = 2048
    max_documents: int | None = None


@dataclass(frozen=True)
class PreparedText:
    """A tokenizer and both splits as token stores; `about` describes the corpus (`Corpus.describe`)."""

    tokenizer: Tokenizer
    train: TokenStore
    validation: TokenStore
    about: dict[str, Any]


def prepare_text(config: TextConfig, directory: str | Path) -> PreparedText:
    """The tokens of `config`'s corpus in `directory`: read if they are there, else made (about 10 s for the library).

    Writes `tokenizer.json`, one file per split and, last, a manifest, so that an interrupted preparation is made
    again. Raises `UserError` when `directory` holds the tokens of another corpus (another Python version, say) or of
    another config: a resumed run must go on with the very same data.
    """
    directory = Path(directory)
    corpus = _corpus(config)
    if read_manifest(directory) is None:
        _write(config, corpus, directory)
    train, validation = (open_store(directory, split) for split in ("train", "validation"))
    about = dict(train.manifest["about"])
    if about["fingerprint"] != corpus.fingerprint or about["max_documents"] != config.max_documents:
        raise UserError(
            f"{directory} holds the tokens of Python {about['python']}'s library (fingerprint "
            f"{about['fingerprint'][:12]}, max_documents={about['max_documents']}), and this is Python {corpus.python} "
            f"(fingerprint {corpus.fingerprint[:12]}, max_documents={config.max_documents}); use the interpreter that "
            "wrote it, or a new directory"
        )
    file = directory / "tokenizer.json"
    if file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() != about["tokenizer_sha256"]:
        raise UserError(f"{file} is not the one that the tokens in {directory} were made with: remove the directory")
    tokenizer = load_tokenizer(file)
    if tokenizer.vocab_size != config.vocab_size:
        raise UserError(f"{directory} holds a tokenizer of {tokenizer.vocab_size} tokens, not {config.vocab_size}")
    return PreparedText(tokenizer, train, validation, about)


def _corpus(config: TextConfig) -> Corpus:
    corpus = stdlib_corpus()
    if config.max_documents is None or config.max_documents >= len(corpus.train):
        return corpus
    if config.max_documents < 1:
        raise UserError(f"max_documents={config.max_documents}: at least 1, or None for all {len(corpus.train)}")
    every = -(-len(corpus.train) // config.max_documents)
    return Corpus(corpus.train[::every], corpus.validation, corpus.fingerprint, corpus.python, corpus.skipped)


def _write(config: TextConfig, corpus: Corpus, directory: Path) -> None:
    tokenizer = train_bpe((document.text for document in corpus.train), config.vocab_size)
    if tokenizer.vocab_size != config.vocab_size or tokenizer.bos_id is None:
        raise UserError(
            f"the text gives only {tokenizer.vocab_size} tokens, vocab_size={config.vocab_size} asks for more; "
            "lower it or use more documents"
        )
    tokenizer.save(directory / "tokenizer.json")

    def tokens(documents: tuple[Document, ...]):
        ids = tokenizer.encode_batch([document.text for document in documents], bos=True)
        return pack(ids, vocab_size=config.vocab_size)

    text = (directory / "tokenizer.json").read_bytes()
    about = corpus.describe() | {"tokenizer_sha256": hashlib.sha256(text).hexdigest()}
    about["max_documents"] = config.max_documents
    splits = {"train": tokens(corpus.train), "validation": tokens(corpus.validation)}
    write_store(directory, splits, bos_id=tokenizer.bos_id, about=about)
